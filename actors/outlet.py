"""The pieces on their way from running requests to one address, in one batch for all of them.

Requests append to `pieces`; who has read for all of them pushes the whole list on, at once (`push`), and where a
request has something by itself, or the receiver has no room, one task does (`wake`, `flush`). A receiver that does
not take is felt by the requests: past `MOST_WAITING` pieces they wait in `room`. If nobody is at the address any
more, its requests are cancelled.
"""

from __future__ import annotations

import logging

import trio

from protocol.errors import Fault
from protocol.mail import Gone, Ref
from protocol.streamer import Piece, Pieces

log = logging.getLogger(__name__)

MOST_WAITING = 4096  # pieces that wait for one address; some seconds of text of hundreds of streams


class Outlet:
    """The pieces on their way to one address."""

    def __init__(self, ref: Ref[Pieces]) -> None:
        self.ref = ref
        self.pieces: list[Piece] = []
        self.requests: dict[int, trio.CancelScope] = {}
        self._sending: list[Piece] = []
        """What waits for room in the receiver's mailbox."""
        self._wake = trio.Event()
        self._room = trio.Event()

    def wake(self) -> None:
        """There is something to send, or nothing more to wait for."""
        self._wake.set()

    @property
    def full(self) -> bool:
        """Requests must wait for room before they go on."""
        return len(self.pieces) >= MOST_WAITING

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.full:
            await self._room.wait()

    def push(self) -> None:
        """Send what there is, if that needs no waiting; else `flush` does."""
        if not self.pieces:
            return
        if not self._sending:  # what is pushed would overtake it
            try:
                if self.ref.push(Pieces(self.pieces)):
                    was_full = self.full
                    self.pieces = []  # a fresh list: the one that was sent is the receiver's now
                    if was_full:
                        self._has_room()
                    return
            except (Gone, Fault):
                pass  # `flush` meets it too
        self._wake.set()

    def _has_room(self) -> None:
        self._room.set()
        self._room = trio.Event()

    def forget(self, request: int) -> None:
        """Nothing more of that request leaves here."""
        # The batch in hand is only waiting for room in the receiver's mailbox: it is still ours.
        for pieces in (self.pieces, self._sending):
            pieces[:] = [piece for piece in pieces if piece.request != request]

    async def flush(self) -> None:
        """Send batches as long as there are requests or pieces."""
        while self.requests or self.pieces:
            await self._wake.wait()
            self._wake = trio.Event()
            self._sending, self.pieces = self.pieces, []
            self._has_room()
            if not self._sending:
                continue
            try:
                await self.ref.send(Pieces(self._sending))
            except Gone:
                if self.requests:
                    log.warning("nobody is at %s: its %d requests are cancelled", self.ref.path, len(self.requests))
                self.pieces.clear()
                for scope in self.requests.values():
                    scope.cancel()
            # A fresh list: the one that was sent is the receiver's now.
            self._sending = []


class Outlets(dict[str, Outlet]):
    """Those of all addresses, by address."""

    def push(self) -> None:
        """Something was read for some of them."""
        for outlet in self.values():
            outlet.push()

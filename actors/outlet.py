"""The pieces on their way from running requests to one address, in one batch for all of them.

Requests append to `pieces`; who has read for some of them, or ends one, pushes the whole list on, at once. Only where
the receiver has no room, a task waits for it. A receiver that does not take is felt by the requests: past
`MOST_WAITING` pieces they wait in `room`. If nobody is at the address any more, its requests are cancelled.
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from protocol.errors import Fault
from protocol.mail import Gone, Ref
from protocol.streamer import Piece, Pieces

log = logging.getLogger(__name__)

MOST_WAITING = 4096  # pieces that wait for one address; some seconds of text of hundreds of streams


class Running(Protocol):
    """A request."""

    def cancel(self) -> None:
        """End it without a word."""


class Outlet:
    """The pieces on their way to one address.

    Args:
        nursery: where what needs waiting is sent; outlives the requests.
    """

    def __init__(self, ref: Ref[Pieces], nursery: trio.Nursery) -> None:
        self.ref = ref
        self.pieces: list[Piece] = []
        self.requests: dict[int, Running] = {}
        self._nursery = nursery
        self._flushes = False
        """There is a task that sends."""
        self._sending: list[Piece] = []
        """What waits for room in the receiver's mailbox."""
        self._room = trio.Event()

    @property
    def full(self) -> bool:
        """Requests must wait for room before they go on."""
        return len(self.pieces) >= MOST_WAITING

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.full:
            await self._room.wait()

    def push(self) -> None:
        """Send what there is: now, if that needs no waiting."""
        if not self.pieces or self._flushes:  # what is pushed would overtake what waits
            return
        try:
            if self.ref.push(Pieces(self.pieces)):
                was_full = self.full
                self.pieces = []  # a fresh list: the one that was sent is the receiver's now
                if was_full:
                    self._has_room()
                return
        except (Gone, Fault):
            pass  # `_flush` meets it too
        self._flushes = True
        self._nursery.start_soon(self._flush, name=f"outlet {self.ref.path}")

    def _has_room(self) -> None:
        self._room.set()
        self._room = trio.Event()

    def forget(self, request: int) -> None:
        """Nothing more of that request leaves here."""
        # The batch in hand is only waiting for room in the receiver's mailbox: it is still ours.
        for pieces in (self.pieces, self._sending):
            pieces[:] = [piece for piece in pieces if piece.request != request]

    async def _flush(self) -> None:
        """Send batches as long as there are pieces."""
        while self.pieces:
            self._sending, self.pieces = self.pieces, []
            self._has_room()
            try:
                await self.ref.send(Pieces(self._sending))
            except Gone:
                if self.requests:
                    log.warning("nobody is at %s: its %d requests are cancelled", self.ref.path, len(self.requests))
                self.pieces.clear()
                for request in tuple(self.requests.values()):
                    request.cancel()
            # A fresh list: the one that was sent is the receiver's now.
            self._sending = []
        self._flushes = False


class Outlets(dict[str, Outlet]):
    """Those of all addresses, by address."""

    def push(self) -> None:
        """Something was read for some of them."""
        for outlet in self.values():
            outlet.push()

"""Another process as this one sees it: which port leads there, what waits for one, and which of its actors are up.

Mail that a port has no credit for waits here, and so does mail for a process that is not there for now: as it
would in the mailbox of a busy actor, or of one that is being restarted. The next port takes it, in order. What
was under way on a port that ended is lost; those asks are `Gone`. An address that is full at the other end is
full here: offers are refused, asks are `Overloaded`, who sends waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import trio

from protocol.errors import Fault
from protocol.mail import Counters
from protocol.packing import WINDOW
from protocol.reply import Gone, Overloaded, Reply
from supervisors.port import Port

log = logging.getLogger("supervisors.exchange")

QUEUE = 4096  # messages that may wait for a port or for credit: what the largest mailbox takes


class Waiting(NamedTuple):
    """A message before there is a port."""

    to: str
    message: object
    reply: Reply | None
    waits: bool


class Peer:
    """One role and the process that has it.

    Args:
        role: never our own.
        reachable: whether a port may come, when there is none.
        wanted: called when mail waits for a port.
    """

    def __init__(self, role: str, reachable: Callable[[], bool], wanted: Callable[[Peer], None]) -> None:
        self.role = role
        self.port: Port | None = None
        """Takes our mail; the peer has said Hello on it."""
        self.attempt: Port | None = None
        """A connection of ours on which the peer has not said Hello yet."""
        self.known = False
        """It has been there; so we connect again when it is gone."""
        self.changed = trio.Event()
        """Set, and made anew, when `port` or what is wanted changed."""
        self.counters = Counters()
        """Of all mail to it: refused (no room), dead (nobody there)."""
        self.senders = trio.lowlevel.ParkingLot()
        self.waiting: dict[int, Waiting] = {}
        self._number = 0
        self._reachable = reachable
        self._wanted = wanted

    @property
    def closed(self) -> bool:
        """No port, and none may come."""
        return self.port is None and not self._reachable()

    def depth(self, to: str) -> int:
        """Messages under way or waiting for a port; WINDOW where who sends must wait."""
        if self.port is None:
            return len(self.waiting)
        return WINDOW if self.waiting or self.port.mail.full(to) else self.port.mail.under_way

    def put(self, to: str, message: object, reply: Reply | None, *, waits: bool) -> bool:
        """As `Inlet.put`. Raises Fault (MESSAGE_TOO_LARGE) to a sender that waits, TypeError for what is no data."""
        if self.closed:
            self.counters.dead += 1
            return False
        port = self.port
        if port is not None and not self.waiting and port.mail.under_way < WINDOW and not port.mail.full(to):
            try:
                port.mail.put(to, message, reply, waits=waits)
            except Fault as fault:
                if waits:
                    raise
                log.warning("not sent: %s", fault)
                self.counters.refused += 1
                return False
            return True
        if (port is not None and (waits or port.mail.full(to))) or len(self.waiting) >= (WINDOW if waits else QUEUE):
            self.counters.refused += 1
            return False
        self._number += 1
        self.waiting[self._number] = Waiting(to, message, reply, waits)
        if reply is not None:
            reply.when_closed(partial(self._given_up, self._number))
        if port is None:
            self.change()
            self._wanted(self)
        return True

    def _given_up(self, number: int, _: Reply) -> None:
        self.waiting.pop(number, None)

    def switch(self, port: Port | None) -> None:
        """From now on mail goes there; what waited goes first. None: the port has ended."""
        self.port = port
        if port is not None:
            self.known = True
            self.go_on()
        elif self.closed:
            self.give_up()
        self.change()
        self.senders.unpark_all()

    def go_on(self) -> None:
        """The port takes more: what waits goes, then those who wait to send."""
        while self.port is not None and self.waiting and self.port.mail.under_way < WINDOW:
            mail = self.waiting.pop(next(iter(self.waiting)))
            if self.port.mail.full(mail.to):
                self.counters.refused += 1
                if mail.reply is not None:
                    mail.reply.fault(Overloaded(mail.to))
                continue
            try:
                self.port.mail.put(mail.to, mail.message, mail.reply, waits=mail.waits)
            except (Fault, TypeError) as error:
                # Its sender has gone on: it was told that the message is on its way.
                log.error("a message to %s was lost: %s", mail.to, error)  # noqa: TRY400 - nothing more to say
        if not self.waiting:
            self.senders.unpark_all()

    def give_up(self) -> None:
        """Nobody will come: who waits for an answer gets Gone."""
        waiting, self.waiting = self.waiting, {}
        for mail in waiting.values():
            if mail.reply is not None:
                mail.reply.fault(Gone(mail.to))

    def change(self) -> None:
        """Let who waits for a change look again."""
        self.changed.set()
        self.changed = trio.Event()


class RemoteInlet:
    """`Inlet` of an address in another process."""

    __slots__ = ("_path", "_peer")

    limit = WINDOW

    def __init__(self, peer: Peer, path: str) -> None:
        self._peer = peer
        self._path = path

    @property
    def closed(self) -> bool:
        """No process has it, and none is expected."""
        return self._peer.closed

    @property
    def depth(self) -> int:
        """Messages under way; the limit where the address takes none now."""
        return self._peer.depth(self._path)

    @property
    def counters(self) -> Counters:
        """Of all mail to that process."""
        return self._peer.counters

    def put(self, message: object, reply: Reply | None = None, waits: bool = False) -> bool:
        """Send, or keep until there is a port; False where there is no room."""
        return self._peer.put(self._path, message, reply, waits=waits)

    def nudge(self) -> None:
        """Nothing: a nudge stays at home."""
        self._peer.counters.dead += 1

    async def wait_for_room(self) -> None:
        """Wait until a message may be sent, or nobody is expected any more."""
        while not self._peer.closed and self.depth >= WINDOW:
            await self._peer.senders.park()

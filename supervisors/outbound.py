"""What we want of the process at the other end of a port: messages to its actors, and their answers. No I/O.

Messages leave while there is credit and their address takes any; an ask is remembered until it is answered,
faulted, missed, or given up by its asker, of which the peer is told. What can fail: a message that is too large
or nested too deeply is a Fault; with the port's end all open asks are `Gone`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from protocol.errors import Code, Fault
from protocol.frames import Answered, Asked, Cast, Credit, Dropped, Faulted, Full, Missed, Room
from protocol.packing import Flow, Packer, TooLarge
from protocol.reply import Gone, MailError, Overloaded, Reply, TooSlow
from protocol.vocabulary import Unspeakable, Vocabulary, encoded

log = logging.getLogger("supervisors.port")

MISSES: dict[str, type[MailError]] = {"gone": Gone, "overloaded": Overloaded, "too_slow": TooSlow}
"""What `Missed.how` means to the asker."""


class Outbound:
    """The sending side of one port.

    Args:
        packer, flow: of the port.
        wake: called when something was packed.
        more: called when more may be sent than before.
    """

    def __init__(
        self, packer: Packer, flow: Flow, vocabulary: Vocabulary, wake: Callable[[], None], more: Callable[[], None]
    ) -> None:
        self._packer = packer
        self._flow = flow
        self._vocabulary = vocabulary
        self._wake = wake
        self._more = more
        self._full: set[str] = set()  # addresses that take nothing now
        self._open: dict[int, tuple[str, type, Reply]] = {}
        self._last = 0

    @property
    def asks(self) -> int:
        """Asks that are not answered yet."""
        return len(self._open)

    @property
    def under_way(self) -> int:
        """Messages that were sent and are not known to have arrived; at WINDOW none may be sent."""
        return self._flow.under_way

    def full(self, to: str) -> bool:
        """Messages wait before that mailbox: none may be sent to it."""
        return to in self._full

    def put(self, to: str, message: object, reply: Reply | None, *, waits: bool) -> None:
        """Pack a message; less than WINDOW were under way, and the address was not full.

        Raises: Fault (MESSAGE_TOO_LARGE; for an ask it goes to the asker), TypeError for what is no data.
        """
        try:
            body = encoded(message)
            if reply is None:
                self._packer.add(Cast(to, waits, memoryview(body)), to, len(body))
            else:
                self._last += 1
                self._packer.add(Asked(self._last, to, memoryview(body)), to, len(body))
        except (Unspeakable, TooLarge) as error:
            fault = Fault(Code.MESSAGE_TOO_LARGE, f"{type(message).__name__} to {to}: {error}.")
            if reply is None:
                raise fault from None
            reply.fault(fault)
            return
        self._flow.sent()
        if reply is not None:
            self._open[self._last] = (to, type(message), reply)
            reply.when_closed(partial(self._given_up, self._last, to))
        self._wake()

    def _given_up(self, number: int, to: str, _: Reply) -> None:
        # Also called when the slot was answered from here; then nothing is open under that number any more.
        if self._open.pop(number, None) is not None:
            self._packer.add(Dropped(number), to)
            self._wake()

    def end(self) -> None:
        """The port has ended: nobody answers."""
        asks, self._open = self._open, {}
        for to, _, reply in asks.values():
            reply.fault(Gone(to))

    # What the peer says to it. Numbers that are not open were given up meanwhile.

    def answered(self, item: Answered) -> None:
        """An answer."""
        if (ask := self._open.pop(item.id, None)) is not None:
            to, kind, reply = ask
            try:
                reply.answer(self._vocabulary.answer(kind, item.body))
            except Unspeakable as error:
                log.error("%s gave %s", to, error)  # noqa: TRY400 - it says all that there is to know
                reply.fault(Fault(Code.INTERNAL))

    def faulted(self, item: Faulted) -> None:
        """The actor's fault."""
        if (ask := self._open.pop(item.id, None)) is not None:
            ask[2].fault(Fault.of(item.fault))

    def missed(self, item: Missed) -> None:
        """Nobody answers."""
        if (ask := self._open.pop(item.id, None)) is not None:
            ask[2].fault(MISSES.get(item.how, Gone)(item.text))

    def credited(self, item: Credit) -> None:
        """More may be sent. Raises BadFrame."""
        self._flow.credited(item)
        self._more()

    def held(self, item: Full) -> None:
        """Nothing may be sent to that address."""
        self._full.add(item.to)

    def freed(self, item: Room) -> None:
        """It may be again."""
        self._full.discard(item.to)
        self._more()

"""What both kinds of terminal client have: a talk, its link, and what signals mean.

Ctrl-C stops the running answer, a second one leaves; SIGTERM, SIGHUP and SIGQUIT leave at once. Whoever
leaves restores the terminal, since all end by cancellation.
"""

from __future__ import annotations

import math
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from supervisors.chat_link import Changes, Link
from supervisors.chat_questions import Form
from supervisors.chat_talk import Talk

INTERRUPTED = 128 + signal.SIGINT
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Client:
    """What both kinds of client have: a talk, its link, and what signals do.

    Args:
        address: of the service.
        wanted: the conversation to enter.
        patience_s: see Link.
        only_mine: Ctrl-C stops no answers but those to messages that were sent from here.
    """

    def __init__(
        self, address: Callable[[], str], wanted: str, patience_s: float = math.inf, *, only_mine: bool = False
    ) -> None:
        self.changes = Changes()
        self.talk = Talk(lambda: secrets.token_hex(16), self.changes.tell)
        self.link = Link(self.talk, address, self.changes, conversation=wanted, patience_s=patience_s)
        self.stopped = False
        """Ctrl-C was pressed in this answer."""
        self.told: set[str] = set()
        """Approvals that were put to the person."""
        self.forms: dict[str, Form] = {}
        """Questions that are being put to the person."""
        self.code = 0
        self.asking: trio.CancelScope | None = None
        """The command that runs; Ctrl-C ends it."""
        self.on_continue: Callable[[], None] = lambda: None
        """Called when the program was stopped and goes on."""
        self._only_mine = only_mine
        self._scope = trio.CancelScope()

    async def run(self, body: Callable[[], Awaitable[None]]) -> int:
        """Run the body beside link and signals. Returns the exit code."""
        received = (signal.SIGINT, signal.SIGCONT, *ENDING)
        with trio.open_signal_receiver(*received) as signals, self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, signals)
                nursery.start_soon(self.link.run)
                await body()
                nursery.cancel_scope.cancel()
        return self.code

    def leave(self, code: int) -> None:
        """End the program from outside the body."""
        self.code = code
        self._scope.cancel()

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGCONT:
                self.on_continue()
            elif number in ENDING:
                self.leave(128 + number)
            elif self.asking is not None:
                self.asking.cancel()
            elif self.stopped or not self.talk.busy:
                self.leave(INTERRUPTED)
            else:
                self.stopped = True
                self.talk.stop(mine=self._only_mine)

    @property
    def state(self) -> str:
        """What is going on, for the line below an answer."""
        talk = self.talk
        if not talk.conversation:
            return "connecting · Ctrl-C leaves"
        if not talk.in_step:
            why = f" ({self.link.trouble})" if self.link.trouble else ""
            return f"not connected{why}, trying again · Ctrl-C {'leaves' if self.stopped else 'stops'}"
        if self.stopped:
            return "stopping · Ctrl-C leaves"
        if talk.queued is not None and talk.running is None:
            return f"waiting, number {talk.queued.waiting} · Ctrl-C stops"
        return "Ctrl-C stops"

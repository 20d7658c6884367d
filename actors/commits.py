"""What sessions have asked the store and wait for, without a task for each: the answer is told by a call.

A task and its deadline take as long as the commit itself, at the beginning of every turn. All asks have the same
time, COMMIT_S, so they run out in the order in which they were made, and one call of the front's timer looks after
the first of them. Where the store is not there, who asked is told so at once, and may `insist` in a task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import trio

from actors.durable import COMMIT_S
from actors.effects import Effect
from actors.timer import Timer
from protocol.errors import Fault, FaultBody
from protocol.mail import Gone, MailError, Overloaded, Ref, Reply, Request, TooSlow


class Writing(NamedTuple):
    """Something that the store is to do, and what follows from its answer."""

    request: Request[Any]
    done: Callable[[Any], list[Effect]]
    failed: Callable[[FaultBody], list[Effect]]


class Commits:
    """The asks of one front.

    Args:
        writer: of the store.
        timer: for their time.
    """

    def __init__(self, writer: Ref[Any], timer: Timer) -> None:
        self._writer = writer
        self._timer = timer
        self._open: dict[Reply, float] = {}
        """When each runs out, in trio's time; the first one first."""
        self._watched = False
        """The timer will look."""

    def ask(self, request: Request[Any], told: Callable[[Reply], None]) -> None:
        """Ask once; `told` is called with what came of it: an answer, a fault, TooSlow, or at once Gone, Overloaded.

        It must not wait or raise.
        """
        try:
            reply = self._writer.post(request)
        except (Gone, Overloaded) as error:
            told(_failed(error))
            return
        self._open[reply] = due = trio.current_time() + COMMIT_S
        reply.when_closed(partial(self._closed, told))
        if not self._watched:
            self._watch(due)

    async def insist(self, request: Request[Any], told: Callable[[Reply], None]) -> None:
        """Ask until it is answered, or the time is up; as `ask`, but for Gone and Overloaded."""
        try:
            reply = Reply()
            reply.answer(await self._writer.ask(request, within=COMMIT_S, again=True))
        except (MailError, Fault) as error:
            reply = _failed(error)
        told(reply)

    def _closed(self, told: Callable[[Reply], None], reply: Reply) -> None:
        del self._open[reply]
        told(reply)

    def _watch(self, due: float) -> None:
        self._watched = True
        self._timer.at(due, Commits._look, self)

    def _look(self) -> None:
        self._watched = False
        now = trio.current_time()
        while self._open:
            reply, due = next(iter(self._open.items()))
            if due > now:
                self._watch(due)
                return
            reply.fault(TooSlow(f"{self._writer.path}: no answer within {COMMIT_S:g} s"))


def _failed(error: Exception) -> Reply:
    reply = Reply()
    reply.fault(error)
    return reply

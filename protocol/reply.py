"""What an ask is made of: its base class, its one-shot reply slot, and what can happen to the asker.

Used through `protocol.mail`, which hands these names on. A slot is answered by the actor, ended with `Gone`
by the supervisor, or closed by the asker's own end; whatever comes after the first of these is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
import trio

R_co = TypeVar("R_co", covariant=True)


class Request(msgspec.Struct, Generic[R_co], frozen=True):
    """Base of messages that are answered; `R_co` is the type of the answer."""


class MailError(Exception):
    """A message got no answer; says what happened to the asker."""


class Gone(MailError):
    """The actor died with the message in hand, or does not run; nothing is known of the outcome."""


class TooSlow(MailError):
    """No answer within the time that the asker gave; the outcome is unknown."""


class Overloaded(MailError):
    """The mailbox is full; the message was not taken."""


class Reply:
    """A one-shot reply slot. Made by `ask`; answered by the actor; ended with `Gone` by the supervisor."""

    __slots__ = ("_done", "_error", "_hand", "_hook", "_task", "_value", "answered")

    def __init__(self) -> None:
        self.answered = False
        """Closed by an answer or a fault; not by the asker's end."""
        self._done = False
        self._hand: dict[Reply, None] | None = None  # the asks in hand of the mailbox that it was taken from
        self._value: Any = None
        self._error: Exception | None = None
        self._task: trio.lowlevel.Task | None = None
        self._hook: Callable[[Reply], None] | None = None

    @property
    def open(self) -> bool:
        """Nobody has answered yet and the asker still waits."""
        return not self._done

    def taken_into(self, hand: dict[Reply, None]) -> None:
        """The actor has the message: the slot is one of `hand` until it is closed."""
        if not self._done:
            self._hand = hand
            hand[self] = None

    def when_closed(self, hook: Callable[[Reply], None]) -> None:
        """Call `hook` once, when the slot closes: answered, faulted, or given up. It must not wait or raise.

        After those that were given before; now, where it is closed already.
        """
        if self._done:
            hook(self)
            return
        earlier = self._hook
        if earlier is None:
            self._hook = hook
            return

        def both(reply: Reply) -> None:
            earlier(reply)
            hook(reply)

        self._hook = both

    @property
    def value(self) -> Any:
        """What it was answered with; None if it was not."""
        return self._value

    @property
    def error(self) -> Exception | None:
        """What it was faulted with."""
        return self._error

    def give_up(self) -> None:
        """Nobody waits for the answer any more; whatever comes is ignored."""
        if not self._done:
            self._close()

    def answer(self, value: object) -> None:
        """Answer with a value; ignored if the slot is closed already."""
        self._settle(value, None)

    def fault(self, error: Exception) -> None:
        """Answer with an error, raised at the asker; ignored if the slot is closed already."""
        self._settle(None, error)

    def _settle(self, value: object, error: Exception | None) -> None:
        if self._done:
            return
        self._value, self._error, self.answered = value, error, True
        self._close()
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def _close(self) -> None:
        self._done = True
        if self._hand is not None:
            self._hand.pop(self, None)
        if self._hook is not None:
            hook, self._hook = self._hook, None
            hook(self)

    async def wait(self) -> Any:
        """Wait for the answer; closes the slot when cancelled."""
        if not self._done:
            self._task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._task = None
                self._close()
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if self._error is not None:
            raise self._error
        return self._value

"""Mailboxes and the four verbs: `offer`, `send`, `ask`, and `reply`/`fault` on the receiving side.

A mailbox belongs to a *slot* of the tree, not to one incarnation of its actor: references and the backlog
survive a restart. Only what is in hand is lost with a crash: messages that were taken and not yet
answered; their askers get `Gone` at once and may send again. A reply never goes through a mailbox.

Fast path: taking and offering are plain deque operations; the scheduler is entered once per drained
batch (`BATCH`) or when there is nothing to do. Bounded: `limit` messages wait at most.

Who raises what, and where:
- `Overloaded`: to the asker (or sender that gave a time), the mailbox is full;
- `TooSlow`: to the asker, no answer within the time given;
- `Gone`: to the asker, the actor died with the message in hand, or is not there (parked, stopped);
- `Fault` (protocol.errors): to the asker, the actor answered with `box.fault`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Generic, NoReturn, TypeVar, cast

import trio

from protocol.errors import Fault
from protocol.inlet import Counters, Directory, Inlet
from protocol.reply import Gone, MailError, Overloaded, Reply, Request, TooSlow

BATCH = 32  # messages taken between two checkpoints: 0.5 us a message instead of 6.8

M = TypeVar("M")
R = TypeVar("R")


class Nudge:
    """What `async for` yields when the slot was nudged: a flag, coalesced, that cannot be refused."""

    def __repr__(self) -> str:
        return "NUDGE"


NUDGE = Nudge()


class Mailbox(Generic[M]):
    """The receiving end; iterate over it to get messages.

    The loop ends when the supervisor closes the mailbox for a drained stop and the backlog is done.
    Args:
        path: address of the slot, for errors and status.
        limit: how many messages may wait.
    """

    __slots__ = (
        "_budget",
        "_closed",
        "_current",
        "_down",
        "_hand",
        "_held",
        "_in_hand",
        "_nudged",
        "_queue",
        "_reader",
        "_redelivered",
        "_senders",
        "counters",
        "limit",
        "lost",
        "on_idle",
        "on_take",
        "path",
        "redeliver",
    )

    def __init__(self, path: str, limit: int = 256) -> None:
        self.path = path
        self.limit = limit
        self.counters = Counters()
        self.on_take: Callable[[object], None] | None = None
        """Called with each message before the actor gets it; fault tests raise from here."""
        self.on_idle: Callable[[], None] | None = None
        """Called once per incarnation when it first looks for mail: it is ready."""
        # A deque takes 760 bytes at once, and nearly all of many mailboxes are empty; a list as long as the longest
        # limit is moved up in a microsecond.
        self._queue: list[tuple[float, object, Reply | None]] = []
        self._nudged = False
        self._closed = False
        self._down = False
        self._held = False
        self._reader: trio.lowlevel.Task | None = None
        self._senders: trio.lowlevel.ParkingLot | None = None
        """Once somebody has waited for room."""
        self._current: Reply | None = None
        self._in_hand: dict[Reply, None] | None = None
        """Asks that were taken and are not answered; once there has been one."""
        self._hand: object = None
        self.lost: object = None
        """The message that the last incarnation died with; the next one may look at it, once."""
        self.redeliver = False
        """A cast that the last incarnation died with is given to the next one, once."""
        self._redelivered: object = None
        self._budget = BATCH

    # The sending side, used through a Ref.

    def put(self, message: object, reply: Reply | None = None, waits: bool = False) -> bool:
        """Queue without waiting; False (and counted) when full, closed or down. `waits` is for other processes."""
        if self._closed or self._down:
            self.counters.dead += 1
            return False
        if len(self._queue) >= self.limit:
            self.counters.refused += 1
            return False
        self._queue.append((time.monotonic(), message, reply))
        self._wake()
        return True

    def nudge(self) -> None:
        """Set the flag; the actor sees one NUDGE before its next message, however often this was called."""
        self._nudged = True
        self._wake()

    async def wait_for_room(self) -> None:
        """Wait until a message could be queued; returns also when the mailbox closes."""
        while len(self._queue) >= self.limit and not (self._closed or self._down):
            if self._senders is None:
                self._senders = trio.lowlevel.ParkingLot()
            await self._senders.park()

    @property
    def closed(self) -> bool:
        """Closed for a drained stop, or its actor is down for now (parked, stopped)."""
        return self._closed or self._down

    @property
    def depth(self) -> int:
        """Messages that wait."""
        return len(self._queue)

    @property
    def oldest_s(self) -> float:
        """Age in seconds of the message at the head; 0 when empty."""
        return time.monotonic() - self._queue[0][0] if self._queue else 0.0

    @property
    def in_flight(self) -> int:
        """Asks that were taken and are not answered yet."""
        return len(self._in_hand or ())

    def _wake(self) -> None:
        if self._reader is not None:
            task, self._reader = self._reader, None
            trio.lowlevel.reschedule(task)

    # The receiving side: one actor at a time.

    def __aiter__(self) -> AsyncIterator[M]:
        return self

    async def __anext__(self) -> M:
        self._current = self._hand = None
        if self.on_idle is not None:
            ready, self.on_idle = self.on_idle, None
            ready()
        self._budget -= 1
        if self._budget <= 0:
            self._budget = BATCH
            await trio.lowlevel.checkpoint()
        while True:
            if self._held:
                await self._end()
            if self._nudged:
                self._nudged = False
                if self.on_take is not None:
                    self.on_take(NUDGE)
                return cast(M, NUDGE)
            if self._queue:
                return self._take()
            if self._closed:
                await self._end()
            # Many actors wait here, and nowhere else: no more frames than must be.
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._leave)
            self._budget = BATCH

    async def _end(self) -> NoReturn:
        # An actor that starts its loop anew must still be reached by cancellation.
        await trio.lowlevel.checkpoint()
        raise StopAsyncIteration

    def drain(self, most: int) -> list[tuple[M, Reply | None]]:
        """Take what is queued right now, at most `most`, with the reply slots; never waits."""
        taken: list[tuple[M, Reply | None]] = []
        while self._queue and len(taken) < most:
            message = self._take()
            taken.append((message, self._current))
        self._budget -= len(taken)
        return taken

    def _take(self) -> M:
        _, message, reply = self._queue.pop(0)
        self.counters.taken += 1
        self._current, self._hand = reply, message
        if reply is not None:
            if self._in_hand is None:
                self._in_hand = {}
            reply.taken_into(self._in_hand)
        if self._senders:
            self._senders.unpark()
        if self.on_take is not None:
            self.on_take(message)
        return cast(M, message)

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    @property
    def reply_slot(self) -> Reply | None:
        """The reply slot of the message in hand, to be answered later from a task; None for a cast."""
        return self._current

    def reply(self, value: object) -> None:
        """Answer the message in hand; nothing happens for a cast."""
        self.settle(self._current, value)

    def fault(self, error: Exception) -> None:
        """Answer the message in hand with an error that is raised at the asker."""
        if self._current is not None:
            self._current.fault(error)

    def settle(self, reply: Reply | None, value: object) -> None:
        """Answer an earlier message by its slot."""
        if reply is not None:
            if isinstance(value, Exception):
                reply.fault(value)
            else:
                reply.answer(value)

    # For the supervisor.

    def close(self) -> None:
        """No more messages; the actor's loop ends after the backlog."""
        self._closed = True
        self._end_waits()
        self._wake()

    def hold(self) -> None:
        """The actor's loop ends at its next look, for a restart; messages are still taken and wait."""
        self._held = True
        self._wake()

    def open(self) -> None:
        """A new incarnation begins: undo hold, close and down."""
        self._held = self._closed = self._down = False
        self._budget = BATCH

    def _end_waits(self) -> None:
        if self._senders is not None:
            self._senders.unpark_all()

    def set_down(self, down: bool) -> None:
        """While down (parked, retired) nothing is taken: the backlog's askers get Gone now."""
        self._down = down
        if down:
            for _, _, reply in self._queue:
                if reply is not None:
                    reply.fault(Gone(self.path))
            self.counters.dead += len(self._queue)
            self._queue.clear()
            self._end_waits()

    def abandon_in_hand(self) -> None:
        """The incarnation died: askers of what it had in hand get Gone."""
        for reply in list(self._in_hand or ()):
            self.counters.lost += 1
            reply.fault(Gone(self.path))
        hand, was_cast = self._hand, self._current is None
        if self.redeliver and was_cast and hand not in (None, NUDGE) and hand is not self._redelivered:
            self._redelivered = hand
            self._queue.insert(0, (time.monotonic(), hand, None))
        self.lost, self._hand, self._current = hand, None, None


class Ref(Generic[M]):
    """The sending end: an address. Survives restarts of the actor behind it; cheap to copy and keep."""

    __slots__ = ("_box", "_directory", "path")

    def __init__(self, directory: Directory, path: str) -> None:
        self.path = path
        self._directory = directory
        self._box: Inlet | None = None

    def _find(self, *, letter: bool = True) -> Inlet | None:
        # A retired slot's path may be taken again by a new slot: look again when the cached one is closed.
        if self._box is None or self._box.closed:
            self._box = self._directory.mailbox(self.path, letter=letter)
        return self._box

    @property
    def there(self) -> bool:
        """Somebody takes mail at it."""
        box = self._find(letter=False)
        return box is not None and not box.closed

    def offer(self, message: M) -> bool:
        """Queue without waiting. False: not taken (full, or nobody there); counted there."""
        box = self._find()
        return box is not None and box.put(message)

    def push(self, message: M) -> bool:
        """Queue like `send`, if that needs no waiting; False: it does. Raises Gone when nobody is there."""
        box = self._find()
        if box is None or box.closed:
            raise Gone(self.path)
        return box.depth < box.limit and box.put(message, None, True)

    async def send(self, message: M) -> None:
        """Queue, waiting for room. Raises Gone when nobody is there."""
        while not self.push(message):
            if (box := self._find()) is not None:
                await box.wait_for_room()

    def nudge(self) -> None:
        """Set the actor's wake flag (same process only); coalesced, never refused."""
        box = self._find()
        if box is not None:
            box.nudge()

    async def ask(self, message: Request[R], *, within: float, again: bool = False) -> R:
        """Send and wait for the answer.

        Args:
            within: seconds until TooSlow.
            again: send again after Gone or Overloaded until the time is up; for idempotent messages.
        Raises: TooSlow, Gone, Overloaded, or the actor's Fault.
        """
        answer: list[R] = []
        with trio.CancelScope(deadline=trio.current_time() + within):
            pause = 0.005
            while not answer:
                try:
                    answer.append(cast(R, await self.post(message).wait()))
                except (Gone, Overloaded):
                    # Nobody has it in hand: an idempotent message may simply be sent again.
                    if not again:
                        raise
                    await trio.sleep(pause)
                    pause = min(pause * 2, 0.25)
        if not answer:
            raise TooSlow(f"{self.path}: no answer to {type(message).__name__} within {within:g} s")
        return answer[0]

    def post(self, message: Request[R]) -> Reply:
        """Send like `ask`, once and without waiting: the answer comes into the slot, which has no deadline.

        Raises: Gone, Overloaded: it was not taken.
        """
        box = self._find()
        if box is None or box.closed:
            if box is not None:
                box.counters.dead += 1
            raise Gone(self.path)
        reply = Reply()
        if not box.put(message, reply):
            raise Overloaded(self.path)
        return reply

    def __repr__(self) -> str:
        return f"<Ref {self.path}>"


__all__ = [
    "BATCH",
    "NUDGE",
    "Counters",
    "Directory",
    "Fault",
    "Gone",
    "Inlet",
    "MailError",
    "Mailbox",
    "Nudge",
    "Overloaded",
    "Ref",
    "Reply",
    "Request",
    "TooSlow",
]

"""How much one provider is asked at a time and by the minute: a gate with a queue, free of I/O and of clocks.

Whoever wants through gets a `Pass`, waits until it is `admitted`, and leaves the gate when it is done or has
waited long enough. Passes are admitted strictly in the order in which they came. `opened` must be called
when something changed that may admit others: a pass left, the limits changed, or the time `due` has come.
The minute is a sliding one: no 60 seconds have more than `per_minute` admissions. Fails with `Full` only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

MINUTE_S = 60.0
HOLD_CAP_S = 60.0  # of the time that a provider asks for: after that it may say so again
NEVER = float("inf")


class Full(Exception):
    """As many wait as may."""


class Pass(ABC):
    """One request at the gate."""

    __slots__ = ("admitted",)

    def __init__(self) -> None:
        self.admitted = False
        """It is through."""

    @abstractmethod
    def wake(self) -> None:
        """Called when it is admitted, and when it has become the first of those that wait."""


class Gate:
    """One provider's gate. Times are of one clock that never goes back.

    Args:
        concurrent: passes that are through at a time; None: any number.
        per_minute: admissions within any minute; None: any number.
        queue: passes that wait.
    """

    def __init__(self, concurrent: int | None, per_minute: int | None, queue: int) -> None:
        self._concurrent = concurrent
        self._per_minute = per_minute
        self._queue = queue
        self._waiting: dict[Pass, None] = {}
        self._through: set[Pass] = set()
        self._admissions: deque[float] = deque()
        self._held = -NEVER

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def through(self) -> int:
        """How many are through."""
        return len(self._through)

    def change(self, concurrent: int | None, per_minute: int | None, queue: int) -> None:
        """Other limits from now on; whoever waits or is through stays."""
        self._concurrent = concurrent
        self._per_minute = per_minute
        self._queue = queue

    def join(self, newcomer: Pass, now: float) -> None:
        """Through at once, or to the end of the queue. Raises Full."""
        if not self._waiting and self.due(now) <= now:
            self._admit(newcomer, now)
            return
        if len(self._waiting) >= self._queue:
            raise Full
        self._waiting[newcomer] = None

    def leave(self, one: Pass) -> None:
        """It is done, or waits no more."""
        first = self.is_first(one)
        self._waiting.pop(one, None)
        self._through.discard(one)
        if first and self._waiting:
            next(iter(self._waiting)).wake()

    def hold(self, now: float, seconds: float) -> None:
        """The provider asked for peace: nobody is admitted until then."""
        self._held = max(self._held, now + min(seconds, HOLD_CAP_S))

    def release(self) -> None:
        """It is another provider now: the peace that was asked for is over."""
        self._held = -NEVER

    def held_s(self, now: float) -> float:
        """Seconds of the peace that the provider asked for."""
        return max(0.0, self._held - now)

    def is_first(self, one: Pass) -> bool:
        """It is the next to be admitted; it is the one that must watch the clock."""
        return next(iter(self._waiting), None) is one

    def due(self, now: float) -> float:
        """When the next may be admitted if nobody leaves before: `now` at the earliest, NEVER only by a leave."""
        if self._concurrent is not None and len(self._through) >= self._concurrent:
            return NEVER
        due = max(now, self._held)
        if self._per_minute is not None:
            while self._admissions and self._admissions[0] <= now - MINUTE_S:
                self._admissions.popleft()
            if len(self._admissions) >= self._per_minute:
                due = max(due, self._admissions[-self._per_minute] + MINUTE_S)
        return due

    def opened(self, now: float) -> None:
        """Admit those that may go now, and wake them and the one that is first then."""
        admitted: list[Pass] = []
        while self._waiting and self.due(now) <= now:
            first = next(iter(self._waiting))
            del self._waiting[first]
            self._admit(first, now)
            admitted.append(first)
        for one in admitted:
            one.wake()
        if admitted and self._waiting:
            next(iter(self._waiting)).wake()

    def _admit(self, one: Pass, now: float) -> None:
        one.admitted = True
        self._through.add(one)
        if self._per_minute is not None:
            self._admissions.append(now)

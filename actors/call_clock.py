"""How long a call may still take: its deadline, which progress restarts, and its ceiling, which nothing moves.

Both stand still while somebody is asked on the call's behalf: what a person takes to answer is no fault of the
tool. Moves the deadline of a scope that its owner entered, and nothing else; it cannot fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class CallClock:
    """The clock of one call.

    Args:
        scope: cancelled when the time is up; its deadline is set here only.
        quiet_s: seconds without a sign of life.
        most_s: seconds in all, from `begin` on.
    """

    def __init__(self, scope: trio.CancelScope, quiet_s: float, most_s: float) -> None:
        self.ceiling = math.inf
        """Trio time after which no progress helps any more."""
        self.stood_s = 0.0
        """Seconds that it has stood still."""
        self._scope = scope
        self._quiet_s = quiet_s
        self._most_s = most_s
        self._paused = 0
        self._stopped_at = 0.0
        scope.deadline = trio.current_time() + quiet_s

    def begin(self) -> None:
        """It is worked on from now on."""
        now = trio.current_time()
        self.ceiling = now + self._most_s
        self._scope.deadline = min(self.ceiling, now + self._quiet_s)

    def heard(self) -> None:
        """There was a sign of life."""
        if not self._paused:
            self._scope.deadline = min(self.ceiling, trio.current_time() + self._quiet_s)

    @property
    def exhausted(self) -> bool:
        """It is the ceiling that ends it, not silence."""
        return self._scope.deadline >= self.ceiling

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time stands still in here; it may be entered again meanwhile. Leaving it is a sign of life."""
        if not self._paused:
            self._stopped_at = trio.current_time()
            self._scope.deadline = math.inf
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            if not self._paused:
                stood_s = trio.current_time() - self._stopped_at
                self.stood_s += stood_s
                self.ceiling += stood_s
                self.heard()

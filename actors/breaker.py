"""When a provider that fails is left alone: a circuit breaker, free of I/O and of clocks.

    closed --`failures` failed tries in a row--> open --`rest` seconds--> half-open --the probe answers--> closed
                                                  ^                          |
                                                  +----the probe fails-------+  (and rests twice as long)

A try that begins is `admit`ted and reports once how it went: `answered` when its answer began, `succeeded`
when it was whole, `failed` when the provider is to blame, `dropped` when nothing is known (the user stopped
it, the provider said that the request is wrong). While it is half-open one try, the probe, is let through;
what others that began before report then changes nothing. Nothing here can fail.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

REST_CAP = 6  # times `rest`: a provider that was down for an hour is asked again soon after it is back


class State(StrEnum):
    """Of a breaker, for status."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Admission(NamedTuple):
    """Whether a try may begin."""

    after_s: float
    """0.0: now; else it must not, and may be asked for again in this many seconds."""
    probe: bool = False
    """It decides whether the provider is asked again; it must report."""


class Breaker:
    """One provider's breaker. Times are of one clock that never goes back.

    Args:
        failures: failed tries in a row that open it; 0: it never opens.
        rest: seconds until a probe.
    """

    def __init__(self, failures: int, rest: float) -> None:
        self._most = failures
        self._rest = rest
        self._row = 0
        self._opened = 0
        self._until = 0.0
        self._probing = False

    def change(self, failures: int, rest: float) -> None:
        """Other limits from now on; what is open stays so for as long as it began with."""
        self._most = failures
        self._rest = rest
        if not failures:
            self._close()

    @property
    def state(self) -> State:
        """Where it stands; open until somebody asks after its rest."""
        if not self._opened:
            return State.CLOSED
        return State.HALF_OPEN if self._probing else State.OPEN

    @property
    def row(self) -> int:
        """Failed tries in a row."""
        return self._row

    def blocked_s(self, now: float) -> float:
        """Seconds until a try may begin; 0.0: it may now. Changes nothing."""
        if not self._opened:
            return 0.0
        if self._probing:
            return self._rest
        return max(0.0, self._until - now)

    def admit(self, now: float) -> Admission:
        """A try wants to begin; the first after the rest is the probe."""
        blocked = self.blocked_s(now)
        if blocked or not self._opened:
            return Admission(blocked)
        self._probing = True
        return Admission(0.0, probe=True)

    def answered(self, *, probe: bool) -> None:
        """The answer began to come. The probe's closes the breaker, on probation until one was whole."""
        if probe and self._probing:
            self._probing = False
            self._opened = 0
            self._row = max(0, self._most - 1)

    def succeeded(self, *, probe: bool) -> None:
        """The answer was whole."""
        if probe or not self._opened:
            self._close()

    def failed(self, now: float, *, probe: bool) -> None:
        """The provider failed: unreachable, an error of its own, silence, a stream that broke."""
        if self._opened:
            if probe and self._probing:
                self._open(now)
            return
        self._row += 1
        if self._most and self._row >= self._most:
            self._open(now)

    def dropped(self, now: float, *, probe: bool) -> None:
        """Nothing is known of the provider by this try; after a probe the next one may be it."""
        if probe and self._probing:
            self._probing = False
            self._until = now

    def _open(self, now: float) -> None:
        self._probing = False
        self._opened += 1
        self._until = now + self._rest * min(2 ** (self._opened - 1), REST_CAP)

    def _close(self) -> None:
        self._row = self._opened = 0
        self._probing = False

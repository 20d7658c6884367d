"""How long the latest of something took: their median, and what one in a hundred exceeds.

A window of the last ones, so that what status shows is how it is now, not how it was on average since the
start. Pure; nothing can fail.
"""

from __future__ import annotations

from collections import deque

KEPT = 200  # the 99th percentile of fewer would be their maximum


class Durations:
    """The latest ones, in seconds."""

    def __init__(self, kept: int = KEPT) -> None:
        self._latest: deque[float] = deque(maxlen=kept)

    def add(self, seconds: float) -> None:
        """One more."""
        self._latest.append(seconds)

    def percentiles_ms(self) -> tuple[float, float] | None:
        """The median and the 99th percentile, milliseconds; None: there was none yet."""
        if not self._latest:
            return None
        ordered = sorted(self._latest)
        last = len(ordered) - 1
        return round(ordered[round(last * 0.5)] * 1000, 1), round(ordered[round(last * 0.99)] * 1000, 1)

"""Calls at given times, all by one task.

A task of its own for each would take 2 KB, which counts where thousands of clients come at once. A call must not
wait; one that fails is logged, and touches no other. Nothing is called off: what is called looks whether it still
matters.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

import trio

T = TypeVar("T")

log = logging.getLogger(__name__)


class Timer:
    """What is to be called; `run` must be running."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, int, Callable[[Any], None], Any]] = []
        """A heap, by time and order."""
        self._numbers = count()
        self._rest = trio.CancelScope()
        """Until the first of them."""

    def at(self, due: float, call: Callable[[T], None], about: T) -> None:
        """Call it at that time of trio's clock, or soon after."""
        heappush(self._calls, (due, next(self._numbers), call, about))
        if due < self._rest.deadline:
            self._rest.deadline = due

    async def run(self) -> None:
        """Make the calls, until cancelled."""
        calls = self._calls
        while True:
            with trio.CancelScope(deadline=calls[0][0] if calls else math.inf) as self._rest:
                await trio.sleep_forever()
            while calls and calls[0][0] <= trio.current_time():
                self._next()

    def _next(self) -> None:
        _, _, call, about = heappop(self._calls)
        try:
            call(about)
        except Exception:  # boundary: what is called is of one client
            log.exception("a timed call failed")

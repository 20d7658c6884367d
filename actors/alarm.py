"""Waits of less than a millisecond.

trio waits for its deadlines in epoll, which counts whole milliseconds and rounds up: 0.3 ms take 1.1. A timer of the
kernel's that is a descriptor (timerfd_create(2)) is exact to some hundredths, and is waited for as a socket is.
Python has it from 3.13 on; until then it is the C library's. Where there is none the wait is trio's own, and longer.

May assume one waiter at a time, and that whoever made it closes it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

import trio

NANO = 1_000_000_000


class Alarm:
    """Wakes its task after a while."""

    def __init__(self) -> None:
        self._time = (ctypes.c_long * 4)()  # struct itimerspec: again after seconds, nanoseconds; first after both
        self._set: Callable[..., int] | None = None
        self._descriptor = -1
        library: Any = ctypes.CDLL(None)
        if hasattr(library, "timerfd_create"):  # Linux
            self._set = library.timerfd_settime
            self._descriptor = library.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)

    async def sleep(self, seconds: float) -> None:
        """Wait so long, at most some seconds, and more than nothing."""
        if self._set is None or self._descriptor < 0:
            await trio.sleep(seconds)
            return
        self._time[2], self._time[3] = divmod(max(1, int(seconds * NANO)), NANO)
        self._set(self._descriptor, 0, self._time, None)  # what it has counted before is forgotten
        await trio.lowlevel.wait_readable(self._descriptor)

    def close(self) -> None:
        """Nobody waits any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

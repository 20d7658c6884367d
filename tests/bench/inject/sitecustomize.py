"""Samples where the processor time of a Python process goes; loaded by every one that has this folder in PYTHONPATH.

SIGUSR2 begins, the next one ends and writes `stack nanoseconds` lines to `$BENCH_PROFILE/PID.raw`, outermost frame
first. In between a signal comes after every few milliseconds of processor time, and what each thread has used since
the last is given to where it is now: so all time is there, that of C code and of the kernel included.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

EVERY_S = 0.004  # of processor time; a sample takes about 50 us

spent: Counter[str] = Counter()
known: dict[int, int] = {}
names: dict[tuple[object, int | None], str] = {}
collecting = [0, 0]
"""Nanoseconds so far, and when the present one began."""


def collected(phase: str, _: dict[str, int]) -> None:
    """A garbage collection begins or ends."""
    now = time.thread_time_ns()
    if phase == "stop" and collecting[1]:
        collecting[0] += now - collecting[1]
    collecting[1] = now


def sample(_: int, frame: FrameType | None) -> None:
    """Give each thread's time to where it is."""
    here = sys._getframe()
    for thread, found in sys._current_frames().items():
        try:
            used = time.clock_gettime_ns(time.pthread_getcpuclockid(thread))
        except OSError:
            continue  # it has just ended
        more = used - known.get(thread, used)
        known[thread] = used
        if more > 0:
            spent[stack(frame if found is here else found)] += more


def stack(frame: FrameType | None) -> str:
    """The frames' names and lines."""
    found: list[str] = []
    while frame is not None:
        key = (frame.f_code, frame.f_lineno)
        if key not in names:
            code = frame.f_code
            place = "/".join(Path(code.co_filename).parts[-2:])
            names[key] = f"{code.co_qualname} ({place}:{frame.f_lineno})".replace(";", ",")
        found.append(names[key])
        frame = frame.f_back
    return ";".join(reversed(found))


def toggle(_: int, __: FrameType | None) -> None:
    """Begin, or end and write."""
    if signal.getitimer(signal.ITIMER_PROF)[1]:
        signal.setitimer(signal.ITIMER_PROF, 0)
        gc.callbacks.remove(collected)
        lines = [f"# {collecting[0]}\n"]
        lines += [f"{where} {used}\n" for where, used in spent.items()]
        (Path(os.environ["BENCH_PROFILE"]) / f"{os.getpid()}.raw").write_text("".join(lines))
        spent.clear()
        known.clear()
    else:
        signal.signal(signal.SIGPROF, sample)
        sample(0, None)  # what was used until now is nobody's
        spent.clear()
        collecting[:] = 0, 0
        gc.callbacks.append(collected)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)


if "BENCH_PROFILE" in os.environ:
    signal.signal(signal.SIGUSR2, toggle)

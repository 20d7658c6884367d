"""Where the processor time of a running service goes, per token, by line and by function.

The sampler is in the service's processes (inject/sitecustomize.py), which are started with `environment`. `self` is
the time whose innermost Python line it was, with all that C and the kernel did below it; `total` that in which the
function was anywhere. It costs the service one to three percent: figures of the same run are not used.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import table
from tests.bench.processes import ROOT, family

INJECTED = Path(__file__).with_name("inject")
MOST = 25  # rows of a table
WRITTEN_S = 5.0  # for a process to write what it has


def environment(folder: Path) -> dict[str, str]:
    """For the service's processes, which will write into that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"BENCH_PROFILE": str(folder.resolve()), "PYTHONPATH": os.pathsep.join((str(INJECTED), str(ROOT)))}


class Sampled:
    """What was sampled; `raw` is complete after the block."""

    def __init__(self) -> None:
        self.raw = ""

    def tell(self, tokens: int) -> str:
        """Tables of the largest costs, in microseconds per token."""
        lines: Counter[str] = Counter()
        functions: Counter[str] = Counter()
        collecting = 0
        for line in self.raw.splitlines():
            stack, _, spent = line.rpartition(" ")
            if stack == "#":
                collecting += int(spent)
                continue
            frames = stack.split(";")
            lines[frames[-1]] += int(spent)
            for function in {frame.rpartition(":")[0] + ")" for frame in frames}:
                functions[function] += int(spent)
        whole = lines.total()
        all_us, garbage_us = whole / tokens / 1000, collecting / tokens / 1000
        parts = [f"{all_us:.1f} µs per token in all, {garbage_us:.1f} of it collecting garbage; {tokens:,} tokens"]
        for what, counted in (("self", lines), ("total", functions)):
            rows = [
                (f"`{name}`", f"{spent / tokens / 1000:.2f}", f"{100 * spent / whole:.1f} %")
                for name, spent in counted.most_common(MOST)
            ]
            parts.append(table((what, "µs/token", "of all"), rows))
        return "\n\n".join(parts) + "\n"


@contextmanager
def sampling(pid: int, folder: Path) -> Iterator[Sampled]:
    """Sample a service that was started with `environment(folder)` while the block runs."""
    sampled = Sampled()
    for old in folder.glob("*.raw"):
        old.unlink()
    members = [member for member in family(pid) if injected(member)]
    for member in members:
        os.kill(member, signal.SIGUSR2)
    yield sampled
    for member in members:
        os.kill(member, signal.SIGUSR2)
    until = time.monotonic() + WRITTEN_S
    while len(found := list(folder.glob("*.raw"))) < len(members) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)  # the last one may be being written
    sampled.raw = "".join(file.read_text() for file in found)


def injected(pid: int) -> bool:
    """It is a Python process of ours: SIGUSR2 ends all others."""
    try:
        return b"BENCH_PROFILE=" in Path(f"/proc/{pid}/environ").read_bytes() and "python" in os.readlink(
            f"/proc/{pid}/exe"
        )
    except OSError:
        return False  # it has ended

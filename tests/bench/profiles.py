"""Where a running service's processor time goes: sampled by py-spy from outside, told by line and by function.

`self` counts samples whose innermost Python line it was, with all that C did below it; `total` those in which the
function was anywhere. Sampling costs the service little, but enough that figures of the same run are not used.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import table
from tests.bench.subjects import Missing

RATE = 250  # samples per second; py-spy stops the process for each
MOST = 25  # lines of a table
END_S = 60.0  # for py-spy to write what it has


def py_spy() -> str:
    """The sampler. Raises Missing."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise Missing("profiles need py-spy: uv sync --group bench")
    return found


@contextmanager
def of(pid: int, to: Path, seconds: float) -> Iterator[None]:
    """Sample a process, its threads and its children for so long while the block runs; two tables into `to`.

    Only threads that run count. Raises Missing.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    raw = to.with_suffix(".raw")
    command = [py_spy(), "record", "--pid", str(pid), "--duration", str(int(seconds)), "--rate", str(RATE)]
    command += ["--format", "raw", "--output", str(raw), "--subprocesses", "--threads"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sampler:
        try:
            yield
            sampler.wait(END_S + seconds)
        finally:
            if sampler.poll() is None:
                sampler.kill()
    to.write_text(told(raw.read_text()))


def told(raw: str) -> str:
    """Tables of a profile as py-spy writes it: `frame;frame;frame count` a line, the outermost first."""
    lines: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    total = 0
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith(("process ", "thread "))]
        if not frames:
            continue
        total += int(count)
        lines[frames[-1]] += int(count)
        for function in {frame.rpartition(":")[0] + ")" for frame in frames}:
            functions[function] += int(count)
    parts = []
    for what, counted in (("self", lines), ("total", functions)):
        rows = [(f"`{name}`", f"{100 * count / total:.1f} %") for name, count in counted.most_common(MOST)]
        parts.append(table((f"{total} samples", what), rows))
    return "\n\n".join(parts) + "\n"

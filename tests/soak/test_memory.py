"""Memory that stays flat: turns one after the other, and clients that come and go, for as long as is wanted.

    SOAK_MEMORY_S=1200 uv run pytest -n 0 -s tests/soak/test_memory.py

The whole service in its processes, with a load that checks every token. Conversations without a client are kept for
two minutes, and of those with one the last 200 turns: so of 20 minutes the last quarter must be as the one before it;
a shorter run is allowed what those cost. Without a C compiler there is no load, and nothing is tested.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from tests.bench.processes import PAGE_KB, roles
from tests.bench.programs import NoCompiler, Script, compiled, load, upstream
from tests.bench.subjects import Running, ours

SECONDS = float(os.environ.get("SOAK_MEMORY_S", "40"))
STAYING, COMING = 30, 4  # clients that stay for all of it, and new ones of each round
SCRIPT = Script(100, 40, 4)
WITHIN_S = 60.0  # for a round, of half a second
GROWTH = 1.03  # of a process, from one quarter to the next
ALLOWED_KB = 4096 if SECONDS >= 1200 else 32_768  # beside it: the allocator's steps; what a short run is allowed


def sizes(service: Running) -> dict[str, int]:
    """Resident memory of each process in KiB, by its role."""
    return {
        role: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KB
        for role, pid in roles(service.pid).items()
    }


@pytest.mark.seconds(SECONDS + 180)
def test_memory_stays_flat() -> None:
    try:
        with compiled() as programs, upstream(programs) as source, ours(source, SCRIPT) as service:
            with load(programs, service.port, service.path, STAYING, SCRIPT) as staying:
                staying.ready(WITHIN_S)
                seen, began = [sizes(service)], time.monotonic()
                while time.monotonic() - began < SECONDS:
                    with load(programs, service.port, service.path, COMING, SCRIPT) as coming:
                        coming.ready(WITHIN_S)
                        for clients in (staying, coming):
                            clients.go(WITHIN_S)
                        for clients in (staying, coming):
                            clients.finish(WITHIN_S)
                    seen.append(sizes(service))
    except NoCompiler as error:
        pytest.skip(str(error))
    quarter = len(seen) // 4
    assert quarter > 2
    assert all(found.keys() == seen[0].keys() for found in seen), "a process ended, or came"
    lines = [f"{len(seen)} rounds of {STAYING + COMING} turns; MB by quarter of the time"]
    grew: list[str] = []
    for role in seen[0]:
        quarters = [median(found[role] for found in seen[n * quarter : (n + 1) * quarter]) for n in range(4)]
        lines.append(f"{role:8}" + "".join(f"{kb / 1024:9.1f}" for kb in quarters))
        if quarters[3] > quarters[2] * GROWTH + ALLOWED_KB:
            grew.append(role)
    sys.stdout.write("\n".join(["", *lines, ""]))
    assert not grew

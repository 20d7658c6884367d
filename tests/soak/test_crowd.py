"""The flood in full: exact tokens beside clients that are slow, die and come back; see tests/crowd.py.

    uv run pytest -n 0 -s tests/soak/test_crowd.py

In one process, and in several, whose fronts have no more descriptors afterwards than before.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from tests.crowd import Crowd, flood, model
from tests.fleet import Fleet, fleet

TURNS, PIECES, TIMES = 15, 600, 5
FRONTS = ("front1", "front2")


def tell(crowd: Crowd) -> None:
    turns = [wanted for answers in crowd.kept.values() for wanted in answers.values()]
    sys.stdout.write(
        f"\n{len(turns)} turns of {sum(wanted.pieces for wanted in turns)} pieces; "
        f"heard whole: {dict(crowd.exact)}; left in mid-answer: {dict(crowd.left)}\n"
    )


@pytest.mark.seconds(900)
async def test_in_one_process(tmp_path: Path) -> None:
    tell(await flood(tmp_path, turns=TURNS, pieces=PIECES, times=TIMES, seed=2))


async def descriptors(f: Fleet) -> list[int]:
    """Of each front."""
    return [len(os.listdir(f"/proc/{await f.pid(role)}/fd")) for role in FRONTS]


@pytest.mark.seconds(900)
async def test_in_several_processes(tmp_path: Path) -> None:
    async with fleet(tmp_path, model, servers={}) as (f, _):
        pids = [await f.pid(role) for role in FRONTS]
        await Crowd(f, 100, 3).run(1, 1)  # what is opened at first use stays open
        before = await descriptors(f)
        crowd = Crowd(f, PIECES, 4)
        await crowd.run(TURNS, TIMES)
        crowd.check_that_some_left()
        while any(now > was for now, was in zip(await descriptors(f), before, strict=True)):  # noqa: ASYNC110
            await trio.sleep(0.05)  # /proc tells nobody when there are fewer
        assert [await f.pid(role) for role in FRONTS] == pids
    tell(crowd)

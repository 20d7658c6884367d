"""A minute in which fronts and the store are killed under clients that outlive them; see tests/rovers.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.fleet import fleet
from tests.rovers import Rover
from tests.scripts import Pause, Script, say

SECONDS = 60.0
ROLES = ("front1", "front2", "store")


@pytest.mark.seconds(300)
async def test_a_minute_of_dying_fronts(tmp_path: Path) -> None:
    rng = random.Random(1)
    answer = Script(tuple(item for n in range(8) for item in (f"w{n} ", Pause(0.03)))) + say("end").items
    async with fleet(tmp_path, answer) as (f, _):
        rovers = [Rover([f.port]) for _ in range(12)]
        over = trio.Event()
        kills: list[str] = []
        async with trio.open_nursery() as nursery:
            for rover in rovers:
                nursery.start_soon(rover.rove, over)
            end = trio.current_time() + SECONDS
            while trio.current_time() < end:
                await trio.sleep(rng.uniform(0.2, 1.5))
                role = rng.choice(ROLES)
                pid = await f.kill(role)
                await f.replaced(role, pid)
                kills.append(role)
            over.set()
        assert {*kills} == {*ROLES}
        outcomes = [end for rover in rovers for told in rover.told for end in told.ends]
        assert {*outcomes} == {"completed", "interrupted"}
        assert outcomes.count("completed") > outcomes.count("interrupted")
        assert sum(rover.moves for rover in rovers) > 100

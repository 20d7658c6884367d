"""1,000 stopped requests and turns: nothing is left, and the upstream sees each stop at once; see tests/stops.py."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fakes import Script, Stall
from tests.service import service
from tests.stops import hanging, stopped
from tests.streaming import harness, provider


@pytest.mark.seconds(600)
async def test_a_thousand_stops_leave_nothing() -> None:
    async with hanging() as upstream, harness(provider(upstream.base_url)) as h:
        left = await stopped(h, upstream, 1000)
        assert left.tasks[1] <= left.tasks[0] + 2  # some are about to end
        assert left.connections == [0, 0]
        # What Python keeps for its own reuse comes to some thousands; an object of ours per request would be more.
        assert left.blocks[1] - left.blocks[0] < 10_000
        assert statistics.median(left.closed_s) < 0.25
        assert (h.facts()["running"], h.facts()["clients"]) == (0, 1)


@pytest.mark.seconds(900)
async def test_a_thousand_stopped_turns(tmp_path: Path) -> None:
    script = Script(("some ", "text", Stall()))
    async with service(tmp_path, script) as s, s.client() as client:
        tasks: list[int] = []
        closed_s: list[float] = []
        for turn in range(1, 1001):
            await client.send("user_message", message="go on")
            await client.until("assistant_delta")
            asked = await s.provider.request(turn)
            began = trio.current_time()
            await client.send("stop")
            await asked.closed.wait()
            closed_s.append(trio.current_time() - began)
            assert (await client.until("turn_finished"))[-1]["outcome"] == "stopped"
            client.seen.clear()
            if turn in (20, 1000):
                await trio.testing.wait_all_tasks_blocked(0.1)
                tasks.append(trio.lowlevel.current_statistics().tasks_living)
        assert tasks[1] <= tasks[0] + 2
        assert s.provider.open == 0
        assert statistics.median(closed_s) < 0.25
        assert max(closed_s) < 2.5  # on a machine that does other things too

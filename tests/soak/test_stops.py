"""1,000 stopped requests: nothing is left of them, and the upstream sees each stop at once; see tests/stops.py."""

from __future__ import annotations

import statistics

import pytest

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

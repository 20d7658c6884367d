"""500 tool calls at once over five MCP servers, one of which is killed every second; see tests/dying_servers.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dying_servers import TIMEOUT_S, many_calls

LATE_S = 0.1  # over its deadline, a call's time in the queue included


@pytest.mark.seconds(120)
@pytest.mark.parametrize("seed", range(3))
async def test_500_calls_over_dying_servers(tmp_path: Path, seed: int) -> None:
    happened = await many_calls(tmp_path, turns=10, calls=50, kill_every_s=1.0, longest_s=4.0, seed=seed)
    assert len(happened.said) + len(happened.errors) == 500
    assert happened.said.count("said") > 20
    assert happened.errors
    assert happened.kills >= 3
    assert happened.slowest_s <= 2 * TIMEOUT_S + LATE_S

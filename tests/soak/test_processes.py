"""The long counts of tests/test_processes.py: a minute of killed roles under 50 clients, 50 killed roots."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.fleet import chaos, fleet, kept
from tests.test_processes import answer

ALIVE_S = 0.1  # for /healthz, whatever dies; 36 ms at most on two cores with nothing else to do
ROLES = ("llm", "mcp", "store")
ODD = str(Path(__file__).parents[1] / "odd_servers.py")


@pytest.mark.seconds(240)
async def test_a_minute_of_killed_roles_under_fifty_clients(tmp_path: Path) -> None:
    async with fleet(tmp_path, answer, interval=0.02) as (f, _):
        happened = await chaos(f, seconds=60.0, clients=50, seed=7, roles=ROLES)
        turns = [outcome for one in happened.talks for outcome in one.outcomes.values()]
        counted = {outcome: turns.count(outcome) for outcome in set(turns)}
        errors = {code for one in happened.talks for code in one.errors}
        print(f"{len(happened.kills)} kills, turns {counted}, errors {errors}")  # noqa: T201 - figures of a soak are for people
        print(f"back after {max(happened.back_s):.2f} s at most, probes up to {happened.slowest_probe_s * 1000:.0f} ms")  # noqa: T201 - figures of a soak are for people
        assert all(one.outcomes for one in happened.talks)
        assert happened.slowest_probe_s < ALIVE_S
        await kept(f, happened.talks)


@pytest.mark.seconds(120)
@pytest.mark.parametrize("role", ROLES)
async def test_a_role_that_is_stopped_is_found_and_replaced(tmp_path: Path, role: str) -> None:
    async with fleet(tmp_path, answer) as (f, _), f.client() as client:
        pid = await f.kill(role, signal.SIGSTOP)
        await f.replaced(role, pid)
        frames = await client.say("text")
        assert frames[-1]["outcome"] == "completed"
        assert "answered no ping" in f.program.log


@pytest.mark.seconds(600)
async def test_fifty_killed_roots_leave_nothing(tmp_path: Path) -> None:
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        servers = {"stubborn": {"command": "python", "args": [ODD, "stubborn", str(folder / "grandchild")]}}
        async with fleet(folder, answer, servers=servers) as (f, _), f.client() as client:
            await client.send("user_message", message="text")
            await f.program.children(7)
            f.program.signal(signal.SIGKILL)
            await f.program.nothing_left()

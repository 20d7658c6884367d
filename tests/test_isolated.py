"""A server with `isolate: true` lives in a process of its own, and nobody notices but its status."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisors.isolated import role_of
from tests.fleet import Node, fleet
from tests.scripts import Script, ask_tool, say
from tests.service import LIGHT, of_type

pytestmark = pytest.mark.seconds(45)

APART = {"apart": {**LIGHT["demo"], "isolate": True}}


def answer(body: dict[str, Any]) -> Script:
    """The tool that the user names."""
    last = body["messages"][-1]
    if last["role"] != "user" or not body.get("tools"):
        return say("ok")
    return ask_tool(last["content"], {"a": 1, "b": 2} if last["content"].endswith("add") else {"steps": 500})


def shown(root: Node, path: str) -> list[Node]:
    return [node for node in root.all() if node.path == path]


async def test_a_tool_runs_in_a_process_of_its_own_whose_death_is_only_its_own(tmp_path: Path) -> None:
    async with fleet(tmp_path, answer, servers={**LIGHT, **APART}, fronts=1) as (f, provider), f.client() as client:
        number = 0
        while True:
            number += 1
            frames = await client.say("apart__add", request_id=f"r{number}")
            if any(frame["status"] == "completed" for frame in of_type(frames, "tool_execution")):
                break
            await trio.sleep(0.05)  # servers connect behind the start
        tree = await f.status()
        [stand_in, real] = shown(tree, "mcp/apart")
        [mcp] = [node for node in tree.all() if node.kind == "process" and node.name == "mcp"]
        [demo] = shown(tree, "mcp/demo")
        assert stand_in.kind == "process"
        assert len({stand_in.pid, mcp.pid, f.program.pid}) == 3
        assert real.pid == stand_in.pid
        assert demo.pid == mcp.pid
        await client.send("user_message", message="apart__slow", request_id="slow")
        await client.until("tool_execution", status="progress")
        os.kill(stand_in.pid, signal.SIGKILL)
        frames = await client.until("turn_finished")
        assert frames[-1]["outcome"] == "completed", "a call that fails does not end the turn"
        assert of_type(frames, "tool_execution")[-1]["status"] in ("failed", "unknown")
        while True:
            number += 1
            frames = await client.say("apart__add", request_id=f"again{number}")
            if any(frame["status"] == "completed" for frame in of_type(frames, "tool_execution")):
                break
            await trio.sleep(0.05)  # as above
        tree = await f.status()
        assert shown(tree, "mcp/apart")[0].pid != stand_in.pid
        assert [node.pid for node in shown(tree, "mcp/demo")] == [mcp.pid]
        assert shown(tree, "mcp/demo")[0].restarts == 0
        assert provider.requests


def test_roles_are_short_and_differ() -> None:
    names = ["a/b", "a_b", "x" * 300, "x" * 301, "ä"]
    roles = [role_of(name) for name in names]
    assert len(set(roles)) == len(names)
    assert all(len(role) < 40 and role.replace("-", "_").isascii() and "/" not in role for role in roles)

"""The roster keeps one actor per enabled server, and touches only what changed."""

from __future__ import annotations

import json
from pathlib import Path

from protocol.spec import Status
from tests.fakes import say
from tests.service import DEMO, Service, connected, front_of, service


def write_servers(s: Service, servers: dict[str, object]) -> None:
    (s.state / "servers_config.json").write_text(json.dumps({"mcpServers": servers}))


async def test_servers_come_change_and_go_with_the_file(tmp_path: Path) -> None:
    other = {"other": {**DEMO["demo"], "env": {"GREETING": "1"}}}
    async with service(tmp_path, say("x"), servers=DEMO) as s:
        demo = s.tree.slots["mcp/demo"]
        write_servers(s, {**DEMO, **other})
        await connected(s, "other")
        assert s.tree.slots["mcp/demo"] is demo
        assert s.tree.slots["mcp/demo"].incarnation == 1

        changed = {"other": {**DEMO["demo"], "env": {"GREETING": "2"}}}
        before = s.tree.slots["mcp/other"]
        write_servers(s, {**DEMO, **changed})
        await s.tree.until(lambda: s.tree.slots.get("mcp/other") not in (None, before))
        await connected(s, "other")
        assert s.tree.slots["mcp/demo"] is demo

        write_servers(s, changed)
        front = front_of(s)
        while any(server == "demo" for server, _ in front.merged.names()):
            await front.tools_changed.wait()
        await s.tree.until(lambda: "mcp/demo" not in s.tree.slots)
        assert s.tree.state("mcp/other") is Status.RUNNING


async def test_a_crashed_roster_leaves_its_servers_alone(tmp_path: Path) -> None:
    async with service(tmp_path, say("x"), servers=DEMO) as s:
        demo = s.tree.slots["mcp/demo"]
        await s.tree.restart("roster")
        assert s.tree.slots["mcp/demo"] is demo
        assert demo.incarnation == 1

"""The roster keeps one actor per enabled server, and touches only what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from protocol.mail import Mailbox
from protocol.mcp_server import CallTool
from protocol.spec import Child, Context, Group, Status
from protocol.watcher import GetSnapshot
from supervisors.supervisor import running
from supervisors.tree import servers
from tests.fakes import say
from tests.http_servers import http_server
from tests.mcp_house import ODD
from tests.service import LIGHT, Service, connected, front_of, service
from tests.streaming import provider, snapshot


def write_servers(s: Service, servers: Mapping[str, object], **settings: object) -> None:
    (s.state / "servers_config.json").write_text(json.dumps({"mcpServers": servers, "settings": settings}))


async def test_servers_come_change_and_go_with_the_file(tmp_path: Path) -> None:
    other = {"other": {**LIGHT["demo"], "env": {"GREETING": "1"}}}
    async with service(tmp_path, say("x"), servers=LIGHT) as s:
        demo = s.tree.slots["mcp/demo"]
        write_servers(s, {**LIGHT, **other})
        await connected(s, "other")
        assert s.tree.slots["mcp/demo"] is demo
        assert s.tree.slots["mcp/demo"].incarnation == 1

        changed = {"other": {**LIGHT["demo"], "env": {"GREETING": "2"}}}
        before = s.tree.slots["mcp/other"]
        write_servers(s, {**LIGHT, **changed})
        await s.tree.until(lambda: s.tree.slots.get("mcp/other") not in (None, before))
        await connected(s, "other")
        assert s.tree.slots["mcp/demo"] is demo

        write_servers(s, changed)
        front = front_of(s)
        while any(server == "demo" for server, _ in front.merged.names()):
            await front.tools_changed.wait()
        await s.tree.until(lambda: "mcp/demo" not in s.tree.slots)
        assert s.tree.state("mcp/other") is Status.RUNNING


async def test_a_changed_url_replaces_that_server_only(tmp_path: Path) -> None:
    async with http_server() as first, http_server() as second:
        servers = LIGHT | {"wiki": {"url": first.url(), "type": "http"}}
        async with service(tmp_path, say("x"), servers=servers) as s:
            await connected(s, "wiki")
            demo, wiki = s.tree.slots["mcp/demo"], s.tree.slots["mcp/wiki"]
            write_servers(s, LIGHT | {"wiki": {"url": second.url(), "type": "http"}})
            await s.tree.until(lambda: s.tree.slots.get("mcp/wiki") not in (None, wiki))
            await second.asked("tools/list")
            await first.asked("DELETE")
            assert s.tree.slots["mcp/demo"] is demo
            assert demo.incarnation == 1


async def test_a_replaced_server_never_runs_twice(tmp_path: Path) -> None:
    told = tmp_path / "told"
    server = {"command": "python", "args": [ODD, "slow_end", str(told)]}
    async with service(tmp_path, say("x"), servers={"odd": server}) as s:
        before = s.tree.slots["mcp/odd"]
        write_servers(s, {"odd": {**server, "env": {"GREETING": "2"}}})
        await s.tree.until(lambda: s.tree.slots.get("mcp/odd") not in (None, before))
        await s.tree.reached("mcp/odd", Status.RUNNING)
        await connected(s, "odd")
    assert told.read_text().split() == ["start", "end", "start", "end"]


async def test_a_changed_logging_level_is_told_and_replaces_nobody(tmp_path: Path) -> None:
    told = tmp_path / "told"
    servers: dict[str, object] = {"odd": {"command": "python", "args": [ODD, "logs", str(told)]}}
    async with service(tmp_path, say("x"), servers=servers) as s:
        odd = s.tree.slots["mcp/odd"]
        servers["parked"] = {"command": "surely-not-installed"}
        write_servers(s, servers)
        await s.tree.until(lambda: "mcp/parked" in s.tree.slots)
        await s.tree.reached("mcp/parked", Status.PARKED)
        parked = s.tree.slots["mcp/parked"]
        write_servers(s, servers, logLevel="ERROR")
        await s.tree.until(lambda: s.tree.slots.get("mcp/parked") not in (None, parked))
        assert s.tree.slots["mcp/odd"] is odd
        while "logging/setLevel error" not in told.read_text():
            await s.ref("mcp/odd").ask(CallTool("c", "hello", {}, "front/gateway"), within=15)
        assert odd.incarnation == 1
    assert told.read_text().split().count("initialize") == 1


async def test_a_crashed_roster_leaves_its_servers_alone(tmp_path: Path) -> None:
    async with service(tmp_path, say("x"), servers=LIGHT) as s:
        demo = s.tree.slots["mcp/demo"]
        await s.tree.restart("roster")
        assert s.tree.slots["mcp/demo"] is demo
        assert demo.incarnation == 1


async def test_it_is_ready_before_servers_may_start() -> None:
    may_start, asked = trio.Event(), trio.Event()

    async def watcher(box: Mailbox[Any], _: Context) -> None:
        async for message in box:
            if isinstance(message, GetSnapshot):
                asked.set()
                box.reply(snapshot(provider("http://127.0.0.1:9/v1")))

    tree = Group("all", (Child("watcher", watcher), *servers({"first": may_start.wait})))
    async with running(tree):  # which begins when the roster is ready
        assert not asked.is_set()
        may_start.set()
        await asked.wait()

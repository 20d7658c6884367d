"""All that an MCP server can do wrong (`tests/server_faults.py`), at once in one service, beside servers that work.

For each: what the model is told, what its client sees, what an operator reads; that no other server notices; and that
nothing is left of any of them at the end.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from actors import stdio
from protocol.spec import Status
from tests.dying_servers import many_calls
from tests.fakes import Script, ask_tools, say
from tests.mcp_house import ODD
from tests.peer import nothing_left
from tests.server_faults import FAULTS, Fault
from tests.service import LIGHT, Client, Frame, Service, connected, front_of, of_type, service

LISTED = (
    *("dies idle", "dies in a call", "never answers", "ignores discover", "garbage", "invalid UTF-8", "half a line"),
    *("stops reading while 1 MB is written", "50 MB result", "20 MB on standard error", "20,000 notifications at once"),
    *("ignores SIGTERM", "forks a grandchild", "empty inputSchema", "duplicate tool names", "200-character names"),
    *("structured output that does not match", "tool list that changes in a turn"),
)
"""Every fault that the product is to survive."""
FAST = {"mcp": {"connection": {"max_reconnect_attempts": 2, "initial_reconnect_delay": 0.01}}}


def test_every_fault_of_the_list_has_a_row() -> None:
    assert set(LISTED) <= {fault.what for fault in FAULTS}


class Model:
    """The scripted model: calls what it is told to, and notes what it was offered and told."""

    def __init__(self) -> None:
        self.wanted: dict[str, list[tuple[str, str, Any]]] = {}
        """By the user's message: the calls to make, as (id, name, arguments)."""
        self.offered: dict[str, list[list[str]]] = {}
        """By the user's message: the names of the tools, once for each request."""
        self.told: dict[str, dict[str, str]] = {}
        """By the user's message: the results by the id of the call."""

    def __call__(self, asked: Any) -> Script:
        messages = asked["messages"]
        said = next(message["content"] for message in reversed(messages) if message["role"] == "user")
        self.offered.setdefault(said, []).append([tool["function"]["name"] for tool in asked.get("tools", [])])
        if messages[-1]["role"] == "user":
            return ask_tools(*self.wanted[said])
        self.told[said] = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
        return say("done")


def entry(fault: Fault, folder: Path, share: int) -> dict[str, Any]:
    """In the servers file."""
    argument = fault.argument.format(folder=folder, count=fault.count // share)
    return {"command": "python", "args": ["-I", "-S", ODD, fault.mode, argument], **fault.entry}


async def turn(s: Service, model: Model, client: Client, message: str, fault: Fault, tool: str) -> list[Frame]:
    """The server's tool is called, and one of the healthy server beside it; the frames of the turn."""
    name = front_of(s).merged.names().get((fault.server, tool), f"{fault.server}__{tool}")
    model.wanted[message] = [
        (f"{message}!", name, fault.arguments),
        (f"{message}+", "add", {"a": len(message), "b": 1}),
    ]
    frames = await client.say(message)
    assert frames[-1]["outcome"] == "completed", (message, frames[-1])
    assert model.told[message][f"{message}+"] == f"{len(message) + 1.0}", message  # nobody else notices
    first, second = model.offered[message]
    assert first == second, f"{message}: a running turn keeps its tools"
    return frames


async def check(s: Service, model: Model, fault: Fault) -> None:
    """One row: a turn with the fault, and one after it."""
    async with s.client("?conversation=new") as client:
        frames = await turn(s, model, client, fault.what, fault, fault.tool)
        shown = model.told[fault.what][f"{fault.what}!"]
        expected = fault.model.removeprefix("…")
        assert expected in shown if fault.model != expected else shown.startswith(expected), (fault.what, shown[:300])
        executions = of_type(frames, "tool_execution")
        [last] = [frame for frame in executions if frame["tool_name"] != "add" and frame["status"] != "executing"]
        assert last["status"] == fault.client, (fault.what, last)
        if fault.then:
            if fault.died:
                await seen(client, "recovered", f"mcp/{fault.server}")
                await connected(s, fault.server)
            tool = "hello" if fault.tool in ("die", "hang") else fault.tool
            await turn(s, model, client, f"then {fault.what}", fault, tool)
            assert model.told[f"then {fault.what}"][f"then {fault.what}!"].startswith(fault.then), fault.what


def nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree["children"]:
        yield from nodes(child)


async def what_the_operator_sees(s: Service, fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    tree = json.loads((await s.get("/status"))[2])
    [node] = [node for node in nodes(tree) if node["path"] == f"mcp/{fault.server}"]
    assert {key: node["facts"].get(key) for key in fault.facts} == fault.facts, (fault.what, node)
    assert (node["state"] == "parked") == fault.stays_down, (fault.what, node)
    if fault.died:
        assert fault.died in node["last_error"], fault.what
    else:
        assert (node["restarts"], node["last_error"]) == (0, ""), fault.what
        assert {"pid", "era", "version", "tools", "calls", "failures", "p50_ms", "p99_ms", "breaker"} - set(
            node["facts"]
        ) <= ({"p50_ms", "p99_ms"} if fault.client == "failed" else set()), fault.what
    assert fault.log in caplog.text, fault.what


async def seen(client: Client, type: str, what: str) -> None:
    """The client was told that, or is told now."""
    while not any(frame["type"] == type and frame.get("what") == what for frame in client.seen):
        await client.next()


async def all_faults(folder: Path, caplog: pytest.LogCaptureFixture, share: int) -> None:
    """Every row in one service; of counts, that share."""
    caplog.set_level("INFO")
    model = Model()
    servers = {fault.server: entry(fault, folder, share) for fault in FAULTS}
    first = {name: server for name, server in servers.items() if name != "dies_idle"}
    pidfds: list[int] = []
    async with service(folder, model, settings=FAST, servers={**LIGHT, **first}) as s:
        async with nothing_left(s), s.client() as observer:
            (s.state / "servers_config.json").write_text(json.dumps({"mcpServers": {**LIGHT, **servers}}))
            await s.tree.until(lambda: "mcp/dies_idle" in s.tree.slots)
            await s.tree.reached("mcp/dies_idle", Status.PARKED)
            async with trio.open_nursery() as nursery:
                for fault in FAULTS:
                    nursery.start_soon(check, s, model, fault)
            for fault in FAULTS:
                if fault.died:
                    await seen(observer, "degraded", f"mcp/{fault.server}")
                    if not fault.stays_down:
                        await seen(observer, "recovered", f"mcp/{fault.server}")
                        await connected(s, fault.server)
                await what_the_operator_sees(s, fault, caplog)
            told = {frame["what"] for frame in of_type(observer.seen, "degraded")}
            assert told == {f"mcp/{fault.server}" for fault in FAULTS if fault.died}, "of nobody else"

            while ("tool_list_that_changes_in_a_turn", "later") not in front_of(s).merged.names():
                await front_of(s).tools_changed.wait()
            names = front_of(s).merged.names()
            for fault in FAULTS:
                own = tuple(sorted(tool for server, tool in names if server == fault.server))
                usual = () if fault.stays_down else ("count", "die", "hang", "hello")
                assert own == (usual if fault.model_tools is None else tuple(sorted(set(fault.model_tools)))), fault
            assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names.values())
            assert len(set(names.values())) == len(names)
        pidfds = [os.pidfd_open(int((folder / name).read_text())) for name in ("stubborn", "forking")]
    for pidfd in pidfds:
        await trio.lowlevel.wait_readable(pidfd)  # readable: dead
        os.close(pidfd)


@pytest.mark.seconds(90)  # twenty processes, one of which is given four seconds for what it does not answer
async def test_whatever_a_server_does_its_call_is_answered_and_nobody_else_notices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "EOF_GRACE_S", 0.3)  # those that ignore it are waited for
    monkeypatch.setattr(stdio, "TERM_GRACE_S", 0.3)
    await all_faults(tmp_path, caplog, share=20)


async def test_many_calls_over_servers_that_die_all_end_once(tmp_path: Path) -> None:
    happened = await many_calls(tmp_path, turns=1, calls=25, kill_every_s=0.2, longest_s=1.0, seed=1)
    assert len(happened.said) + len(happened.errors) == 25
    assert happened.said
    assert happened.kills

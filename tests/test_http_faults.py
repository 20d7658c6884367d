"""What servers over HTTP can do wrong in a call, in the whole product: what model, client and operator see.

Each is called once in a turn, beside a healthy server that must notice nothing; those that can be used again are
called again in the next turn. Details of every fault are in tests/test_mcp_http.py.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from protocol.spec import Status
from tests import http_servers
from tests.http_servers import HTML, Asked, HttpServer, Reply, http_server, status
from tests.server_faults import STOPPED
from tests.service import LIGHT, Service, connected, front_of, of_type, service
from tests.test_server_faults import FAST, Model, nodes, seen


@dataclass(frozen=True)
class Row:
    """One server."""

    name: str
    fault: http_servers.Fault
    model: str
    """How the tool's result begins that the model reads."""
    again: bool = True
    """It goes on afterwards; else it is parked."""
    at_first: bool = False
    """The handshake fails in the same way from then on."""
    operator: str = ""
    """In the actor's last error."""


ROWS = [
    Row("http401", status(401), STOPPED, again=False, at_first=True, operator="asks for authorization (HTTP 401"),
    Row("http403", status(403, b"not this"), "the server answered HTTP 403 Forbidden: not this"),
    Row("http404", status(404), STOPPED, operator="has forgotten our session (HTTP 404 Not Found)"),
    Row("http500", status(500), "the server answered HTTP 500 Internal Server Error"),
    Row("html", HTML, "it answered with text/html, which is not MCP"),
    Row("redirect", status(307, location="http://127.0.0.1:1/"), "the server answered HTTP 307 Temporary Redirect"),
    Row("cut", http_servers.cut_stream, STOPPED),
    Row("dead", http_servers.silent, STOPPED, again=False, operator="cannot be reached: "),
]


@dataclass
class House:
    """The servers, by the names of their rows."""

    servers: dict[str, HttpServer] = field(default_factory=dict)

    def misbehave(self, row: Row) -> None:
        server = self.servers[row.name]
        server.faults["tools/call"] = row.fault
        if row.at_first:
            server.faults["initialize"] = row.fault
        if row.name == "dead":

            async def last(asked: Asked, reply: Reply) -> None:
                server.stop()
                await trio.sleep_forever()

            server.faults["tools/call"] = last

    def behave(self, row: Row) -> None:
        self.servers[row.name].faults.clear()


async def test_a_fault_over_http_is_told_to_model_client_and_operator_and_to_nobody_else(tmp_path: Path) -> None:
    model, at = Model(), House()
    async with AsyncExitStack() as stack:
        for row in ROWS:
            at.servers[row.name] = await stack.enter_async_context(http_server(streamed=True))
        entries: dict[str, Any] = {name: {"url": server.url(), "type": "http"} for name, server in at.servers.items()}
        async with service(tmp_path, model, settings=FAST, servers=LIGHT | entries) as s:
            for row in ROWS:
                await connected(s, row.name)
            async with trio.open_nursery() as nursery:
                for row in ROWS:
                    nursery.start_soon(check, s, model, at, row)
            tree = json.loads((await s.get("/status"))[2])
            facts = {node["path"]: node for node in nodes(tree)}
            for row in ROWS:
                node = facts[f"mcp/{row.name}"]
                assert row.operator in node["last_error"], row
                assert bool(node["last_error"]) is bool(row.operator), row
                assert (node["state"] == "parked") is not row.again, row
                assert node["facts"]["url"] == at.servers[row.name].url()


async def check(s: Service, model: Model, at: House, row: Row) -> None:
    async with s.client("?conversation=new") as client:
        for message in (row.name, f"then {row.name}") if row.again else (row.name,):
            tool = front_of(s).merged.names()[(row.name, "hello")]
            model.wanted[message] = [(f"{message}!", tool, {}), (f"{message}+", "add", {"a": 1, "b": 1})]
            if message == row.name:
                at.misbehave(row)
            frames = await client.say(message)
            assert frames[-1]["outcome"] == "completed", frames[-1]
            assert model.told[message][f"{message}+"] == "2.0", message
            expected = row.model if message == row.name else "hello"
            assert model.told[message][f"{message}!"].startswith(expected), model.told[message]
            executed = [f for f in of_type(frames, "tool_execution") if f["tool_name"] != "add"]
            assert executed[-1]["status"] == ("failed" if message == row.name else "completed"), executed
            if row.again:
                at.behave(row)
            else:
                await s.tree.reached(f"mcp/{row.name}", Status.PARKED)
            if row.again and row.operator and message == row.name:
                await seen(client, "recovered", f"mcp/{row.name}")
                await connected(s, row.name)

"""Servers over HTTP, through the actor: what works, and what each fault looks like to caller and operator."""

from __future__ import annotations

from typing import Any

from protocol.mcp_server import Catalogue, ToolProgress
from protocol.watcher import McpServer
from tests.http_servers import TOOLS, HttpServer, http_server
from tests.mcp_house import house, names, odd


def at_url(server: HttpServer, path: str = "/mcp", **more: Any) -> McpServer:
    return odd("", command="", args=[], url=server.url(path), **({"type": "http"} | more))


async def test_streamable_http_in_the_older_era() -> None:
    async with http_server() as server, house(at_url(server, headers={"X-Team": "blue"})) as at:
        assert names(await at.next(Catalogue)) == TOOLS
        facts = at.facts()
        assert (facts["state"], facts["transport"], facts["era"], facts["version"]) == (
            "ready", "http", "legacy", "2025-11-25",
        )  # fmt: skip
        assert facts["url"] == server.url()
        assert (await at.call("hello")).text == "hello"
        assert (await at.call("count")).ok
        progress: ToolProgress = await at.next(ToolProgress)
        assert (progress.call, progress.total) == ("count", 3.0)
    assert {asked.headers.get("x-team") for asked in server.seen} == {"blue"}
    assert server.methods()[-1] == "DELETE"

"""The server with which a model changes its own configuration: in process against a small fake of the service's
configuration API on a Unix socket, and as the child that it is against the real one.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from mcp import Client
from mcp_types import TextContent

import Servers
from protocol.mcp_server import CallTool, ToolOutcome
from protocol.watcher import GetSnapshot
from Servers.config_server import ACCESS, server
from tests.fakes import say
from tests.service import merge_into, service

TOKEN = "planted-token-of-this-run"
CONFIG: dict[str, Any] = {
    "llm": {
        "active": "one",
        "providers": {
            "one": {"base_url": "https://one.example/v1", "model": "m-1", "temperature": 0.7, "top_k": 3},
            "two": {"base_url": "https://two.example/v1", "model": "m-2", "client": {"retries": 0}},
        },
    },
    "chat": {"service": {"system_prompt": "Be kind."}},
}


class FakeApi:
    """What the service answers, one request per connection."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "config.sock"
        self.access = folder / "config_access.json"
        self.config = copy.deepcopy(CONFIG)
        self.version = 7
        self.seen: list[tuple[str, str, Any]] = []
        """Method, target and body of each request."""
        self.conflicts = 0
        """So many changes meet one of somebody else."""

    def answer(self, method: str, target: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        self.seen.append((method, target, body))
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error_code": "UNAUTHORIZED", "error_message": "no such token", "hint": ""}
        url = urlsplit(target)
        match method, url.path:
            case "GET", "/config":
                part = self.config
                for key in filter(None, parse_qs(url.query).get("path", [""])[0].split(".")):
                    if key not in part:
                        return 404, {"error_code": "NOT_FOUND", "error_message": f"no {key}", "hint": "Look again."}
                    part = part[key]
                top = url.query.removeprefix("path=").partition(".")[0]
                return 200, {"version": self.version, "config": {top: self.config[top]} if top else self.config}
            case "POST", "/config":
                if self.conflicts:
                    self.conflicts -= 1
                    self.version += 1
                if body.get("base_version", self.version) != self.version:
                    return 409, {"error_code": "CONFIG_CONFLICT", "error_message": "changed meanwhile", "hint": ""}
                if "base_url" in json.dumps(body):
                    return 403, {"error_code": "FORBIDDEN", "error_message": "not that", "hint": "Ask."}
                merge_into(self.config, body["changes"])
                self.version += 1
                return 200, {"version": self.version, "config": self.config}
            case "GET", "/versions":
                return 200, [{"version": 7, "author": "file"}, {"version": 6, "author": "tool"}]
        return 404, {"error_code": "NOT_FOUND", "error_message": target, "hint": ""}

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            raw = b""
            while b"\r\n\r\n" not in raw:
                raw += await stream.receive_some()
            head, _, body = raw.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
            while len(body) < int(headers.get("content-length", "0")):
                body += await stream.receive_some()
            method, target, _ = first.split()
            status, said = self.answer(method, target, headers, json.loads(body) if body else None)
            data = json.dumps(said).encode()
            await stream.send_all(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data)


class Room:
    """A model's view of the tools."""

    def __init__(self, client: Client, api: FakeApi) -> None:
        self.client = client
        self.api = api

    async def ok(self, tool: str, **arguments: Any) -> Any:
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, result.content
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> str:
        return await refused(self.client, tool, **arguments)


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


@asynccontextmanager
async def room() -> AsyncIterator[Room]:
    # Not pytest's folder: the path of a Unix socket may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="cfg") as folder:
        api = FakeApi(Path(folder))
        api.access.write_text(json.dumps({"socket": str(api.socket), "token": TOKEN}))
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(api.socket))
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, api.serve, [trio.SocketListener(sock)])
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(ACCESS, str(api.access))
                async with Client(server) as client:
                    yield Room(client, api)
            nursery.cancel_scope.cancel()


async def test_it_reads_the_configuration_its_providers_and_its_history() -> None:
    async with room() as at:
        assert await at.ok("get_configuration") == {"version": 7, "config": CONFIG}
        assert (await at.ok("get_configuration", path="llm.active"))["config"] == {"llm": CONFIG["llm"]}
        assert await at.refused("get_configuration", path="llm.nothing") == (
            "Error executing tool get_configuration: NOT_FOUND: no nothing Look again."
        )
        assert await at.ok("list_providers") == {
            "active": "one",
            "providers": [
                {"name": "one", "active": True, "model": "m-1", "parameters": {"temperature": 0.7, "top_k": 3}},
                {"name": "two", "active": False, "model": "m-2", "parameters": {}},
            ],
        }
        assert [row["version"] for row in (await at.ok("configuration_history"))["versions"]] == [7, 6]
        assert at.api.seen[-1][1] == "/versions?limit=20"


async def test_each_change_goes_to_the_service_with_the_author_tool() -> None:
    async with room() as at:
        assert await at.ok("set_provider", name="two") == {"version": 8, "changed": {"llm": {"active": "two"}}}
        await at.ok("set_model", model="m-3")
        assert at.api.config["llm"]["providers"]["two"]["model"] == "m-3"
        await at.ok("set_model", model="m-4", provider="one")
        await at.ok("set_system_prompt", prompt="Be brief.")
        await at.ok("set_sampling", temperature=0.1, max_tokens=50, remove=["top_k"], provider="one")
        one = at.api.config["llm"]["providers"]["one"]
        assert (one["model"], one["temperature"], one["max_tokens"], one["top_k"]) == ("m-4", 0.1, 50, None)
        await at.ok("set_logging", level="DEBUG", modules={"actors.streamer": "INFO"}, llm_replies=True)
        posted = [body for method, _, body in at.api.seen if method == "POST"]
        assert {body["author"] for body in posted} == {"tool"}
        assert posted[-1]["changes"] == {
            "logging": {"level": "DEBUG", "modules": {"actors.streamer": "INFO"}},
            "chat": {"service": {"logging": {"llm_replies": True}}},
        }
        assert at.api.config["chat"]["service"]["system_prompt"] == "Be brief."


async def test_what_is_wrong_is_told_and_changes_nothing() -> None:
    async with room() as at:
        assert "There is no provider 'three'; there are: one, two." in await at.refused("set_provider", name="three")
        assert "There is no provider 'x'" in await at.refused("set_model", model="m", provider="x")
        for arguments in ({}, {"remove": ["seed"]}):
            assert "Nothing to change" in await at.refused("set_sampling", **arguments)
        assert "Cannot remove base_url" in await at.refused("set_sampling", remove=["base_url"])
        assert "Nothing to change" in await at.refused("set_logging")
        for outside in ({"temperature": 3}, {"top_p": 0}, {"max_tokens": 0}):
            await at.refused("set_sampling", **outside)
        assert (at.api.config, at.api.version) == (CONFIG, 7)


async def test_a_change_for_a_replaced_version_is_made_anew_for_the_new_one() -> None:
    async with room() as at:
        at.api.conflicts = 2
        await at.ok("set_model", model="m-9")
        assert at.api.config["llm"]["providers"]["one"]["model"] == "m-9"
        at.api.conflicts = 3
        assert "CONFIG_CONFLICT: changed meanwhile" in await at.refused("set_model", model="m-10")


async def test_the_token_is_read_anew_for_every_call_and_never_told() -> None:
    async with room() as at:
        right = at.api.access.read_text()
        at.api.access.write_text(right.replace(TOKEN, "planted-token-of-another-run"))
        text = await at.refused("get_configuration")
        assert "UNAUTHORIZED: no such token" in text
        at.api.access.write_text('{"token": "planted-token')
        text += await at.refused("get_configuration")
        assert "cannot be read (JSONDecodeError)" in text
        at.api.access.write_text(json.dumps({"socket": str(at.api.access), "token": TOKEN}))
        text += await at.refused("get_configuration")
        assert "does not answer on its configuration socket" in text
        at.api.access.write_text(right)
        await at.ok("get_configuration")
        assert "planted" not in text


async def test_with_the_real_service_a_change_is_in_force_and_a_version_of_the_tool(tmp_path: Path) -> None:
    settings = {"llm": {"providers": {"other": {"base_url": "http://127.0.0.1:9/v1", "model": "o-1"}}}}
    servers = {"config": {"command": "python", "args": ["-m", "Servers.config_server"]}}
    async with service(tmp_path, say("x"), settings=settings, servers=servers) as s:

        async def call(tool: str, **arguments: Any) -> ToolOutcome:
            return await s.ref("mcp/config").ask(CallTool(tool, tool, arguments, "front/gateway"), within=15)

        listed = await call("list_providers")
        assert listed.structured["active"] == "fake"
        changed = await call("set_model", model="fake-2")
        assert changed.ok, changed.text
        assert (await call("set_system_prompt", prompt="Be brief.")).ok
        assert (await call("set_sampling", temperature=0.25)).ok
        snapshot = await s.ref("watcher").ask(GetSnapshot(), within=5)
        assert (snapshot.llm.providers["fake"].model, snapshot.service.system_prompt) == ("fake-2", "Be brief.")
        assert snapshot.llm.providers["fake"].parameters["temperature"] == 0.25
        assert (await call("set_sampling", remove=["temperature"])).ok
        snapshot = await s.ref("watcher").ask(GetSnapshot(), within=5)
        assert "temperature" not in snapshot.llm.providers["fake"].parameters
        assert (await call("set_logging", tool_results=True, modules={"streamer": "DEBUG"})).ok
        assert (await call("set_provider", name="other")).ok
        history = await call("configuration_history", limit=3)
        assert [row["author"] for row in history.structured["versions"]] == ["tool"] * 3
        assert history.structured["versions"][0]["changed"] == ["llm.active"]


async def test_without_access_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ACCESS, raising=False)
    async with Client(server) as client:
        assert "gives no access to its configuration" in await refused(client, "list_providers")


async def test_every_tool_is_annotated() -> None:
    async with Client(server) as client:
        tools = (await client.list_tools()).tools
    hints = {tool.name: tool.annotations for tool in tools}
    assert set(hints) == {
        *("get_configuration", "list_providers", "configuration_history"),
        *("set_provider", "set_model", "set_system_prompt", "set_sampling", "set_logging"),
    }
    for name, hint in hints.items():
        assert hint is not None
        assert hint.read_only_hint is not name.startswith("set_")
        assert (hint.idempotent_hint, hint.open_world_hint) == (True, False)


@pytest.mark.parametrize("name", ["demo", "config"])
def test_the_shipped_configuration_has_it_switched_on(name: str) -> None:
    shipped = json.loads(Path(Servers.__file__).with_name("servers_config.json").read_text())["mcpServers"]
    assert shipped[name]["enabled"] is True
    assert shipped[name]["args"] == ["-m", f"Servers.{name}_server"]

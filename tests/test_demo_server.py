"""The demo server by itself, in process; `test_mcp_server.py` runs it as the child that it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from mcp import Client
from mcp_types import TextContent, TextResourceContents

import Servers
from Servers.demo_server import server


async def text_of(client: Client, tool: str, **arguments: object) -> str:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def test_its_tools_do_what_they_say() -> None:
    async with Client(server) as client:
        assert await text_of(client, "add", a=0.5, b=2) == "2.5"
        assert await text_of(client, "echo", text="ä\n") == "ä\n"
        told = datetime.fromisoformat(await text_of(client, "now"))
        assert told.tzinfo == UTC
        assert 1 <= int(await text_of(client, "dice", sides=2)) <= 2
        failed = await client.call_tool("fail", {"message": "on purpose"})
        assert failed.is_error
        assert "on purpose" in str(failed.content)


async def test_slow_reports_each_step() -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with Client(server) as client:
        await client.call_tool("slow", {"steps": 2, "step_s": 0}, progress_callback=note)
    assert seen == [(1, 2, "step 1 of 2"), (2, 2, "step 2 of 2")]


async def test_arguments_out_of_bounds_are_refused() -> None:
    async with Client(server) as client:
        for tool, arguments in (("slow", {"steps": 0}), ("slow", {"step_s": 1e9}), ("dice", {"sides": 1})):
            assert (await client.call_tool(tool, arguments)).is_error


async def test_every_tool_is_annotated_as_harmless() -> None:
    async with Client(server) as client:
        tools = (await client.list_tools()).tools
    assert len(tools) == 6
    assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in tools)


async def test_its_resource_and_its_prompt_can_be_read() -> None:
    async with Client(server) as client:
        (contents,) = (await client.read_resource("demo://readme")).contents
        assert isinstance(contents, TextResourceContents)
        assert contents.text.startswith("A server to try MCP with")
        prompt = await client.get_prompt("haiku", {"topic": "rivers"})
        assert "rivers" in str(prompt.messages[0].content)


def test_the_shipped_configuration_names_it() -> None:
    configuration = json.loads((Path(Servers.__file__).with_name("servers_config.json")).read_text())
    demo = configuration["mcpServers"]["demo"]
    assert (demo["enabled"], demo["command"], demo["args"][0]) == (True, "python", "-m")
    assert find_spec(demo["args"][1]) is not None
    assert set(configuration["settings"]) >= {"defaultTimeout", "autoReconnect"}

"""The light demo server says what the real one says, in both protocol eras, so it may stand in for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent

from Servers.demo_server import server
from tests.service import LIGHT

ARGS: list[str] = LIGHT["demo"]["args"]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("add", {"a": 2, "b": 40}),
    ("add", {"a": 0.5, "b": -1}),
    ("add", {"a": 1, "b": 1, "other": 1}),
    ("echo", {"text": "ä\n"}),
    ("slow", {"steps": 2, "step_s": 0}),
    ("fail", {"message": "no luck"}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("add", {"a": 1}),
    ("echo", {"text": 3}),
    ("dice", {"sides": 1}),
    ("slow", {"steps": 0}),
    ("slow", {"step_s": 1e9}),
    ("slow", {"steps": None}),
]


class Told:
    """What a client gets of a server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.told: list[Any] = []

    async def note(self, progress: float, total: float | None, message: str | None) -> None:
        self.told.append((progress, total, message))

    async def ask(self, answer: Any) -> None:
        try:
            self.told.append((await answer).model_dump(by_alias=True))
        except MCPError as error:
            self.told.append((error.code, str(error)))

    async def everything(self) -> list[Any]:
        client = self.client
        self.told += [client.protocol_version, client.instructions, client.server_info, client.server_capabilities]
        for listing in (client.list_tools(), client.list_resources(), client.list_prompts()):
            await self.ask(listing)
        for tool, arguments in CALLS:
            await self.ask(client.call_tool(tool, arguments, progress_callback=self.note))
        for tool, arguments in BAD:
            failed = await client.call_tool(tool, arguments)
            [block] = failed.content
            assert isinstance(block, TextContent)
            self.told.append((tool, failed.is_error, block.text.partition(": ")[0]))
        for tool, arguments, least, most in (("dice", {"sides": 3}, "1", "3"), ("now", {}, "2000", "3000")):
            answer = await client.call_tool(tool, arguments)
            structured = answer.structured_content or {}
            self.told.append((answer.is_error, sorted(structured), type(structured["result"])))
            assert least <= str(structured["result"]) <= most
        for uri in ("demo://readme", "demo://nothing"):
            await self.ask(client.read_resource(uri))
        for prompt, words in (("haiku", {"topic": "rivers"}), ("haiku", {}), ("none", {})):
            await self.ask(client.get_prompt(prompt, words))
        await self.ask(client.call_tool("nothing_like_it", {}))
        return self.told


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_it_says_what_the_demo_server_says(mode: Any) -> None:
    async with Client(server, mode=mode) as client:
        wanted = await Told(client).everything()
    async with Client(StdioServerParameters(command=sys.executable, args=ARGS), mode=mode) as client:
        assert await Told(client).everything() == wanted
    assert len(wanted) == 4 + 3 + len(CALLS) + 2 + len(BAD) + 2 + 2 + 3 + 1


def test_a_cancelled_call_is_not_answered() -> None:
    def call(number: int) -> dict[str, Any]:
        params = {"name": "slow", "arguments": {"steps": 1, "step_s": 0}, "_meta": {"progressToken": number}}
        return {"id": number, "method": "tools/call", "params": params}

    cancel = {"method": "notifications/cancelled", "params": {"requestId": 1}}
    lines = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in (call(1), cancel, call(2)))
    with subprocess.Popen([sys.executable, *ARGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lines.encode())  # in one write, so that all three are read before anything is answered
        process.stdin.flush()
        progress, done = (json.loads(process.stdout.readline()) for _ in range(2))
        assert (progress["params"]["progressToken"], done["id"]) == (2, 2)
        process.stdin.close()
        assert process.stdout.read() == b""

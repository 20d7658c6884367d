"""Handshake, lists and damaged lines of a connection, seen through the actor. Real child processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.mail import Gone
from protocol.mcp_server import Catalogue
from protocol.pins import PinningChanged
from protocol.spec import Down
from protocol.watcher import ServerLimits
from tests.mcp_house import ODD_TOOLS, connection, house, names, odd


async def test_a_server_that_ignores_the_newer_handshake_gets_the_older_one_and_that_is_remembered(
    tmp_path: Path,
) -> None:
    seen = tmp_path / "seen"
    async with house(odd("ignores_discover", str(seen)), on=connection(connect_s=1.5)) as at:
        assert names(await at.next(Catalogue)) == ODD_TOOLS
        assert at.facts()["era"] == "legacy"
        with pytest.raises(Gone):
            await at.call("die")
        assert names(await at.next(Catalogue)) == ODD_TOOLS
    methods = seen.read_text().split()
    assert methods.count("server/discover") == 1
    assert methods.count("initialize") == 2


async def test_the_older_handshake_can_be_forced(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    async with house(odd("ignores_discover", str(seen), protocol="legacy")) as at:
        await at.next(Catalogue)
    assert "server/discover" not in seen.read_text()


async def test_bad_schemas_hide_no_tool_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async with house(odd("bad_schemas")) as at:
        catalogue = await at.next(Catalogue)
        assert names(catalogue) == sorted([*ODD_TOOLS, "empty", "none", "text"])
        assert all(tool.schema["type"] == "object" and "properties" in tool.schema for tool in catalogue.tools)
        problem = (
            "2 tools without a name were left out; "
            "3 tools have a schema that is none of an object; it was repaired: empty, none, text"
        )
        assert at.facts()["problem"] == problem
        assert f"MCP server 'odd': {problem}" in caplog.messages


async def test_all_pages_are_listed() -> None:
    async with house(odd("pages")) as at:
        assert names(await at.next(Catalogue)) == [f"tool{page}" for page in range(5)]


async def test_what_a_server_has_too_much_of_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(odd("resources")) as at:
        await at.next(Catalogue)
        import actors.mcp_catalogue as listing  # it imports the MCP package, which the house has done in a thread

        monkeypatch.setattr(listing, "MOST_BYTES", 250)
        at.ref().offer(PinningChanged())
        while len((catalogue := await at.next(Catalogue)).tools) == len(ODD_TOOLS):
            pass
        assert (len(catalogue.tools), catalogue.prompts) == (1, [])
        assert "9 more of what it offers was left out" in at.facts()["problem"]


async def test_a_list_without_an_end_is_refused() -> None:
    async with house(odd("endless_pages"), on=connection(attempts=0)) as at:
        assert "cannot list its tools: the list does not end within 100 pages" in (await at.next(Down)).reason


async def test_a_failing_list_of_resources_does_not_hide_the_tools() -> None:
    async with house(odd("bad_resources")) as at:
        assert names(await at.next(Catalogue)) == ODD_TOOLS
        assert at.facts()["problem"] == "resources: Method not found"


async def test_garbage_between_messages_is_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with house(odd("garbage")) as at:
        await at.next(Catalogue)
        assert (await at.call("hello")).text == "hello"
        assert at.facts()["skipped_lines"] == 6
        assert sum("skipped a line" in line for line in caplog.messages) == 1, "it may say as much as it likes"


async def test_an_answer_over_the_line_cap_fails_its_call_and_tells_its_size() -> None:
    async with house(odd("big", limits=ServerLimits(line_bytes=1_000_000))) as at:
        await at.next(Catalogue)
        outcome = await at.call("hello")
        assert not outcome.ok
        assert "its answer has 5000" in outcome.text
        assert at.tree.slots["mcp/odd"].incarnation == 1

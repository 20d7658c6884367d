"""The prompt-only server: its file by itself, and the server as the child that it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mcp import MCPError

import Servers
from protocol.errors import Code, Fault
from protocol.mcp_server import Catalogue, FilledPrompt, GetPrompt
from Servers.demo_prompt_server import OPTIONS, TEMPLATE, options, parse
from tests.mcp_house import house, odd


def test_a_section_is_a_prompt_with_description_and_arguments() -> None:
    (greet,) = parse("# Title\n## greet\n> Say\n> hello.\n\nHello {who}, {how=nicely}, {who}!\n## empty\n").values()
    assert (greet.name, greet.description) == ("greet", "Say hello.")
    assert greet.arguments() == {"who": None, "how": "nicely"}
    assert greet.filled({"who": "{how}"}) == "Hello {how}, nicely, {how}!"
    with pytest.raises(MCPError, match="needs who"):
        greet.filled({"how": "loudly"})


def test_the_options_begin_as_a_copy_of_the_template(tmp_path: Path) -> None:
    assert set(options(tmp_path)) == {"summarize", "explain", "review"}
    assert (tmp_path / OPTIONS).read_text() == TEMPLATE.read_text()
    (tmp_path / OPTIONS).write_text("## mine\nHello.\n")
    assert set(options(tmp_path)) == {"mine"}


def test_what_cannot_be_read_falls_back_to_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / OPTIONS).write_bytes(b"## bad\n\xff\n")
    assert "explain" in options(tmp_path)
    assert OPTIONS in capsys.readouterr().err


async def test_it_offers_prompts_only_and_an_edit_counts_at_once(tmp_path: Path) -> None:
    server = odd("", name="prompts", args=["-m", "Servers.demo_prompt_server"])
    async with house(server, state=tmp_path) as at:
        offered: Catalogue = await at.next(Catalogue)
        assert (offered.tools, offered.resources) == ([], [])
        assert [prompt.name for prompt in offered.prompts] == ["summarize", "explain", "review"]
        assert [argument["name"] for argument in offered.prompts[1].arguments] == ["subject", "audience"]

        explain: FilledPrompt = await at.ref("prompts").ask(GetPrompt("explain", {"subject": "rain"}), within=15)
        assert str(explain.messages[0].content.text).startswith("Explain rain to a curious twelve-year-old.")
        for request in (GetPrompt("explain", {}), GetPrompt("nothing", {})):
            with pytest.raises(Fault) as caught:
                await at.ref("prompts").ask(request, within=15)
            assert caught.value.code is Code.NOT_FOUND

        (tmp_path / OPTIONS).write_text("## explain\nShort: {subject}\n")
        explain = await at.ref("prompts").ask(GetPrompt("explain", {"subject": "rain"}), within=15)
        assert explain.messages[0].content.text == "Short: rain"


def test_the_shipped_configuration_has_it_switched_off() -> None:
    shipped = json.loads(Path(Servers.__file__).with_name("servers_config.json").read_text())["mcpServers"]
    assert shipped["demo_prompt"]["enabled"] is False
    assert shipped["demo_prompt"]["args"] == ["-m", "Servers.demo_prompt_server"]

"""The chat page: valid script, every frame type of the contract, nothing from elsewhere, no HTML from the server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from protocol import client

PAGE = (Path(__file__).resolve().parents[1] / "actors" / "page.html").read_text(encoding="utf-8")
# Server to client, as the contract lists them.
TYPES = [
    "welcome",
    "message_queued",
    "turn_started",
    "assistant_delta",
    "thinking_delta",
    "tool_execution",
    "approval_request",
    "approval_settled",
    "grants",
    "question",
    "question_settled",
    "assistant_message",
    "turn_finished",
    "session_cleared",
    "history",
    "session_saved",
    "sessions",
    "config",
    "models",
    "conversations",
    "search_results",
    "exported",
    "tools",
    "tool_result",
    "prompts",
    "prompt",
    "completion",
    "resources",
    "resource",
    "resource_subscribed",
    "result",
    "status",
    "pong",
    "resource_updated",
    "tools_changed",
    "config_changed",
    "degraded",
    "recovered",
    "error",
]


class Elements(HTMLParser):
    """Every element with its attributes, and the text of style and script."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        self.text[self._within] = self.text.get(self._within, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


def parsed() -> Elements:
    elements = Elements()
    elements.feed(PAGE)
    return elements


SCRIPT = parsed().text["script"]
STUB = Path(__file__).with_name("page_stub.js").read_text(encoding="utf-8")


def test_the_script_is_valid(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine to check the script with")
    file = tmp_path / "page.js"
    file.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([node, "--check", str(file)], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr


def test_every_type_of_the_contract_has_a_handler() -> None:
    table = SCRIPT[SCRIPT.index("const handlers = {") :]
    table = table[: table.index("\n};\n")]
    handled = re.findall(r"^  (\w+)(?:\(frame\) \{|: nothing,$)", table, re.MULTILINE)
    assert sorted(handled) == sorted(TYPES)


def test_the_contract_in_code_is_covered_too() -> None:
    served = {frame.__struct_config__.tag for frame in get_args(client.ServerFrame)}
    assert "welcome" in served
    assert served <= set(TYPES)
    sent = set(re.findall(r'\{type: "(\w+)"', SCRIPT))
    assert sent <= set(client.CAPABILITIES)


def shown(tmp_path: Path, address: str, *frames: dict[str, Any]) -> dict[str, str]:
    """What the page shows of each turn once these frames came, and its address then."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine to run the script with")
    feed = f"for (const frame of {json.dumps(frames)}) {{ handlers[frame.type](frame); show(); }}\n"
    told = "const texts = [...turns].map(([id, turn]) => [id, turn.item.textContent]);\n"
    told += "console.log(JSON.stringify({...Object.fromEntries(texts), address: location.href}));\n"
    file = tmp_path / "page.js"
    file.write_text(STUB + SCRIPT + feed + told, encoding="utf-8")
    done = subprocess.run([node, str(file), address], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def welcome(conversation: str) -> dict[str, Any]:
    return {"type": "welcome", "conversation_id": conversation}


def said(turn: int, role: str, content: str, status: str) -> dict[str, Any]:
    return {"turn": turn, "role": role, "content": content, "status": status}


def test_a_turn_that_failed_says_so_live_and_when_it_is_read_again(tmp_path: Path) -> None:
    error = {"error_code": "LLM_REJECTED", "error_message": "too long", "hint": "Say less."}
    started = {"type": "turn_started", "turn": 1, "message": "hi"}
    finished = {"type": "turn_finished", "turn": 1, "seq": 1, "outcome": "failed", "error": error}
    live = shown(tmp_path, "http://localhost/", welcome("c"), started, finished)
    assert live["1"] == "hitoo longSay less."
    messages = [
        said(1, "user", "hi", "failed"),
        said(2, "user", "more", "stopped"),
        said(2, "assistant", "a", "stopped"),
    ]
    page = {"type": "history", "conversation_id": "c", "messages": [*messages, said(3, "user", "ok", "complete")]}
    again = shown(tmp_path, "http://localhost/", welcome("c"), page, page)
    assert [again[turn] for turn in "123"] == ["hifailed", "moreastopped", "ok"]


def test_an_address_that_names_a_conversation_follows_to_the_next(tmp_path: Path) -> None:
    cleared = {"type": "session_cleared", "conversation_id": "d", "previous_conversation_id": "c"}
    started = {"type": "turn_started", "turn": 1, "message": "hi"}
    named = "http://localhost/?conversation=c"
    assert shown(tmp_path, named, welcome("c"), cleared)["address"] == named  # it has no row yet
    assert shown(tmp_path, named, welcome("c"), cleared, started)["address"] == "http://localhost/?conversation=d"
    assert shown(tmp_path, "http://localhost/", welcome("c"), started)["address"] == "http://localhost/"


def test_both_placeholders_are_where_the_server_fills_them_in() -> None:
    elements = parsed()
    assert PAGE.count("{{endpoint}}") == 1
    assert ("meta", {"name": "endpoint", "content": "{{endpoint}}"}) in elements.found
    assert PAGE.count("{{nonce}}") == 2
    for tag in ("style", "script"):
        assert [attributes for name, attributes in elements.found if name == tag] == [{"nonce": "{{nonce}}"}]


def test_it_lives_under_a_strict_content_security_policy() -> None:
    for tag, attributes in parsed().found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        loaded = attributes.get("src") or attributes.get("href") or ""
        assert loaded in ("", "data:,"), tag
    assert not re.search(r"https?://|@import|url\(", PAGE)
    assert not re.search(r"\b(eval|Function|fetch|import)\(", SCRIPT)


def test_nothing_from_the_server_becomes_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment", PAGE
    )
    # What could run or load something is not set from frames either.
    assert not re.search(r"\.(href|src|srcdoc|action)\s*=|setAttribute\(", SCRIPT)


def test_it_can_be_used_without_seeing_it() -> None:
    elements = parsed()
    ids = {attributes.get("id") for _, attributes in elements.found}
    labelled = [attributes["for"] for tag, attributes in elements.found if tag == "label"]
    assert labelled == ["text"]
    assert set(re.findall(r'\$\("(\w+)"\)', SCRIPT)) <= ids
    assert [a["id"] for _, a in elements.found if a.get("aria-live") == "polite"] == ["spoken"]
    assert ("html", {"lang": "en"}) in elements.found
    assert elements.text["title"] == "mcp-actors"
    assert "prefers-color-scheme: dark" in elements.text["style"]

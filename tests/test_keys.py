"""Every key of the reference configuration, changed while the service runs, has its effect, seen from outside.

Most are rows of the sweep (tests/test_sweep.py). `SHOWN` says for the others which test shows them: what needs
more than one look is shown here, with the whole service. A key without a row or a test fails the suite.
"""

from __future__ import annotations

import ast
import json
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from actors.configuration import settings_table
from protocol.watcher import McpServer
from tests.fakes import FakeProvider, Script, Stall, say
from tests.program import program
from tests.service import Client, Service, merge_into, of_type, prepare, service, text_of
from tests.test_crash import client_of
from tests.test_main import get
from tests.test_sweep import SERVERS_FILE, SWEEPS

HERE = "tests/test_keys.py::"
SHOWN = {
    "chat.websocket.port": HERE + "test_a_changed_port_opens_the_new_listener_before_the_old_one_ends",
    "chat.storage.type": HERE + "test_where_is_stored_counts_after_a_restart",
    "chat.storage.persistence.db_path": HERE + "test_where_is_stored_counts_after_a_restart",
    "chat.service.drain_s": "tests/test_main.py::"
    "test_sigint_interrupts_a_turn_that_does_not_end_in_the_time_that_is_configured_by_then",
    "chat.tools.policy": "tests/test_approvals.py::test_what_is_asked_waits_and_all_else_goes_on",
    "chat.tools.approval_timeout": "tests/test_approvals.py::"
    "test_it_is_denied_by_a_person_by_time_and_by_the_entry_of_its_server_and_a_stop_ends_it",
    "chat.tools.question_timeout": "tests/test_server_asks.py::test_it_ends_with_its_time_its_turn_and_its_server",
    **{
        f"chat.tools.{key}": "tests/test_server_asks.py::test_a_model_is_asked_for_a_server_once_somebody_agrees"
        for key in ("sampling", "sampling_tokens", "sampling_requests", "instructions")
    },
    "chat.tools.pinning": "tests/test_pinning.py::test_a_changed_tool_is_not_offered_until_an_operator_agrees",
    "llm.providers.<name>.client.prices.input": "tests/test_usage.py::"
    "test_what_an_answer_costs_is_told_and_kept_and_prices_change_live",
    "llm.providers.<name>.client.prices.output": "tests/test_usage.py::"
    "test_what_an_answer_costs_is_told_and_kept_and_prices_change_live",
    "llm.providers.<name>.client.prices.cached": "tests/test_usage.py::"
    "test_what_an_answer_costs_is_told_and_kept_and_prices_change_live",
    "llm.providers.<name>.client.vision": "tests/test_message_content.py::"
    "test_images_are_limited_kept_and_refused_by_a_provider_of_text_only",
}
"""Keys that are not in the sweep -> the test that shows the effect."""

SERVER, OF_ALL = "mcpServers.<name>.", "settings."
BY_HTTP = "tests/test_mcp_http.py::"
SHOWN_OF_SERVERS = {
    SERVER + "isolate": "tests/test_processes.py::a_server_in_a_process_of_its_own_dies_alone",
    SERVER + "policy": "tests/test_approvals.py::"
    "test_it_is_denied_by_a_person_by_time_and_by_the_entry_of_its_server_and_a_stop_ends_it",
    SERVER + "pin": "tests/test_pinning.py::test_who_is_pinned",
    SERVER + "elicitation": "tests/test_server_requests.py::test_a_server_that_may_not_ask_is_told_so",
    SERVER + "sampling": "tests/test_server_asks.py::test_a_model_is_asked_for_a_server_once_somebody_agrees",
    SERVER + "url": BY_HTTP + "test_streamable_http_in_the_newer_era",
    SERVER + "type": BY_HTTP + "test_a_server_of_the_older_way_can_be_named_as_such",
    SERVER + "headers": BY_HTTP + "test_secrets_go_to_the_server_and_nowhere_else",
    SERVER + "auth": "tests/test_mcp_auth.py::test_an_operator_is_asked_once_and_the_tokens_outlive_the_service",
    SERVER + "caFile": BY_HTTP + "test_the_authority_of_a_certificate_can_be_named",
    SERVER + "roots": BY_HTTP + "test_it_is_told_its_roots_when_it_asks",
    SERVER + "limits": "tests/test_mcp_server.py::test_a_result_over_its_limit_is_cut_for_the_model",
    SERVER + "breaker": "tests/test_server_calls.py::"
    "test_a_server_that_keeps_failing_is_left_alone_and_then_tried_with_one_call",
}
"""Likewise those of the servers file."""


def swept() -> set[str]:
    """The keys of the sweep."""
    return {row.key for sweep in SWEEPS.values() for row in sweep.rows}


def test_every_key_has_a_test_that_exists() -> None:
    assert {row.key for row in settings_table()} == set(SHOWN) | swept()
    for key, shown in (SHOWN | SHOWN_OF_SERVERS).items():
        path, _, name = shown.partition("::")
        tree = ast.parse(Path(__file__).resolve().parents[1].joinpath(path).read_text())
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in tests, f"{key}: there is no {shown}"


def test_every_key_of_the_servers_file_has_a_test(shared: Path) -> None:
    shown = {row.key for row in SERVERS_FILE.rows} | set(SHOWN_OF_SERVERS)
    named = {re.sub("_(.)", lambda found: found[1].upper(), name) for name in McpServer.__struct_fields__} - {"name"}
    assert {SERVER + key for key in named} <= shown
    [example] = re.findall(r"```json\n(\{\n  \"_comment\".*?)```", (shared / "seed.md").read_text(), re.DOTALL)
    written = json.loads(example)
    assert {OF_ALL + key for key in written["settings"]} <= shown
    assert {SERVER + key for entry in written["mcpServers"].values() for key in entry if key[0] != "_"} <= shown


def test_every_key_of_the_documents_examples_has_a_test(shared: Path) -> None:
    """The document that the product comes from names keys in its examples; none of them may be read by nobody."""
    named: set[str] = set()
    for example in re.findall(r"```yaml\n(.*?)```", (shared / "seed.md").read_text(), re.DOTALL):
        tree = yaml.safe_load(example)
        if {"chat", "llm", "mcp", "logging"} & set(tree):
            tree.pop("_runtime_config", None)
            named |= set(leaves(tree))
    providers = re.compile(r"llm\.providers\.\w+\.(?!base_url|model$)")  # of theirs all else goes to the model
    named = {re.sub(r"(llm\.providers)\.\w+\.", r"\1.<name>.", key) for key in named if not providers.match(key)}
    assert len(named) > 40
    assert named <= set(SHOWN) | swept()


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted keys of all that is no mapping."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        elif value is not None or path != "llm.providers.":
            yield f"{path}{key}"


async def change(s: Service, client: Client, changes: Mapping[str, Any]) -> None:
    """Edit the runtime file as a person would; wait until sockets are told that it is in force."""
    path = s.state / "runtime_config.yaml"
    settings = yaml.safe_load(path.read_text())
    merge_into(settings, changes)
    path.write_text(yaml.safe_dump(settings))
    await client.until("config_changed")


async def test_a_changed_port_opens_the_new_listener_before_the_old_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.listening.OVERLAP_S", 0.05)
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items) as s, s.client() as client:
        await client.send("user_message", message="hi")
        await client.until("assistant_delta")
        free = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = free[0].socket.getsockname()[1]
        await free[0].aclose()
        await change(s, client, {"chat": {"websocket": {"port": port, "host": "localhost"}}})
        old, refused = s.port, False
        while not refused:  # the old one serves on for a moment, and then ends
            assert client.websocket.closed is None
            try:
                await (await trio.open_tcp_stream("127.0.0.1", old)).aclose()
            except OSError:
                refused = True
        assert s.moved[-1][1] == port
        s.port = port
        async with s.client() as late:
            await late.alive()
        gate.set()
        frames = await client.until("turn_finished")
        assert of_type(frames, "assistant_message")[0]["message"] == "ab"


async def test_an_address_that_must_not_be_listened_on_changes_nothing(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await change(s, client, {"chat": {"websocket": {"host": "0.0.0.0"}}})  # noqa: S104 - it is refused
        await client.alive()
        status, _, body = await s.get("/readyz")
        assert status == 200
        assert b"nobody is asked who they are" in body
        assert not s.moved


async def test_another_provider_in_mid_stream(tmp_path: Path) -> None:
    gate = trio.Event()
    async with (
        FakeProvider(say("from the other")) as other,
        service(tmp_path, Script(("from ", Stall(gate))) + say("the first").items) as s,
        s.client() as client,
    ):
        await client.send("user_message", message="one")
        await client.until("assistant_delta")
        entry = {"base_url": other.base_url, "model": "other-1", "api_key_env": None, "top_k": 7, "a": {"b": [1]}}
        await change(s, client, {"llm": {"active": "other", "providers": {"other": entry}}})
        gate.set()
        frames = await client.until("turn_finished")
        assert of_type(frames, "assistant_message")[0]["message"] == "from the first"
        frames = await client.say("two")
        assert (frames[0]["provider"], frames[0]["model"]) == ("other", "other-1")
        assert text_of(frames) == "from the other"
        asked = (await other.request(1)).json
        assert (asked["top_k"], asked["a"], asked["model"]) == (7, {"b": [1]}, "other-1")
        assert "client" not in asked
        assert "api_key_env" not in asked


def databases(state: Path) -> list[str]:
    """Names of the files that there are."""
    return sorted(path.name for path in state.glob("*.db"))


@pytest.mark.seconds(60)
async def test_where_is_stored_counts_after_a_restart(tmp_path: Path) -> None:
    said = {"chat.storage.type", "chat.storage.persistence.db_path"}
    assert {row.applies for row in settings_table() if row.key in said} == {"restart"}
    async with FakeProvider(say("x")) as provider:
        settings = {"chat": {"storage": {"type": "memory", "persistence": {"db_path": "first.db"}}}}
        prepare(tmp_path, provider, settings, {})
        async with (
            program("--state", str(tmp_path), "--port", "0") as p,
            client_of(url := await p.listening()) as client,
        ):
            await client.say("one")
            settings = {"chat": {"storage": {"type": "auto_persist", "persistence": {"db_path": "second.db"}}}}
            prepare(tmp_path, provider, settings, {})
            await client.until("config_changed")
            await client.say("two")
            notes = json.loads((await get(url, "/readyz"))[1])["notes"]
            assert {
                note.partition(":")[0] for note in notes if "counts when the service is started again" in note
            } == said
            assert not databases(tmp_path)
            prepare(tmp_path, provider, {**settings, "chat": {"websocket": {"endpoint": "/other"}}}, {})
            await client.until("config_changed")
            assert json.loads((tmp_path / "service.json").read_text())["endpoint"] == "/other"  # for `actors-main chat`
            prepare(tmp_path, provider, settings, {})
            p.signal(signal.SIGTERM)
            assert await p.ended() == 0
        async with program("--state", str(tmp_path), "--port", "0") as p, client_of(await p.listening()) as client:
            await client.say("three")
            assert databases(tmp_path) == ["second.db"]
            await client.send("history")
            page = (await client.until("history"))[-1]
            assert [message["content"] for message in page["messages"]] == ["three", "x"]
            p.signal(signal.SIGTERM)
            assert await p.ended() == 0

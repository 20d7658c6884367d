"""Every key of the reference configuration, changed while the service runs, has its effect, seen from outside.

`SHOWN` says for each key which test shows it; a key without one fails the suite. Most are shown here, with the
whole service; what concerns one actor alone is shown by that actor's tests.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
import yaml

from actors.configuration import settings_table
from tests.fakes import FakeProvider, Script, Stall, ask_tool, say, think
from tests.service import DEMO, Client, Service, merge_into, of_type, service, text_of

HERE = "tests/test_keys.py::"
SHOWN = {
    "chat.websocket.host": HERE + "test_a_changed_port_opens_the_new_listener_before_the_old_one_ends",
    "chat.websocket.port": HERE + "test_a_changed_port_opens_the_new_listener_before_the_old_one_ends",
    "chat.websocket.endpoint": HERE + "test_endpoint_and_origins",
    "chat.websocket.allow_origins": HERE + "test_endpoint_and_origins",
    "chat.websocket.allow_credentials": HERE + "test_endpoint_and_origins",
    "chat.websocket.allow_unauthenticated": HERE + "test_an_address_that_must_not_be_listened_on_changes_nothing",
    "chat.websocket.max_message_size": HERE + "test_message_size_and_pings",
    "chat.websocket.ping_interval": HERE + "test_message_size_and_pings",
    "chat.websocket.ping_timeout": "tests/test_connection.py::test_a_silent_peer_is_pinged_and_then_dropped",
    "chat.storage.type": "tests/test_writer.py::*",
    "chat.storage.persistence.db_path": "tests/test_main.py::*",
    "chat.storage.persistence.retention.max_age_hours": "tests/test_sweeper.py::*",
    "chat.storage.persistence.retention.max_messages": "tests/test_sweeper.py::*",
    "chat.storage.persistence.retention.max_sessions": "tests/test_sweeper.py::*",
    "chat.storage.persistence.retention.cleanup_interval_minutes": "tests/test_sweeper.py::*",
    "chat.storage.saved_sessions.enabled": HERE + "test_saved_sessions_and_the_default_conversation",
    "chat.storage.saved_sessions.retention_days": "tests/test_sweeper.py::*",
    "chat.storage.saved_sessions.max_saved": "tests/test_sweeper.py::*",
    "chat.sessions.default": HERE + "test_saved_sessions_and_the_default_conversation",
    "chat.service.system_prompt": HERE + "test_what_the_next_turn_uses",
    "chat.service.streaming.enabled": HERE + "test_what_the_next_turn_uses",
    "chat.service.streaming.persistence.persist_deltas": "tests/test_gateway.py::"
    "test_persist_deltas_false_stores_no_text_of_a_running_answer",
    "chat.service.streaming.persistence.interval_ms": "tests/test_gateway.py::"
    "test_what_grows_is_stored_while_the_answer_runs",
    "chat.service.streaming.persistence.min_chars": "tests/test_gateway.py::test_much_text_does_not_wait_for_the_tick",
    "chat.service.max_tool_hops": HERE + "test_tool_hops_and_notifications",
    "chat.service.tool_notifications.enabled": HERE + "test_tool_hops_and_notifications",
    "chat.service.tool_notifications.show_args": HERE + "test_tool_hops_and_notifications",
    "chat.service.tool_notifications.icon": HERE + "test_tool_hops_and_notifications",
    "chat.service.tool_notifications.format": HERE + "test_tool_hops_and_notifications",
    "chat.service.logging.llm_replies": "tests/test_logs.py::*",
    "chat.service.logging.tool_execution": "tests/test_logs.py::*",
    "chat.service.logging.system_prompt": "tests/test_logs.py::*",
    "chat.service.logging.tool_results": "tests/test_logs.py::*",
    "chat.service.logging.llm_reply_truncate_length": "tests/test_logs.py::*",
    "chat.service.logging.result_truncate_length": "tests/test_logs.py::*",
    "chat.service.drain_s": "tests/test_main.py::*",
    "llm.active": HERE + "test_another_provider_in_mid_stream",
    "llm.fallbacks": "tests/test_streamer.py::*",
    "llm.providers.<name>.base_url": HERE + "test_another_provider_in_mid_stream",
    "llm.providers.<name>.model": HERE + "test_another_provider_in_mid_stream",
    "llm.providers.<name>.api_key_env": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.http2": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.ca_file": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.headers": HERE + "test_client_options",
    "llm.providers.<name>.client.connect_timeout": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.first_token_timeout": HERE + "test_client_options",
    "llm.providers.<name>.client.idle_timeout": HERE + "test_client_options",
    "llm.providers.<name>.client.total_timeout": "tests/test_streamer.py::test_the_whole_request_is_bounded",
    "llm.providers.<name>.client.max_connections": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.max_keepalive_connections": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.keepalive_expiry": "tests/test_streamer.py::"
    "test_a_connection_that_was_idle_for_longer_than_configured_is_not_used_again",
    "llm.providers.<name>.client.prewarm": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.limits.concurrent": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.limits.per_minute": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.limits.queue": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.limits.wait": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.breaker.failures": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.breaker.rest": "tests/test_streamer.py::*",
    "llm.providers.<name>.client.retries": HERE + "test_client_options",
    "llm.providers.<name>.client.stream": HERE + "test_client_options",
    "llm.providers.<name>.client.prices.input": "tests/test_usage.py::"
    "test_what_an_answer_costs_is_told_and_kept_and_prices_change_live",
    "llm.providers.<name>.client.prices.output": "tests/test_usage.py::"
    "test_what_an_answer_costs_is_told_and_kept_and_prices_change_live",
    "llm.providers.<name>.client.prices.cached": "tests/test_usage.py::"
    "test_what_an_answer_costs_is_told_and_kept_and_prices_change_live",
    "llm.providers.<name>.client.vision": "tests/test_message_content.py::"
    "test_images_are_limited_kept_and_refused_by_a_provider_of_text_only",
    "llm.providers.<name>.client.context_tokens": "tests/test_context_window.py::"
    "test_what_does_not_fit_is_not_sent_and_the_client_is_told",
    "mcp.config_file": HERE + "test_another_servers_file",
    "mcp.connection.max_reconnect_attempts": "tests/test_server_child.py::*",
    "mcp.connection.initial_reconnect_delay": "tests/test_server_child.py::*",
    "mcp.connection.max_reconnect_delay": "tests/test_server_child.py::*",
    "mcp.connection.connection_timeout": "tests/test_mcp_server.py::*",
    "mcp.connection.ping_timeout": "tests/test_mcp_server.py::*",
    "logging.level": "tests/test_logs.py::*",
    "logging.format": "tests/test_logs.py::*",
    "logging.json": "tests/test_logs.py::*",
    "logging.modules": "tests/test_logs.py::*",
    "connection_pool.max_connections": "tests/test_settings.py::*",
    "connection_pool.max_keepalive_connections": "tests/test_settings.py::*",
    "connection_pool.keepalive_expiry_seconds": "tests/test_adoption.py::test_what_has_a_meaning_here_counts",
    "connection_pool.request_timeout_seconds": "tests/test_settings.py::*",
    "connection_pool.total_timeout_seconds": "tests/test_adoption.py::test_what_has_a_meaning_here_counts",
}
"""Key -> test that shows its effect; `*`: several of that module."""


def test_every_key_has_a_test_that_exists() -> None:
    assert {row.key for row in settings_table()} == set(SHOWN)
    for key, shown in SHOWN.items():
        path, _, name = shown.partition("::")
        tree = ast.parse(Path(__file__).resolve().parents[1].joinpath(path).read_text())
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name == "*" or name in tests, f"{key}: there is no {shown}"


async def change(s: Service, client: Client, changes: Mapping[str, Any]) -> None:
    """Edit the runtime file as a person would; wait until sockets are told that it is in force."""
    path = s.state / "runtime_config.yaml"
    settings = yaml.safe_load(path.read_text())
    merge_into(settings, changes)
    path.write_text(yaml.safe_dump(settings))
    await client.until("config_changed")


async def test_what_the_next_turn_uses(tmp_path: Path) -> None:
    async with service(tmp_path, think("hm", then=("a", "b"))) as s, s.client() as client:
        await client.say("one")
        await change(s, client, {"chat": {"service": {"system_prompt": "Speak like a pirate."}}})
        await client.say("two")
        assert (await s.provider.request(2)).json["messages"][0]["content"].startswith("Speak like a pirate.")
        await change(s, client, {"chat": {"service": {"streaming": {"enabled": False}}}})
        frames = await client.say("three")
        assert [f["type"] for f in frames] == ["turn_started", "assistant_message", "turn_finished"]


async def test_tool_hops_and_notifications(tmp_path: Path) -> None:
    async with service(tmp_path, ask_tool("add", {"a": 1, "b": 1}), servers=DEMO) as s, s.client() as client:
        notifications = {"icon": "*", "format": "{icon} {tool_name} on {server}", "show_args": False}
        await change(s, client, {"chat": {"service": {"max_tool_hops": 1, "tool_notifications": notifications}}})
        frames = await client.say("go")
        assert len(s.provider.requests) == 2
        assert frames[-1]["error"]["error_code"] == "TOOL_HOPS_EXCEEDED"
        executing = of_type(frames, "tool_execution")[0]
        assert executing["message"] == "* add on demo"
        assert "arguments" not in executing
        await change(s, client, {"chat": {"service": {"tool_notifications": {"show_args": True, "enabled": False}}}})
        executing = of_type(await client.say("go"), "tool_execution")[0]
        assert "message" not in executing
        assert executing["arguments"] == {"a": 1, "b": 1}


async def test_endpoint_and_origins(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        page = "https://chat.example"
        assert (await s.get("/healthz", Origin=page))[0] == 403
        await change(s, client, {"chat": {"websocket": {"allow_origins": [page], "endpoint": "/other"}}})
        status, headers, _ = await s.get("/healthz", Origin=page)
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        assert headers["access-control-allow-credentials"] == "true"
        await change(s, client, {"chat": {"websocket": {"allow_credentials": False}}})
        _, headers, _ = await s.get("/healthz", Origin=page)
        assert "access-control-allow-credentials" not in headers
        async with trio_websocket.open_websocket_url(s.url.replace("/ws/chat", "/other")):
            pass
        assert (await s.get("/ws/chat"))[0] == 404
        await client.alive()


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


async def test_message_size_and_pings(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await change(s, client, {"chat": {"websocket": {"max_message_size": 2000, "ping_interval": 1}}})
        async with s.client() as other:
            await other.send("user_message", message="y" * 3000)
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await other.until("turn_finished")
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1009
        await client.alive()


async def test_saved_sessions_and_the_default_conversation(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.say("hi")
        await change(s, client, {"chat": {"sessions": {"default": "new"}}})
        async with s.client() as late:
            assert late.conversation != client.conversation
        await change(s, client, {"chat": {"storage": {"saved_sessions": {"enabled": False}}}})
        await client.send("save_session", name="x")
        assert (await client.until("error"))[-1]["error_code"] == "FORBIDDEN"


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


async def test_client_options(tmp_path: Path) -> None:
    replies = (say("x"), say("not asked again"), Script((Stall(),)), Script(("a", Stall())))
    async with service(tmp_path, *replies) as s, s.client() as client:
        options: dict[str, Any] = {"headers": {"X-Team": "blue"}}
        await change(s, client, {"llm": {"providers": {"fake": {"client": options}}}})
        await client.say("one")
        assert (await s.provider.request(1)).headers["x-team"] == "blue"
        options = {"stream": False}
        await change(s, client, {"llm": {"providers": {"fake": {"client": options}}}})
        await client.say("two")
        assert (await s.provider.request(2)).json["stream"] is False
        options = {"stream": True, "first_token_timeout": 0.2, "idle_timeout": 0.2, "retries": 0}
        await change(s, client, {"llm": {"providers": {"fake": {"client": options}}}})
        assert (await client.say("three"))[-1]["outcome"] == "failed"
        frames = await client.say("four")
        assert (frames[-1]["outcome"], text_of(frames)) == ("failed", "a")
        assert len(s.provider.requests) == 4


async def test_another_servers_file(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        (s.state / "others.json").write_text(json.dumps({"mcpServers": DEMO}))
        await change(s, client, {"mcp": {"config_file": "others.json"}})
        await s.tree.until(lambda: "mcp/demo" in s.tree.slots)

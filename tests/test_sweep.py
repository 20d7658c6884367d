"""Keys of the configuration, each changed while the service runs and seen to have its effect from outside.

`SWEEPS` is the data: services, and rows of one key each (see tests/sweep.py). The tests below walk it. Keys that
need more than a row have tests of their own; tests/test_keys.py holds all keys together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from actors.configuration import settings_table
from tests import looks
from tests.mcp_house import ODD
from tests.service import LIGHT, of_type
from tests.sweep import NOT_LOOKED_AT, Look, Row, Sweep, show, watching

LOGGING = "chat.service.logging."
NOTICES = "chat.service.tool_notifications."
SOCKET = "chat.websocket."
RETENTION = "chat.storage.persistence.retention."
DELTAS = "chat.service.streaming.persistence."
PROVIDER = "llm.providers.<name>."
CLIENT = PROVIDER + "client."
POOL = "connection_pool."
MCP = "mcp.connection."
NEVER_MINUTES = 100_000
AT_ONCE_MINUTES = 0.0001
HUGE = 2**30
BUSY_S = 2.0  # for an answer that does come, on a busy machine
KEY_VARIABLE = "SWEPT_KEY"
REPLY, RESULT = "← LLM: finished with stop", "← MCP[odd]: result of tool hello"


def _file(key: str, value: object, look: Look, before: object, after: object, **more: Any) -> Row:
    """A row of the servers file, whose changes are followed in the background."""
    return Row(key, value, look, before, after, "at once", comes=True, **more)


SWEEPS: dict[str, Sweep] = {
    "turns and tools": Sweep(
        settings={"chat.service.max_tool_hops": 3},
        servers={"odd": {"command": "python", "args": [ODD, "plain"]}},
        rows=(
            Row(
                "chat.service.system_prompt",
                "Speak like a pirate.",
                looks.asked(lambda request: request.json["messages"][0]["content"]),
                "You are a test.",
                "Speak like a pirate.",
                "next turn",
            ),
            Row(
                "chat.service.streaming.enabled",
                False,
                looks.frames(lambda found: bool(of_type(found, "assistant_delta"))),
                True,
                False,
                "next turn",
            ),
            Row("chat.service.max_tool_hops", 1, looks.rounds, 4, 2, "next turn"),
            Row(
                NOTICES + "icon",
                "*",
                looks.notice("message"),
                "🔧 Executing tool: hello",
                "* Executing tool: hello",
                "next turn",
            ),
            Row(
                NOTICES + "format",
                "{icon} {tool_name} on {server}",
                looks.notice("message"),
                "* Executing tool: hello",
                "* hello on odd",
                "next turn",
            ),
            Row(NOTICES + "show_args", False, looks.notice("arguments"), {"who": "x"}, None, "next turn"),
            Row(NOTICES + "enabled", False, looks.notice("message"), "* hello on odd", None, "next turn"),
            Row("chat.sessions.default", "new", looks.entered, True, False, "reconnect"),
            Row("chat.storage.saved_sessions.enabled", False, looks.saving, "session_saved", "error", "at once"),
        ),
    ),
    "log": Sweep(
        servers={"odd": {"command": "python", "args": [ODD, "plain"]}},
        rows=(
            Row(LOGGING + "llm_replies", True, looks.logged(looks.behind_ms(REPLY)), "", ": w1 w2", "at once"),
            Row(
                LOGGING + "llm_reply_truncate_length",
                2,
                looks.logged(looks.behind_ms(REPLY)),
                ": w1 w2",
                ": w1… (5 characters)",
                "at once",
            ),
            Row(
                LOGGING + "tool_results",
                True,
                looks.logged(looks.behind_ms(RESULT), looks.CALL),
                "",
                ": hello",
                "at once",
            ),
            Row(
                LOGGING + "result_truncate_length",
                2,
                looks.logged(looks.behind_ms(RESULT), looks.CALL),
                ": hello",
                ": he… (5 characters)",
                "at once",
            ),
            Row(
                LOGGING + "tool_execution",
                False,
                looks.logged(looks.count("→ MCP[odd]: calling"), looks.CALL),
                1,
                0,
                "at once",
            ),
            Row(LOGGING + "system_prompt", True, looks.logged(looks.count("→ LLM: system prompt")), 0, 1, "at once"),
            Row(
                "logging.format",
                "%(levelname)s|%(message)s",
                looks.logged(looks.count("INFO|→ LLM: s")),
                0,
                2,
                "at once",
            ),
            Row("logging.json", True, looks.logged(looks.all_json), False, True, "at once"),
            Row("logging.modules", {"session": "WARNING"}, looks.logged(looks.count("Orchestrator")), 2, 0, "at once"),
            Row("logging.level", "ERROR", looks.logged(len), 3, 0, "at once"),
        ),
    ),
    "sockets and pages": Sweep(
        settings={SOCKET + "port": 0, SOCKET + "ping_interval": 0, SOCKET + "ping_timeout": 1000},
        patches={"actors.connection.SWEEP_S": 0.01, "actors.listening.OVERLAP_S": 0.01},
        prepare=looks.another_peer,
        rows=(
            Row(SOCKET + "max_message_size", 2000, looks.large, "taken", 1009, "at once"),
            Row(SOCKET + "endpoint", "/other", looks.endpoints, ["/ws/chat"], ["/other"], "reconnect"),
            Row(SOCKET + "allow_origins", [looks.PAGE], looks.page_may, (403, None), (200, "true"), "reconnect"),
            Row(SOCKET + "allow_credentials", False, looks.page_may, (200, "true"), (200, None), "reconnect"),
            # A spelling of 127.0.0.1 that is not taken for loopback.
            Row(
                SOCKET + "allow_unauthenticated",
                True,
                looks.refused_address,
                (True, False),
                (False, "127.0.0.1"),
                "at once",
                given={SOCKET + "host": "127.1"},
                comes=True,
            ),
            Row(SOCKET + "host", "127.0.0.2", looks.where, ["127.0.0.1"], ["127.0.0.2"], "at once", comes=True),
            # Last: a busy machine may be too late for them with any socket.
            Row(SOCKET + "ping_interval", 0.02, looks.pinged, NOT_LOOKED_AT, "pinged", "at once"),
            Row(SOCKET + "ping_timeout", BUSY_S, looks.silent, NOT_LOOKED_AT, "dropped", "at once"),
        ),
    ),
    "retention": Sweep(
        settings={
            RETENTION + "cleanup_interval_minutes": NEVER_MINUTES,
            RETENTION + "max_sessions": 3,
            RETENTION + "max_age_hours": None,
            RETENTION + "max_messages": None,
            "chat.storage.saved_sessions.max_saved": None,
        },
        patches={"actors.retention.ENTERED_S": 0.0},
        prepare=looks.talked,
        rows=(
            Row(
                RETENTION + "cleanup_interval_minutes",
                AT_ONCE_MINUTES,
                looks.conversations,
                4,
                3,
                "at once",
                comes=True,
            ),
            Row(RETENTION + "max_sessions", 2, looks.conversations, 3, 2, "at once", comes=True),
            Row(RETENTION + "max_messages", 2, looks.turns, 4, 1, "at once", comes=True),
            Row(RETENTION + "max_age_hours", 1e-9, looks.conversations, 1, 0, "at once", comes=True),
            Row(
                "chat.storage.saved_sessions.max_saved",
                2,
                looks.saved_names,
                ["s2", "s1", "s0"],
                ["s2", "s1"],
                "at once",
                comes=True,
            ),
            Row(
                "chat.storage.saved_sessions.retention_days",
                1e-9,
                looks.saved_names,
                ["s2", "s1"],
                [],
                "at once",
                comes=True,
            ),
        ),
    ),
    "running answers": Sweep(
        settings={DELTAS + "persist_deltas": False, DELTAS + "interval_ms": 10, DELTAS + "min_chars": HUGE},
        prepare=looks.running_answer,
        rows=(
            Row(DELTAS + "persist_deltas", True, looks.stored, "", "w1 w2 w3", "at once", comes=True),
            Row(
                DELTAS + "min_chars",
                2,
                looks.stored_of_a_new_one,
                NOT_LOOKED_AT,
                "w1 w2 w3",
                "at once",
                given={DELTAS + "interval_ms": 60_000},
            ),
        ),
    ),
    "the interval of stores": Sweep(
        settings={DELTAS + "persist_deltas": True, DELTAS + "interval_ms": 60_000, DELTAS + "min_chars": HUGE},
        prepare=looks.running_answer,
        rows=(Row(DELTAS + "interval_ms", 10, looks.stored, "", "w1 w2 w3", "at once", comes=True),),
    ),
    "requests": Sweep(
        patches={"actors.streamer.BACKOFF_S": 0.001},
        rows=(
            Row(PROVIDER + "model", "fake-2", looks.asked(lambda r: r.json["model"]), "fake-1", "fake-2", "next turn"),
            Row(
                PROVIDER + "api_key_env",
                KEY_VARIABLE,
                looks.asked(lambda request: request.headers.get("authorization")),
                None,
                "Bearer sk-swept",
                "next turn",
            ),
            Row(
                PROVIDER + "base_url",
                lambda w: w.s.provider.base_url.replace("/v1", "/v2"),
                looks.asked(lambda request: request.path),
                "/v1/chat/completions",
                "/v2/chat/completions",
                "next turn",
            ),
            Row(
                CLIENT + "headers",
                {"X-Team": "blue"},
                looks.asked(lambda request: request.headers.get("x-team")),
                None,
                "blue",
                "next turn",
            ),
            Row(CLIENT + "stream", False, looks.asked(lambda r: r.json["stream"]), True, False, "next turn"),
            Row(CLIENT + "max_keepalive_connections", 0, looks.connections, "kept", "another", "next turn"),
            Row(
                CLIENT + "keepalive_expiry",
                0,
                looks.connections,
                "kept",
                "another",
                "next turn",
                given={CLIENT + "max_keepalive_connections": 1},
            ),
            Row(CLIENT + "retries", 2, looks.tries, 1, 3, "next turn"),
            Row(
                CLIENT + "prewarm",
                2,
                looks.open_connections,
                0,
                2,
                "next turn",
                given={CLIENT + "max_keepalive_connections": 0},
                comes=True,
            ),
            Row(
                CLIENT + "context_tokens",
                1,
                looks.frames(lambda found: "left_out" in found[0]),
                False,
                True,
                "next turn",
            ),
            Row(
                "llm.active",
                "second",
                looks.frames(lambda found: (found[0]["provider"], found[0]["model"])),
                ("fake", "fake-2"),
                ("second", "two"),
                "next turn",
                given={"llm.providers.second": lambda w: {"base_url": w.s.provider.base_url, "model": "two"}},
            ),
        ),
    ),
    "waits for a provider": Sweep(
        settings={CLIENT + "first_token_timeout": 0.1, CLIENT + "idle_timeout": 0.1},
        rows=(
            Row(CLIENT + "first_token_timeout", 0.05, looks.failing("stall after 0"), ["0.1"], ["0.05"], "next turn"),
            Row(
                CLIENT + "idle_timeout",
                0.05,
                looks.failing("stall after 1"),
                ["0.1"],
                ["0.05"],
                "next turn",
                given={CLIENT + "first_token_timeout": BUSY_S},
            ),
            Row(
                CLIENT + "max_connections",
                1,
                looks.beside_another(looks.outcome),
                "completed",
                "failed",
                "next turn",
                given={CLIENT + "idle_timeout": 1000, CLIENT + "limits.wait": 0.1},
            ),
            Row(CLIENT + "total_timeout", 0.05, looks.failing("stall after 1"), NOT_LOOKED_AT, ["0.05"], "next turn"),
        ),
    ),
    "limits of a provider": Sweep(
        settings={CLIENT + "limits.wait": 0.1},
        rows=(
            Row(
                CLIENT + "limits.concurrent",
                1,
                looks.beside_another(looks.outcome),
                "completed",
                "failed",
                "next turn",
            ),
            Row(
                CLIENT + "limits.wait",
                0.05,
                looks.beside_another(looks.seconds),
                ["0.1"],
                ["0.05"],
                "next turn",
            ),
            Row(
                CLIENT + "limits.queue",
                0,
                looks.beside_another(looks.code),
                "LLM_RATE_LIMITED",
                "OVERLOADED",
                "next turn",
            ),
            Row(
                CLIENT + "limits.per_minute",
                1,
                looks.two_turns,
                ["completed", "completed"],
                ["completed", "failed"],
                "next turn",
                given={CLIENT + "limits.concurrent": None},
            ),
        ),
    ),
    "a provider that fails": Sweep(
        settings={CLIENT + "breaker.failures": 1, CLIENT + "breaker.rest": 1000},
        replies=(looks.broken_but_for_another_model,),
        rows=(
            Row(CLIENT + "breaker.rest", 500, looks.rest, NOT_LOOKED_AT, ["500"], "next turn"),
            Row(
                CLIENT + "breaker.failures",
                1,
                looks.tries_of_two,
                [1, 1],
                [1, 0],
                "next turn",
                given={CLIENT + "breaker.failures": 0},
            ),
            Row(
                "llm.fallbacks",
                ["second"],
                looks.frames(looks.outcome),
                "failed",
                "completed",
                "next turn",
                given={"llm.providers.second": lambda w: {"base_url": w.s.provider.base_url, "model": "two"}},
            ),
        ),
    ),
    "a provider that accepts no connection": Sweep(
        # Without the change nobody would wait for the outcome.
        settings={CLIENT + "connect_timeout": 1000, CLIENT + "first_token_timeout": 1000},
        prepare=looks.nobody_accepts,
        rows=(
            Row(
                CLIENT + "connect_timeout",
                0.05,
                looks.frames(looks.error_of),
                NOT_LOOKED_AT,
                ["it could not be reached"],
                "next turn",
            ),
        ),
    ),
    "the original backend's pool": Sweep(
        settings={POOL + "request_timeout_seconds": 0.1},
        rows=(
            Row(POOL + "request_timeout_seconds", 0.05, looks.failing("stall after 0"), ["0.1"], ["0.05"], "next turn"),
            Row(
                POOL + "max_keepalive_connections",
                0,
                looks.connections,
                "kept",
                "another",
                "next turn",
                given={POOL + "request_timeout_seconds": BUSY_S},
            ),
            Row(
                POOL + "keepalive_expiry_seconds",
                0,
                looks.connections,
                "kept",
                "another",
                "next turn",
                given={POOL + "max_keepalive_connections": 1},
            ),
            Row(
                POOL + "max_connections",
                1,
                looks.beside_another(looks.outcome),
                "completed",
                "failed",
                "next turn",
                given={CLIENT + "limits.wait": 0.1},
            ),
            Row(
                POOL + "total_timeout_seconds",
                0.05,
                looks.failing("stall after 1"),
                NOT_LOOKED_AT,
                ["0.05"],
                "next turn",
            ),
        ),
    ),
    "TLS": Sweep(
        prepare=looks.behind_tls,
        rows=(
            Row(
                CLIENT + "ca_file",
                lambda w: w.tls.file,
                looks.frames(looks.trusted),
                [True],
                True,
                "next turn",
            ),
            Row(
                CLIENT + "http2", True, looks.http_version, ("http/1.1", "completed"), ("h2", "completed"), "next turn"
            ),
        ),
    ),
    "MCP servers": Sweep(
        settings={
            MCP + "max_reconnect_attempts": 0,
            MCP + "initial_reconnect_delay": 0.001,
            MCP + "max_reconnect_delay": 500,
            MCP + "ping_timeout": 0.1,
        },
        patches={"actors.mcp_server.PROBE_AFTER_S": 0.01, "actors.stdio.EOF_GRACE_S": 0.01},
        prepare=looks.another_file,
        rows=(
            Row(
                "mcp.config_file",
                looks.OTHERS,
                looks.server_names,
                [],
                ["deaf", "exits", "mute"],
                "at once",
                comes=True,
            ),
            Row(
                MCP + "ping_timeout",
                0.05,
                looks.server("deaf", looks.seconds_of_error),
                [["0.1"]],
                [["0.05"]],
                "reconnect",
                comes=True,
            ),
            Row(
                MCP + "connection_timeout",
                0.05,
                looks.server("mute", looks.seconds_of_error),
                [[]],
                [["0.05"]],
                "reconnect",
                comes=True,
            ),
            Row(
                MCP + "max_reconnect_attempts",
                2,
                looks.server("exits", looks.state_and_restarts),
                [("parked", 0)],
                [("parked", 2)],
                "reconnect",
                # All tries are to be within one period, which is made of the configured times, on a busy machine too.
                given={MCP + "connection_timeout": 10},
                comes=True,
            ),
            Row(
                MCP + "initial_reconnect_delay",
                500,
                looks.server("exits", looks.next_try),
                [("parked", False)],
                [("restarting", True)],
                "reconnect",
                comes=True,
            ),
            Row(
                MCP + "max_reconnect_delay",
                500,
                looks.delays,
                "stay",
                "grow",
                "reconnect",
                given={
                    MCP + "max_reconnect_attempts": 4,
                    MCP + "initial_reconnect_delay": 0.02,
                    MCP + "max_reconnect_delay": 0.02,
                },
            ),
        ),
    ),
}


SERVER, OF_ALL = "mcpServers.<name>.", "settings."
SERVERS_FILE = Sweep(
    servers={"<name>": {"command": "python", "args": [ODD, "plain"]}},
    patches={"actors.stdio.EOF_GRACE_S": 0.01, "actors.mcp_server.DRAIN_S": 0.01},
    rows=(
        _file(SERVER + "args", [ODD, "pages"], looks.server("<name>", looks.fact("tools")), [4], [5]),
        _file(SERVER + "cwd", "/nowhere", looks.server("<name>", looks.no_directory), [False], [True]),
        _file(
            SERVER + "env",
            {"FLAVOUR": "vanilla"},
            looks.server("<name>", looks.fact("stderr")),
            ["0 characters"],
            ["7 characters"],
            given={
                SERVER + "cwd": None,
                SERVER + "command": "sh",
                SERVER + "args": ["-c", "echo ${#FLAVOUR} characters >&2; exit 3"],
                OF_ALL + "maxRetries": 0,
                OF_ALL + "retryDelay": 0.001,
            },
        ),
        _file(SERVER + "enabled", False, looks.server_names, ["<name>"], []),
        _file(
            SERVER + "command",
            "false",
            looks.server("<name>", looks.fact("exit_code")),
            [3],
            [1],
            given={SERVER + "enabled": True},
        ),
        _file(
            OF_ALL + "maxRetries",
            2,
            looks.server("<name>", looks.state_and_restarts),
            [("parked", 0)],
            [("parked", 2)],
        ),
        _file(
            OF_ALL + "retryDelay",
            500,
            looks.server("<name>", looks.next_try),
            [("parked", False)],
            [("restarting", True)],
        ),
        _file(
            OF_ALL + "autoReconnect",
            False,
            looks.server("<name>", looks.where_and_for_ever),
            [("restarting", False)],
            [("parked", True)],
        ),
        _file(
            SERVER + "autoReconnect",
            True,
            looks.server("<name>", looks.where_and_for_ever),
            [("parked", True)],
            [("restarting", False)],
        ),
        _file(
            OF_ALL + "logLevel",
            "ERROR",
            looks.logged_by_server,
            ["INFO", "WARNING", "CRITICAL"],
            ["CRITICAL"],
            given={SERVER + "command": "python", SERVER + "args": [ODD, "logs", os.devnull]},
        ),
        _file(OF_ALL + "defaultTimeout", 0.1, looks.seconds_of_call, NOT_LOOKED_AT, ["0.1"]),
        _file(SERVER + "timeout", 0.05, looks.seconds_of_call, ["0.1"], ["0.05"]),
        _file(
            SERVER + "protocol",
            "legacy",
            looks.server("<name>", looks.fact("era")),
            ["modern"],
            ["legacy"],
            given={SERVER + key: value for key, value in LIGHT["demo"].items()},
        ),
    ),
)
"""Keys of the servers file, which are in no table: `<name>` is the server's name here."""


def test_every_row_looks_when_the_table_says_that_a_change_counts() -> None:
    table = {row.key: row.applies for row in settings_table()}
    for sweep in SWEEPS.values():
        for row in sweep.rows:
            assert row.counts == table[row.key], row.key


@pytest.mark.seconds(60)
@pytest.mark.parametrize("name", SWEEPS)
async def test_sweep(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-swept")
    async with watching(tmp_path, monkeypatch, SWEEPS[name]) as w:
        for row in SWEEPS[name].rows:
            await show(w, row)


@pytest.mark.seconds(60)
async def test_sweep_of_the_servers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(tmp_path, monkeypatch, SERVERS_FILE) as w:
        for row in SERVERS_FILE.rows:
            await show(w, row)

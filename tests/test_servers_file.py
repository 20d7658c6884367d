"""The servers file: what it may say, its mistakes with line and key, and that one wrong server is alone in it."""

from __future__ import annotations

import json

import pytest

from actors.layers import ConfigurationError
from actors.servers_file import parse_servers
from protocol.watcher import BreakerOptions, McpServer, ServerLimits

SEED = """{
  "_comment": "MCP Platform Server Configuration - Primary configuration location",
  "_usage": "Add or remove MCP servers here. Tool configuration is handled by each server",
  "mcpServers": {
    "demo": {
      "enabled": true,
      "command": "uv",
      "args": ["run", "python", "Servers/demo_server.py"],
      "cwd": "/srv/platform"
    },
    "demo_prompt": {
      "_comment": "Prompt-only server - no tools or resources",
      "enabled": false,
      "command": "uv",
      "args": ["run", "python", "Servers/demo_prompt_server.py"],
      "cwd": "/srv/platform"
    }
  },
  "settings": {
    "defaultTimeout": 45,
    "maxRetries": 3,
    "retryDelay": 1.5,
    "logLevel": "DEBUG",
    "autoReconnect": false
  }
}
"""


def test_every_key_of_the_documented_file_is_read() -> None:
    read = parse_servers(SEED, "servers.json", {})
    assert read.problems == []
    assert read.servers == {
        "demo": McpServer(
            name="demo",
            enabled=True,
            command="uv",
            args=["run", "python", "Servers/demo_server.py"],
            cwd="/srv/platform",
            env={},
            timeout=45.0,
            auto_reconnect=False,
            protocol="auto",
        ),
        "demo_prompt": McpServer(
            name="demo_prompt",
            enabled=False,
            command="uv",
            args=["run", "python", "Servers/demo_prompt_server.py"],
            cwd="/srv/platform",
            env={},
            timeout=45.0,
            auto_reconnect=False,
            protocol="auto",
        ),
    }
    assert (read.max_retries, read.retry_delay, read.log_level) == (3, 1.5, "DEBUG")


def test_a_server_may_say_its_own() -> None:
    entry = {"command": "c", "env": {"K": "${K}"}, "timeout": 5, "autoReconnect": False, "protocol": "legacy"}
    text = json.dumps({"mcpServers": {"a": entry}})
    server = parse_servers(text, "f", {}).servers["a"]
    assert (server.env, server.timeout, server.auto_reconnect, server.protocol) == ({"K": "${K}"}, 5.0, False, "legacy")
    assert (server.enabled, server.args, server.cwd) == (True, [], None)


def test_what_a_server_may_take_is_limited() -> None:
    limits = {"concurrent": 1, "per_minute": 10, "cpu_seconds": None, "memory_mb": 512, "idle_timeout": 60}
    entry = {"command": "c", "limits": {**limits, "speed": 1, "_why": 1}, "breaker": {"failures": 0}}
    read = parse_servers(json.dumps({"mcpServers": {"a": entry, "b": {"command": "c"}}}), "f", {})
    assert read.servers["a"].limits == ServerLimits(concurrent=1, per_minute=10, memory_mb=512, idle_timeout=60.0)
    assert read.servers["a"].breaker == BreakerOptions(failures=0, rest=30.0)
    assert read.servers["b"].limits == ServerLimits()
    assert read.problems == ["f:1: mcpServers.a.limits.speed: is not known here and is ignored"]


def test_a_server_may_be_elsewhere() -> None:
    entry = {
        "url": "https://w/mcp",
        "type": "streamable-http",
        "headers": {"A": "${B}"},
        "ca_file": "c",
        "roots": ["r"],
    }
    read = parse_servers(json.dumps({"mcpServers": {"a": entry, "b": {"url": "https://w/sse"}}}), "f", {})
    assert read.problems == []
    server = read.servers["a"]
    assert (server.command, server.url, server.type, server.headers) == ("", "https://w/mcp", "http", {"A": "${B}"})
    assert (server.ca_file, server.roots) == ("c", ["r"])
    assert read.servers["b"].type == "auto"


WRONG_ENTRIES = [
    ("1", "mcpServers.bad: must be an object (got 1)"),
    ("{}", "mcpServers.bad: command is missing"),
    ('{"command": ""}', 'mcpServers.bad.command: must be text that is not empty (got "")'),
    ('{"command": "c", "args": "x"}', 'mcpServers.bad.args: must be a list of texts (got "x")'),
    ('{"command": "c", "enabled": "no"}', 'mcpServers.bad.enabled: must be true or false (got "no")'),
    (
        '{"command": "c", "env": {"PORT": 8080}}',
        'mcpServers.bad.env: must map names to texts; numbers too are written in quotes: {"PORT": "8080"} '
        "(its value is not shown)",
    ),
    ('{"command": "c", "timeout": 0}', "mcpServers.bad.timeout: must be a number of seconds above 0 (got 0)"),
    (
        '{"command": "c", "timeout": true}',
        "mcpServers.bad.timeout: must be a number of seconds from 0 to 1000000 (got true)",
    ),
    (
        '{"command": "c", "protocol": "new"}',
        'mcpServers.bad.protocol: must be auto, legacy or a version of the protocol like 2025-11-25 (got "new")',
    ),
    ('{"url": "http://x", "command": "c"}', "mcpServers.bad.url: a server has a command or a url, not both"),
    (
        '{"url": "http://x", "type": "stdio"}',
        'mcpServers.bad.type: must be http, streamable-http or sse for a server with a url (got "stdio")',
    ),
    (
        '{"url": "http://x", "headers": {"A": 1}}',
        "mcpServers.bad.headers: must map names of headers to texts (its value is not shown)",
    ),
    ('{"command": "c", "limits": []}', "mcpServers.bad.limits: must be an object (got a list)"),
    (
        '{"command": "c", "limits": {"queue": -1}}',
        "mcpServers.bad.limits.queue: must be a whole number from 0 to 10000 (got -1)",
    ),
    (
        '{"command": "c", "limits": {"idle_timeout": 0}}',
        "mcpServers.bad.limits.idle_timeout: must be a number of seconds above 0 and up to 1000000, or null (got 0)",
    ),
    (
        '{"command": "c", "breaker": {"rest": "x"}}',
        'mcpServers.bad.breaker.rest: must be a number of seconds above 0 and up to 1000000 (got "x")',
    ),
]


@pytest.mark.parametrize(("entry", "words"), WRONG_ENTRIES, ids=[entry for entry, _ in WRONG_ENTRIES])
def test_one_wrong_server_is_left_out_and_the_others_run(entry: str, words: str) -> None:
    text = f'{{"mcpServers": {{\n  "good": {{"command": "c"}},\n  "bad": {entry}\n}}}}'
    read = parse_servers(text, "servers.json", {})
    assert list(read.servers) == ["good"]
    assert read.problems == [f"servers.json:3: {words}; this server is left out"]


def test_a_server_whose_entry_became_wrong_stays_as_it_was() -> None:
    before = parse_servers('{"mcpServers": {"a": {"command": "old"}, "b": {"command": "old"}}}', "f", {}).servers
    read = parse_servers('{"mcpServers": {"a": {"command": 1}}}', "f", before)
    assert read.servers == {"a": before["a"]}
    assert read.problems == ["f:1: mcpServers.a.command: must be text that is not empty (got 1); it stays as it was"]


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a\nb", "a\x7f"])
def test_names_that_cannot_be_part_of_an_address_are_refused(name: str) -> None:
    read = parse_servers(json.dumps({"mcpServers": {name: {"command": "c"}}}), "f", {})
    assert read.servers == {}
    assert len(read.problems) == 1


def test_strange_things_are_warned_of() -> None:
    text = (
        '{"mcpServers": {\n"_note": 1,\n"a": {"command": "x", "limit": 1,\n"command": "y"}},\n'
        '"more": 1,\n"settings": {"maxRetries": -1, "_c": 2, "logLevel": "LOUD", "retry": 1}}'
    )
    read = parse_servers(text, "f", {})
    assert read.servers["a"].command == "y"
    assert (read.max_retries, read.log_level) == (None, "INFO")
    assert sorted(read.problems) == [
        "f:3: mcpServers.a.limit: is not known here and is ignored",
        "f:4: mcpServers.a.command: is there twice; the later one counts",
        "f:5: more: is not known here and is ignored",
        'f:6: settings.logLevel: must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL (got "LOUD"); it is ignored',
        "f:6: settings.maxRetries: must be a whole number from 0 to 1000000 (got -1); it is ignored",
        "f:6: settings.retry: is not known here and is ignored",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"mcpServers": {\n  "a": {,}\n}}', "f:2:9: Expecting property name enclosed in double quotes"),
        ('{"mcpServers": {', "f:1:17: Expecting property name enclosed in double quotes; is the file truncated?"),
        ("", "f:1:1: Expecting value; is the file truncated?"),
        ("[]", 'f:1: must be an object with "mcpServers": {name: server, ...}'),
        ('{"servers": {}}', 'f:1: must be an object with "mcpServers": {name: server, ...}'),
        ('{"mcpServers": {"a": {"timeout": NaN}}}', "f: is not JSON: NaN is no JSON number"),
        (
            '{"mcpServers": {"a": {"command": "\\ud83d"}}}',
            "f: holds half of a \\u surrogate pair, write the character itself",
        ),
    ],
)
def test_what_is_no_servers_file_is_told_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_servers(text, "f", {})
    assert raised.value.problems == (message,)

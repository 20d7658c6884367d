"""The schema: wrong types, ranges and formats, each told with file, line, key and value in our words."""

from __future__ import annotations

import pytest

from actors.checks import check
from actors.configuration import settings_table
from actors.layers import ConfigurationError, parse
from actors.trees import Tree
from tests.test_checks import DEFAULTS

WRONG = [
    # (key, value as written in YAML, what is said of it)
    ("chat.websocket.port", '"8000"', 'must be a whole number from 0 to 65535 (got "8000")'),
    ("chat.websocket.port", "abc", 'must be a whole number from 0 to 65535 (got "abc")'),
    ("chat.websocket.port", "true", "must be a whole number from 0 to 65535 (got true)"),
    ("chat.websocket.port", "80.5", "must be a whole number from 0 to 65535 (got 80.5)"),
    ("chat.websocket.port", "65536", "must be a whole number from 0 to 65535 (got 65536)"),
    ("chat.websocket.port", "-1", "must be a whole number from 0 to 65535 (got -1)"),
    ("chat.websocket.port", "null", "must be a whole number from 0 to 65535 (got null)"),
    ("chat.websocket.port", "[1]", "must be a whole number from 0 to 65535 (got a list)"),
    ("chat.websocket.port", "{a: 1}", "must be a whole number from 0 to 65535 (got a mapping)"),
    ("chat.websocket.host", '""', 'must be text that is not empty (got "")'),
    ("chat.websocket.host", "127", "must be text that is not empty (got 127)"),
    ("chat.websocket.endpoint", "ws", 'must be a path such as /ws/chat (got "ws")'),
    ("chat.websocket.allow_origins", '"*"', 'must be a list of texts (got "*")'),
    ("chat.websocket.allow_credentials", "1", "must be true or false (got 1)"),
    ("chat.websocket.max_message_size", "10", "must be a whole number from 1024 to 1073741824 (got 10)"),
    ("chat.websocket.ping_timeout", "0", "must be a number above 0 and up to 1000000 (got 0)"),
    ("chat.websocket.ping_interval", "true", "must be a number from 0 to 1000000 (got true)"),
    ("chat.websocket", "8000", "must be a mapping of keys (got 8000)"),
    ("chat", "webso", 'must be a mapping of keys (got "webso")'),
    ("chat.storage.type", "postgres", 'must be auto_persist or memory (got "postgres")'),
    ("chat.storage.type", "7", "must be auto_persist or memory (got 7)"),
    ("chat.storage.persistence.db_path", '""', 'must be text that is not empty (got "")'),
    (
        "chat.storage.persistence.retention.max_sessions",
        "0",
        "must be a whole number from 1 to 9007199254740992, or null (got 0)",
    ),
    (
        "chat.storage.saved_sessions.retention_days",
        "soon",
        'must be a number above 0 and up to 1000000, or null (got "soon")',
    ),
    ("chat.sessions.default", "last", 'must be latest or new (got "last")'),
    ("chat.service.max_tool_hops", "0", "must be a whole number from 1 to 1000 (got 0)"),
    (
        "chat.service.tool_notifications.icon",
        f'"{"x" * 65}"',
        "must be text of at most 64 characters (got text of 65 characters)",
    ),
    (
        "chat.service.tool_notifications.format",
        '"{nope}"',
        'may use {icon}, {tool_name}, {server} and {args} only (got "{nope}")',
    ),
    (
        "chat.service.tool_notifications.format",
        '"{icon.__class__}"',
        'may use {icon}, {tool_name}, {server} and {args} only (got "{icon.__class__}")',
    ),
    (
        "chat.service.tool_notifications.format",
        '"{icon!r:>999999999}"',
        'may use {icon}, {tool_name}, {server} and {args} only (got "{icon!r:>999999999}")',
    ),
    (
        "chat.service.tool_notifications.format",
        '"{icon"',
        'has a single { or }; write {{ or }} for the character itself (got "{icon")',
    ),
    ("chat.service.streaming.enabled", '"yes"', 'must be true or false (got "yes")'),
    ("llm.active", "nobody", "names no provider of llm.providers (there are: openrouter, openai, groq)"),
    ("llm.providers", "[]", "must be a mapping of keys (got a list)"),
    ("llm.providers.mine", "gpt", 'must be a mapping of keys (got "gpt")'),
    ("llm.providers.openrouter.model", "4", "must be text that is not empty (got 4)"),
    (
        "llm.providers.openrouter.base_url",
        "ftp.example.com",
        'must be an address such as https://api.example.com/v1 (got "ftp.example.com")',
    ),
    (
        "llm.providers.openrouter.base_url",
        '"http://[::1"',
        "must be an address such as https://api.example.com/v1 (got text of 11 characters)",
    ),
    (
        "llm.providers.openrouter.base_url",
        "https://me:hunter2@example.com",
        "must not hold a name or password; put the key into the environment",
    ),
    (
        "llm.providers.openrouter.api_key_env",
        "sk-or-v1-abcdefgh",
        "must be the name of an environment variable, or null where no key is needed (got text of 17 characters)",
    ),
    ("llm.providers.openrouter.client", "fast", 'must be a mapping of keys (got "fast")'),
    ("llm.providers.openrouter.client.retries", "many", 'must be a whole number from 0 to 100 (got "many")'),
    ("llm.providers.openrouter.client.headers.X-Title", "1", "must be text (its value is not shown)"),
    (
        "llm.providers.openrouter.client.headers",
        '{"bad name": x}',
        "must map header names to values of one line (its value is not shown)",
    ),
    ("mcp.config_file", "[]", "must be text that is not empty (got a list)"),
    ("mcp.connection.connection_timeout", '"30"', 'must be a number above 0 and up to 1000000 (got "30")'),
    ("logging.level", "LOUD", 'must be DEBUG, INFO, WARNING, ERROR or CRITICAL (got "LOUD")'),
    (
        "logging.format",
        '"%(nope)s"',
        'must be a format of Python\'s logging such as %(levelname)s %(message)s (got "%(nope)s")',
    ),
    ("logging.json", '"yes"', 'must be true or false (got "yes")'),
    ("logging.modules.streamer", "LOUD", 'must be DEBUG, INFO, WARNING, ERROR or CRITICAL (got "LOUD")'),
    (
        "logging.modules",
        "INFO",
        'must be a mapping of names to DEBUG, INFO, WARNING, ERROR or CRITICAL (got "INFO")',
    ),
    (
        "logging.modules",
        '{"a b": INFO}',
        "must map names of modules such as actors.streamer to levels (got a mapping)",
    ),
    (
        "chat.service.logging.result_truncate_length",
        "-1",
        "must be a whole number from 0 to 1073741824 (got -1)",
    ),
    ("connection_pool.total_timeout_seconds", "0", "must be a number above 0 and up to 1000000, or null (got 0)"),
    ("connection_pool.max_connections", "0", "must be a whole number from 1 to 100000, or null (got 0)"),
]


def yaml_of(key: str, value: str) -> str:
    """One key per line, so that a key of depth n is on line n."""
    parts = key.split(".")
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(parts)]
    return "\n".join(lines) + f" {value}\n"


@pytest.mark.parametrize(("key", "value", "words"), WRONG, ids=[f"{key}={value[:12]}" for key, value, _ in WRONG])
def test_what_is_wrong_is_told_with_file_line_and_key(key: str, value: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check([DEFAULTS, parse(yaml_of(key, value), "runtime_config.yaml")])
    line = key.count(".") + 1
    assert raised.value.problems == (f"runtime_config.yaml:{line}: {key}: {words}",)


def test_all_that_is_wrong_is_told_at_once() -> None:
    text = (
        "chat:\n  websocket:\n    port: x\n  service:\n    max_tool_hops: y\nllm:\n  providers:\n    mine: {top_p: 1}\n"
    )
    with pytest.raises(ConfigurationError) as raised:
        check([DEFAULTS, parse(text, "f.yaml")])
    assert raised.value.problems == (
        'f.yaml:3: chat.websocket.port: must be a whole number from 0 to 65535 (got "x")',
        'f.yaml:5: chat.service.max_tool_hops: must be a whole number from 1 to 1000 (got "y")',
        "f.yaml:8: llm.providers.mine.base_url: is missing",
        "f.yaml:8: llm.providers.mine.model: is missing",
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chat.websocket.ping_interval", "20"),
        ("chat.websocket.ping_interval", "0.5"),
        ("chat.storage.persistence.retention.max_age_hours", "null"),
        ("chat.storage.type", "autopersist"),
        ("chat.service.tool_notifications.format", '"{{}} {icon} {tool_args}"'),
        ("chat.websocket.host", "localhost"),
        ("chat.websocket.port", "0"),
        ("logging.level", "debug"),
    ],
)
def test_what_is_allowed(key: str, value: str) -> None:
    assert check([DEFAULTS, parse(yaml_of(key, value), "f")]).warnings == []


def test_the_table_has_every_default_key_once_with_a_meaning() -> None:
    rows = {row.key: row for row in settings_table()}

    def keys(tree: Tree, path: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in tree.items():
            here = f"{path}.{key}" if path else key
            found |= keys(value, here) if isinstance(value, dict) else {here}
        return found

    plain = {key for key in keys(DEFAULTS.data) if not key.startswith("llm.providers.")}
    assert plain <= set(rows)
    assert len(rows) == len(settings_table())
    assert all(row.meaning and row.expects for row in rows.values())
    assert rows["chat.websocket.port"].default == 8000
    assert rows["chat.websocket.port"].expects == "a whole number from 0 to 65535"
    assert rows["llm.providers.<name>.client.retries"].default == 2
    assert rows["chat.storage.type"].expects == "auto_persist or memory"

"""The servers file: the MCP servers to run, as JSON in the form that other MCP hosts use too.

`mcpServers` maps names to servers, `settings` holds what counts for all of them; keys that begin with `_` are
comments. One wrong server never takes the others with it: it is left out, or stays as it last was, with a
line that says why. `${VAR}` stays as written; it is filled where the server is started.

Fails with `ConfigurationError` when the text is no such file at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import msgspec

from actors.layers import ConfigurationError, json_lines
from actors.policy import STRICTNESS, is_pattern
from actors.redaction import shown
from actors.server_auth import authorization
from actors.server_limits import BREAKER, LIMITS, Rule
from actors.trees import Path, Tree, written
from protocol.watcher import SERVER_BREAKER, McpServer, ServerLimits

DEFAULT_TIMEOUT_S = 30.0  # `settings.defaultTimeout` of the reference file
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


_ALWAYS = ("enabled", "timeout", "autoReconnect", "protocol", "type", "isolate", "roots", "elicitation", "sampling")
_LIMITED = ("limits", "breaker", "policy", "pin")
_BY_COMMAND = ("command", "args", "cwd", "env")
_BY_URL = ("url", "headers", "ca_file", "auth")
_TYPES = {"http": "http", "streamable-http": "http", "streamableHttp": "http", "streamable_http": "http", "sse": "sse"}


class Servers(NamedTuple):
    """What a servers file says."""

    servers: dict[str, McpServer]
    max_retries: int | None
    """`settings.maxRetries`; None: not said."""
    retry_delay: float | None
    """`settings.retryDelay`, seconds; None: not said."""
    log_level: str
    """`settings.logLevel`"""
    problems: list[str]
    """What the operator should know, a line each."""
    errors: list[str]
    """Those of them that say what is not used because it is wrong."""


NO_SERVERS = Servers({}, None, None, "INFO", [], [])


def parse_servers(text: str, name: str, before: Mapping[str, McpServer]) -> Servers:
    """Read a servers file.

    Args:
        name: the file's name for messages.
        before: the servers in force; one whose entry became invalid stays as it is.
    Raises: ConfigurationError.
    """
    try:
        tree = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_no_constant)
        json.dumps(tree, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        hint = "; is the file truncated?" if error.pos >= len(text.rstrip()) else ""
        raise ConfigurationError([f"{name}:{error.lineno}:{error.colno}: {error.msg}{hint}"]) from None
    except UnicodeEncodeError:
        raise ConfigurationError([f"{name}: holds half of a \\u surrogate pair, write the character itself"]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError([f"{name}: is not JSON: {error}"]) from None
    reader = _Reader(name, json_lines(text))
    if not isinstance(tree, dict) or not isinstance(tree.get("mcpServers"), dict):
        raise ConfigurationError([f'{name}:1: must be an object with "mcpServers": {{name: server, ...}}'])
    return reader.read(tree, before)


class _Pairs(dict[str, Any]):
    """A JSON object that remembers which of its keys were there twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [key for key, _ in pairs]
        self.twice = {key for key in names if names.count(key) > 1} if len(self) < len(names) else set()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


class _Wrong(Exception):
    """An entry cannot be used."""


class _Reader:
    def __init__(self, name: str, lines: dict[Path, int]) -> None:
        self._name = name
        self._lines = lines
        self._problems: list[str] = []
        self._errors: list[str] = []

    def read(self, tree: Tree, before: Mapping[str, McpServer]) -> Servers:
        self._unknown(tree, (), ("mcpServers", "settings"))
        settings = tree.get("settings", {})
        path: Path = ("settings",)
        if not isinstance(settings, dict):
            self._say_at(
                f"{self._place(path)}: settings: must be an object ({shown(path, settings)})", "; it is ignored"
            )
            settings = {}
        self._unknown(settings, path, ("defaultTimeout", "maxRetries", "retryDelay", "logLevel", "autoReconnect"))
        timeout = self._lenient(settings, path, "defaultTimeout", _seconds, DEFAULT_TIMEOUT_S)
        reconnect = self._lenient(settings, path, "autoReconnect", _flag, True)
        servers: dict[str, McpServer] = {}
        for name, entry in tree["mcpServers"].items():
            if name.startswith("_"):
                continue
            at: Path = ("mcpServers", name)
            try:
                servers[name] = self._server(name, entry, at, timeout, reconnect)
            except _Wrong as wrong:
                stays = name in before
                self._say_at(str(wrong), "; it stays as it was" if stays else "; this server is left out")
                if stays:
                    servers[name] = before[name]
        self._twice(tree["mcpServers"], ("mcpServers",))
        return Servers(
            servers,
            self._lenient(settings, path, "maxRetries", _count, None),
            self._lenient(settings, path, "retryDelay", _delay, None),
            self._lenient(settings, path, "logLevel", _level, "INFO"),
            self._problems,
            self._errors,
        )

    def _server(self, name: str, entry: Any, at: Path, timeout: float, reconnect: bool) -> McpServer:
        if not name or len(name) > 64 or re.search(r"[/\x00-\x1f\x7f-\x9f]", name):
            self._wrong(at, "a server's name has 1 to 64 characters, without / and control characters")
        if not isinstance(entry, dict):
            self._wrong(at, f"must be an object ({shown(at, entry)})")
        if "url" in entry and "command" in entry:
            self._wrong((*at, "url"), "a server has a command or a url, not both")
        ways = _BY_URL if "url" in entry else _BY_COMMAND
        self._unknown(entry, at, (*_ALWAYS, *_LIMITED, *ways))
        return McpServer(
            name=name,
            enabled=self._take(entry, at, "enabled", _flag, True),
            command=""
            if "url" in entry
            else self._take(entry, at, "command", _text, None) or self._wrong(at, "command is missing"),
            args=self._take(entry, at, "args", _texts, []),
            cwd=self._take(entry, at, "cwd", _text_or_null, None),
            env=self._take(entry, at, "env", _environment, {}),
            timeout=self._take(entry, at, "timeout", _seconds, timeout),
            auto_reconnect=self._take(entry, at, "autoReconnect", _flag, reconnect),
            protocol=self._take(entry, at, "protocol", _protocol, "auto"),
            isolate=self._take(entry, at, "isolate", _flag, False),
            pin=self._take(entry, at, "pin", _flag, True),
            policy=self._take(entry, at, "policy", _policy, {}),
            elicitation=self._take(entry, at, "elicitation", _flag, True),
            sampling=self._take(entry, at, "sampling", _sampling, None),
            url=self._take(entry, at, "url", _text, ""),
            type=self._take(
                entry,
                at,
                "type",
                _type_of_url if "url" in entry else _type_of_command,
                "auto" if "url" in entry else "stdio",
            ),
            headers=self._take(entry, at, "headers", _headers, {}),
            auth=self._take(entry, at, "auth", authorization, None),
            ca_file=self._take(entry, at, "ca_file", _text_or_null, None),
            roots=self._take(entry, at, "roots", _texts, []),
            limits=ServerLimits(**self._given(entry, at, "limits", LIMITS)),
            breaker=msgspec.structs.replace(SERVER_BREAKER, **self._given(entry, at, "breaker", BREAKER)),
        )

    def _given(self, entry: Tree, at: Path, key: str, rules: Mapping[str, Rule]) -> dict[str, Any]:
        """What a mapping below an entry says, by the rules of its keys. Raises _Wrong."""
        below, here = self._take(entry, at, key, _mapping, {}), (*at, key)
        self._unknown(below, here, tuple(rules))
        return {name: self._take(below, here, name, rules[name], None) for name in rules if name in below}

    def _take(self, entry: Tree, at: Path, key: str, rule: Any, default: Any) -> Any:
        """The value of a key by its rule. Raises _Wrong."""
        if key not in entry:
            return default
        here = (*at, key)
        try:
            return rule(entry[key])
        except ValueError as error:
            return self._wrong(here, f"{error} ({shown(here, entry[key])})")

    def _lenient(self, entry: Tree, at: Path, key: str, rule: Any, default: Any) -> Any:
        """As `_take`, but what is wrong is said and ignored."""
        try:
            return self._take(entry, at, key, rule, default)
        except _Wrong as wrong:
            self._say_at(str(wrong), "; it is ignored")
            return default

    def _unknown(self, entry: Tree, at: Path, known: tuple[str, ...]) -> None:
        for key in entry:
            if key not in known and not key.startswith("_"):
                self._say((*at, key), "is not known here and is ignored")
        self._twice(entry, at)

    def _twice(self, entry: Tree, at: Path) -> None:
        for key in sorted(getattr(entry, "twice", ())):
            if not key.startswith("_"):
                self._say((*at, key), "is there twice; the later one counts")

    def _wrong(self, path: Path, words: str) -> Any:
        raise _Wrong(f"{self._place(path)}: {written(path)}: {words}")

    def _say(self, path: Path, words: str) -> None:
        self._problems.append(f"{self._place(path)}: {written(path)}: {words}")

    def _say_at(self, line: str, consequence: str) -> None:
        self._problems.append(line + consequence)
        self._errors.append(line + consequence)

    def _place(self, path: Path) -> str:
        for depth in range(len(path), 0, -1):
            if path[:depth] in self._lines:
                return f"{self._name}:{self._lines[path[:depth]]}"
        return self._name


# Rules: the value as it is used, or ValueError in words.


def _raise(words: str) -> NoReturn:
    raise ValueError(words)


def _flag(value: object) -> bool:
    return value if isinstance(value, bool) else _raise("must be true or false")


def _mapping(value: object) -> Tree:
    return value if isinstance(value, dict) else _raise("must be an object")


def _text(value: object) -> str:
    return value if isinstance(value, str) and value else _raise("must be text that is not empty")


def _text_or_null(value: object) -> str | None:
    return None if value is None else _text(value)


def _texts(value: object) -> list[str]:
    good = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return list(value) if isinstance(value, list) and good else _raise("must be a list of texts")


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) and "\0" not in item for item in value.values()):
        _raise('must map names to texts; numbers too are written in quotes: {"PORT": "8080"}')
    if not all(key and "=" not in key and "\0" not in key for key in value):
        _raise("has a name that no environment variable can have")
    return dict(value)


def _protocol(value: object) -> str:
    if isinstance(value, str) and (value in ("auto", "legacy") or re.fullmatch(r"\d{4}-\d{2}-\d{2}", value)):
        return value
    return _raise("must be auto, legacy or a version of the protocol like 2025-11-25")


def _type_of_command(value: object) -> str:
    return "stdio" if value == "stdio" else _raise("must be stdio for a server with a command")


def _type_of_url(value: object) -> str:
    if isinstance(value, str) and value in _TYPES:
        return _TYPES[value]
    return _raise("must be http, streamable-http or sse for a server with a url")


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _raise("must map names of headers to texts")
    return dict(value)


def _sampling(value: object) -> str:
    return str(value) if value in ("allow", "ask", "deny") else _raise("must be allow, ask or deny")


def _policy(value: object) -> dict[str, str]:
    rules = {"*": value} if isinstance(value, str) else value
    if not isinstance(rules, dict) or not all(isinstance(said, str) and said in STRICTNESS for said in rules.values()):
        _raise("must be allow, ask or deny, or map names of tools to these")
    if not all(is_pattern(pattern) and "/" not in pattern for pattern in rules):
        _raise("must map names of tools, patterns such as write_*, or hints such as @readOnly to allow, ask or deny")
    return dict(rules)


def _level(value: object) -> str:
    named = value.upper() if isinstance(value, str) else ""
    return named if named in LEVELS else _raise(f"must be one of {', '.join(LEVELS)}")


def _count(value: object) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1_000_000
    return value if isinstance(value, int) and good else _raise("must be a whole number from 0 to 1000000")


def _delay(value: object) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int | float) and good and math.isfinite(value) and 0 <= value <= 1_000_000:
        return float(value)
    _raise("must be a number of seconds from 0 to 1000000")


def _seconds(value: object) -> float:
    return _delay(value) or _raise("must be a number of seconds above 0")

"""The schema of the configuration: what people may write, in which ranges, and what it means.

With llm_settings.py (the section `llm`) the only importer of pydantic for settings, in strict mode: "8000" is
no port, and true no number. There are no defaults in here but those of sections that may be missing (`client`,
`connection_pool`); all others are in defaults.yaml. Unknown keys are ignored here; checks.py finds them, and
says everything in our words.

Fails with `Invalid` only, which lists all that is wrong.
"""

from __future__ import annotations

import logging
import re
import string
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from actors.llm_settings import MOST_SECONDS, LlmSettings, Section
from actors.policy import HINTS, is_pattern
from actors.trees import Path, Tree


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _storage_type(value: object) -> object:
    # Older versions of the original backend wrote it without the underscore.
    return "auto_persist" if value == "autopersist" else value


def _placeholders(text: str) -> str:
    # The original backend documents {tool_args}.
    text = text.replace("{tool_args}", "{args}")
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(text) if name is not None]
    except ValueError:
        raise ValueError("has a single { or }; write {{ or }} for the character itself") from None
    for name, spec, how in fields:
        if name not in ("icon", "tool_name", "server", "args") or spec or how:
            raise ValueError("may use {icon}, {tool_name}, {server} and {args} only")
    return text


def _log_format(text: str) -> str:
    record = logging.LogRecord("name", logging.INFO, "", 0, "text", None, None)
    try:
        logging.Formatter(text).format(record)
    except (ValueError, TypeError):  # an unknown field; a form that does not fit its field
        raise ValueError("must be a format of Python's logging such as %(levelname)s %(message)s") from None
    return text


def _endpoint(text: str) -> str:
    if not re.fullmatch(r"/[!-~]*", text) or re.search(r"[?#%\\]", text):
        raise ValueError("must be a path such as /ws/chat")
    return text


def _modules(levels: dict[str, str]) -> dict[str, str]:
    for name in levels:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*", name):
            raise ValueError("must map names of modules such as actors.streamer to levels")
    return levels


def _rules(rules: dict[str, str]) -> dict[str, str]:
    if not all(is_pattern(pattern) for pattern in rules):
        hints = ", ".join(f"@{hint}" for hint in HINTS)
        raise ValueError(
            f"must map SERVER/TOOL (each may be a pattern such as write_*) or SERVER/@HINT to a policy; "
            f"hints are {hints} and their opposites such as @!readOnly"
        )
    return rules


def _off(value: object) -> object:
    return "off" if value is False else value  # what YAML makes of the bare word


Format = Annotated[str, AfterValidator(_placeholders)]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]


class WebSocketSettings(Section):
    """`chat.websocket`."""

    host: str = Field(min_length=1, description="address to listen on")
    port: int = Field(ge=0, le=65535, description="TCP port; 0: any free one")
    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(description="path of the WebSocket")
    allow_origins: list[str] = Field(
        description='origins of web pages that may connect; []: loopback origins; ["*"]: any'
    )
    allow_credentials: bool = Field(description="CORS: pages may send credentials")
    allow_unauthenticated: bool = Field(description="listen beyond loopback without authentication")
    max_message_size: int = Field(ge=1024, le=2**30, description="bytes of one client message")
    ping_interval: float = Field(ge=0, le=MOST_SECONDS, description="seconds between pings; 0: none")
    ping_timeout: float = Field(gt=0, le=MOST_SECONDS, description="seconds to wait for a pong")


class RetentionSettings(Section):
    """`chat.storage.persistence.retention`."""

    max_age_hours: float | None = Field(gt=0, le=10**6, description="hours an unsaved conversation is kept")
    max_messages: int | None = Field(ge=1, le=2**53, description="messages kept per owner")
    max_sessions: int | None = Field(ge=1, le=2**53, description="unsaved conversations kept per owner")
    cleanup_interval_minutes: float = Field(gt=0, le=10**5, description="minutes between clean-ups")


class PersistenceSettings(Section):
    """`chat.storage.persistence`."""

    db_path: str = Field(min_length=1, description="database file, relative to the state directory")
    retention: RetentionSettings


class SavedSettings(Section):
    """`chat.storage.saved_sessions`."""

    enabled: bool = Field(description="conversations can be saved by name")
    retention_days: float | None = Field(gt=0, le=10**6, description="days a saved conversation is kept")
    max_saved: int | None = Field(ge=1, le=2**53, description="saved conversations kept per owner")


class StorageSettings(Section):
    """`chat.storage`."""

    type: Annotated[Literal["auto_persist", "memory"], BeforeValidator(_storage_type)] = Field(
        description="memory: nothing outlives the process"
    )
    persistence: PersistenceSettings
    saved_sessions: SavedSettings


class SessionsSettings(Section):
    """`chat.sessions`."""

    default: Literal["latest", "new"] = Field(description="conversation of a client that names none")


class DeltasSettings(Section):
    """`chat.service.streaming.persistence`."""

    persist_deltas: bool = Field(description="running answers are stored, so that a crash keeps their text")
    interval_ms: int = Field(ge=10, le=60_000, description="milliseconds between stores of running answers")
    min_chars: int = Field(ge=1, le=2**30, description="characters of one answer that are stored earlier")


class StreamingSettings(Section):
    """`chat.service.streaming`."""

    enabled: bool = Field(description="answers are sent piece by piece")
    persistence: DeltasSettings


class NotificationSettings(Section):
    """`chat.service.tool_notifications`."""

    enabled: bool = Field(description="clients are told of tool calls")
    show_args: bool = Field(description="with the arguments")
    icon: str = Field(max_length=64, description="{icon} of the format")
    format: Format = Field(description="text of the notice; {icon}, {tool_name}, {server}, {args}")


class FeatureSettings(Section):
    """`chat.service.logging`."""

    llm_replies: bool = Field(description="answers of the model are logged")
    tool_execution: bool = Field(description="tool calls are logged")
    system_prompt: bool = Field(description="the system prompt is logged")
    tool_results: bool = Field(description="results of tools are logged")
    llm_reply_truncate_length: int = Field(
        ge=0, le=2**30, description="characters of an answer that are logged; 0: all"
    )
    result_truncate_length: int = Field(
        ge=0, le=2**30, description="characters of a tool's result that are logged; 0: all"
    )


class ServiceSettings(Section):
    """`chat.service`."""

    system_prompt: str = Field(description="first message of every request to the model")
    streaming: StreamingSettings
    max_tool_hops: int = Field(ge=1, le=1000, description="rounds of tool calls in one turn")
    tool_notifications: NotificationSettings
    logging: FeatureSettings
    drain_s: float = Field(ge=0, le=3600, description="seconds that a stop waits for running turns")


class ToolsSettings(Section):
    """`chat.tools`."""

    policy: Annotated[dict[str, Literal["allow", "ask", "deny"]], AfterValidator(_rules)] = Field(
        description="which calls wait for a person (ask) or are refused (deny), by SERVER/TOOL or SERVER/@HINT"
    )
    approval_timeout: float = Field(
        gt=0, le=MOST_SECONDS, description="seconds until a call that nobody has approved is denied"
    )
    question_timeout: float = Field(
        gt=0, le=86_400, description="seconds until what an MCP server asks the user counts as not answered"
    )
    sampling: Literal["allow", "ask", "deny"] = Field(description="MCP servers may have the model asked")
    sampling_tokens: int = Field(ge=1, le=2**30, description="tokens of such an answer at most")
    sampling_requests: int = Field(ge=1, le=1000, description="such requests in one tool call at most")
    instructions: bool = Field(description="what MCP servers say of themselves is told to the model")
    pinning: Annotated[Literal["ask", "allow", "off"], BeforeValidator(_off)] = Field(
        description="a tool whose definition changes waits for approval (ask), is logged (allow), or nothing is kept"
    )


class ChatSettings(Section):
    """`chat`."""

    websocket: WebSocketSettings
    storage: StorageSettings
    sessions: SessionsSettings
    service: ServiceSettings
    tools: ToolsSettings


class ConnectionSettings(Section):
    """`mcp.connection`."""

    max_reconnect_attempts: int = Field(ge=0, le=10**6, description="tries until a server is left alone")
    initial_reconnect_delay: float = Field(ge=0, le=MOST_SECONDS, description="seconds before the first retry")
    max_reconnect_delay: float = Field(ge=0, le=MOST_SECONDS, description="longest wait between retries, seconds")
    connection_timeout: float = Field(gt=0, le=MOST_SECONDS, description="seconds until a server must be connected")
    ping_timeout: float = Field(gt=0, le=MOST_SECONDS, description="seconds a server may take to answer a ping")


class McpSettings(Section):
    """`mcp`."""

    config_file: str = Field(min_length=1, description="file with the MCP servers, relative to the state directory")
    connection: ConnectionSettings


class LoggingSettings(Section):
    """`logging`."""

    level: Level = Field(description="least level that is logged")
    format: Annotated[str, AfterValidator(_log_format)] = Field(description="form of a log line")
    json_lines: bool = Field(alias="json", description="one JSON object per line instead of that form")
    modules: Annotated[dict[str, Level], AfterValidator(_modules)] = Field(
        description="other levels by name: actors.streamer, streamer; chat, mcp, connection_pool"
    )


class PoolSettings(Section):
    """`connection_pool` of the original backend: what counts for providers whose `client` says nothing."""

    max_connections: int | None = Field(None, ge=1, le=100_000, description="connections at a time, per provider")
    max_keepalive_connections: int | None = Field(
        None, ge=0, le=100_000, description="idle connections that are kept, per provider"
    )
    keepalive_expiry_seconds: float | None = Field(
        None, ge=0, le=MOST_SECONDS, description="seconds that an idle connection is kept"
    )
    request_timeout_seconds: float | None = Field(
        None, gt=0, le=MOST_SECONDS, description="seconds until an answer begins"
    )
    total_timeout_seconds: float | None = Field(None, gt=0, le=MOST_SECONDS, description="seconds for a whole answer")


class Settings(Section):
    """The whole configuration, as merged and checked."""

    chat: ChatSettings
    llm: LlmSettings
    mcp: McpSettings
    logging: LoggingSettings
    connection_pool: PoolSettings = Field(default_factory=lambda: PoolSettings.model_validate({}))


class Wrong(NamedTuple):
    """One thing that is wrong."""

    path: Path
    value: object
    missing: bool
    """Nothing is there; `value` says nothing then."""
    rule: str
    """The rule in words, where one of ours was broken; empty where type or range does not fit."""


class Invalid(Exception):
    """The configuration does not fit the schema."""

    def __init__(self, wrongs: list[Wrong]) -> None:
        self.wrongs = wrongs
        super().__init__(f"{len(wrongs)} settings are wrong")


def validate(tree: Tree) -> Settings:
    """Check a merged configuration. Raises Invalid with all that is wrong."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        wrongs = [
            Wrong(
                path=found["loc"],
                value=found["input"],
                missing=found["type"] == "missing",
                rule=str(found.get("ctx", {}).get("error", "")) if found["type"] == "value_error" else "",
            )
            for found in error.errors(include_url=False)
        ]
    raise Invalid(wrongs)

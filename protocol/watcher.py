"""What the configuration watcher understands, and the snapshot that it hands out.

A `Snapshot` is the whole configuration in force: defaults, runtime file and what was substituted in memory
(the `local` provider), validated. It holds no secret: keys of providers stay in the environment.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.mail import Nudge, Request


class WebSocket(msgspec.Struct, frozen=True):
    """`chat.websocket`."""

    host: str
    port: int
    endpoint: str
    allow_origins: list[str]
    """Empty: loopback origins only; `*`: any, with a warning."""
    allow_credentials: bool
    allow_unauthenticated: bool
    """Lets the service bind to more than loopback without authentication."""
    max_message_size: int
    """Bytes of one client frame; more closes the socket with 1009."""
    ping_interval: float
    """Seconds between our pings; 0: none."""
    ping_timeout: float
    """Seconds to wait for the pong."""


class Retention(msgspec.Struct, frozen=True):
    """`chat.storage.persistence.retention`; null means no limit."""

    max_age_hours: float | None
    max_messages: int | None
    max_sessions: int | None
    cleanup_interval_minutes: float


class SavedSessions(msgspec.Struct, frozen=True):
    """`chat.storage.saved_sessions`; null means no limit."""

    enabled: bool
    retention_days: float | None
    max_saved: int | None


class Storage(msgspec.Struct, frozen=True):
    """`chat.storage`."""

    type: str
    """`auto_persist` or `memory`."""
    db_path: str
    """Absolute, or relative to the state directory."""
    retention: Retention
    saved_sessions: SavedSessions


class Deltas(msgspec.Struct, frozen=True):
    """`chat.service.streaming.persistence`."""

    persist_deltas: bool
    interval_ms: int
    min_chars: int


class ToolNotifications(msgspec.Struct, frozen=True):
    """`chat.service.tool_notifications`."""

    enabled: bool
    show_args: bool
    icon: str
    format: str
    """May use {icon}, {tool_name}, {server}, {args}; checked, so `str.format` with these cannot fail."""


class Service(msgspec.Struct, frozen=True):
    """`chat.service`."""

    system_prompt: str
    streaming: bool
    """`streaming.enabled`"""
    deltas: Deltas
    max_tool_hops: int
    tool_notifications: ToolNotifications
    logging: dict[str, bool]
    """Feature switches: llm_replies, tool_execution, system_prompt, tool_results."""
    default_session: str
    """`chat.sessions.default`: `latest` or `new`."""


class ClientOptions(msgspec.Struct, frozen=True):
    """A provider's reserved `client:` mapping: everything of ours, nothing of it goes upstream."""

    http2: bool = False
    ca_file: str | None = None
    headers: dict[str, str] = {}
    """Sent with every request; `${VAR}` is filled from the environment when sent, never before."""
    connect_timeout: float = 10.0
    first_token_timeout: float = 120.0
    idle_timeout: float = 60.0
    """Longest silence in a running stream."""
    max_connections: int = 100
    max_keepalive_connections: int = 20
    retries: int = 2
    """Further tries before the first piece; 0: none."""
    stream: bool = True
    """false: the provider is asked with `stream: false`."""


class Provider(msgspec.Struct, frozen=True):
    """One entry of `llm.providers`."""

    name: str
    base_url: str
    model: str
    api_key_env: str | None
    """Name of the environment variable with the key; None: no key is needed."""
    parameters: dict[str, Any]
    """Every other key, sent as it is."""
    client: ClientOptions


class Llm(msgspec.Struct, frozen=True):
    """`llm`."""

    active: str
    providers: dict[str, Provider]


class McpServer(msgspec.Struct, frozen=True):
    """One entry of `mcpServers`, with `${VAR}` still unfilled."""

    name: str
    enabled: bool
    command: str
    """`python` means our own interpreter."""
    args: list[str]
    cwd: str | None
    env: dict[str, str]
    timeout: float
    """Seconds of one call without progress."""
    auto_reconnect: bool
    protocol: str
    """`auto` or `legacy`"""


class Connection(msgspec.Struct, frozen=True):
    """`mcp.connection`."""

    max_reconnect_attempts: int
    initial_reconnect_delay: float
    max_reconnect_delay: float
    connection_timeout: float
    ping_timeout: float


class Mcp(msgspec.Struct, frozen=True):
    """`mcp` and the servers file that it names."""

    config_file: str
    connection: Connection
    servers: dict[str, McpServer]
    log_level: str = "INFO"
    """`settings.logLevel` of the servers file: the least level of what servers log that is passed on."""


class Logging(msgspec.Struct, frozen=True):
    """`logging`."""

    level: str
    format: str


class Snapshot(msgspec.Struct, frozen=True):
    """The configuration in force."""

    version: int
    """Grows by one with every change in force; 1 at the first."""
    websocket: WebSocket
    storage: Storage
    service: Service
    llm: Llm
    mcp: Mcp
    logging: Logging
    problems: list[str]
    """What is wrong with the files that are not in force, and warnings; a line each, for operators."""
    state_dir: str
    """Absolute path of the state directory."""
    drain_s: float
    """`chat.service.drain_s`: how long a stop waits for running turns."""


class GetSnapshot(Request[Snapshot], frozen=True, tag=True):
    """Ask: the configuration in force."""


class Subscribe(msgspec.Struct, frozen=True, tag=True):
    """`Configured` goes to that address now and on every change; repeated subscriptions count once."""

    to: str


class SetLocalModel(msgspec.Struct, frozen=True, tag=True):
    """The local model is up (with its address) or down (None); used where no provider key is set."""

    base_url: str | None
    model: str = ""


class Configured(msgspec.Struct, frozen=True, tag=True):
    """Event: a snapshot is in force. One with the version of the last differs from it in `problems` only."""

    snapshot: Snapshot


WatcherMessage = GetSnapshot | Subscribe | SetLocalModel | Nudge

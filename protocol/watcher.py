"""What the configuration watcher understands, and the snapshot that it hands out.

A `Snapshot` is the whole configuration in force: defaults, runtime file and what was substituted in memory
(the `local` provider), validated. It holds no secret: keys of providers stay in the environment.

A *version* numbers the content of the runtime file. It grows by one whenever that content changes, whoever
changed it (an editor, a client, the model's own tool, a script), and never otherwise; it goes on over restarts.
A save of ours writes its number into the file's `_runtime_config.version`; an editor's version has its number
in the history only. `Snapshot.version`, `ConfigView.version` and `VersionRow.version` are that one number.
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


class Tools(msgspec.Struct, frozen=True):
    """`chat.tools`."""

    policy: dict[str, str] = {}
    """Patterns -> allow, ask or deny; see `actors.policy`."""
    approval_timeout: float = 600.0
    """Seconds."""
    question_timeout: float = 300.0
    """Seconds that a question of a server waits for its answer."""
    sampling: str = "ask"
    """`allow`, `ask` or `deny`: whether servers that say nothing of their own may have a model asked."""
    sampling_tokens: int = 4096
    """Of one such answer at most."""
    sampling_requests: int = 10
    """In one call at most."""
    instructions: bool = True
    """What servers say of themselves is part of the system prompt."""
    pinning: str = "ask"
    """What happens to a tool whose definition has changed: ask, allow or off; see `protocol.pins`."""


class LimitOptions(msgspec.Struct, frozen=True):
    """`client.limits`: what is asked of one provider at most, by all conversations together."""

    concurrent: int | None = None
    """Requests at a time; None: as many as there may be connections (HTTP/2: without limit)."""
    per_minute: int | None = None
    """Requests that begin within any minute, further tries included; None: without limit."""
    queue: int = 1000
    """Requests that wait for their turn; one more is refused at once."""
    wait: float = 30.0
    """Seconds that a request waits at most: whoever waits at a screen does not wait longer for a beginning."""


class BreakerOptions(msgspec.Struct, frozen=True):
    """`client.breaker` of a provider, `breaker` of an MCP server: when one that fails is left alone."""

    failures: int = 8
    """Failed tries in a row after which it is not asked for a while; 0: it is always asked."""
    rest: float = 10.0
    """Seconds of that while; doubled each time that it fails again, up to six times."""


class PriceOptions(msgspec.Struct, frozen=True):
    """`client.prices`: what a provider takes for a million tokens, in whatever currency the operator counts."""

    input: float | None = None
    """None: not known, so nothing is counted for them; likewise below."""
    output: float | None = None
    cached: float | None = None
    """Of those that the provider had read before; None: as any other."""


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
    total_timeout: float | None = None
    """Seconds for a whole answer; None: as long as it flows."""
    max_connections: int = 100
    max_keepalive_connections: int = 20
    keepalive_expiry: float = 30.0
    """Seconds that an idle connection is kept: a person's next message seldom comes sooner than after some."""
    prewarm: int | None = None
    """Connections that are opened before they are needed; None: one to an https address."""
    limits: LimitOptions = LimitOptions()
    breaker: BreakerOptions = BreakerOptions()
    retries: int = 2
    """Further tries before the first piece; 0: none."""
    stream: bool = True
    """false: the provider is asked with `stream: false`."""
    context_tokens: int | None = None
    """What the model can read and write in one request, in tokens; None: unlimited, as far as we know."""
    vision: bool = True
    """The model can be sent images; false: it reads text only."""
    prices: PriceOptions = PriceOptions()
    small: bool = False
    """A model that calls no tools: it is offered none, and told nothing of servers. Set for the local model only."""


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
    fallbacks: list[str] = []
    """Providers that are asked, in this order, when the one that was asked first fails before its first piece."""
    loading: bool = False
    """No provider has its key, and the model on this machine, which is asked instead, will be there in a moment."""


class ServerLimits(msgspec.Struct, frozen=True):
    """`limits` of an MCP server."""

    result_bytes: int = 256 * 1024
    """Of a result's text that the model gets: about what the longest contexts can hold."""
    line_bytes: int = 64 * 2**20
    """Of one message of the server; a longer one fails the call that it answers."""
    concurrent: int = 16
    """Calls that run at a time; more wait."""
    queue: int = 64
    """Calls that wait, within their timeout; more are refused."""
    per_minute: int | None = None
    """Calls that begin within any minute; None: any number."""
    cpu_seconds: int | None = None
    """Processor time of each of its processes, which is ended past it; None: any."""
    memory_mb: int | None = None
    """Writable memory (RLIMIT_DATA) of each of its processes, which gets no more past it; None: any."""
    idle_timeout: float | None = None
    """Seconds without a call until its process is ended, and started by the next call; None: it stays."""


SERVER_BREAKER = BreakerOptions(failures=5, rest=30.0)


class Authorization(msgspec.Struct, frozen=True):
    """`auth` of an MCP server with a `url`: how it gets to know who uses it."""

    type: str = "oauth"
    """`oauth`: somebody allows it in a browser; `client_credentials`: by a secret, nobody is asked; `none`."""
    client_id: str = ""
    """As the authorization server knows us; empty: we are registered there when it is needed."""
    client_secret: str = ""
    """With `${VAR}` still unfilled, as `client_id`."""
    scopes: list[str] = []
    """What is asked for; empty: what the server names."""
    issuer: str = ""
    """The only authorization server that is asked; empty: the one that the server names."""
    client_metadata_url: str = ""
    """The document that says who we are, for authorization servers that take its address as `client_id`."""
    redirect_port: int = 0
    """Where the browser comes back to, on the loopback address; 0: any free port."""
    token_endpoint_auth_method: str = ""
    """`client_secret_basic` or `client_secret_post`; empty: the first."""


class McpServer(msgspec.Struct, frozen=True):
    """One entry of `mcpServers`, with `${VAR}` still unfilled."""

    name: str
    enabled: bool
    command: str
    """`python` means our own interpreter. Empty: it is found at its `url`."""
    args: list[str]
    cwd: str | None
    env: dict[str, str]
    timeout: float
    """Seconds of one call without progress."""
    auto_reconnect: bool
    protocol: str
    """`auto`, `legacy`, or the one version that is spoken with it."""
    isolate: bool = False
    """Its actor gets a process of its own."""
    policy: dict[str, str] = {}
    """Patterns of its tools -> allow, ask or deny; see `actors.policy`. A change of it restarts nothing."""
    pin: bool = True
    """What its tools say of themselves is kept, and a change must be agreed to."""
    elicitation: bool = True
    """It may ask the user."""
    sampling: str | None = None
    """`allow`, `ask` or `deny`: whether it may have a model asked; None: as `chat.tools.sampling` says."""
    url: str = ""
    """Where it is found over HTTP; empty: it is a command."""
    type: str = "stdio"
    """`stdio`; with a `url`: `http` (streamable HTTP), `sse` (HTTP+SSE, the older way), or `auto`: whichever it is."""
    headers: dict[str, str] = {}
    """Sent with every request to the `url`."""
    ca_file: str | None = None
    """Certificates that are trusted for the `url` instead of this machine's."""
    roots: list[str] = []
    """Paths or file URIs that it is told it may work in."""
    limits: ServerLimits = ServerLimits()
    breaker: BreakerOptions = SERVER_BREAKER
    """When it is left alone: after so many calls in a row that timed out or were not answered."""
    auth: Authorization | None = None
    """How the server at a `url` gets to know who uses it; None: OAuth, as soon as it asks for that."""


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
    """`logging`, and the switches of `chat.service.logging`."""

    level: str
    """Least level that is logged, where `modules` says nothing else."""
    format: str
    """Of a line, in the words of Python's logging; not used where `json` is true."""
    json: bool = False
    """One JSON object per line."""
    modules: dict[str, str] = {}
    """Least level by name: of a logger (`actors.streamer`), of its last part (`streamer`), or of one of the original
    backend's groups (`chat`, `mcp`, `connection_pool`)."""
    features: dict[str, bool] = {}
    """What is logged beside errors: llm_replies, system_prompt, tool_execution, tool_results."""
    truncate: dict[str, int] = {}
    """Most characters of a text in the log, by feature: llm_replies, tool_results; 0: whole."""


class Snapshot(msgspec.Struct, frozen=True):
    """The configuration in force."""

    version: int
    """Of the runtime file's content, see above; changes of the servers file and of the local model leave it."""
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
    tools: Tools = Tools()
    config_access: str = ""
    """Absolute path of the file with which the configuration's own tool server finds the watcher (JSON with `socket`
    and `token`, 0600); handed to that server as MCP_ACTORS_CONFIG_ACCESS. Empty: there is none."""


class GetSnapshot(Request[Snapshot], frozen=True, tag=True):
    """Ask: the configuration in force."""


class Subscribe(msgspec.Struct, frozen=True, tag=True):
    """`Configured` goes to that address now and on every change; repeated subscriptions count once."""

    to: str


class SetLocalModel(msgspec.Struct, frozen=True, tag=True):
    """The local model is up (with its address) or down (None); used where no provider key is set."""

    base_url: str | None
    model: str = ""
    expected: bool = False
    """It is down, and will be up in a moment."""


class ConfigView(msgspec.Struct, frozen=True):
    """The configuration as the files say, for people and programs."""

    version: int
    config: dict[str, Any]
    """Defaults and runtime file merged; nested from the top, without secrets and metadata."""


class GetConfig(Request[ConfigView], frozen=True, tag=True):
    """Ask: the configuration, without what the command line overrides. Faults: NOT_FOUND (no such path)."""

    path: str | None = None
    """Only what is at this path (`llm.providers.openrouter`), still nested from the top; None: all."""


class SetConfig(Request[ConfigView], frozen=True, tag=True):
    """Ask: change the runtime file; answered with the whole configuration when it is saved and in force.

    Faults: CONFIG_INVALID (names the keys; also when the file itself is broken at the moment), CONFIG_CONFLICT
    (`base_version` is not in force any more, or somebody edits the file right now), FORBIDDEN (to the author
    `tool`), INTERNAL (the file cannot be written). After any of them nothing is changed.
    """

    changes: dict[str, Any]
    """Merged over what is there, key by key; null means what it means in the file."""
    base_version: int | None = None
    """The version that the changes were made for; None: whichever is in force."""
    author: str = "api"
    """`client:<owner>`, `tool`, `api` or `cli`; `tool` may change only what a model may change of itself."""


class VersionRow(msgspec.Struct, frozen=True):
    """One version of the runtime file."""

    version: int
    at: str
    """RFC 3339, UTC."""
    author: str
    """As in `SetConfig`, or `file`: an editor."""
    changed: list[str]
    """Keys that differ from the version before, at most 50; `...` ends a longer list."""


class ListVersions(Request[list[VersionRow]], frozen=True, tag=True):
    """Ask: the latest versions, newest first; the last 200 are kept."""

    limit: int = 20


class Rollback(Request[ConfigView], frozen=True, tag=True):
    """Ask: a new version with the content of an old one. Faults as of `SetConfig`, and NOT_FOUND.

    It also helps out of a broken file, which is kept under another name.
    """

    version: int
    """0: the reference defaults; the file as it was is kept under another name."""
    author: str = "api"
    """As in `SetConfig`; `tool` may not."""


class Configured(msgspec.Struct, frozen=True, tag=True):
    """Event: a snapshot is in force. Sent when anything of it changed, its problems too."""

    snapshot: Snapshot


WatcherMessage = GetSnapshot | Subscribe | SetLocalModel | GetConfig | SetConfig | ListVersions | Rollback | Nudge

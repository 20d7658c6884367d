"""Makes the `Snapshot` that everyone reads out of checked settings and servers; pure.

Here the rules meet that need more than one file: which environment variable holds a provider's key, what the
servers file says over the defaults, and when the model on this machine steps in.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from actors.checks import Checked
from actors.llm_settings import ProviderSettings
from actors.provider_key import has_key
from actors.servers_file import Servers
from actors.settings import PoolSettings, Settings
from actors.trees import Tree
from protocol.watcher import (
    ClientOptions,
    Connection,
    Deltas,
    Llm,
    Logging,
    Mcp,
    Provider,
    Retention,
    SavedSessions,
    Service,
    Snapshot,
    Storage,
    ToolNotifications,
    Tools,
    WebSocket,
)

LOCAL = "local"
LOCAL_CONTEXT_TOKENS = 4096  # as Servers/local_model.py asks for
LOCAL_MAX_TOKENS = 512  # a small model that lost its way repeats itself; this ends it within half a minute
LOCAL_FIRST_TOKEN_S = 600.0  # a long conversation is read at tens of tokens a second on a busy machine


def make_snapshot(
    checked: Checked, runtime: Tree, servers: Servers, problems: list[str], state_dir: str, version: int
) -> Snapshot:
    """The snapshot.

    Args:
        runtime: the runtime file's layer; what it says of `mcp.connection` wins over the servers file.
    """
    settings = checked.settings
    chat = settings.chat
    return Snapshot(
        version=version,
        websocket=WebSocket(**chat.websocket.model_dump()),
        storage=Storage(
            type=chat.storage.type,
            db_path=chat.storage.persistence.db_path,
            retention=Retention(**chat.storage.persistence.retention.model_dump()),
            saved_sessions=SavedSessions(**chat.storage.saved_sessions.model_dump()),
        ),
        service=Service(
            system_prompt=chat.service.system_prompt,
            streaming=chat.service.streaming.enabled,
            deltas=Deltas(**chat.service.streaming.persistence.model_dump()),
            max_tool_hops=chat.service.max_tool_hops,
            tool_notifications=ToolNotifications(**chat.service.tool_notifications.model_dump()),
            logging=_features(settings),
            default_session=chat.sessions.default,
        ),
        llm=Llm(
            active=settings.llm.active,
            providers={
                name: _provider(name, provider, settings.connection_pool)
                for name, provider in settings.llm.providers.items()
            },
            fallbacks=list(settings.llm.fallbacks),
        ),
        mcp=Mcp(
            config_file=settings.mcp.config_file,
            connection=_connection(settings, runtime, servers),
            servers=servers.servers,
            log_level=servers.log_level,
        ),
        logging=Logging(
            level=settings.logging.level,
            format=settings.logging.format,
            json=settings.logging.json_lines,
            modules=dict(settings.logging.modules),
            features=_features(settings),
            truncate={
                "llm_replies": chat.service.logging.llm_reply_truncate_length,
                "tool_results": chat.service.logging.result_truncate_length,
            },
        ),
        tools=Tools(**chat.tools.model_dump()),
        problems=problems,
        state_dir=state_dir,
        drain_s=chat.service.drain_s,
    )


def _features(settings: Settings) -> dict[str, bool]:
    """The switches of `chat.service.logging`; its lengths are no switches."""
    return {name: value for name, value in settings.chat.service.logging if isinstance(value, bool)}


def key_variable(provider: str) -> str:
    """The environment variable with a provider's key where nothing else is said: `my-llm` → `MY_LLM_API_KEY`."""
    return re.sub(r"[^A-Z0-9]", "_", provider.upper()) + "_API_KEY"


def on_loopback(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name


def with_local_model(snapshot: Snapshot, base_url: str, model: str, environment: Mapping[str, str]) -> Snapshot:
    """The snapshot with the model on this machine as active provider, where that one and its fallbacks lack keys.

    Elsewhere the snapshot as it is. A provider of that name in the files is theirs: ours is called otherwise.
    """
    if _has_key(snapshot.llm, environment):
        return snapshot
    name = LOCAL if LOCAL not in snapshot.llm.providers else f"{LOCAL}-model"
    local = Provider(
        name=name,
        base_url=base_url,
        model=model,
        api_key_env=None,
        parameters={"max_tokens": LOCAL_MAX_TOKENS},
        # its server promises to keep connections and then closes them: every third request would meet a dead one
        client=ClientOptions(
            first_token_timeout=LOCAL_FIRST_TOKEN_S,
            headers={"Connection": "close"},
            max_keepalive_connections=0,
            context_tokens=LOCAL_CONTEXT_TOKENS,
            vision=False,
            small=True,
        ),
    )
    llm = Llm(active=name, providers={**snapshot.llm.providers, name: local})
    return msgspec.structs.replace(snapshot, llm=llm)


def with_model_loading(snapshot: Snapshot, environment: Mapping[str, str]) -> Snapshot:
    """The snapshot that says that the model on this machine will be there in a moment, where it is needed."""
    if _has_key(snapshot.llm, environment):
        return snapshot
    return msgspec.structs.replace(snapshot, llm=msgspec.structs.replace(snapshot.llm, loading=True))


def _has_key(llm: Llm, environment: Mapping[str, str]) -> bool:
    """The active provider or a fallback has its key, or needs none."""
    return any(has_key(llm.providers[name], environment) for name in (llm.active, *llm.fallbacks))


def _provider(name: str, written: ProviderSettings, pool: PoolSettings) -> Provider:
    variable = written.api_key_env
    if "api_key_env" not in written.model_fields_set and not on_loopback(written.base_url):
        variable = key_variable(name)
    from_pool: dict[str, Any] = {
        "max_connections": pool.max_connections,
        "max_keepalive_connections": pool.max_keepalive_connections,
        "keepalive_expiry": pool.keepalive_expiry_seconds,
        "first_token_timeout": pool.request_timeout_seconds,
        "total_timeout": pool.total_timeout_seconds,
    }
    client = written.client.model_dump()
    said = written.client.model_fields_set
    client.update({key: value for key, value in from_pool.items() if value is not None and key not in said})
    return Provider(
        name=name,
        base_url=written.base_url,
        model=written.model,
        api_key_env=variable,
        parameters=dict(written.model_extra or {}),
        client=msgspec.convert(client, ClientOptions),
    )


def _connection(settings: Settings, runtime: Tree, servers: Servers) -> Connection:
    """`mcp.connection`: the runtime file over the servers file's settings over the defaults."""
    mcp = runtime.get("mcp")
    said = mcp.get("connection") if isinstance(mcp, dict) else None
    values = settings.mcp.connection.model_dump()
    from_servers = {"max_reconnect_attempts": servers.max_retries, "initial_reconnect_delay": servers.retry_delay}
    for key, value in from_servers.items():
        if value is not None and not (isinstance(said, dict) and key in said):
            values[key] = value
    return Connection(**values)

"""The place of one MCP server in the tree: how often it is restarted, how long it may take to stop.

Light: names the actor by its dotted string and imports neither it nor the MCP package.
"""

from __future__ import annotations

import math

from actors.stdio import EOF_GRACE_S, KILL_GRACE_S, TERM_GRACE_S
from protocol.spec import Backoff, Child, Intensity, OnLimit
from protocol.watcher import Connection, McpServer

DRAIN_S = 5.0  # of a stop: for calls that are running
PARK_S = 300.0  # between two tries of a parked server


def child(
    server: McpServer,
    connection: Connection,
    *,
    state_dir: str,
    log_level: str,
    config_access: str = "",
    pinned: bool = False,
) -> Child:
    """The place of a server in the tree, from its configuration; the rest are fields of the snapshot."""
    tries = connection.max_reconnect_attempts if server.auto_reconnect else 0
    return Child(
        name=server.name,
        run="actors.mcp_server:run",
        shutdown_s=DRAIN_S + EOF_GRACE_S + TERM_GRACE_S + KILL_GRACE_S + 1.0,
        backoff=Backoff(
            first_s=connection.initial_reconnect_delay,
            cap_s=max(connection.max_reconnect_delay, connection.initial_reconnect_delay),
            # One that fails only after its whole time to connect has not been healthy.
            healthy_s=2 * connection.connection_timeout,
        ),
        intensity=Intensity(
            restarts=tries,
            # All tries, however slow each is, belong to one period.
            period_s=(tries + 1) * (connection.max_reconnect_delay + 2 * connection.connection_timeout),
        ),
        on_limit=OnLimit.PARK,
        park_s=PARK_S if server.auto_reconnect else math.inf,
        keep="actors.mcp_server:memory",
        args={
            "server": server,
            "connection": connection,
            "state_dir": state_dir,
            "log_level": log_level,
            "config_access": config_access,
            "pinned": pinned,
        },
    )

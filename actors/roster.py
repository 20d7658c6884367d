"""Keeps one actor per enabled MCP server of the configuration: starts, replaces and stops only what changed.

The group `mcp` is dynamic; each server is a child of it, supervised on its own. What can fail here is
nothing: a server that cannot start is its own actor's trouble.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.server_child import child
from protocol.mail import Mailbox
from protocol.mcp_server import Catalogue
from protocol.roster import RosterMessage
from protocol.spec import Context, KeepContext
from protocol.watcher import Configured, Connection, GetSnapshot, McpServer, Snapshot, Subscribe

GROUP = "mcp"
GATEWAY = "front/gateway"  # who hears of tools and progress
START_S = 30.0  # for the watcher's first snapshot

Known = dict[str, tuple[McpServer, Connection]]


@asynccontextmanager
async def keep(_: KeepContext) -> AsyncIterator[Known]:
    """What was started, across restarts of this actor: the servers are not its children and live on."""
    yield {}


async def run(box: Mailbox[RosterMessage], ctx: Context) -> None:
    """The actor."""
    watcher = ctx.ref("watcher")
    apply(await watcher.ask(GetSnapshot(), within=START_S, again=True), ctx)
    watcher.offer(Subscribe(to=ctx.path))
    async for message in box:
        match message:
            case Configured():
                apply(message.snapshot, ctx)
            case _:
                pass  # a nudge: nothing to do


def apply(snapshot: Snapshot, ctx: Context) -> None:
    """Make the group what the configuration says."""
    known: Known = ctx.kept
    wanted = {s.name: (s, snapshot.mcp.connection) for s in snapshot.mcp.servers.values() if s.enabled}
    for name in [name for name in known if wanted.get(name) != known[name]]:
        del known[name]
        ctx.stop_child(f"{GROUP}/{name}")
        ctx.ref(GATEWAY).offer(Catalogue(name, [], [], [], ""))  # its tools are offered no more
    for name, (server, connection) in wanted.items():
        if name not in known:
            known[name] = (server, connection)
            ctx.start_child(GROUP, child(server, connection, gateway=GATEWAY, state_dir=snapshot.state_dir))
    ctx.report(servers=len(known))

"""Keeps one actor per enabled MCP server of the configuration: starts, replaces and stops only what changed.

The group `mcp` is dynamic; each server is a child of it, supervised on its own. A replaced server's new
process starts when the old one has ended (the supervisor sees to that), so a server never runs twice. The
logging level alone replaces nobody: it is told. What can fail here is nothing: a server that cannot start is
its own actor's trouble.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from actors.server_child import child
from actors.server_command import access_of
from actors.server_pins import is_pinned
from protocol.mail import Mailbox
from protocol.mcp_server import SetServerLog
from protocol.roster import RosterMessage
from protocol.spec import Context, KeepContext
from protocol.watcher import Configured, Connection, GetSnapshot, McpServer, Snapshot, Subscribe

log = logging.getLogger(__name__)

GROUP = "mcp"
START_S = 30.0  # for the watcher's first snapshot

Known = dict[str, tuple[tuple[McpServer, Connection, str], str]]
"""By name: what a server was started with, and the logging level that it was told."""


@asynccontextmanager
async def keep(_: KeepContext) -> AsyncIterator[Known]:
    """What was started, across restarts of this actor: the servers are not its children and live on."""
    yield {}


async def run(box: Mailbox[RosterMessage], ctx: Context) -> None:
    """The actor. `ctx.args` may hold `first`, which is waited for before the first servers are started.

    It is ready before: this process takes connections once its parts are ready, and `first` may wait for one.
    """
    watcher = ctx.ref("watcher")
    ctx.ready()
    if (first := ctx.args.get("first")) is not None:
        await first()
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
    connection, level, access = snapshot.mcp.connection, snapshot.mcp.log_level, snapshot.config_access
    wanted = {
        # what only says who may call its tools does not concern a server
        server.name: (msgspec.structs.replace(server, policy={}), connection, access_of(server, access))
        for server in snapshot.mcp.servers.values()
        if server.enabled
    }
    for name, (started, told) in tuple(known.items()):
        path = f"{GROUP}/{name}"
        # One that is parked takes no message; it gets a new try as everyone does whose settings changed.
        if wanted.get(name) == started and (told == level or ctx.ref(path).offer(SetServerLog(level))):
            known[name] = (started, level)
        else:
            del known[name]
            ctx.stop_child(path)
    for name, start in wanted.items():
        if name not in known:
            known[name] = (start, level)
            server, connection, its_access = start
            place = child(
                server,
                connection,
                state_dir=snapshot.state_dir,
                log_level=level,
                config_access=its_access,
                pinned=is_pinned(server),
            )
            apart = ctx.args.get("apart")
            if server.isolate and apart is None:
                log.warning("MCP server %r is to be isolated, and shares the only process that there is", name)
            ctx.start_child(GROUP, apart(place, snapshot) if server.isolate and apart is not None else place)
    ctx.report(servers=len(known))

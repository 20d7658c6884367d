"""From the configuration of an MCP server to what is spoken with: a process that runs, or an address elsewhere.

Both have `clean` (takes secrets out of texts), `facts` and `ended` (for status) and `last_words`. What can fail:
`Unusable` (a restart cannot help), and `ServerEnded` as soon as a process dies.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from actors.server_command import command_of
from actors.server_endpoint import Endpoint, endpoint_of
from actors.stdio import Command, Process, running
from protocol.watcher import McpServer

Way = Command | Endpoint
Link = Process | Endpoint


def way_to(server: McpServer, state_dir: str, environ: Mapping[str, str], config_access: str) -> Way:
    """What its configuration comes to. Raises Unusable."""
    if server.url:
        return endpoint_of(server, state_dir, environ)
    return command_of(server, state_dir, environ, config_access)


@asynccontextmanager
async def linked(way: Way) -> AsyncIterator[Link]:
    """The running process; an endpoint runs without us. Raises as `actors.stdio.running`."""
    if isinstance(way, Endpoint):
        yield way
    else:
        async with running(way) as process:
            yield process

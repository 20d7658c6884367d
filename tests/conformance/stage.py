"""The product's actor in the product's tree, one MCP server per scenario; and a gateway that hears what they tell."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from actors.server_child import child
from actors.servers_file import parse_servers
from protocol.mail import Mailbox
from protocol.mcp_server import Catalogue, SamplingRequest, TellTools, UserQuestion
from protocol.spec import Child, Context, Down, Group, Up
from protocol.watcher import Connection
from supervisors.supervisor import Tree, running

GATEWAY = "front/gateway"
CONNECTION = Connection(
    max_reconnect_attempts=5,
    initial_reconnect_delay=0.1,
    max_reconnect_delay=1.0,
    connection_timeout=30.0,
    ping_timeout=10.0,
)

Told = Catalogue | UserQuestion | SamplingRequest | Down


class Stage:
    """The running tree."""

    tree: Tree

    def __init__(self, state: Path) -> None:
        self._state = state
        self._heard: dict[str, trio.MemorySendChannel[Told]] = {}

    async def gateway(self, box: Mailbox[Any], ctx: Context) -> None:
        """The actor that all servers tell."""
        ctx.watch("mcp")
        async for message in box:
            match message:
                case Up(path=path):
                    ctx.ref(path).offer(TellTools(to=ctx.path))
                case Down(path=path):
                    self._pass_on(path.rpartition("/")[2], message)
                case Catalogue() | UserQuestion() | SamplingRequest():
                    self._pass_on(message.server, message)
                case _:
                    pass

    def _pass_on(self, server: str, message: Told) -> None:
        if server in self._heard:
            self._heard[server].send_nowait(message)

    @asynccontextmanager
    async def server(self, name: str, entry: dict[str, Any]) -> AsyncIterator[trio.MemoryReceiveChannel[Told]]:
        """An MCP server by its entry of the servers file, while the block runs; yields what it tells."""
        found = parse_servers(json.dumps({"mcpServers": {name: entry}}), "servers_config.json", {})
        if found.problems:
            raise ValueError(found.problems[0])
        self._heard[name], told = trio.open_memory_channel[Told](math.inf)
        place = child(found.servers[name], CONNECTION, state_dir=str(self._state), log_level="INFO")
        slot = self.tree.add_child("mcp", place)
        try:
            yield told
        finally:
            self.tree.drop_child(f"mcp/{name}")
            if slot is not None:
                await slot.ended.wait()  # the suite looks at what it saw when its client has ended
            del self._heard[name]


@asynccontextmanager
async def stage(state: Path) -> AsyncIterator[Stage]:
    """A tree without servers."""
    made = Stage(state)
    root = Group(
        "root",
        (
            Group("mcp", dynamic=True),
            Group("front", (Child("gateway", made.gateway, mailbox=4096),)),
        ),
    )
    async with running(root) as tree:
        made.tree = tree
        yield made

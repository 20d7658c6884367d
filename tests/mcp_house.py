"""A tree with MCP servers in it, and a gateway and a watcher that write down what they are told."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from actors.server_child import child
from protocol.errors import Fault
from protocol.mail import Mailbox, Ref
from protocol.mcp_server import CallTool, Catalogue, TellTools, ToolOutcome
from protocol.spec import Child, Context, Down, Group, Up
from protocol.watcher import Connection, McpServer
from supervisors.supervisor import Tree, running
from tests.service import DEMO, LIGHT

ODD = str(Path(__file__).with_name("odd_servers.py"))
ODD_TOOLS = ["count", "die", "hang", "hello"]


def connection(attempts: int = 3, connect_s: float = 10.0) -> Connection:
    return Connection(
        max_reconnect_attempts=attempts,
        initial_reconnect_delay=0.01,
        max_reconnect_delay=0.02,
        connection_timeout=connect_s,
        ping_timeout=5.0,
    )


def odd(mode: str, argument: str = "", *, timeout: float = 10.0, name: str = "odd", **more: Any) -> McpServer:
    fields: dict[str, Any] = {
        "name": name,
        "enabled": True,
        "command": "python",
        "args": [ODD, mode, argument],
        "cwd": None,
        "env": {},
        "timeout": timeout,
        "auto_reconnect": True,
        "protocol": "auto",
    }
    return McpServer(**(fields | more))


def demo(timeout: float = 10.0) -> McpServer:
    return odd("", name="demo", args=DEMO["demo"]["args"], timeout=timeout)


def light(timeout: float = 10.0) -> McpServer:
    """The same, quick to start, for what is not about the MCP package."""
    return odd("", name="demo", args=LIGHT["demo"]["args"], timeout=timeout)


def rich(*arguments: str, timeout: float = 10.0) -> McpServer:
    """One that has one of everything; `older`: of the older era."""
    path = str(Path(__file__).with_name("rich_server.py"))
    return odd("", name="rich", args=["-S", path, *arguments], timeout=timeout)


class House:
    """A tree with one or more servers, and what they tell."""

    tree: Tree

    def __init__(self) -> None:
        self._told, self.told = trio.open_memory_channel[Any](math.inf)

    async def gateway(self, box: Mailbox[Any], ctx: Context) -> None:
        ctx.watch("mcp")
        async for message in box:
            if isinstance(message, Up):
                ctx.ref(message.path).offer(TellTools(to=ctx.path))
            elif not isinstance(message, Down):
                self._told.send_nowait(message)

    async def watcher(self, box: Mailbox[Any], ctx: Context) -> None:
        ctx.watch("mcp")
        async for message in box:
            self._told.send_nowait(message)

    async def next(self, kind: type[Any]) -> Any:
        """The next message of that type; others before it are dropped."""
        async for message in self.told:
            if isinstance(message, kind):
                return message
        raise AssertionError("the channel is never closed")

    def ref(self, name: str = "odd") -> Ref[Any]:
        return self.tree.ref(f"mcp/{name}")

    def facts(self, name: str = "odd") -> dict[str, Any]:
        slot = self.tree.slots[f"mcp/{name}"]
        return {**slot.kept_facts, **slot.facts}

    async def call(self, tool: str, server: str = "odd", call: str = "", **arguments: Any) -> ToolOutcome:
        message = CallTool(call=call or tool, tool=tool, arguments=arguments, to="front/gateway")
        return await self.ref(server).ask(message, within=15)

    async def fault(self, tool: str, server: str = "odd", call: str = "", **arguments: Any) -> Fault:
        with pytest.raises(Fault) as caught:
            await self.call(tool, server, call, **arguments)
        return caught.value


@asynccontextmanager
async def house(
    *servers: McpServer,
    on: Connection | None = None,
    state: Path | str = "/",
    log_level: str = "INFO",
    config_access: str = "",
) -> AsyncIterator[House]:
    made = House()
    children = tuple(
        child(
            server,
            on or connection(),
            state_dir=str(state),
            log_level=log_level,
            config_access=config_access,
        )
        for server in servers
    )
    root = Group(
        "root",
        (
            Child("watcher", made.watcher),
            Group("mcp", children, dynamic=True),
            Group("front", (Child("gateway", made.gateway, mailbox=4096),)),
        ),
    )
    async with running(root) as tree:
        made.tree = tree
        yield made


def names(catalogue: Catalogue) -> list[str]:
    return sorted(tool.name for tool in catalogue.tools)

"""Which of a server's tools are offered: those whose definitions are as they were first seen, or were agreed to.

The writer keeps the definitions and decides; this asks it whenever a list is known anew, and says when to ask again:
something was decided, the rule changed, or the writer did not answer. Until it does no tool is offered: without the
store no turn runs anyway. A server that is not pinned (`pin: false`, and those that come with the product) is asked
nothing about.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import msgspec
import trio

from protocol.errors import Fault
from protocol.mail import MailError
from protocol.mcp_server import Catalogue, Tool
from protocol.pins import Checked, CheckTools
from protocol.spec import Context
from protocol.watcher import McpServer

ASK_S = 5.0  # for the writer
AGAIN_S = 1.0  # until it is asked again
NAMES_MAX = 5  # in a line for operators
OURS = "Servers."  # modules that come with the product, and change with it

log = logging.getLogger("actors.mcp_server")


def is_pinned(server: McpServer) -> bool:
    """Whether its definitions are kept, as far as its entry says."""
    ours = server.command == "python" and server.args[:1] == ["-m"] and server.args[1:2] != []
    return server.pin and not (ours and server.args[1].startswith(OURS) and server.cwd is None)


def source_of(server: McpServer) -> str:
    """Digest of what is started or reached: what the operator changes there makes it another server."""
    told = [server.command, server.args, server.cwd, server.url]
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()


def definition(tool: Tool) -> str:
    """Canonical JSON of what the model is told of a tool, and of what rules look at."""
    told = {
        "name": tool.name,
        "description": tool.description,
        "schema": tool.schema,
        "annotations": tool.annotations,
    }
    return msgspec.json.encode(told, order="sorted").decode("utf-8", "replace")


class Pins:
    """Asks for one server.

    Args:
        again: called when the list should be looked at anew.
    """

    def __init__(self, server: McpServer, ctx: Context, *, pinned: bool, again: Callable[[], None]) -> None:
        self._server = server
        self._ctx = ctx
        self._pinned = pinned
        self._again = again
        self._silent = trio.Event()
        self._quarantined: list[str] = []
        self._waiting = False

    async def checked(self, found: Catalogue) -> Catalogue:
        """What may be offered of it."""
        if not self._pinned:
            return found
        tools = {tool.name: definition(tool) for tool in found.tools}
        ask = CheckTools(self._server.name, source_of(self._server), tools, to=self._ctx.path)
        try:
            answer: Checked = await self._ctx.ref("store/writer").ask(ask, within=ASK_S, again=True)
        except (MailError, Fault) as error:
            # said once: it goes on until the store is there again
            level = logging.DEBUG if self._waiting else logging.WARNING
            log.log(level, "MCP server %r: its tools are not offered yet: %s", self._server.name, error)
            self._waiting = True
            self._silent.set()
            return msgspec.structs.replace(found, tools=[])
        self._waiting = False
        if answer.changed:
            log.warning("MCP server %r: these tools have changed: %s", self._server.name, _some(answer.changed))
        held = set(answer.quarantined)
        if answer.quarantined != self._quarantined:
            self._quarantined = answer.quarantined
            self._tell()
        usable = [tool for tool in found.tools if tool.name not in held]
        return msgspec.structs.replace(found, tools=usable, quarantined=sorted(held))

    def _tell(self) -> None:
        held = self._quarantined
        self._ctx.report(quarantined=_some(held) or None)
        if held:
            text = "MCP server %r: %d tools have changed and are not offered until somebody agrees: %s"
            log.warning(text, self._server.name, len(held), _some(held))

    async def run(self) -> None:
        """Ask again after the writer was silent, until cancelled."""
        while True:
            await self._silent.wait()
            self._silent = trio.Event()
            await trio.sleep(AGAIN_S)
            self._again()


def _some(names: list[str]) -> str:
    return ", ".join([*names[:NAMES_MAX], *["..."] * (len(names) > NAMES_MAX)])

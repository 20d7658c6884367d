"""What one MCP server offers, and who is told: its lists, asked for anew when they change, told on to the gateways.

Tools are offered as soon as they are listed, without those that must be agreed to first; resources once it is known
that they can be read, and that is looked at again when lists change and every few minutes. A gateway that has no room
now is told later. What can fail: `list_all`, with `Refused` or `ServerEnded`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import trio

from actors.server_faults import Refused
from actors.server_pins import Pins
from actors.server_resources import available
from protocol.mcp_server import Catalogue, Resting, Tool
from protocol.spec import Context

if TYPE_CHECKING:
    from actors.mcp_client import Connected

RELIST_PAUSE_S = 0.2  # a server that announces changes in a storm is asked five times a second
RELIST_MOST = 50  # times that, where it says something else of its tools each time
CHECK_PAUSE_S = 1.0  # and its resources are looked at once a second
CHECK_EVERY_S = 300.0  # without a change: files and databases come and go without a word

log = logging.getLogger("actors.mcp_server")


class Offer:
    """That of one incarnation.

    Args:
        server: its name.
        gateways: addresses that are told; those that are there no more do no harm. They outlive the incarnation.
        listed: called with the tools whenever they are known anew.
    """

    def __init__(
        self, server: str, ctx: Context, gateways: set[str], listed: Callable[[dict[str, Tool]], None]
    ) -> None:
        self.gateways = gateways
        self.pins: Pins | None = None
        """What decides which tools may be offered; None: all may."""
        self.news = trio.Event()
        """There is something to announce, or lists are to be asked for."""
        self.leaving = False
        """The mailbox is closed: nothing is offered any more."""
        self._server = server
        self._ctx = ctx
        self._tools = listed
        self._listed: Catalogue | None = None
        self._problem = ""
        self._readable: frozenset[str] = frozenset()
        self._found: list[Tool] = []
        self._pauses = 1
        self._relist = False
        self._recheck = trio.Event()
        self._telling = trio.Lock()

    def changed(self) -> None:
        """The server says that one of its lists changed, or what may be offered did."""
        self._relist = True
        self.news.set()

    def tell(self, gateway: str) -> None:
        """It is told what is offered, now and from now on."""
        self.gateways.add(gateway)
        self.news.set()

    def withdraw(self) -> None:
        """Until lists are known anew nothing is offered."""
        self._listed = None
        for gateway in sorted(self.gateways):
            self._ctx.ref(gateway).offer(self._nothing())

    def rests(self, reason: str, seconds: float | None) -> None:
        """The gateways are told that the server is degraded, and for how long at least if that is known; or, without a
        reason, that it works again."""
        told = Resting(self._ctx.path, reason, None if seconds is None else round(seconds * 1000))
        for gateway in sorted(self.gateways):
            self._ctx.ref(gateway).offer(told)

    async def list_all(self, connected: Connected) -> None:
        """Ask for everything that the server offers. Raises Refused, ServerEnded."""
        found, problems = await connected.catalogue()
        self._found = found.tools
        self._listed = await self.pins.checked(found) if self.pins is not None else found
        tools = {tool.name: tool for tool in self._listed.tools}
        self._tools(tools)
        problem = "; ".join(problems)
        if problem not in ("", self._problem):
            log.warning("MCP server %r: %s", self._server, problem)
        self._problem = problem
        self._ctx.report(tools=len(tools), problem=problem or None)
        self._recheck.set()

    async def next(self, connected: Connected | None, within: float) -> None:
        """Wait until there is news, and announce it; lists are asked for within so many seconds, if there is whom."""
        await self.news.wait()
        self.news = trio.Event()
        before = self._found
        if self._relist and connected is not None:
            self._relist = False
            try:
                with trio.fail_after(within):
                    await self.list_all(connected)
            except (Refused, trio.TooSlowError) as error:  # it still has the tools that it had, as far as we know
                self._ctx.report(problem=str(error) or f"it did not list its tools again within {within:g} s")
            self._pauses = min(2 * self._pauses, RELIST_MOST) if self._found != before else 1
        await self.announce()

    async def rest(self) -> None:
        """A while before the next time, longer and longer for a server that is another each time."""
        await trio.sleep(self._pauses * RELIST_PAUSE_S)

    async def announce(self) -> None:
        """Tell the gateways what is offered now."""
        async with self._telling:
            if (offered := self._offered()) is None:
                return
            for gateway in sorted(self.gateways):
                # not `send`: that would wait for one that may never come back, and keep it from the others
                if not self._ctx.ref(gateway).offer(offered) and not self.leaving:
                    self.news.set()

    async def watch_resources(self, connected: Connected) -> None:
        """Find out which resources can be read, again and again."""
        while True:
            self._recheck = trio.Event()
            uris = [resource.uri for resource in self._listed.resources] if self._listed else []
            found = await available(self._server, uris, connected.read)
            if found != self._readable:
                self._readable = found
                self.news.set()
            self._ctx.report(resources=len(found), resources_unavailable=len(set(uris) - found))
            await trio.sleep(CHECK_PAUSE_S)
            with trio.move_on_after(CHECK_EVERY_S):
                await self._recheck.wait()

    def _offered(self) -> Catalogue | None:
        if self._listed is None:
            return None
        if self.leaving:
            return self._nothing()
        usable = [resource for resource in self._listed.resources if resource.uri in self._readable]
        return msgspec.structs.replace(self._listed, resources=usable)

    def _nothing(self) -> Catalogue:
        return Catalogue(self._server, [], [], [], "")

"""The actor of one MCP server: owns its process and its connection, runs its tools, says what it offers.

One incarnation is one process and one connection. Each call is a task with its own deadline, restarted by
progress and bounded by a ceiling; cancelling one cancels only that. When the process dies the actor raises
at once, also when idle: its supervisor decides when to try again, and who waited for a call gets `Gone`,
because what the call did is unknown. What no restart can help (command, directory, variable, protocol
version) parks at once. A call is never repeated here.

Must not import the MCP package: it takes 0.6 s, so `actors.mcp_client` is imported in a thread.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from actors import stdio
from actors.server_child import DRAIN_S, child
from actors.server_command import command_of
from actors.server_faults import ConnectTimeout, Refused, ServerEnded, Unusable
from protocol.errors import Code, Fault
from protocol.mail import Gone, Mailbox, Reply
from protocol.mcp_server import CallTool, CancelCall, Catalogue, McpServerMessage, ToolOutcome, ToolProgress
from protocol.spec import Context, KeepContext, Parked, Up
from protocol.watcher import Connection, McpServer

if TYPE_CHECKING:
    from actors.mcp_client import Connected

CONCURRENT = 16  # calls that a server works on at once; more wait within their deadline
HELD = 80  # calls in hand at most, waiting ones included; more are refused
CEILING = 10  # a call may take this many timeouts in all, however much progress it reports
RELIST_PAUSE_S = 0.2  # a server that announces changes in a storm is asked five times a second


@dataclass
class Memory:
    """What outlives an incarnation."""

    status: KeepContext | None = None
    """Where facts are reported that should outlive it too."""
    legacy: bool = False
    """The server ignored the newer handshake: begin with the older one, without waiting for the newer."""


@asynccontextmanager
async def memory(status: KeepContext) -> AsyncIterator[Memory]:
    """What the slot keeps across incarnations."""
    yield Memory(status)


@dataclass
class _Call:
    """A call in hand."""

    scope: trio.CancelScope
    started: bool = False
    cancelled: bool = False
    progress: float = -math.inf
    ceiling: float = math.inf
    """Trio time after which no progress helps any more."""


@dataclass
class _Totals:
    calls: int = 0
    failures: int = 0


@dataclass
class _Desk:
    """State of one incarnation, shared by its tasks."""

    server: McpServer
    box: Mailbox[McpServerMessage]
    ctx: Context
    gateway: str
    connected: Connected | None = None
    tools: frozenset[str] = frozenset()
    catalogue: Catalogue | None = None
    ready: trio.Event = field(default_factory=trio.Event)
    news: trio.Event = field(default_factory=trio.Event)
    relist: bool = False
    taking: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled when the connection ends: what waits in the mailbox is for the next incarnation."""
    calls: dict[str, _Call] = field(default_factory=dict)
    slots: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(CONCURRENT))
    totals: _Totals = field(default_factory=_Totals)

    def changed(self) -> None:
        """The server says that one of its lists changed."""
        self.relist = True
        self.news.set()

    async def serve(self, stop: trio.CancelScope) -> None:
        """Take messages until the mailbox closes; then let running calls end, and stop everything."""
        async with trio.open_nursery() as nursery:
            with self.taking:
                async for message in self.box:
                    match message:
                        case CallTool():
                            self._take(message, nursery)
                        case CancelCall(call=name):
                            if call := self.calls.get(name):
                                call.cancelled = True
                                call.scope.cancel()
                        case Up():
                            self.news.set()  # the gateway is back, and may have forgotten what we offer
                        case _:
                            pass  # Down of the gateway, nudges: nothing to do
                nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
        if not self.taking.cancelled_caught:
            stop.cancel()

    def _take(self, message: CallTool, nursery: trio.Nursery) -> None:
        if message.call in self.calls:
            self.box.fault(Fault(Code.TOOL_FAILED, f"A call {message.call!r} is running already."))
        elif len(self.calls) >= HELD:
            self.box.fault(
                Fault(Code.MCP_SERVER_UNAVAILABLE, f"MCP server {self.server.name!r} has {HELD} calls in hand already.")
            )
        else:
            call = self.calls[message.call] = _Call(trio.CancelScope())
            nursery.start_soon(self._run, message, call, self.box.reply_slot)

    async def _run(self, message: CallTool, call: _Call, reply: Reply | None) -> None:
        self.totals.calls += 1
        call.scope.deadline = trio.current_time() + self.server.timeout
        answer: ToolOutcome | Fault | Gone | None = None
        try:
            with call.scope:
                try:
                    answer = await self._answer(message, call)
                except Fault as fault:
                    answer = fault
                except ServerEnded:
                    answer = Gone(self.ctx.path)  # at once: ending what is left of the process takes its time
        finally:
            del self.calls[message.call]
        # Our own end goes past this line as Cancelled: then nothing is answered, and the asker gets Gone.
        answer = answer or self._why_not(message, call)
        if not isinstance(answer, ToolOutcome) or not answer.ok:
            self.totals.failures += 1
        self.box.settle(reply, answer)
        self._report()

    async def _answer(self, message: CallTool, call: _Call) -> ToolOutcome:
        await self.ready.wait()
        if self.connected is None or message.tool not in self.tools:
            raise Fault(Code.TOOL_NOT_FOUND, f"MCP server {self.server.name!r} has no tool {message.tool!r}.")
        async with self.slots:
            call.started = True
            begun = trio.current_time()
            call.scope.deadline = begun + self.server.timeout
            call.ceiling = begun + CEILING * self.server.timeout
            return await self.connected.call(
                message.tool, message.arguments, functools.partial(self._progress, message, call)
            )

    def _progress(self, message: CallTool, call: _Call, done: float, total: float | None, text: str) -> None:
        call.scope.deadline = min(call.ceiling, trio.current_time() + self.server.timeout)
        # The package hands progress over in tasks that may overtake each other, and the result.
        if done > call.progress and self.calls.get(message.call) is call:
            call.progress = done
            self.ctx.ref(message.to).offer(ToolProgress(call=message.call, progress=done, total=total, message=text))

    def _why_not(self, message: CallTool, call: _Call) -> Fault:
        name, within = self.server.name, f"{self.server.timeout:g} s"
        if call.cancelled:
            return Fault(Code.TOOL_FAILED, "cancelled", hint="Nothing: it was asked for.")
        if self.connected is None:
            return Fault(Code.MCP_SERVER_UNAVAILABLE, f"MCP server {name!r} was not connected within {within}.")
        if not call.started:
            return Fault(Code.MCP_SERVER_UNAVAILABLE, f"MCP server {name!r} was busy with other calls for {within}.")
        if call.scope.deadline >= call.ceiling:
            most = f"{CEILING * self.server.timeout:g} s"
            return Fault(Code.TOOL_TIMEOUT, f"Tool {message.tool!r} of MCP server {name!r} was not done within {most}.")
        return Fault(
            Code.TOOL_TIMEOUT, f"Tool {message.tool!r} of MCP server {name!r} gave no sign of life for {within}."
        )

    async def keep_current(self, connected: Connected, within: float) -> None:
        """Announce what the server offers, again whenever it changed or the gateway came back."""
        while True:
            await self.news.wait()
            self.news = trio.Event()
            if self.relist:
                self.relist = False
                try:
                    with trio.fail_after(within):
                        await self.list_all(connected)
                except (Refused, trio.TooSlowError) as error:  # it still has the tools that it had, as far as we know
                    self.ctx.report(problem=str(error) or f"it did not list its tools again within {within:g} s")
            await self.announce()
            await trio.sleep(RELIST_PAUSE_S)

    async def list_all(self, connected: Connected) -> None:
        """Ask for everything that the server offers."""
        catalogue, problems = await connected.catalogue()
        self.catalogue = catalogue
        self.tools = frozenset(tool.name for tool in catalogue.tools)
        self.ctx.report(tools=len(self.tools), problem="; ".join(problems) or None)

    async def announce(self) -> None:
        """Tell the gateway."""
        if self.catalogue is not None:
            try:
                await self.ctx.ref(self.gateway).send(self.catalogue)
            except Gone:
                return  # it is told when it is Up

    def _report(self) -> None:
        self.ctx.report(
            calls=self.totals.calls,
            failures=self.totals.failures,
            skipped_lines=self.connected.bad_lines if self.connected else 0,
        )


async def run(box: Mailbox[McpServerMessage], ctx: Context) -> None:
    """The actor. Args: `server` (McpServer), `connection` (Connection), `gateway` (address), `state_dir`.

    Raises: Parked, ServerEnded, Refused, or ConnectTimeout.
    """
    ctx.ready()  # a slow server delays nobody's start
    server: McpServer = ctx.args["server"]
    connection: Connection = ctx.args["connection"]
    desk = _Desk(server, box, ctx, ctx.args["gateway"])
    ctx.watch(desk.gateway)
    try:
        command = command_of(server, ctx.args["state_dir"], os.environ)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.serve, nursery.cancel_scope)
            await _live(desk, command, connection)
    except Unusable as error:
        raise Parked(str(error)) from error
    except ExceptionGroup as group:
        cause = _cause(group)
        raise (Parked(str(cause)) if isinstance(cause, Unusable) else cause) from group


async def _live(desk: _Desk, command: stdio.Command, connection: Connection) -> None:
    """One process and one connection, until cancelled or broken."""
    server, ctx, within = desk.server, desk.ctx, connection.connection_timeout
    kept = ctx.kept if isinstance(ctx.kept, Memory) else Memory()
    with trio.CancelScope() as connecting:
        async with stdio.running(command) as process:
            ctx.report(state="connecting", pid=process.pid, problem=None)
            try:
                client: Any = await trio.to_thread.run_sync(importlib.import_module, "actors.mcp_client")
                # A deadline around entering the connection only would corrupt trio's scopes: it is around
                # everything, and lifted once all is there.
                connecting.deadline = trio.current_time() + within
                legacy, kept.legacy = kept.legacy or server.protocol == "legacy", False
                async with client.connect(
                    server.name, process, legacy=legacy, probe_s=within / 3, changed=desk.changed
                ) as connected:
                    await desk.list_all(connected)
                    connecting.deadline = math.inf
                    kept.legacy = legacy or connected.proved_legacy
                    era = "modern" if connected.modern else "legacy"
                    ctx.report(state="ready", era=era, version=connected.version, skipped_lines=connected.bad_lines)
                    desk.connected = connected
                    desk.ready.set()
                    desk.news.set()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(connected.follow, desk.changed)
                        await desk.keep_current(connected, within)
            finally:
                desk.taking.cancel()
                said = process.last_words()
                ctx.report(
                    state="ended", pid=None, exit_code=process.exit_code, stderr=said.rpartition("\n")[2] or None
                )
    if connecting.cancelled_caught:
        words = f" Its last words: {said}" if said else ""
        raise ConnectTimeout(f"MCP server {server.name!r} was not connected and listed within {within:g} s.{words}")


def _cause(group: BaseException) -> BaseException:
    """The one error that explains a group: the death of the process, else the first."""
    if not isinstance(group, BaseExceptionGroup):
        return group
    causes = [_cause(error) for error in group.exceptions]
    return next((error for error in causes if isinstance(error, ServerEnded)), causes[0])


__all__ = ["Memory", "child", "memory", "run"]

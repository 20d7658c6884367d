"""The actor of one MCP server: owns its process and its connection, runs its tools, says what it offers.

One incarnation is one process, or an address elsewhere, and one connection; what it has in hand is kept by
`actors.server_calls`. When either dies, or an idle server answers no probe, the actor raises at once: its
supervisor decides when to try again, and who waited for a call gets `Gone`, because what the call did is
unknown. What no restart can help (command, directory, variable, protocol version) parks at once.

What it offers is `actors.server_offer`.

Must not import the MCP package: it takes 0.6 s, so `actors.mcp_connect` is imported in a thread.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from actors.consent import Consent
from actors.server_calls import Calls
from actors.server_child import DRAIN_S
from actors.server_command import roots_of
from actors.server_endpoint import Endpoint
from actors.server_faults import ConnectTimeout, ServerEnded, Unauthorized, Unusable, cause_of
from actors.server_health import Health
from actors.server_link import Link, Way, linked, way_to
from actors.server_log import ServerLog
from actors.server_offer import Offer
from actors.server_pins import Pins
from actors.server_subscriptions import Kept, Subscriptions
from protocol.mail import Mailbox
from protocol.mcp_server import (
    AnswerQuestion,
    AnswerSampling,
    CallTool,
    CancelCall,
    CompleteArgument,
    GetPrompt,
    McpServerMessage,
    ReadResource,
    ResourceUpdated,
    SetServerLog,
    SubscribeResource,
    TellTools,
    UnsubscribeResource,
)
from protocol.pending import PendingSettled
from protocol.pins import PinningChanged
from protocol.spec import Context, Down, KeepContext, Parked, Up
from protocol.watcher import Connection, McpServer

if TYPE_CHECKING:
    from actors.mcp_client import Connected
    from actors.mcp_connect import Era

GATEWAYS = "front*/gateway"  # there may be several
SLOW_S = 10.0  # to connect: clients are told then, before it is given up
PROBE_AFTER_S = 30.0  # of silence of an idle server, to see whether it is still there

actor_log = logging.getLogger(__name__)  # `log` is what the server itself says


@dataclass
class Memory:
    """What outlives an incarnation."""

    health: Health
    status: KeepContext | None = None
    """Where facts are reported that should outlive it too."""
    legacy: bool = False
    """The server does not know the newer handshake: begin with the older one, without waiting for the newer."""
    older_http: bool = False
    """It knows HTTP+SSE only: begin with that."""
    gateways: set[str] = field(default_factory=set)
    """Who is told what the server offers."""
    alone: bool = False
    """What it asks names no call: it gets one call at a time."""
    subscriptions: Kept = field(default_factory=dict)
    """Who is told when which resource changes."""
    log_level: str | None = None
    """Set since the slot was made; None: as in the arguments."""


@asynccontextmanager
async def memory(status: KeepContext) -> AsyncIterator[Memory]:
    """What the slot keeps across incarnations."""
    yield Memory(Health(status.args["server"]), status)


@dataclass
class _Desk:
    """State of one incarnation, shared by its tasks."""

    box: Mailbox[McpServerMessage]
    ctx: Context
    kept: Memory
    offer: Offer
    calls: Calls
    subscriptions: Subscriptions
    log: ServerLog
    consent: Consent
    told_level: str | None = None
    """The level that the server was asked to log at."""
    asleep: bool = False
    """Its process was ended because nobody called it; what it offers stays offered."""
    taking: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled when the connection ends: what waits in the mailbox is for the next incarnation."""

    async def serve(self, stop: trio.CancelScope) -> None:
        """Take messages until the mailbox closes; then let running calls end, and stop everything."""
        async with trio.open_nursery() as nursery:
            with self.taking:
                async for message in self.box:
                    match message:
                        case CallTool() | ReadResource() | GetPrompt() | CompleteArgument() | SubscribeResource():
                            self.calls.take(message, nursery)
                        case UnsubscribeResource(uri=uri, to=gateway):
                            self.subscriptions.remove(uri, gateway)
                        case AnswerQuestion() | AnswerSampling():
                            self.box.reply(self.calls.requests.take(message) or self.consent.take(message))
                        case CancelCall(call=name):
                            self.calls.cancel(name)
                        case SetServerLog(level=level):
                            self.kept.log_level = self.log.level = level
                            self.offer.news.set()
                        case TellTools(to=gateway):
                            self.tell(gateway)
                        case PendingSettled() | PinningChanged():
                            self.offer.changed()
                            self.calls.wanted.set()  # one that sleeps must look, too
                        case Up(path=path):
                            self.tell(path)  # it is back, or new, and may not know what we offer
                        case Down(path=path, retry_in_ms=None, parked=False):
                            self.offer.gateways.discard(path)  # its process is gone; the next one tells us anew
                            self.calls.requests.gateway_gone(path)
                            self.subscriptions.forget(path)
                        case _:
                            pass  # Down of a gateway that comes back, nudges: nothing to do
                self.offer.leaving = True
                nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
                nursery.start_soon(self.offer.announce)
        if not self.taking.cancelled_caught:
            stop.cancel()

    def tell(self, gateway: str) -> None:
        """It is told what is offered, and what waits for somebody, now and from now on."""
        self.offer.tell(gateway)
        self.consent.tell(gateway)

    @contextmanager
    def waiting(self, connecting: trio.CancelScope, within: float) -> Iterator[None]:
        """Somebody is asked whether the server may be used: until then it has nothing to offer, and all the time."""
        connecting.deadline = math.inf
        self.ctx.report(state="needs authorization")
        self.calls.refusal = "needs authorization, which an operator was asked for"
        self.offer.withdraw()
        try:
            yield
        finally:
            self.calls.refusal = ""
            self.ctx.report(state="connecting")
            connecting.deadline = trio.current_time() + within

    async def keep_current(self, connected: Connected, within: float) -> None:
        """Announce what the server offers, again whenever it changed or a gateway came back; tell it our level."""
        while True:
            await self.offer.next(connected, within)
            if self.told_level != self.log.level:
                self.told_level = self.log.level
                with trio.move_on_after(within):
                    await connected.set_log_level(self.log.level)
            await self.offer.rest()

    async def tell_if_slow(self) -> None:
        """Clients are told of a server that takes long to connect, and when it is there."""
        with trio.move_on_after(SLOW_S):
            await self.calls.connected()
            return
        why = self.calls.refusal or f"has not connected within {SLOW_S:g} s"
        self.offer.rests(f"it {why}; its tools are missing until it is there", None)
        await self.calls.connected()
        self.offer.rests("", None)

    async def doze(self, after: float | None, connection: trio.CancelScope) -> None:
        """End the connection when nothing was asked for that many seconds; not if None, nor while it is listened to."""
        if after is None:
            return
        while True:
            rest = self.calls.idle_since + after - trio.current_time()
            if rest <= 0 and not self.calls.busy and not self.kept.subscriptions:
                break
            await trio.sleep(rest if rest > 0 else after)
        self.asleep = True
        self.calls.disconnect()  # a call that comes from now on waits for the next connection
        connection.cancel()

    async def sleep(self) -> None:
        """Until a call comes. Who asks meanwhile is told what is offered."""
        self.told_level = None  # a new process has not been told
        self.ctx.report(state="asleep", pid=None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_on)
            await self.calls.wanted.wait()
            nursery.cancel_scope.cancel()
        self.asleep = False
        self.offer.news.set()

    async def _tell_on(self) -> None:
        while True:
            await self.offer.next(None, 0.0)
            await self.offer.rest()

    async def probe(self, connected: Connected, server: str, within: float) -> None:
        """Raise ServerEnded when an idle server is silent and says nothing to a question that needs no thought.

        It is asked at once where a connection to it was cut, which may say little about the others, or all. Not
        while it works on calls: one that does one thing at a time cannot answer then, and calls have deadlines of
        their own.
        """
        while True:
            with trio.move_on_after(max(PROBE_AFTER_S - connected.silent_s, PROBE_AFTER_S / 10)) as waiting:
                await connected.doubt()
            self.calls.report()
            if waiting.cancelled_caught and (self.calls.busy or connected.silent_s < PROBE_AFTER_S):
                continue
            begun = self.calls.begun
            if not await connected.answers(within) and begun == self.calls.begun and not self.calls.busy:
                raise ServerEnded(f"MCP server {server!r} was idle and gave no sign of life for {within:g} s.")


async def run(box: Mailbox[McpServerMessage], ctx: Context) -> None:
    """The actor. Args: those of `actors.server_child.child`, by name.

    Raises: Parked, ServerEnded, Refused, or ConnectTimeout.
    """
    ctx.ready()  # a slow server delays nobody's start
    server: McpServer = ctx.args["server"]
    kept = ctx.kept if isinstance(ctx.kept, Memory) else Memory(Health(server))
    kept.health.fresh()
    ctx.watch(GATEWAYS)
    try:
        way = way_to(server, ctx.args["state_dir"], os.environ, ctx.args["config_access"])
        log = ServerLog(server.name, kept.log_level or ctx.args["log_level"], way.clean)
        subscriptions = Subscriptions(server.name, kept.subscriptions, partial(_tell_updated, ctx, server.name))
        calls = Calls(server, box, ctx, kept.health, subscriptions)
        consent = Consent(server.name, ctx, kept.gateways, calls.requests.clock)
        offer = Offer(server.name, ctx, kept.gateways, calls.offered)
        offer.pins = pins = Pins(server, ctx, pinned=ctx.args["pinned"], again=offer.changed)
        kept.health.rests = offer.rests
        desk = _Desk(box, ctx, kept, offer, calls, subscriptions, log, consent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.serve, nursery.cancel_scope)
            nursery.start_soon(pins.run)
            while True:
                async with trio.open_nursery() as alive:
                    alive.start_soon(desk.tell_if_slow)
                    await _live(desk, server, way, ctx.args["connection"])
                    alive.cancel_scope.cancel()
                await desk.sleep()
    except Unusable as error:
        raise _parked(error) from error
    except ExceptionGroup as group:
        cause = cause_of(group)
        raise (_parked(cause) if isinstance(cause, Unusable) else cause) from group


def _tell_updated(ctx: Context, server: str, gateway: str, uri: str) -> None:
    ctx.ref(gateway).offer(ResourceUpdated(server, uri))


async def _live(desk: _Desk, server: McpServer, way: Way, connection: Connection) -> None:
    """One process or endpoint and one connection, until cancelled or broken, or until it falls asleep."""
    ctx, kept, within = desk.ctx, desk.kept, connection.connection_timeout
    with trio.CancelScope() as connecting:
        async with linked(way) as link:
            ctx.report(state="connecting", problem=None, **link.facts())
            desk.calls.shown = link.facts
            try:
                client: Any = await trio.to_thread.run_sync(importlib.import_module, "actors.mcp_connect")
                # A deadline around entering the connection only would corrupt trio's scopes: it is around
                # everything, and lifted once all is there.
                connecting.deadline = trio.current_time() + within
                desk.consent.connect(partial(desk.waiting, connecting, within))
                era, link = _as_remembered(client, server, kept, link)
                async with client.connect(
                    server.name,
                    link,
                    era=era,
                    probe_s=within / 3,
                    changed=desk.offer.changed,
                    updated=desk.subscriptions.updated,
                    logged=desk.log.take,
                    requests=desk.calls.requests,
                    elicitation=server.elicitation,
                    sampling=server.sampling != "deny",
                    result_cap=server.limits.result_bytes,
                    roots=roots_of(server, ctx.args["state_dir"]),
                    consent=desk.consent,
                ) as connected:
                    await desk.offer.list_all(connected)
                    connecting.deadline = math.inf
                    desk.consent.settle()
                    kept.legacy, kept.older_http = connected.proved_legacy, connected.transport == "sse"
                    if kept.alone and not connected.modern:
                        desk.calls.requests.one_at_a_time()
                    ctx.report(
                        state="ready",
                        transport=connected.transport,
                        era="modern" if connected.modern else "legacy",
                        version=connected.version,
                        skipped_lines=connected.bad_lines,
                    )
                    desk.calls.report()
                    actor_log.info("MCP server %r is ready, with %d tools", server.name, len(desk.calls.tools))
                    async with trio.open_nursery() as nursery:
                        await nursery.start(desk.subscriptions.run, connected)
                        desk.calls.connect(connected)
                        desk.offer.news.set()
                        nursery.start_soon(connected.follow, desk.offer.changed)
                        nursery.start_soon(desk.offer.watch_resources, connected)
                        nursery.start_soon(desk.probe, connected, server.name, connection.ping_timeout)
                        nursery.start_soon(desk.doze, server.limits.idle_timeout, connecting)
                        await desk.keep_current(connected, within)
            finally:
                desk.consent.settle()
                kept.alone = kept.alone or desk.calls.requests.alone
                if not desk.asleep:
                    desk.taking.cancel()
                said = link.last_words()
                desk.calls.shown = link.ended
                ctx.report(state="ended", **link.ended())
                if kept.status is not None:
                    kept.status.report(last_exit_code=link.ended().get("exit_code"))
    if connecting.cancelled_caught and not desk.asleep:
        words = f" Its last words: {said}" if said else ""
        raise ConnectTimeout(f"MCP server {server.name!r} was not connected and listed within {within:g} s.{words}")


def _as_remembered(client: Any, server: McpServer, kept: Memory, link: Link) -> tuple[Era, Link]:
    """How to begin; what is remembered is forgotten, for if it does not work, the next try finds out anew."""
    legacy, kept.legacy = kept.legacy and server.protocol == "auto", False
    older, kept.older_http = kept.older_http, False
    if older and isinstance(link, Endpoint):
        link = dataclasses.replace(link, kind="sse")
    forced = server.protocol if server.protocol not in ("auto", "legacy") else ""
    return client.Era(legacy or server.protocol == "legacy", legacy, forced), link


def _parked(error: Unusable) -> Parked:
    return Parked(str(error), retry=not isinstance(error, Unauthorized))


__all__ = ["Memory", "memory", "run"]

"""What one incarnation of a server's actor has in hand: calls of tools, reads of resources, prompts.

Each is a task with its own deadline; that of a call is restarted by progress, bounded by a ceiling, and stands still
while its server has somebody asked (`actors.server_requests`). Cancelling one cancels only that. Only so many run at
once, the others wait within their deadline; what is beyond that is refused (`actors.server_health`). Every one is
answered: with its outcome, a typed `Fault`, or `Gone` when the server ended, because what a call did is unknown then.
At its deadline it is answered at once, however long the package then takes to let go of it. Nothing is repeated here.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from actors import kept_results
from actors.call_clock import CallClock
from actors.server_faults import ServerEnded
from actors.server_health import Attempt, Health
from actors.server_requests import ServerRequests
from actors.server_subscriptions import Subscriptions
from protocol.errors import Code, Fault
from protocol.mail import Gone, Mailbox, Reply
from protocol.mcp_server import (
    CallTool,
    CompleteArgument,
    Completion,
    FilledPrompt,
    GetPrompt,
    McpServerMessage,
    ReadResource,
    ResourceContent,
    SubscribeResource,
    Tool,
    ToolOutcome,
    ToolProgress,
)
from protocol.spec import Context
from protocol.watcher import McpServer

if TYPE_CHECKING:
    from actors.mcp_client import Connected

CEILING = 10  # a call may take this many timeouts in all, however much progress it reports

Asked = CallTool | ReadResource | GetPrompt | CompleteArgument | SubscribeResource
Answer = ToolOutcome | list[ResourceContent] | FilledPrompt | Completion | bool

ANSWERS = frozenset({Code.NOT_FOUND, Code.TOOL_NOT_FOUND, Code.INVALID_MESSAGE, Code.FORBIDDEN, Code.OVERLOADED})
"""Faults that the server is not to blame for."""


@dataclass
class _Call:
    """One in hand."""

    attempt: Attempt
    clock: CallClock
    scope: trio.CancelScope
    """Of waiting for its answer."""
    done: trio.Event = field(default_factory=trio.Event)
    """`answer` is there."""
    answer: Answer | Fault | Gone | None = None
    started: float | None = None
    """Trio time when the server was asked."""
    cancelled: bool = False
    progress: float = -math.inf


class Calls:
    """All that are in hand.

    Args:
        box: where they came from and are answered.
        health: of the server; told how each went.
        subscriptions: of the same connection.
    """

    def __init__(
        self,
        server: McpServer,
        box: Mailbox[McpServerMessage],
        ctx: Context,
        health: Health,
        subscriptions: Subscriptions,
    ) -> None:
        self.tools: dict[str, Tool] = {}
        """Those that the server has, by its own names."""
        self.idle_since = trio.current_time()
        """When the last one ended."""
        self.shown: Callable[[], Mapping[str, Any]] = dict
        """What else is told in status whenever a call ends."""
        self.refusal = ""
        """Why the server can take none now, and not soon; empty: it can."""
        self.wanted = trio.Event()
        """One waits for a connection."""
        self._server = server
        self._box = box
        self._ctx = ctx
        self._health = health
        self._subscriptions = subscriptions
        self._connected: Connected | None = None
        self._ready = trio.Event()
        self._in_hand: dict[Hashable, _Call] = {}
        self.requests = ServerRequests(server.name, ctx)
        """What the server wants of us in them."""
        health.told = self.report

    @property
    def begun(self) -> int:
        """How many there were so far."""
        return self._health.begun

    @property
    def busy(self) -> bool:
        """Some are in hand."""
        return bool(self._in_hand)

    async def connected(self) -> None:
        """Wait for a connection."""
        await self._ready.wait()

    def connect(self, connected: Connected) -> None:
        """Those that wait for the connection go on."""
        self._connected = connected
        self._ready.set()

    def offered(self, tools: dict[str, Tool]) -> None:
        """The server has these, by its own names."""
        self.tools = tools

    def disconnect(self) -> None:
        """There is no connection, until `connect` is called again; nothing may be in hand."""
        self._connected = None
        self._ready, self.wanted = trio.Event(), trio.Event()

    def take(self, message: Asked, nursery: trio.Nursery) -> None:
        """Begin the message in hand of the mailbox, in a task of its own."""
        # A read has no id: its asker can only stop waiting.
        key: Hashable = message.call if isinstance(message, CallTool) else object()
        if key in self._in_hand:
            self._box.fault(Fault(Code.TOOL_FAILED, f"A call {key!r} is running already."))
            return
        if self.refusal:
            text = f"MCP server {self._server.name!r} {self.refusal}."
            self._box.fault(Fault(Code.MCP_SERVER_UNAVAILABLE, text))
            return
        try:
            attempt = self._health.begin()
        except Fault as fault:
            self._box.fault(fault)
            return
        scope = trio.CancelScope()
        clock = CallClock(scope, self._server.timeout, CEILING * self._server.timeout)
        call = self._in_hand[key] = _Call(attempt, clock, scope)
        self._ctx.report(calls=self._health.begun, in_calls=self._health.gate.through)  # one may take an hour
        self.wanted.set()
        nursery.start_soon(self._run, message, key, call, self._box.reply_slot)

    def cancel(self, name: str) -> None:
        """Cancel that call of a tool, if it runs."""
        if call := self._in_hand.get(name):
            call.cancelled = True
            call.scope.cancel()

    async def _run(self, message: Asked, key: Hashable, call: _Call, reply: Reply | None) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work, message, key, call)
                with call.scope:
                    await call.done.wait()
                # Our own end goes past this line as Cancelled: then nothing is answered, and the asker gets Gone.
                answer = call.answer if call.answer is not None else self._why_not(message, call)
                self._judge(call, answer)
                if call.answer is not None:
                    call.attempt.close()  # else the package may take a moment to let go of it
                self.report()
                self._box.settle(reply, answer)
                del self._in_hand[key]
                nursery.cancel_scope.cancel()
        finally:
            if self._in_hand.get(key) is call:
                del self._in_hand[key]
            self.idle_since = trio.current_time()
            call.attempt.close()

    async def _work(self, message: Asked, key: Hashable, call: _Call) -> None:
        try:
            call.answer = await self._answer(message, key, call)
        except Fault as fault:
            call.answer = fault
        except ServerEnded:
            call.answer = Gone(self._ctx.path)  # at once: ending what is left of the process takes its time
        call.done.set()

    def _judge(self, call: _Call, answer: Answer | Fault | Gone) -> None:
        """Tell the breaker how it went, and count it."""
        if isinstance(answer, Exception) or (isinstance(answer, ToolOutcome) and not answer.ok):
            self._health.failures += 1
        if call.cancelled or call.started is None:
            return  # it says nothing about the server
        if isinstance(answer, Gone):
            call.attempt.failed("the server ended during a call")
        elif isinstance(answer, Fault) and answer.code not in ANSWERS:
            call.attempt.failed(answer.body.text)
        else:
            call.attempt.answered(trio.current_time() - call.started - call.clock.stood_s)

    async def _answer(self, message: Asked, key: Hashable, call: _Call) -> Answer:
        await self._ready.wait()
        connected = self._connected
        if connected is None or (isinstance(message, CallTool) and message.tool not in self.tools):
            raise Fault(Code.TOOL_NOT_FOUND, f"MCP server {self._server.name!r} has no {_named(message)}.")
        await call.attempt.admitted()
        async with self.requests.turns:
            call.started = trio.current_time()
            call.clock.begin()
            with self.requests.during(key, message.to if isinstance(message, CallTool) else "", call.clock):
                match message:
                    case CallTool():
                        if message.check:
                            await self._check(message)
                        progress, keep = functools.partial(self._progress, message, call), self._keeper(message)
                        return await connected.call(message.tool, message.arguments, progress, keep)
                    case ReadResource():
                        return await connected.read(message.uri, self._keeper(message))
                    case GetPrompt():
                        return await connected.prompt(message.name, message.arguments, self._keeper(message))
                    case CompleteArgument():
                        return await connected.complete(message)
                    case SubscribeResource():
                        return await self._subscriptions.add(message.uri, message.to)

    def _keeper(self, message: CallTool | ReadResource | GetPrompt) -> kept_results.Keep | None:
        return kept_results.keeper(self._ctx.args["state_dir"], message.conversation)

    async def _check(self, message: CallTool) -> None:
        checks: Any = await trio.to_thread.run_sync(importlib.import_module, "actors.schema_check")
        if why := checks.mismatch(self.tools[message.tool].schema, message.arguments):
            text = f"The arguments do not fit the tool's schema: {why}."
            raise Fault(Code.INVALID_MESSAGE, text, hint="Compare them with its schema in list_tools.")

    def _progress(self, message: CallTool, call: _Call, done: float, total: float | None, text: str) -> None:
        call.clock.heard()
        # The package hands progress over in tasks that may overtake each other, and the result.
        if done > call.progress and self._in_hand.get(message.call) is call:
            call.progress = done
            self._ctx.ref(message.to).offer(ToolProgress(call=message.call, progress=done, total=total, message=text))

    def _why_not(self, message: Asked, call: _Call) -> Fault:
        who, within = f"MCP server {self._server.name!r}", f"{self._server.timeout:g} s"
        if call.cancelled:
            return Fault(Code.TOOL_FAILED, "cancelled", hint="Nothing: it was asked for.")
        if self._connected is None:
            return Fault(Code.MCP_SERVER_UNAVAILABLE, f"{who} was not connected within {within}.")
        if call.started is None:
            if self._health.limited():
                return self._health.too_often()
            return Fault(Code.MCP_SERVER_UNAVAILABLE, f"{who} was busy with other calls for {within}.")
        if call.clock.exhausted:
            most = f"{CEILING * self._server.timeout:g} s"
            return Fault(Code.TOOL_TIMEOUT, f"The {_named(message)} of {who} was not done within {most}.")
        return Fault(Code.TOOL_TIMEOUT, f"The {_named(message)} of {who} gave no sign of life for {within}.")

    def report(self) -> None:
        """Say in status how many there were, and how they went."""
        skipped = self._connected.bad_lines if self._connected else 0
        broken = (self._connected.broken_promises if self._connected else 0) or None
        self._ctx.report(skipped_lines=skipped, results_against_schema=broken, **self._health.facts(), **self.shown())
        if self.requests.asked:
            self._ctx.report(asked=self.requests.asked, one_at_a_time=self.requests.alone)


def _named(message: Asked) -> str:
    match message:
        case CallTool():
            return f"tool {message.tool!r}"
        case ReadResource():
            return f"resource {message.uri!r}"
        case GetPrompt():
            return f"prompt {message.name!r}"
        case CompleteArgument():
            return f"completion of {message.argument!r}"
        case SubscribeResource():
            return f"subscription to {message.uri!r}"

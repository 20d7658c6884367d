"""What one incarnation of a server's actor has in hand: calls of tools, reads of resources, prompts.

Each is a task with its own deadline; that of a call is restarted by progress, bounded by a ceiling, and stands still
while its server has somebody asked (`actors.server_requests`). Cancelling one cancels only that. Only so many run at
once, the others wait within their deadline; what is beyond that is refused. Every one is answered: with its outcome,
a typed `Fault`, or `Gone` when the server ended, because what a call did is unknown then. Nothing is repeated here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from actors.call_clock import CallClock
from actors.server_faults import ServerEnded
from actors.server_requests import ServerRequests
from protocol.errors import Code, Fault
from protocol.mail import Gone, Mailbox, Reply
from protocol.mcp_server import (
    CallTool,
    FilledPrompt,
    GetPrompt,
    McpServerMessage,
    ReadResource,
    ResourceContent,
    ToolOutcome,
    ToolProgress,
)
from protocol.spec import Context
from protocol.watcher import McpServer

if TYPE_CHECKING:
    from actors.mcp_client import Connected

CONCURRENT = 16  # calls that a server works on at once; more wait within their deadline
HELD = 80  # calls in hand at most, waiting ones included; more are refused
CEILING = 10  # a call may take this many timeouts in all, however much progress it reports

Asked = CallTool | ReadResource | GetPrompt
Answer = ToolOutcome | list[ResourceContent] | FilledPrompt


@dataclass
class _Call:
    """One in hand."""

    clock: CallClock
    scope: trio.CancelScope
    started: bool = False
    cancelled: bool = False
    progress: float = -math.inf


class Calls:
    """All that are in hand.

    Args:
        box: where they came from and are answered.
    """

    def __init__(self, server: McpServer, box: Mailbox[McpServerMessage], ctx: Context) -> None:
        self.tools: frozenset[str] = frozenset()
        """The server's own names of those that it has."""
        self.begun = 0
        """How many there were so far."""
        self.failures = 0
        """How many of them did not end well."""
        self._server = server
        self._box = box
        self._ctx = ctx
        self._connected: Connected | None = None
        self._ready = trio.Event()
        self._in_hand: dict[Hashable, _Call] = {}
        self._slots = trio.Semaphore(CONCURRENT)
        self.requests = ServerRequests(server.name, ctx)
        """What the server wants of us in them."""

    @property
    def busy(self) -> bool:
        """Some are in hand."""
        return bool(self._in_hand)

    def connect(self, connected: Connected) -> None:
        """Those that wait for the connection go on."""
        self._connected = connected
        self._ready.set()

    def take(self, message: Asked, nursery: trio.Nursery) -> None:
        """Begin the message in hand of the mailbox, in a task of its own."""
        # A read has no id: its asker can only stop waiting.
        key: Hashable = message.call if isinstance(message, CallTool) else object()
        if key in self._in_hand:
            self._box.fault(Fault(Code.TOOL_FAILED, f"A call {key!r} is running already."))
        elif len(self._in_hand) >= HELD:
            text = f"MCP server {self._server.name!r} has {HELD} calls in hand already."
            self._box.fault(Fault(Code.MCP_SERVER_UNAVAILABLE, text))
        else:
            scope = trio.CancelScope()
            clock = CallClock(scope, self._server.timeout, CEILING * self._server.timeout)
            call = self._in_hand[key] = _Call(clock, scope)
            nursery.start_soon(self._run, message, key, call, self._box.reply_slot)

    def cancel(self, name: str) -> None:
        """Cancel that call of a tool, if it runs."""
        if call := self._in_hand.get(name):
            call.cancelled = True
            call.scope.cancel()

    async def _run(self, message: Asked, key: Hashable, call: _Call, reply: Reply | None) -> None:
        self.begun += 1
        answer: Answer | Fault | Gone | None = None
        try:
            with call.scope:
                try:
                    answer = await self._answer(message, key, call)
                except Fault as fault:
                    answer = fault
                except ServerEnded:
                    answer = Gone(self._ctx.path)  # at once: ending what is left of the process takes its time
        finally:
            del self._in_hand[key]
        # Our own end goes past this line as Cancelled: then nothing is answered, and the asker gets Gone.
        if answer is None:
            answer = self._why_not(message, call)
        if isinstance(answer, Exception) or (isinstance(answer, ToolOutcome) and not answer.ok):
            self.failures += 1
        self._box.settle(reply, answer)
        self.report()

    async def _answer(self, message: Asked, key: Hashable, call: _Call) -> Answer:
        await self._ready.wait()
        connected = self._connected
        if connected is None or (isinstance(message, CallTool) and message.tool not in self.tools):
            raise Fault(Code.TOOL_NOT_FOUND, f"MCP server {self._server.name!r} has no {_named(message)}.")
        async with self._slots, self.requests.turns:
            call.started = True
            call.clock.begin()
            with self.requests.during(key, message.to if isinstance(message, CallTool) else "", call.clock):
                match message:
                    case CallTool():
                        progress = functools.partial(self._progress, message, call)
                        return await connected.call(message.tool, message.arguments, progress)
                    case ReadResource():
                        return await connected.read(message.uri)
                    case GetPrompt():
                        return await connected.prompt(message.name, message.arguments)

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
        if not call.started:
            return Fault(Code.MCP_SERVER_UNAVAILABLE, f"{who} was busy with other calls for {within}.")
        if call.clock.exhausted:
            most = f"{CEILING * self._server.timeout:g} s"
            return Fault(Code.TOOL_TIMEOUT, f"The {_named(message)} of {who} was not done within {most}.")
        return Fault(Code.TOOL_TIMEOUT, f"The {_named(message)} of {who} gave no sign of life for {within}.")

    def report(self) -> None:
        """Say in status how many there were, and how many failed."""
        skipped = self._connected.bad_lines if self._connected else 0
        self._ctx.report(calls=self.begun, failures=self.failures, skipped_lines=skipped)
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

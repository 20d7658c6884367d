"""One tool call of a turn, from the model's words to an outcome that the model can read.

Whatever goes wrong is an outcome, not an error of the turn: an unknown tool, arguments that are no JSON
object, a server that is down, dies, is busy or does not answer in time.
"""

from __future__ import annotations

import math
import time
from typing import Any, TypeVar

import msgspec
import trio

from actors import turn_lines
from actors.call_clock import CallClock
from actors.front import Front
from actors.running_turn import RunningTurn
from protocol.errors import Code, Fault
from protocol.mail import Gone, Overloaded, Request, TooSlow
from protocol.mcp_server import CallTool, ToolOutcome
from protocol.spec import Context
from protocol.watcher import Snapshot
from protocol.writer import ToolStarted

CEILING = 10.0  # times a server's timeout: what a call that shows progress may take at most
TIMEOUT_S = 30.0  # of a server that the running turn's configuration does not have
SLACK_S = 10.0  # over the server actor's own deadline, which is the one that should end the call

R = TypeVar("R")


async def outcome(ctx: Context, turn: RunningTurn, started: ToolStarted, front: Front) -> ToolOutcome:
    """Make the call; its progress goes to the front's gateway, and both its ends into the log."""
    found: ToolOutcome | None = None
    began = time.monotonic()
    turn_lines.calling(turn, front.snapshot, started)
    try:
        found = await _made(ctx, turn, started, front)
        return found
    finally:
        turn_lines.called(turn, front.snapshot, started, found, began)  # none: it was cancelled


async def _made(ctx: Context, turn: RunningTurn, started: ToolStarted, front: Front) -> ToolOutcome:
    target = turn.merged.find(started.tool_name)
    if target is None:
        return refused(Code.TOOL_NOT_FOUND, f"There is no tool named {started.tool_name!r}.")
    server, tool = target
    try:
        arguments = msgspec.json.decode(started.arguments or "{}")
    except ValueError as error:
        return refused(Code.TOOL_FAILED, f"The arguments are not valid JSON: {error}.")
    except RecursionError:
        return refused(Code.TOOL_FAILED, "The arguments are nested too deeply.")
    if not isinstance(arguments, dict):
        return refused(Code.TOOL_FAILED, "The arguments are not a JSON object.")
    call = CallTool(started.call_id, tool.name, arguments, to=front.ctx.path, conversation=turn.log.conversation)
    try:
        return await asked(front, server, call, patience(turn.snapshot, server))
    except Fault as fault:
        return refused(fault.code, fault.body.text)


def patience(snapshot: Snapshot, server: str) -> float:
    """Seconds for a server to answer: more than its actor gives it, who should be the one that ends it."""
    configured = snapshot.mcp.servers.get(server)
    return (configured.timeout if configured is not None else TIMEOUT_S) * CEILING + SLACK_S


async def asked(front: Front, server: str, request: Request[R], within: float) -> R:
    """Ask a server's actor, once. Raises Fault, also where there is no answer."""
    try:
        if isinstance(request, CallTool):
            outcome: R = await _called(front, server, request, within)
            return outcome
        return await front.ctx.ref(f"mcp/{server}").ask(request, within=within)
    except Gone:
        effect = "; whether the call took effect is not known" if isinstance(request, CallTool) else ""
        raise Fault(Code.MCP_SERVER_UNAVAILABLE, f"The tool server {server!r} stopped{effect}.") from None
    except Overloaded:
        raise Fault(Code.OVERLOADED, f"The tool server {server!r} has too many calls waiting.") from None
    except TooSlow:
        raise Fault(Code.TOOL_TIMEOUT, f"The tool server {server!r} did not answer.") from None


async def _called(front: Front, server: str, call: CallTool, within: float) -> Any:
    """As `Ref.ask`, but the time stands still while the server has somebody asked in the call."""
    with trio.CancelScope() as scope:
        front.clocks[call.call] = CallClock(scope, within, within)
        try:
            return await front.ctx.ref(f"mcp/{server}").ask(call, within=math.inf)
        finally:
            del front.clocks[call.call]
    raise TooSlow(f"mcp/{server}: no answer to a call within {within:g} s")


def refused(code: Code, text: str) -> ToolOutcome:
    """A call that could not be made, as the model is told of it."""
    return ToolOutcome(ok=False, text=f"{code}: {text}")

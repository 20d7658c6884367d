"""The tool calls of one conversation that run: each in a task of its own, all in parallel.

Their intents are stored before `run` is called. One that needs approval waits for it first (`actors.approvals`), while
the others run. An outcome is shown, stored however long the store is away, and
reported; a call that is dropped is cancelled here and at its server, and reports nothing: who drops it says
what became of it. A call cannot fail: whatever goes wrong is its outcome (`tool_call`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import trio

from actors import tool_call
from actors.approvals import Approvals, Waits
from actors.durable import insist
from actors.front import Conversation, Front
from actors.running_turn import RunningTurn
from protocol.mcp_server import CancelCall, ToolOutcome
from protocol.pending import CancelPending
from protocol.spec import Context
from protocol.writer import Append, ToolStarted

Ended = Callable[[int, str], None]


NOBODY: frozenset[str] = frozenset()  # one for all: an empty set takes 216 bytes


class ToolCalls:
    """Runs them.

    Args:
        tasks: where they run; ended by the caller.
    """

    __slots__ = ("_conversation", "_ctx", "_front", "_scopes", "_tasks", "waiting")

    def __init__(self, ctx: Context, front: Front, conversation: Conversation, tasks: trio.Nursery) -> None:
        self._ctx = ctx
        self._front = front
        self._conversation = conversation
        self._tasks = tasks
        self.waiting = NOBODY
        """Calls that wait for a person."""
        self._scopes: dict[str, trio.CancelScope] = {}

    def run(self, turn: RunningTurn, ended: Ended, paused: Callable[[], None], *, resumed: bool = False) -> None:
        """Make the calls that the turn's log has begun.

        Args:
            ended: told the turn and our id of each call that has its outcome.
            paused: told when one more waits for a person.
            resumed: of all of them a person was asked by an earlier session.
        """
        turn.log.tools_ran = True
        for started in tuple(turn.log.calls.values()):
            self._tasks.start_soon(self._call, turn, started, resumed, ended, partial(self._waits, paused))

    def _waits(self, paused: Callable[[], None], call_id: str, waits: bool) -> None:
        if waits:
            self.waiting |= {call_id}
            paused()
        else:
            self.waiting -= {call_id}

    def suspend(self, turn: RunningTurn) -> None:
        """Wait no more for those that wait for a person; they stay open in the store."""
        for call_id in tuple(turn.log.calls):
            if (scope := self._scopes.get(call_id)) is not None:
                scope.cancel()

    def drop(self, turn: RunningTurn) -> None:
        """Cancel those that run, or wait; also those of an earlier session, which have no task here."""
        if turn.log.calls:
            # the end of the turn does it too, but tells nobody
            self._front.writer.offer(CancelPending(self._conversation.id, turn.turn))
        for call_id, call in turn.log.calls.items():
            scope = self._scopes.get(call_id)
            if scope is not None:
                scope.cancel()
            self._ctx.ref(f"mcp/{call.server}").offer(CancelCall(call_id))
            self._front.calls.pop(call_id, None)
            self._front.tally.tool_call(call.server, "cancelled")

    async def _call(self, turn: RunningTurn, started: ToolStarted, resumed: bool, told: Ended, waits: Waits) -> None:
        call_id, status, elapsed_ms = started.call_id, "denied", 0
        outcome: ToolOutcome | None = None
        with trio.CancelScope() as scope:
            self._scopes[call_id] = scope
            approvals = Approvals(self._front, self._conversation, self._front.writer)
            permission = await approvals.permission(turn, started, waits, resumed=resumed)
            if permission.allowed:
                self._front.calls[call_id] = (turn.log, 0.0)
                began = trio.current_time()
                outcome = await self._made(turn, started, permission.arguments)
                status, text = "completed" if outcome.ok else "failed", outcome.text
                elapsed_ms = int((trio.current_time() - began) * 1000)
            else:
                text = permission.why_not
        self._scopes.pop(call_id, None)
        self.waiting -= {call_id}
        if scope.cancel_called:
            return  # the turn is being closed, which writes the outcome; or others will go on with it
        if permission.moved:
            self._front.evict(self._conversation)
            return
        self._front.calls.pop(call_id, None)
        ended = turn.end_call(started, status, text, elapsed_ms, outcome)
        self._front.tally.tool_call(started.server, ended.status)
        append = Append(self._conversation.id, turn.turn, started.call_id, [ended], self._front.id)
        self._tasks.start_soon(insist, self._front.writer, append)
        self._conversation.pump()
        told(turn.turn, started.call_id)

    async def _made(self, turn: RunningTurn, started: ToolStarted, arguments: str | None) -> ToolOutcome:
        """Make the call, with other arguments than the model's where a person has changed them."""
        if arguments is not None:
            started = msgspec.structs.replace(started, arguments=arguments)
        outcome = await tool_call.outcome(self._ctx, turn, started, self._front)
        said = "" if arguments is None else f"The user changed the arguments of this call to {arguments}\n"
        return msgspec.structs.replace(outcome, text=said + outcome.text)

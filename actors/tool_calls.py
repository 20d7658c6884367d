"""The tool calls of one conversation that run: each in a task of its own, all in parallel.

Their intents are stored before `run` is called. An outcome is shown, stored however long the store is away, and
reported; a call that is dropped is cancelled here and at its server, and reports nothing: who drops it says
what became of it. A call cannot fail: whatever goes wrong is its outcome (`tool_call`).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from actors import tool_call
from actors.durable import insist
from actors.front import Conversation, Front
from actors.running_turn import RunningTurn
from protocol.mcp_server import CancelCall
from protocol.spec import Context
from protocol.writer import Append, ToolStarted


class ToolCalls:
    """Runs them.

    Args:
        tasks: where they run; ended by the caller.
        ended: told the turn and our id of each call that has its outcome.
    """

    def __init__(
        self,
        ctx: Context,
        front: Front,
        conversation: Conversation,
        tasks: trio.Nursery,
        ended: Callable[[int, str], None],
    ) -> None:
        self._ctx = ctx
        self._front = front
        self._conversation = conversation
        self._tasks = tasks
        self._ended = ended
        self._scopes: dict[str, trio.CancelScope] = {}

    def run(self, turn: RunningTurn) -> None:
        """Make the calls that the turn's log has begun."""
        turn.log.tools_ran = True
        for started in tuple(turn.log.calls.values()):
            self._front.calls[started.call_id] = (turn.log, 0.0)
            self._tasks.start_soon(self._call, turn, started)

    def drop(self, turn: RunningTurn) -> None:
        """Cancel those that run; also those of an earlier session, which have no task here."""
        for call_id, call in turn.log.calls.items():
            scope = self._scopes.get(call_id)
            if scope is not None:
                scope.cancel()
            self._ctx.ref(f"mcp/{call.server}").offer(CancelCall(call_id))
            self._front.calls.pop(call_id, None)
            self._front.tally.tool_call(call.server, "cancelled")

    async def _call(self, turn: RunningTurn, started: ToolStarted) -> None:
        began = trio.current_time()
        with trio.CancelScope() as scope:
            self._scopes[started.call_id] = scope
            outcome = await tool_call.outcome(self._ctx, turn, started, self._front)
        self._scopes.pop(started.call_id, None)
        if scope.cancel_called:
            return  # the turn is being closed, which writes the outcome
        self._front.calls.pop(started.call_id, None)
        elapsed_ms = int((trio.current_time() - began) * 1000)
        ended = turn.end_call(started, "completed" if outcome.ok else "failed", outcome.text, elapsed_ms)
        self._front.tally.tool_call(started.server, ended.status)
        append = Append(self._conversation.id, turn.turn, started.call_id, [ended], self._front.id)
        self._tasks.start_soon(insist, self._ctx.ref("store/writer"), append)
        self._conversation.pump()
        self._ended(turn.turn, started.call_id)

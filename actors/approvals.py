"""May a tool call of a turn be made: by the rules, by what its owner has allowed before, or by asking a person.

The call's intent is in the journal already. Who asks waits here, however long it takes: a decision is told by the
gateway, and looked for now and then, since what tells it may be lost. A call that was approved is journaled as such
before it may be made, with its arguments as they were approved; so after a crash it is known whether it was made.

Nothing in here fails: what cannot be asked or stored is a denial that says why. Cancelled, it leaves the approval open
in the store; who cancels it for good says so there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import trio

from actors import policy, settling
from actors.decisions import persistently, until_settled
from actors.durable import has_moved
from actors.front import Conversation, Front
from actors.running_turn import RunningTurn
from protocol.errors import Code, Fault
from protocol.mail import Ref, Request
from protocol.mcp_server import Tool
from protocol.pending import APPROVAL, OpenPending, Pending
from protocol.writer import Append, ToolApproved, ToolStarted

TOOLS_S = 30.0  # for a server to be there again, where the turn has waited over a restart of it


class Permission(NamedTuple):
    """Whether a call may be made."""

    allowed: bool
    why_not: str = ""
    """As the model is told."""
    arguments: str | None = None
    """JSON text, where a person has changed them."""
    moved: bool = False
    """The conversation is another front's by now: nothing is to be done here any more."""


ALLOWED = Permission(True)
MOVED = Permission(False, moved=True)


def pending_id(call_id: str) -> str:
    """Of the approval of a call; a call has one at most, whoever asks."""
    return f"approval-{call_id}"


def verdict_of(front: Front, server: str, tool: Tool) -> policy.Verdict:
    """What the rules in force say of a tool."""
    configured = front.snapshot.mcp.servers.get(server)
    of_server = configured.policy if configured is not None else {}
    return policy.judge(front.snapshot.tools.policy, of_server, server, tool.name, tool.annotations)


Waits = Callable[[str, bool], None]


class Approvals:
    """Asks on behalf of one conversation."""

    __slots__ = ("_conversation", "_front", "_writer")

    def __init__(self, front: Front, conversation: Conversation, writer: Ref[Any]) -> None:
        self._front = front
        self._conversation = conversation
        self._writer = writer

    async def permission(self, turn: RunningTurn, started: ToolStarted, waits: Waits, *, resumed: bool) -> Permission:
        """Whether that call may be made; waits for a person where the rules say so.

        Args:
            waits: told the id of a call that begins to wait for a person (True), or does so no more.
            resumed: a person was asked before, by an earlier session: that counts, whatever the rules say now.
        """
        if resumed:
            waits(started.call_id, True)  # also while its server is not there again yet
            await self._tools_back(turn, started)
        permission = await self._permission(turn, started, waits, resumed=resumed)
        waits(started.call_id, False)
        return permission

    async def _permission(self, turn: RunningTurn, started: ToolStarted, waits: Waits, *, resumed: bool) -> Permission:
        target = turn.merged.find(started.tool_name)
        if target is None:
            return ALLOWED  # there is no such tool, which the call itself will say
        verdict = verdict_of(self._front, *target)
        if verdict.policy == policy.DENY:
            return Permission(False, f"{Code.FORBIDDEN}: This tool may not be used here ({verdict.reason}).")
        if verdict.policy == policy.ALLOW and not resumed:
            return ALLOWED
        asked = self._question(turn, started, target, verdict.reason)
        opening = OpenPending(asked, self._front.snapshot.tools.approval_timeout, unless_granted=True)
        settled = await self._settled(started.call_id, opening, waits)
        if not isinstance(settled, Pending):
            return settled
        return await self._journaled(turn, started, settled)

    def _question(self, turn: RunningTurn, started: ToolStarted, target: tuple[str, Tool], reason: str) -> Pending:
        server, tool = target
        try:
            arguments: Any = msgspec.json.decode(started.arguments or "{}")
        except (ValueError, RecursionError):  # shown as it is; the call would say what is wrong with it
            arguments = started.arguments
        return Pending(
            id=pending_id(started.call_id),
            kind=APPROVAL,
            owner=self._conversation.owner,
            server=server,
            body={"tool_name": started.tool_name, "arguments": arguments, "reason": reason},
            conversation=self._conversation.id,
            turn=turn.turn,
            call=started.call_id,
            tool=tool.name,
            front=self._front.id,
        )

    async def _settled(self, call_id: str, opening: OpenPending, waits: Waits) -> Pending | Permission:
        """How it was settled; or a denial, where it could not be asked."""
        try:
            settled = await until_settled(self._front, opening, lambda: waits(call_id, True))
        except Fault as fault:
            return _refusal(fault)
        waits(call_id, False)
        return settled

    async def _ask(self, request: Request[Any]) -> Any:
        """The store's answer, however long it is away; a denial where it refuses for good."""
        try:
            return await persistently(self._writer, request)
        except Fault as fault:
            return _refusal(fault)

    async def _journaled(self, turn: RunningTurn, started: ToolStarted, settled: Pending) -> Permission:
        outcome = settling.outcome_of(settled)
        if outcome not in ("once", "always"):
            return Permission(False, WHY_NOT[outcome])
        if not settled.expires_at:
            return ALLOWED  # allowed for always, before
        edited = settled.answer.get("arguments") if isinstance(settled.answer, dict) else None
        arguments = None if edited is None else msgspec.json.encode(edited).decode()
        approved = ToolApproved(started.call_id, started.arguments if arguments is None else arguments, outcome)
        key = f"{started.call_id}-approved"
        stored = await self._ask(Append(self._conversation.id, turn.turn, key, [approved], self._front.id))
        if isinstance(stored, Permission):
            return stored
        turn.events.append(approved)
        return Permission(True, arguments=arguments)

    async def _tools_back(self, turn: RunningTurn, started: ToolStarted) -> None:
        """After a restart the servers come later than the turns that wait: its tools are then those there are."""
        with trio.move_on_after(TOOLS_S):
            while self._front.merged.find(started.tool_name) is None:
                await self._front.tools_changed.wait()
        turn.offer(self._front.merged)


def _refusal(fault: Fault) -> Permission:
    if has_moved(fault):
        return MOVED
    return Permission(False, f"{fault.code}: Nobody could be asked for approval: {fault.body.text}")


WHY_NOT = {
    "denied": "Denied: the user does not allow this call. It was not made.",
    "expired": "Denied: nobody approved this call in time. It was not made.",
    "cancelled": "Denied: the approval of this call was cancelled. It was not made.",
}
"""How an approval was settled -> what the model is told."""

"""What waits for a person, between clients and the store: its frames, who is told them, and a client's decision.

The writer tells every front what was opened and what was settled; a socket is told what concerns it, and whoever
waits here is woken. What a socket has missed it is told after its welcome. Faults of `decide`: NOT_FOUND (unknown,
or another owner's), INVALID_MESSAGE (the content is not what was asked for), ALREADY_SETTLED (says how), and the
store's.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any, Literal

import msgspec

from actors import elicitation
from actors.client_socket import Socket
from actors.front import Front
from actors.turnlog import frame_of
from protocol.client import (
    LOCAL_OWNER,
    MAX_ID_CHARS,
    Answer,
    ApprovalRequest,
    ApprovalSettled,
    Approve,
    AskedFrame,
    Question,
    QuestionSettled,
    encode,
    time_of,
)
from protocol.contract_asks import AskGrants, GrantedTool, Grants, RevokeGrant
from protocol.errors import Code, Fault
from protocol.mail import MailError, Ref
from protocol.pending import (
    APPROVAL,
    OPERATORS,
    QUESTION,
    Decided,
    DecidePending,
    DropGrant,
    Grant,
    ListGrants,
    ListPending,
    Pending,
    ReadPending,
)

ANSWER_S = 10.0  # for the store to settle it, or to say what is open

log = logging.getLogger("actors.gateway")

ACTIONS: dict[str, Literal["answered", "declined", "cancelled"]] = {
    "accept": "answered",
    "decline": "declined",
    "cancel": "cancelled",
}
"""What a client does with a question -> how its row is settled."""

OUTCOMES: dict[str, Literal["accepted", "declined", "cancelled", "expired"]] = {
    "answered": "accepted",
    "declined": "declined",
    "cancelled": "cancelled",
    "expired": "expired",
}
"""How a question's row is settled -> what clients read."""


def owners_of(owner: str) -> list[str]:
    """In whose names somebody may decide: their own, and the operators' if they are one."""
    return [owner, OPERATORS] if owner == LOCAL_OWNER else [owner]


def concerns(pending: Pending, owner: str, conversation: str | None) -> bool:
    """Whether a socket of that owner in that conversation is asked; None: whichever it is in."""
    return pending.owner in owners_of(owner) and (conversation is None or pending.conversation in ("", conversation))


def show(front: Front, pending: Pending) -> None:
    """Tell every socket that it concerns: of one that is open those in its conversation, else all of its owner's."""
    waits = pending.state == "open"
    data = frame_of(encode(asked(pending) if waits else settled(pending)))
    if not waits and (waiter := front.waits.get(pending.id)) is not None:
        waiter.set()
    for socket in tuple(front.sockets.values()):
        here = socket.conversation
        if here is None or socket.speaker is not None:
            continue
        if concerns(pending, here.owner, here.id if waits else None):
            socket.outbox.write(data)


async def tell_open(socket: Socket, writer: Ref[Any], owner: str) -> None:
    """Tell a socket that was welcomed what is open for it; never raises for what the store cannot say."""
    here = socket.conversation
    if here is None or socket.speaker is not None:
        return
    try:
        waiting: list[Pending] = await writer.ask(ListPending(owners_of(owner), here.id), within=ANSWER_S, again=True)
    except (MailError, Fault) as error:
        log.warning("socket %d was not told what waits for its user: %s", socket.number, error)
        return
    if socket.conversation is here:
        for pending in waiting:
            socket.tell(asked(pending))


def asked(pending: Pending) -> AskedFrame:
    """The frame that asks a person."""
    body: dict[str, Any] = pending.body if isinstance(pending.body, dict) else {}
    turn, expires_at = pending.turn or None, time_of(pending.expires_at)
    if pending.kind == QUESTION:
        return Question(
            question_id=pending.id,
            server=pending.server,
            message=body.get("message", ""),
            expires_at=expires_at,
            schema=body.get("schema"),
            url=body.get("url"),
            turn=turn,
            call_id=pending.call or None,
            conversation_id=pending.conversation or None,
        )
    return ApprovalRequest(
        approval_id=pending.id,
        tool_name=body.get("tool_name", pending.tool),
        server=pending.server,
        arguments=body.get("arguments"),
        reason=body.get("reason", ""),
        expires_at=expires_at,
        turn=turn,
        call_id=pending.call or None,
        conversation_id=pending.conversation or None,
        diff=body.get("diff"),
    )


def settled(pending: Pending, request_id: str | None = None) -> ApprovalSettled | QuestionSettled:
    """The frame that says how it was settled."""
    if pending.kind == QUESTION:
        return QuestionSettled(pending.id, OUTCOMES.get(pending.state, "cancelled"), request_id)
    return ApprovalSettled(pending.id, outcome_of(pending), request_id)


def outcome_of(pending: Pending) -> Literal["once", "always", "denied", "expired", "cancelled"]:
    """How an approval was settled, in the clients' words."""
    match pending.state:
        case "answered":
            always = isinstance(pending.answer, dict) and pending.answer.get("decision") == "always"
            return "always" if always else "once"
        case "declined":
            return "denied"
        case "expired":
            return "expired"
        case _:
            return "cancelled"


def show_completed(front: Front, question: Pending) -> None:
    """What was to be done at a question's address is done, as the server says."""
    data = frame_of(encode(QuestionSettled(question.id, "completed")))
    for socket in tuple(front.sockets.values()):
        here = socket.conversation
        if here is not None and socket.speaker is None and concerns(question, here.owner, None):
            socket.outbox.write(data)


async def grants(frame: AskGrants | RevokeGrant, writer: Ref[Any], owner: str) -> Grants:
    """What an owner has allowed for always, after one of it was taken back. Raises Fault and MailError."""
    if isinstance(frame, RevokeGrant):
        dropped = await writer.ask(DropGrant(owner, frame.server, frame.name), within=ANSWER_S)
        if not dropped:
            raise Fault(Code.NOT_FOUND, "This tool was not allowed for always.")
    found: list[Grant] = await writer.ask(ListGrants(owner), within=ANSWER_S, again=True)
    granted = [GrantedTool(grant.server, grant.tool, time_of(grant.at)) for grant in found]
    return Grants(granted, request_id=frame.request_id)


async def decide(frame: Approve | Answer, writer: Ref[Any], owner: str) -> AskedFrame:
    """Settle it as a client says; the frame that says so. Raises Fault and MailError."""
    pending_id = frame.approval_id if isinstance(frame, Approve) else frame.question_id
    if len(pending_id) > MAX_ID_CHARS:
        raise Fault(Code.NOT_FOUND, "There is nothing of that id to decide.")
    if isinstance(frame, Answer) and frame.action == "accept":
        frame = await _fitting(frame, writer, owner)
    decision: Decided = await writer.ask(_decision(frame, pending_id, owner), within=ANSWER_S, again=True)
    told = settled(decision.pending, frame.request_id)
    if not decision.won:
        raise Fault(Code.ALREADY_SETTLED, f"This is settled already: {told.outcome}.")
    return told


async def _fitting(frame: Answer, writer: Ref[Any], owner: str) -> Answer:
    """The answer as the server gets it. Raises Fault: it does not fit; the question stays open."""
    found: Pending = await writer.ask(ReadPending(frame.question_id), within=ANSWER_S, again=True)
    if found.owner not in owners_of(owner) or found.kind != QUESTION or found.state != "open":
        return frame  # the store says what is wrong
    schema = found.body.get("schema") if isinstance(found.body, dict) else None
    if not isinstance(schema, dict):
        return msgspec.structs.replace(frame, content=None)
    content = {} if frame.content is None else frame.content
    if not isinstance(content, dict):
        raise Fault(Code.INVALID_MESSAGE, "Expected an object with the form's fields - at `$.content`.")
    return msgspec.structs.replace(frame, content=elicitation.checked(schema, content))


def _decision(frame: Approve | Answer, pending_id: str, owner: str) -> DecidePending:
    owners, key = owners_of(owner), secrets.token_hex(8)
    if isinstance(frame, Answer):
        content = frame.content if frame.action == "accept" else None
        return DecidePending(pending_id, owners, QUESTION, ACTIONS[frame.action], key, content)
    if frame.decision == "deny":
        return DecidePending(pending_id, owners, APPROVAL, "declined", key)
    answer: dict[str, Any] = {"decision": frame.decision}
    if frame.arguments is not None:
        answer["arguments"] = frame.arguments
    grant = owner if frame.decision == "always" else ""
    return DecidePending(pending_id, owners, APPROVAL, "answered", key, answer, grant)

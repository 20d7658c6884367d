"""The client contract's frames of what waits for a person: approvals of tool calls, and questions of servers.

As in `protocol/contract.py`, whose unions they join. All of an owner's sockets may answer; the first counts, and all
are told that it is settled, so that a dialog on another device closes.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal

import msgspec


class Approve(msgspec.Struct, frozen=True, tag="approve"):
    """Decides a tool call that waits, or a tool whose definition has changed."""

    approval_id: str
    decision: Literal["once", "always", "deny"]
    arguments: dict[str, Any] | None = None
    """The call is made with these instead."""
    request_id: str | None = None


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """Answers a question."""

    question_id: str
    action: Literal["accept", "decline", "cancel"]
    content: Any = None
    """With `accept`: by the question's schema."""
    request_id: str | None = None


class AskGrants(msgspec.Struct, frozen=True, tag="list_grants"):
    """The tools that this owner has allowed for always."""

    request_id: str | None = None


class RevokeGrant(msgspec.Struct, frozen=True, tag="revoke_grant"):
    """This owner is asked again from now on; answered by `grants`."""

    server: str
    name: str
    """The server's own name of the tool."""
    request_id: str | None = None


class ApprovalRequest(msgspec.Struct, frozen=True, tag="approval_request", omit_defaults=True):
    """A tool call waits for a person; or, without a turn, a tool that is not offered until somebody agrees."""

    approval_id: str
    tool_name: str
    server: str
    arguments: Any
    reason: str
    expires_at: datetime.datetime
    turn: int | None = None
    call_id: str | None = None
    """Of its `tool_execution`."""
    conversation_id: str | None = None
    diff: str | None = None
    """What changed in the tool's definition: lines that begin with `-` or `+`."""


class Question(msgspec.Struct, frozen=True, tag="question", omit_defaults=True):
    """A server asks something; has either a `schema` for the answer's content, or a `url` to be opened."""

    question_id: str
    server: str
    message: str
    expires_at: datetime.datetime
    schema: Any = None
    url: str | None = None
    turn: int | None = None
    call_id: str | None = None
    """The tool call in which it asks."""
    conversation_id: str | None = None


class ApprovalSettled(msgspec.Struct, frozen=True, tag="approval_settled", omit_defaults=True):
    """It is decided; goes to all of the owner's sockets, and to who decided it with its request_id."""

    approval_id: str
    outcome: Literal["once", "always", "denied", "expired", "cancelled"]
    request_id: str | None = None


class QuestionSettled(msgspec.Struct, frozen=True, tag="question_settled", omit_defaults=True):
    """It is answered, or not asked any more; likewise."""

    question_id: str
    outcome: Literal["accepted", "declined", "cancelled", "expired", "completed"]
    """`completed`: the server says that what was to be done at the `url` is done; may follow `accepted`."""
    request_id: str | None = None


class GrantedTool(msgspec.Struct, frozen=True):
    """One of `grants`."""

    server: str
    name: str
    """The server's own name of the tool."""
    at: datetime.datetime


class Grants(msgspec.Struct, frozen=True, tag="grants", omit_defaults=True):
    """What `always` has allowed, by server and name."""

    grants: list[GrantedTool]
    request_id: str | None = None


AskFrame = Approve | Answer | AskGrants | RevokeGrant
"""From clients."""

AskedFrame = ApprovalRequest | Question | ApprovalSettled | QuestionSettled | Grants
"""To clients."""

"""What waits for a person, as the store keeps it: approvals of tool calls and questions of servers.

Words of the persistence writer (`protocol.writer`). A `Pending` is a row: opened once under a random id, and
settled exactly once, by whoever is first: a person's decision, its end with what it was for, or its time. It
outlives every process. Who wants to know at once says `WatchPending` (every gateway does), or is the row's `asker`.

Faults of the operations: those of the writer; NOT_FOUND for an id that is unknown or somebody else's.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from protocol.mail import Request

OPERATORS = ""
"""As an owner: not one person's, but for whoever runs the service."""

APPROVAL: Literal["approval"] = "approval"
QUESTION: Literal["question"] = "question"

SAMPLING = "sampling/createMessage"
"""As `tool` of an approval: a server wants a model to be asked."""

State = Literal["open", "answered", "declined", "cancelled", "expired"]
"""`answered`: with `answer`. `cancelled`: by the person, or because what it was for has ended."""


class Pending(msgspec.Struct, frozen=True):
    """One thing that waits, or has waited, for a person."""

    id: str
    kind: Literal["approval", "question"]
    owner: str
    """Who may decide it; OPERATORS: every operator."""
    server: str
    """The MCP server it is about."""
    body: Any
    """JSON. An approval: `tool_name` (as the model knows it), `arguments`, `reason`, `diff`?; a question: `message`,
    `schema` or `url`."""
    conversation: str = ""
    """Who is in it is asked; empty: wherever the owner is."""
    turn: int = 0
    """0: of no turn."""
    call: str = ""
    """Our id of the tool call that waits for it; empty: none."""
    tool: str = ""
    """The server's own name of the tool."""
    asker: str = ""
    """Address of an actor that is told `PendingSettled`, besides those who watch."""
    front: str = ""
    """Who opened it (`protocol.claim`); fenced as other writes into its conversation."""
    made_at: float = 0.0
    """Unix time in seconds, as the others; set by the store."""
    expires_at: float = 0.0
    state: State = "open"
    answer: Any = None
    """JSON. An approval: `decision` (once, always) and perhaps `arguments`; a question: the content."""
    settled_at: float = 0.0


class OpenPending(Request[Pending], frozen=True, tag=True):
    """Store it; a repeat (same id) answers what is there, settled or not.

    With `unless_granted`, where its owner has allowed the tool for always, nothing is stored: it is answered as
    `answered` with that. Faults: TURN_NOT_RUNNING (its turn is over), OVERLOADED (its owner has too many), MOVED.
    """

    pending: Pending
    lasts_s: float
    """`expires_at` is so much later than the store's clock."""
    unless_granted: bool = False


class Decided(msgspec.Struct, frozen=True):
    """How it stands after a decision."""

    pending: Pending
    won: bool
    """That decision counts; else an earlier one does."""


class DecidePending(Request[Decided], frozen=True, tag=True):
    """Settle it, if nobody has; one that is over its time becomes `expired` instead."""

    id: str
    owners: list[str]
    """In whose name: one of them must be the row's."""
    kind: Literal["approval", "question"]
    """A row of the other kind is NOT_FOUND."""
    state: Literal["answered", "declined", "cancelled", "expired"]
    key: str
    """Random, of this decision: its repeat wins again."""
    answer: Any = None
    grant: str = ""
    """Name of an owner for whom the row's tool is allowed for always, if this wins and the row is of a turn."""


class CancelPending(Request[list[Pending]], frozen=True, tag=True):
    """Settle as `cancelled` what is open of a turn (with `call`: of that call only), or of a server.

    Answers what it has cancelled. One of `conversation` and `server` must be said.
    """

    conversation: str = ""
    turn: int = 0
    """0: whatever turn, or none."""
    call: str = ""
    server: str = ""
    kind: Literal["approval", "question"] | None = None
    """None: both."""


class Expired(msgspec.Struct, frozen=True):
    """What has run out of time."""

    pending: list[Pending]
    next_at: float
    """When the next one will; infinite where nothing is open."""


class ExpirePending(Request[Expired], frozen=True, tag=True):
    """Settle as `expired` what is over its time; the writer tells itself when that may be."""


class ReadPending(Request[Pending], frozen=True, tag=True):
    """Ask: one row. Faults: NOT_FOUND."""

    id: str


class ListPending(Request[list[Pending]], frozen=True, tag=True):
    """Ask: the open ones of these owners, oldest first: those of that conversation, and those of none."""

    owners: list[str]
    conversation: str | None = None
    """None: of whatever conversation."""


class Grant(msgspec.Struct, frozen=True):
    """A tool that its owner has allowed for always."""

    server: str
    tool: str
    """The server's own name of it."""
    at: float


class ListGrants(Request[list[Grant]], frozen=True, tag=True):
    """Ask: what an owner has allowed for always, by server and tool."""

    owner: str


class DropGrant(Request[bool], frozen=True, tag=True):
    """The owner is asked again from now on; answers whether it was granted."""

    owner: str
    server: str
    tool: str


class WatchPending(msgspec.Struct, frozen=True, tag=True):
    """`PendingOpened` and `PendingSettled` go to that address from now on; repeats count once."""

    to: str


class PendingOpened(msgspec.Struct, frozen=True, tag=True):
    """Event: it is on disk and waits; may come again."""

    pending: Pending


class PendingSettled(msgspec.Struct, frozen=True, tag=True):
    """Event: it is settled, which is on disk. May be lost with a process: who waits looks now and then."""

    pending: Pending


PendingOperation = OpenPending | DecidePending | CancelPending | ExpirePending | DropGrant
PendingQuery = ReadPending | ListPending | ListGrants

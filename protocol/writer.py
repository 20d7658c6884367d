"""What the persistence writer understands: durable operations (answered after COMMIT) and queries.

Every operation is idempotent by the ids that it carries, so one whose answer was lost is simply sent
again. Faults: STORAGE_FULL and STORAGE_UNAVAILABLE; NOT_FOUND from queries of a conversation that is not
the owner's or not there at all.

`front` in an operation is the id of the front that sends it (`protocol.claim`). MOVED: that front is taken for
dead, or the conversation is another's; nothing was written, and it must let go of the conversation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.contents import Content
from protocol.errors import FaultBody
from protocol.mail import Nudge, Request
from protocol.pending import PendingOperation, PendingQuery, WatchPending
from protocol.pins import CheckTools, OnlyServers
from protocol.spec import Down, Up
from protocol.streamer import ToolCall
from protocol.watcher import Configured

PAGE_BYTES = 24 * 2**20  # of a page's events: images are among them, and a message between processes has an end


class Done(msgspec.Struct, frozen=True):
    """The operation is on disk."""


class UserEvent(msgspec.Struct, frozen=True, tag="user"):
    """A user's message; begins a turn."""

    content: Any
    """Text, or a list of parts."""
    request_id: str
    streaming: bool
    """Whether this turn's text is shown as it comes."""


class HopEvent(msgspec.Struct, frozen=True, tag="hop"):
    """One answer of the model within a turn, whole or as far as it came."""

    hop: int
    """From 1."""
    content: str
    thinking: str
    tool_calls: list[ToolCall]
    raw: dict[str, Any]
    """The provider's further fields of the message; sent back to the same provider only."""
    provider: str
    model: str
    usage: dict[str, Any] | None
    finish_reason: str
    left_out: dict[str, int] = {}
    """`turns` and `messages` that this request was not told for want of room; empty: all was told."""
    annotations: list[dict[str, Any]] = []
    """What the answer refers to, as the streamer said it."""


class ToolStarted(msgspec.Struct, frozen=True, tag="tool_started"):
    """A tool call's intent, stored before it is made."""

    call_id: str
    """Unique in the conversation."""
    model_call_id: str
    """The id in the model's tool call."""
    seq: int
    """Of its first `tool_execution`."""
    tool_name: str
    """As the model knows it."""
    server: str
    arguments: str
    """JSON text."""


class ToolApproved(msgspec.Struct, frozen=True, tag="tool_approved"):
    """A person allowed a call that waited for it, stored before it is made: without this it has not been made."""

    call_id: str
    arguments: str
    """JSON text: with these, which may not be those of the model."""
    decision: str
    """once or always."""


class ToolEnded(msgspec.Struct, frozen=True, tag="tool_ended", omit_defaults=True):
    """A tool call's outcome. A started call without one is of unknown outcome and never silently repeated."""

    call_id: str
    model_call_id: str
    seq: int
    """Of its last `tool_execution`."""
    status: str
    """completed, failed, cancelled, denied or unknown."""
    result: str
    """What the model was told."""
    elapsed_ms: int
    contents: list[Content] = []
    """As in `ToolOutcome`, here and below."""
    structured: Any = None
    result_id: str = ""
    size: int = 0


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """The end of a turn: what `assistant_message` and `turn_finished` say."""

    outcome: str
    """completed, stopped, interrupted or failed."""
    seq: int
    """Of `turn_finished`; `assistant_message`, if the turn has text, has one less."""
    message: str
    """All hops' text, joined."""
    thinking: str
    usage: dict[str, Any] | None
    """Summed over hops where they are numbers; `cost` where prices are configured, or the provider told it."""
    model: str
    finish_reason: str
    error: FaultBody | None
    provider: str = ""
    """Who gave the last answer."""
    annotations: list[dict[str, Any]] = []
    """All hops', in the places of the joined text."""


Event = UserEvent | HopEvent | ToolStarted | ToolApproved | ToolEnded | Closed


class StoredEvent(msgspec.Struct, frozen=True):
    """An event with its place."""

    turn: int
    at: float
    """Unix time in seconds."""
    event: Event


class Entered(msgspec.Struct, frozen=True):
    """Which conversation a socket is in."""

    conversation: str
    new: bool
    """It has no row yet: it gets one with its first message."""
    front: str = ""
    """Whose it is now: the asker's, unless another had it. Empty: nobody's."""
    waiting: bool = False
    """It is the asker's, and turns wait in it that nobody runs: the asker must see to them."""


class Enter(Request[Entered], frozen=True, tag=True):
    """An owner enters a conversation: `wanted` is an id, `new`, `latest`, or `new!` (new, with its row at once).

    It becomes the asking front's where it was nobody's. NOT_FOUND: an id that is unknown or somebody else's.
    """

    owner: str
    wanted: str
    fresh_id: str
    """The id to use where a new conversation is entered; makes a repeat harmless."""
    front: str = ""


class Began(msgspec.Struct, frozen=True):
    """The user event is on disk (now, or earlier under the same request_id)."""

    turn: int
    """The turn of that request_id."""
    repeated: bool
    """It was there before, under this request_id."""


class BeginTurn(Request[Began], frozen=True, tag=True):
    """Durably add a user event. Makes the conversation's row if there is none."""

    owner: str
    conversation: str
    turn: int
    """Chosen by the session, greater than any before."""
    event: UserEvent
    queued: bool
    """It waits behind a running turn."""
    front: str = ""


class StartTurn(Request[Done], frozen=True, tag=True):
    """A queued turn runs now."""

    conversation: str
    turn: int
    front: str = ""


class Append(Request[Done], frozen=True, tag=True):
    """Durably add events to a running turn, in order. `key` makes a repeat harmless.

    A `HopEvent` supersedes the deltas of its hop; `Closed` ends the turn and drops all its deltas, and is
    ignored for a turn that is closed already.
    """

    conversation: str
    turn: int
    key: str
    """Unique within the turn."""
    events: list[Event]
    front: str = ""


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What grew in one turn's log since the last tick."""

    conversation: str
    turn: int
    hop: int
    seq: int
    """Of the last piece in it."""
    text: str
    thinking: str
    """Both empty: only that the turn has shown something is kept."""


class AppendDeltas(Request[Done], frozen=True, tag=True):
    """One per tick for all running turns; a repeat (same turn and seq) changes nothing.

    Turns of conversations that are another front's are passed over; MOVED only where the asker is taken for dead.
    """

    deltas: list[Delta]
    front: str = ""


class History(msgspec.Struct, frozen=True):
    """Events of a conversation, ordered by turn and position."""

    events: list[StoredEvent]
    more: bool
    """There are earlier turns; where `after` was asked, later ones."""
    last_turn: int
    """Greatest turn id ever used; 0 for none."""
    queued: list[int]
    """Turns that wait to be run."""
    running: list[int]
    """Turns that have begun and not ended."""
    waiting: list[str] = []
    """Ids of the calls for which the running turn waits, where all that it waits for is a person's approval."""


class LoadHistory(Request[History], frozen=True, tag=True):
    """The last `limit` turns, before turn `before` (0: the end), after turn `after` (0: the beginning).

    With `after`, the page is the first `limit` turns after it. An unknown conversation is NOT_FOUND unless
    `missing_ok`, then it is empty.
    """

    owner: str
    conversation: str
    before: int = 0
    after: int = 0
    limit: int = 50
    missing_ok: bool = False
    most_bytes: int = PAGE_BYTES
    """Fewer turns than that where they have more bytes; one at least, and always all that have not ended."""


class Unfinished(msgspec.Struct, frozen=True):
    """A conversation with turns that wait to be run."""

    owner: str
    conversation: str


class ListUnfinished(Request[list[Unfinished]], frozen=True, tag=True):
    """Ask: conversations with turns that wait to be run."""


# Claims.


class TakeUnfinished(Request[list[Unfinished]], frozen=True, tag=True):
    """Take the conversations in which turns wait and that are nobody's; answers with all of the asker's own.

    They wait to be run, or run and wait for nothing but approvals. An earlier run of the service has left them, or a
    front that died or let go of them.
    """

    front: str = ""


class Release(Request[Done], frozen=True, tag=True):
    """The front lets go of these conversations; one in which a turn runs stays its own, unless that waits for nothing
    but approvals."""

    front: str
    conversations: list[str]


class FrontGone(Request[Done], frozen=True, tag=True):
    """A front has died, and so have its earlier lives. May be said by all who learn of it, as often as they like.

    Its conversations are nobody's then, in the same transaction in which its running turns end as `interrupted`,
    with their text. One that had shown nothing and run no tool waits to be asked again instead, and one that waits for
    nothing but approvals goes on waiting.
    """

    front: str


class ListedConversation(msgspec.Struct, frozen=True):
    """One of an owner's conversations."""

    conversation: str
    title: str
    """The beginning of its first user message that is still there, one line; empty if that is no text."""
    messages: int
    """Users' messages and answers, counted as `history` shows them."""
    created_at: float
    """Unix time in seconds, as the others."""
    updated_at: float
    """Last begin or end of a turn."""
    at: float
    """Last entered or written to by its owner: the order of the list, and where its next page begins."""


class ConversationPage(msgspec.Struct, frozen=True):
    """A page of an owner's conversations, newest first."""

    conversations: list[ListedConversation]
    more: bool
    """There are older ones."""


class ListConversations(Request[ConversationPage], frozen=True, tag=True):
    """Ask: the owner's conversations that have messages, at most 100 a page."""

    owner: str
    before: float = 0.0
    """`at` of the last one of the page before; 0: begin with the newest."""
    limit: int = 50


# Saved sessions: conversations kept by name, up to a turn, until they are deleted or over the limits for saves.


class Saved(msgspec.Struct, frozen=True):
    """A saved session: the beginning of a conversation, which no longer changes."""

    saved_id: str
    name: str
    conversation: str
    up_to_turn: int
    """The last turn in it."""
    messages: int
    """Counted as `history` shows them."""
    at: float
    """When it was saved; Unix time in seconds."""


class SaveSession(Request[Saved], frozen=True, tag=True):
    """Keep a conversation as it is now, up to the last turn before the first that has not ended.

    Faults: NOT_FOUND, also where no turn has ended yet.
    """

    owner: str
    conversation: str
    name: str
    saved_id: str
    """Chosen by the asker, unique; makes a repeat harmless."""


class ListSaved(Request[list[Saved]], frozen=True, tag=True):
    """Ask: the owner's saved sessions, newest first."""

    owner: str


class SavedPage(msgspec.Struct, frozen=True):
    """A saved session and events of it, ordered by turn and position."""

    saved: Saved
    events: list[StoredEvent]
    more: bool
    """There are later turns."""


class ReadSaved(Request[SavedPage], frozen=True, tag=True):
    """Ask: the first `limit` turns (at most 500) of a saved session after turn `after`.

    Faults: SESSION_NOT_FOUND.
    """

    owner: str
    saved_id: str
    after: int = 0
    limit: int = 500


class Loaded(msgspec.Struct, frozen=True):
    """A conversation that begins as the saved one was; it has been entered."""

    conversation: str
    last_turn: int
    """Greatest turn id in it; later ones must be greater."""
    source: str = ""
    """The conversation that was saved; what is kept of its tools' results is kept for this one, too."""


class LoadSaved(Request[Loaded], frozen=True, tag=True):
    """Make a new conversation that begins with the saved events. Faults: SESSION_NOT_FOUND."""

    owner: str
    saved_id: str
    fresh_id: str
    """Id of the new conversation; makes a repeat harmless."""
    front: str = ""
    """Whose it is then."""


class DeleteSaved(Request[Done], frozen=True, tag=True):
    """Delete a saved session; the conversation itself stays until retention takes it.

    Faults: SESSION_NOT_FOUND, which is also what a repeat gets: it is gone.
    """

    owner: str
    saved_id: str


# Retention.


class InUse(msgspec.Struct, frozen=True, tag=True):
    """Clients are in these conversations: for 90 s nothing of them is removed. Adds to what was said before.

    Sent at least every 30 s. One that was just entered, or loaded, counts as named here.
    """

    conversations: list[str]
    left: list[str] = []
    """No client is in these any more: they may be removed at once. Leaving them out only keeps them longer."""


Operation = (
    Enter
    | BeginTurn
    | StartTurn
    | Append
    | AppendDeltas
    | SaveSession
    | LoadSaved
    | DeleteSaved
    | TakeUnfinished
    | Release
    | FrontGone
    | PendingOperation
    | CheckTools
    | OnlyServers
)
"""Answered after the commit that holds it; those that wait together share one."""

Query = LoadHistory | ListUnfinished | ListConversations | ListSaved | ReadSaved | PendingQuery
"""Sees every operation that was sent before it, acknowledged or not, unless that could not be done."""

WriterMessage = Operation | Query | InUse | WatchPending | Configured | Down | Up | Nudge
"""All that it takes."""

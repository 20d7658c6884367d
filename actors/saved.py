"""Saved sessions in the rows: a name for the beginning of a conversation, which then no longer changes.

Saving copies nothing: it pins the turns up to one of them, and nothing removes a pinned turn. Loading copies
those turns into a conversation of their own, in one transaction: a conversation stays one range of rows, so
that history, recovery and retention need to know nothing of where it came from. The copy runs inside SQLite
and takes about 3 us an event, so that one of 10,000 keeps others waiting for 30 ms.

As `actors.rows`, all of it runs inside a transaction of the store, and may come twice.
"""

from __future__ import annotations

from actors.fence import Fence
from actors.rows import (
    FIND_CONVERSATION,
    LAST_TURN,
    NO_CONVERSATION,
    OPEN_TURNS,
    PAGE_MAX,
    TURNS_AFTER,
    Row,
    add_conversation,
    events_between,
    fitting,
    one,
    rows,
)
from actors.schema import Database
from protocol.errors import Code, Fault
from protocol.writer import (
    PAGE_BYTES,
    DeleteSaved,
    Done,
    ListSaved,
    Loaded,
    LoadSaved,
    ReadSaved,
    Saved,
    SavedPage,
    SaveSession,
)

LIST_MAX = 1000  # saved sessions of one answer; `max_saved` is far below where it is set

FIND_SAVED = (
    "SELECT saved.owner, saved.conversation, saved.id, name, conversation.id, up_to_turn, saved.messages, at "
    "FROM saved JOIN conversation ON n = saved.conversation WHERE saved.id = ?"
)
LIST_SAVED = (
    "SELECT saved.id, name, conversation.id, up_to_turn, saved.messages, at "
    "FROM saved JOIN conversation ON n = saved.conversation WHERE saved.owner = ? ORDER BY at DESC LIMIT ?"
)
ADD_SAVED = "INSERT INTO saved (id, owner, name, conversation, up_to_turn, messages, at) VALUES (?, ?, ?, ?, ?, ?, ?)"
DROP_SAVED = "DELETE FROM saved WHERE id = ?"
LAST_BEFORE = "SELECT turn FROM turn WHERE conversation = ? AND turn < ? ORDER BY turn DESC LIMIT 1"
COUNT_MESSAGES = "SELECT sum(messages) FROM turn WHERE conversation = ? AND turn <= ?"
LAST_PINNED = "SELECT up_to_turn, messages FROM saved WHERE conversation = ? ORDER BY up_to_turn DESC LIMIT 1"
SET_PINNED = "UPDATE conversation SET saved_turn = ?, saved_messages = ? WHERE n = ?"
COPY_TURNS = (
    "INSERT INTO turn (conversation, turn, request_id, state, hop, seq, messages) "
    "SELECT ?, turn, request_id, state, hop, seq, messages FROM turn WHERE conversation = ? AND turn <= ? ORDER BY turn"
)
COPY_EVENTS = (
    "INSERT INTO event (turn, pos, key, kind, at, body) "
    "SELECT copy.n, pos, key, kind, at, body FROM turn AS source "
    "JOIN turn AS copy ON copy.conversation = ? AND copy.turn = source.turn JOIN event ON event.turn = source.n "
    "WHERE source.conversation = ? AND source.turn <= ? ORDER BY source.turn, pos"
)
COPY_FACTS = (
    "UPDATE conversation SET last_turn = ?, messages = ?, "
    "title = (SELECT title FROM conversation AS source WHERE source.n = ?) WHERE n = ?"
)


def save(db: Database, message: SaveSession, now: float) -> Saved | Fault:
    """`SaveSession`."""
    earlier = one(db, FIND_SAVED, message.saved_id)
    if earlier is not None:
        return Saved(*earlier[2:]) if earlier[0] == message.owner else Fault(Code.NOT_FOUND, NO_CONVERSATION)
    found = one(db, FIND_CONVERSATION, message.conversation)
    if found is None or found[1] != message.owner:
        return Fault(Code.NOT_FOUND, NO_CONVERSATION)
    conversation = found[0]
    # Queued messages that others have overtaken are left out with what came after them: a prefix must not change.
    first_open = one(db, OPEN_TURNS, conversation)
    last = one(db, LAST_BEFORE, conversation, first_open[0] if first_open else LAST_TURN)
    if last is None:
        return Fault(Code.NOT_FOUND, "There is nothing to save yet.", hint="Save it when an answer has ended.")
    (messages,) = one(db, COUNT_MESSAGES, conversation, last[0]) or (0,)
    row = (message.saved_id, message.owner, message.name, conversation, last[0], messages, now)
    db.execute(ADD_SAVED, row)
    _pin(db, conversation)
    return Saved(message.saved_id, message.name, message.conversation, last[0], messages, now)


def load(db: Database, message: LoadSaved, now: float, fence: Fence) -> Loaded | Fault:
    """`LoadSaved`."""
    if (fault := fence.refuses(message.front, "")) is not None:
        return fault
    earlier = one(db, FIND_CONVERSATION, message.fresh_id)
    found = _find(db, message.owner, message.saved_id)
    if earlier is not None and earlier[1] == message.owner:
        return Loaded(message.fresh_id, earlier[2], found[1].conversation if found is not None else "")
    if found is None or earlier is not None:
        return Fault(Code.SESSION_NOT_FOUND)
    source, kept = found
    copy = add_conversation(db, message.fresh_id, message.owner, now, message.front)
    db.execute(COPY_TURNS, (copy, source, kept.up_to_turn))
    db.execute(COPY_EVENTS, (copy, source, kept.up_to_turn))
    db.execute(COPY_FACTS, (kept.up_to_turn, kept.messages, source, copy))
    return Loaded(message.fresh_id, kept.up_to_turn, kept.conversation)


def delete(db: Database, message: DeleteSaved) -> Done | Fault:
    """`DeleteSaved`."""
    found = _find(db, message.owner, message.saved_id)
    if found is None:
        return Fault(Code.SESSION_NOT_FOUND)
    drop(db, message.saved_id, found[0])
    return Done()


def drop(db: Database, saved_id: str, conversation: int) -> None:
    """Remove a saved session; what no other pins of its conversation is pinned no longer."""
    db.execute(DROP_SAVED, (saved_id,))
    _pin(db, conversation)


def list_saved(db: Database, query: ListSaved) -> list[Saved]:
    """`ListSaved`."""
    return [Saved(*row) for row in rows(db, LIST_SAVED, query.owner, LIST_MAX)]


def read(db: Database, query: ReadSaved) -> SavedPage:
    """`ReadSaved`. Raises: Fault SESSION_NOT_FOUND."""
    found = _find(db, query.owner, query.saved_id)
    if found is None:
        raise Fault(Code.SESSION_NOT_FOUND)
    conversation, kept = found
    limit = min(max(query.limit, 1), PAGE_MAX)
    turns = [row[0] for row in rows(db, TURNS_AFTER, conversation, query.after, kept.up_to_turn + 1, limit + 1)]
    page = fitting(db, conversation, turns[:limit], PAGE_BYTES)
    events = events_between(db, conversation, page[0], page[-1]) if page else []
    return SavedPage(kept, events, more=len(turns) > len(page))


def _find(db: Database, owner: str, saved_id: str) -> tuple[int, Saved] | None:
    found: Row | None = one(db, FIND_SAVED, saved_id)
    if found is None or found[0] != owner:
        return None
    return found[1], Saved(*found[2:])


def _pin(db: Database, conversation: int) -> None:
    turn, messages = one(db, LAST_PINNED, conversation) or (0, 0)
    db.execute(SET_PINNED, (turn, messages, conversation))

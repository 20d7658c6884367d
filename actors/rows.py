"""What operations on turns, and queries of them, do to the rows: one function per message.

All of it runs inside a transaction that the store opened and will end; nothing here begins, commits or
catches the driver's errors. An operation that cannot be done answers a `Fault` as a value and has then
written nothing, so it never costs the others in its transaction anything.

Every operation may come twice, also long after the first time, and changes nothing the second time:
begun turns are known by `request_id`, appended events by `key`, text (`actors.ticks`) by `seq`. A closed turn takes
nothing more; and from a front no conversation takes what is not its own (`actors.fence`). The SQL is in
constants, and a test asks the planner that each is bound by an index.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

from actors import ticks
from actors.fence import Fence, moved
from actors.schema import Database, SQLiteValue
from protocol.errors import Code, Fault
from protocol.writer import (
    Append,
    Began,
    BeginTurn,
    Closed,
    ConversationPage,
    Done,
    Enter,
    Entered,
    Event,
    History,
    HopEvent,
    ListConversations,
    ListedConversation,
    LoadHistory,
    StartTurn,
    StoredEvent,
    ToolEnded,
    ToolStarted,
    Unfinished,
)

OPEN = ("queued", "running")  # states of a turn that is not closed; others are its outcome
PAGE_MAX = 500  # turns of one page, whatever was asked
LIST_MAX = 100  # conversations of one page, whatever was asked
TITLE_CHARS = 100  # more does not fit into a list
LATEST = 1e15  # seconds; later than any time

FIND_CONVERSATION = "SELECT n, owner, last_turn, front FROM conversation WHERE id = ?"
FIND_LATEST = "SELECT id, n, front FROM conversation WHERE owner = ? ORDER BY entered_at DESC, n DESC LIMIT 1"
LAST_ENTERED = "SELECT max(entered_at) FROM conversation"
ADD_CONVERSATION = (
    "INSERT INTO conversation (id, owner, front, created_at, entered_at, updated_at, last_turn) "
    "VALUES (?, ?, ?, ?, ?, ?, 0)"
)
LIST_CONVERSATIONS = (
    "SELECT id, title, messages, created_at, updated_at, entered_at FROM conversation "
    "WHERE owner = ? AND entered_at < ? AND messages > 0 ORDER BY entered_at DESC LIMIT ?"
)
SET_FRONT = "UPDATE conversation SET front = ? WHERE n = ?"
SET_TITLE = "UPDATE conversation SET title = ? WHERE n = ?"
SET_ENTERED = "UPDATE conversation SET entered_at = ? WHERE n = ?"
SET_BEGUN = "UPDATE conversation SET entered_at = ?, updated_at = ?, last_turn = ?, messages = messages + 1 WHERE n = ?"
SET_CLOSED = "UPDATE conversation SET updated_at = ?, messages = messages + ? WHERE n = ?"
FIND_REQUEST = "SELECT turn FROM turn WHERE conversation = ? AND request_id = ?"
ADD_TURN = (
    "INSERT INTO turn (conversation, turn, request_id, state) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (conversation, request_id) DO NOTHING"
)
FIND_TURN = (
    "SELECT turn.n, state, front FROM conversation "
    "JOIN turn ON turn.conversation = conversation.n WHERE conversation.id = ? AND turn.turn = ?"
)
SET_STATE = "UPDATE turn SET state = ? WHERE n = ?"
SET_REACHED = "UPDATE turn SET hop = ?, seq = ?, tick = ? WHERE n = ?"
SET_ENDED = "UPDATE turn SET hop = ?, seq = ?, state = ?, messages = 1 + ?, tick = 0 WHERE n = ?"
# One statement, as each costs 2 us. A turn has tens of events: looking through all their keys, which are side by side
# in an index, beats an index of keys.
FIND_END = (
    "SELECT turn.n, turn.conversation, turn.turn, state, hop, seq, "
    "(SELECT pos FROM event WHERE event.turn = turn.n ORDER BY pos DESC LIMIT 1), "
    "EXISTS (SELECT 1 FROM event WHERE event.turn = turn.n AND key = ?), tick, front "
    "FROM conversation JOIN turn ON turn.conversation = conversation.n WHERE conversation.id = ? AND turn.turn = ?"
)
END_PENDING = (
    "UPDATE pending SET state = 'cancelled', settled_at = ? "
    "WHERE conversation = (SELECT id FROM conversation WHERE n = ?) AND turn = ? AND state = 'open'"
)
FIND_CALL = "SELECT 1 FROM event WHERE turn = ? AND kind = 'tool_started' LIMIT 1"
ADD_EVENT = "INSERT INTO event (turn, pos, key, kind, body, at) VALUES (?, ?, ?, ?, ?, ?)"
TURNS_BEFORE = "SELECT turn FROM turn WHERE conversation = ? AND turn < ? ORDER BY turn DESC LIMIT ?"
TURNS_AFTER = "SELECT turn FROM turn WHERE conversation = ? AND turn > ? AND turn < ? ORDER BY turn LIMIT ?"
SIZES = (
    "SELECT turn.turn, sum(octet_length(body)) FROM turn JOIN event ON event.turn = turn.n "
    "WHERE turn.conversation = ? AND turn.turn BETWEEN ? AND ? GROUP BY turn.turn"
)
EVENTS = (
    "SELECT turn.turn, at, body FROM turn JOIN event ON event.turn = turn.n "
    "WHERE turn.conversation = ? AND turn.turn BETWEEN ? AND ? ORDER BY turn.turn, pos"
)
OPEN_TURNS = (
    "SELECT turn, state FROM turn WHERE conversation = ? AND state IN ('queued', 'running') ORDER BY conversation, turn"
)
ALL_OPEN = (
    "SELECT turn.conversation, turn.turn, state, seq, owner, id, front FROM turn JOIN conversation "
    "ON conversation.n = turn.conversation WHERE state IN ('queued', 'running') ORDER BY turn.conversation, turn.turn"
)

Row = tuple[Any, ...]
NO_CONVERSATION = "There is no such conversation."
NO_TURN = "There is no such turn."
LAST_TURN = 2**63 - 1


def one(db: Database, sql: str, *bindings: SQLiteValue) -> Row | None:
    """The first row, or None."""
    return db.execute(sql, bindings).fetchone()


def rows(db: Database, sql: str, *bindings: SQLiteValue) -> list[Row]:
    """All rows."""
    return db.execute(sql, bindings).fetchall()


# Conversations.


def enter(db: Database, message: Enter, now: float, fence: Fence) -> Entered | Fault:
    """`Enter`."""
    if (fault := fence.refuses(message.front, "")) is not None:
        return fault
    if message.wanted == "latest":
        latest = one(db, FIND_LATEST, message.owner)
        if latest is None:
            return Entered(message.fresh_id, True, message.front)
        return _entered(db, *latest, front=message.front)
    fresh = message.wanted in ("new", "new!")
    name = message.fresh_id if fresh else message.wanted
    found = one(db, FIND_CONVERSATION, name)
    if (found is None and not fresh) or (found is not None and found[1] != message.owner):
        return Fault(Code.NOT_FOUND, NO_CONVERSATION)
    if found is not None:
        db.execute(SET_ENTERED, (now, found[0]))
        return _entered(db, name, found[0], found[3], front=message.front)
    if message.wanted == "new!":
        add_conversation(db, name, message.owner, now, message.front)
    return Entered(name, message.wanted == "new", message.front)


def _entered(db: Database, name: str, conversation: int, holder: str, *, front: str) -> Entered:
    """One that has a row; nobody's becomes the front's."""
    if front and not holder:
        holder = front
        db.execute(SET_FRONT, (front, conversation))
    states = {state for _, state in rows(db, OPEN_TURNS, conversation)} if front and holder == front else set()
    return Entered(name, False, holder, waiting=states == {"queued"})


def add_conversation(db: Database, name: str, owner: str, now: float, front: str = "") -> int:
    """Make one, entered; answers its number."""
    db.execute(ADD_CONVERSATION, (name, owner, front, now, now, now))
    return db.last_insert_rowid()


def title(content: object) -> str:
    """Of a conversation that begins with this user's message: its text in one line, or the beginning of that."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    text = next((text for text in texts if isinstance(text, str) and text), "")
    return " ".join(text[: 4 * TITLE_CHARS].split())[:TITLE_CHARS]


def list_conversations(db: Database, query: ListConversations) -> ConversationPage:
    """`ListConversations`."""
    limit = min(max(query.limit, 1), LIST_MAX)
    found = rows(db, LIST_CONVERSATIONS, query.owner, query.before or LATEST, limit + 1)
    return ConversationPage([ListedConversation(*row) for row in found[:limit]], more=len(found) > limit)


# Turns.


def begin(db: Database, message: BeginTurn, now: float, fence: Fence) -> Began | Fault:
    """`BeginTurn`."""
    found = one(db, FIND_CONVERSATION, message.conversation)
    if found is not None and found[1] != message.owner:
        return Fault(Code.NOT_FOUND, NO_CONVERSATION)
    conversation, _, last_turn, holder = found or (0, "", 0, "")
    if (fault := fence.refuses(message.front, holder)) is not None:
        return fault
    request_id = message.event.request_id
    if message.turn > last_turn:
        if not conversation:
            conversation = add_conversation(db, message.conversation, message.owner, now, message.front)
        state = "queued" if message.queued else "running"
        db.execute(ADD_TURN, (conversation, message.turn, request_id, state))
        if db.changes():
            db.execute(ADD_EVENT, (db.last_insert_rowid(), 1, None, *_stored(message.event), now))
            db.execute(SET_BEGUN, (now, now, message.turn, conversation))
            if not last_turn:
                db.execute(SET_TITLE, (title(message.event.content), conversation))
            if found is not None and message.front and not holder:
                db.execute(SET_FRONT, (message.front, conversation))  # it let go of it a moment ago
            return Began(turn=message.turn, repeated=False)
    earlier = one(db, FIND_REQUEST, conversation, request_id)
    if earlier is None:
        # Two turns under one id would mix their events: whoever chose it has an outdated history.
        return Fault(Code.INTERNAL, f"Turn {message.turn} was used before in this conversation.")
    return Began(turn=earlier[0], repeated=True)


def start(db: Database, message: StartTurn, fence: Fence) -> Done | Fault:
    """`StartTurn`."""
    found = one(db, FIND_TURN, message.conversation, message.turn)
    if found is None:
        return Fault(Code.NOT_FOUND, NO_TURN)
    number, state, holder = found
    if (fault := _writing(message.front, holder, state, fence)) is not None:
        return fault
    if state == "queued":
        db.execute(SET_STATE, ("running", number))
    return Done()


def _writing(front: str, holder: str, state: str, fence: Fence) -> Fault | None:
    """Why a front may not write into a turn of that state; a repeat of what closed it is harmless once it let go."""
    if front and state in OPEN and not holder:
        return moved()
    return fence.refuses(front, holder if state in OPEN else "")


class End(NamedTuple):
    """Where a turn's next event goes, and what the turn has reached."""

    number: int
    """Of its row."""
    conversation: int
    turn: int
    state: str
    hop: int
    seq: int
    last: int
    """Position of its last event."""
    repeated: int
    """An event came under the key that was asked for."""
    tick: int
    """First of the rows that text of its running hop is in; 0: none is stored."""
    front: str
    """Whose its conversation is."""


def find_end(db: Database, conversation: str, turn: int, key: str = "") -> End | None:
    """The end of a turn; None where there is no such turn."""
    found = one(db, FIND_END, key, conversation, turn)
    return None if found is None else End(*found)


def append(db: Database, message: Append, now: float, fence: Fence) -> Done | Fault:
    """`Append`."""
    end = find_end(db, message.conversation, message.turn, message.key)
    if end is None:
        return Fault(Code.NOT_FOUND, NO_TURN)
    if (fault := _writing(message.front, end.front, end.state, fence)) is not None:
        return fault
    if end.state in OPEN and not end.repeated:
        add_events(db, end, message.events, now, message.key)
    return Done()


def add_events(db: Database, end: End, events: list[Event], now: float, key: str | None = None) -> None:
    """Append to an open turn; what comes after a `Closed` is dropped."""
    number, conversation, turn, _, hop, seq, last, _, tick, _ = end
    closed: Closed | None = None
    called = last > 1  # than the user's message
    added: list[tuple[SQLiteValue, ...]] = []
    for pos, event in enumerate(events, last + 1):
        added.append((number, pos, None if added else key, *_stored(event), now))
        match event:
            case HopEvent():
                hop = max(hop, event.hop)
            case ToolStarted() | ToolEnded():
                seq, called = max(seq, event.seq), True
            case Closed():
                closed = event
                seq = max(seq, event.seq)
                break
    db.executemany(ADD_EVENT, added)
    if closed is not None:
        answered = bool(closed.message) or (called and one(db, FIND_CALL, number) is not None)
        db.execute(SET_ENDED, (hop, seq, closed.outcome, answered, number))
        db.execute(SET_CLOSED, (now, answered, conversation))
        if called:  # where no tool was called nothing waits for a person
            db.execute(END_PENDING, (now, conversation, turn))
        tick = 0
    elif (hop, seq) != (end.hop, end.seq):
        if tick and hop > end.hop:
            # A call that begins with it is past all its text, and nothing of the next hop can have been shown yet.
            reached, tick = ticks.left(db, (conversation, turn), hop, tick) if seq == end.seq else (seq, 0)
            seq = max(seq, reached)
        db.execute(SET_REACHED, (hop, seq, tick, number))
    if tick != end.tick:
        ticks.drop(db)


def _stored(event: Event) -> tuple[SQLiteValue, str]:
    """Its kind and its body."""
    return type(event).__struct_config__.tag, msgspec.json.encode(event).decode()


# History.


def events_between(db: Database, conversation: int, first: int, last: int) -> list[StoredEvent]:
    """The events of a range of turns, both ends included, in order."""
    stored = rows(db, EVENTS, conversation, first, last)
    return [StoredEvent(turn, at, _DECODE(body)) for turn, at, body in stored]


def fitting(
    db: Database, conversation: int, turns: list[int], most_bytes: int, always: Collection[int] = ()
) -> list[int]:
    """The first of these turns, as many as have not more bytes; one at least, and those of `always`."""
    sizes: dict[int, int] = dict(rows(db, SIZES, conversation, min(turns), max(turns))) if turns else {}
    taken: list[int] = []
    total = 0
    for turn in turns:
        total += sizes.get(turn, 0)
        if taken and total > most_bytes and turn not in always:
            break
        taken.append(turn)
    return taken


_DECODE = msgspec.json.Decoder[Event](Event).decode


def history(db: Database, query: LoadHistory) -> History:
    """`LoadHistory`. Raises: Fault NOT_FOUND."""
    found = one(db, FIND_CONVERSATION, query.conversation)
    if found is None and query.missing_ok:
        return History(events=[], more=False, last_turn=0, queued=[], running=[])
    if found is None or found[1] != query.owner:
        raise Fault(Code.NOT_FOUND, NO_CONVERSATION)
    conversation, _, last_turn, _ = found
    limit = min(max(query.limit, 1), PAGE_MAX)
    before = query.before or LAST_TURN
    if query.after:
        found_turns = rows(db, TURNS_AFTER, conversation, query.after, before, limit + 1)
    else:
        found_turns = rows(db, TURNS_BEFORE, conversation, before, limit + 1)
    turns = [row[0] for row in found_turns]
    waiting = rows(db, OPEN_TURNS, conversation)
    page = fitting(db, conversation, turns[:limit], query.most_bytes, {turn for turn, _ in waiting})
    return History(
        events=events_between(db, conversation, min(page), max(page)) if page else [],
        more=len(turns) > len(page),
        last_turn=last_turn,
        queued=[turn for turn, state in waiting if state == "queued"],
        running=[turn for turn, state in waiting if state == "running"],
    )


def unfinished(db: Database) -> list[Unfinished]:
    """`ListUnfinished`."""
    waiting = dict.fromkeys((row[4], row[5]) for row in rows(db, ALL_OPEN) if row[2] == "queued")
    return [Unfinished(owner, name) for owner, name in waiting]

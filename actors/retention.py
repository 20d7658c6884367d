"""What is removed when a store is over its limits, in the order of `sweep`; a generator of short slices.

Each step of the generator does about `SLICE` rows of work inside a transaction of its own, so that commits
of users go between. What it read in an earlier step may be outdated, so whatever is removed is looked at
again in the step that removes it; a sweep that is broken off leaves a store that the next one goes on with.

Limits count per owner. Never removed: a live conversation (it has a turn to run, is among `live`, or was
entered a moment ago, which others may not have said yet), and the turns of a saved session. A conversation
with such turns counts as saved, and only `max_messages` takes of what came after them.

A conversation that goes is taken from its owner at once; its rows follow.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterator

import msgspec

from actors.rows import LAST_TURN, OPEN_TURNS, SET_TITLE, Row, one, rows, title
from actors.saved import drop
from actors.schema import Database
from protocol.writer import UserEvent

SLICE = 200  # rows of one transaction: a few milliseconds that a user's commit may have to wait
PAGE = 500  # conversations looked at in one transaction
ENTERED_S = 2.0  # what was entered since then is live, whether or not it is among `live` yet
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
NOBODY = ""  # owner of conversations that are being removed: no principal's name is empty


class Limits(msgspec.Struct, frozen=True):
    """Per owner; None means no limit."""

    max_age_hours: float | None = None
    """Since a conversation was last entered, written to or answered."""
    max_sessions: int | None = None
    """Conversations that are not saved: the newest stay."""
    max_messages: int | None = None
    """Users' messages and answers that are not saved: the oldest go, whole turns only."""
    retention_days: float | None = None
    """Since a session was saved."""
    max_saved: int | None = None
    """Saved sessions: the newest stay."""


class Removed(msgspec.Struct):
    """What a sweep has removed so far."""

    saved: int = 0
    """Saved sessions."""
    conversations: int = 0
    """Whole conversations."""
    turns: int = 0
    """Single turns, the oldest of their conversations."""


EXPIRED_SAVED = "SELECT id, conversation FROM saved WHERE at < ? ORDER BY at LIMIT ?"
NEXT_SAVER = "SELECT owner FROM saved WHERE owner > ? ORDER BY owner LIMIT 1"
SAVED_BEYOND = "SELECT id, conversation FROM saved WHERE owner = ? ORDER BY at DESC LIMIT ? OFFSET ?"
NEXT_OWNER = "SELECT owner FROM conversation WHERE owner > ? ORDER BY owner LIMIT 1"
NEWEST = (
    "SELECT n, id, entered_at, updated_at, saved_turn, messages - saved_messages FROM conversation "
    "WHERE owner = ? AND entered_at < ? ORDER BY entered_at DESC LIMIT ?"
)
LOOK = "SELECT owner, id, entered_at, saved_turn FROM conversation WHERE n = ?"
REMOVE = "UPDATE conversation SET id = 'removed ' || n, owner = '', front = '' WHERE n = ?"
ANY_REMOVED = "SELECT n FROM conversation WHERE owner = ? LIMIT 1"
SOME_EVENTS = (
    "SELECT turn.turn FROM turn JOIN event ON event.turn = turn.n "
    "WHERE turn.conversation = ? ORDER BY turn.turn, pos LIMIT 1 OFFSET ?"
)
DROP_EVENTS = (
    "DELETE FROM event WHERE n IN (SELECT event.n FROM turn JOIN event ON event.turn = turn.n "
    "WHERE turn.conversation = ? ORDER BY turn.turn, pos LIMIT ?)"
)
DROP_TURNS = "DELETE FROM turn WHERE conversation = ? AND turn < ?"
DROP_CONVERSATION = "DELETE FROM conversation WHERE n = ?"
OLDEST_TURN = (
    "SELECT turn.turn, turn.messages, event.at FROM turn JOIN event "
    "ON event.turn = turn.n "
    "WHERE turn.conversation = ? AND turn.turn > ? ORDER BY turn.turn, event.pos LIMIT 1"
)
DROP_TURN_EVENTS = "DELETE FROM event WHERE turn = (SELECT n FROM turn WHERE conversation = ? AND turn = ?)"
DROP_TURN = "DELETE FROM turn WHERE conversation = ? AND turn = ?"
COUNT_OUT = "UPDATE conversation SET messages = messages - ? WHERE n = ?"
FIRST_EVENT = (
    "SELECT body FROM turn JOIN event ON event.turn = turn.n "
    "WHERE turn.conversation = ? ORDER BY turn.turn, pos LIMIT 1"
)

Head = tuple[bool, float, int]
"""Of a conversation's turns that are not saved: whether it has saved ones, the time of the oldest, its number."""


def sweep(
    db: Database, limits: Limits, live: Container[str], clock: Callable[[], float], removed: Removed
) -> Iterator[None]:
    """Bring the store within its limits; each step within a transaction of the caller."""
    return _Sweep(db, limits, live, clock, removed).steps()


class _Sweep:
    def __init__(
        self, db: Database, limits: Limits, live: Container[str], clock: Callable[[], float], removed: Removed
    ) -> None:
        self._db = db
        self._limits = limits
        self._live = live
        self._clock = clock
        self._removed = removed
        self._work = 0

    def _enough(self, work: int) -> bool:
        """So much was done, in rows; answers whether this slice has done its share."""
        self._work += work
        if self._work < SLICE:
            return False
        self._work = 0
        return True

    def steps(self) -> Iterator[None]:
        yield from self._purge()  # what an earlier sweep did not finish
        yield from self._expired_saves()
        yield from self._saves_beyond()
        limits = self._limits
        if limits.max_age_hours is limits.max_sessions is limits.max_messages is None:
            return
        owner = NOBODY
        while (found := one(self._db, NEXT_OWNER, owner)) is not None:
            owner = found[0]
            yield from self._conversations(owner)
            yield from self._purge()
            if self._enough(1):
                yield

    # Saved sessions.

    def _expired_saves(self) -> Iterator[None]:
        if self._limits.retention_days is None:
            return
        expired = self._clock() - self._limits.retention_days * DAY_S
        while found := rows(self._db, EXPIRED_SAVED, expired, SLICE):
            self._drop_saves(found)
            if self._enough(len(found)):
                yield

    def _saves_beyond(self) -> Iterator[None]:
        if self._limits.max_saved is None:
            return
        owner = NOBODY
        while (saver := one(self._db, NEXT_SAVER, owner)) is not None:
            owner = saver[0]
            while found := rows(self._db, SAVED_BEYOND, owner, SLICE, self._limits.max_saved):
                self._drop_saves(found)
                if self._enough(len(found)):
                    yield
            if self._enough(1):
                yield

    def _drop_saves(self, found: list[Row]) -> None:
        for saved_id, conversation in found:
            drop(self._db, saved_id, conversation)
        self._removed.saved += len(found)

    # Conversations of one owner.

    def _is_live(self, conversation: int, name: str, entered_at: float) -> bool:
        if name in self._live or entered_at > self._clock() - ENTERED_S:
            return True
        return one(self._db, OPEN_TURNS, conversation) is not None

    def _conversations(self, owner: str) -> Iterator[None]:
        """From the newest to the oldest: which are over, and what the others hold."""
        limits = self._limits
        now = before = self._clock()
        expired = -1.0 if limits.max_age_hours is None else now - limits.max_age_hours * HOUR_S
        sessions = messages = 0
        kept: list[int] = []
        while page := rows(self._db, NEWEST, owner, before, PAGE):
            for conversation, name, entered_at, updated_at, saved_turn, unsaved in page:
                if not saved_turn:
                    over = max(entered_at, updated_at) < expired
                    sessions += not over
                    over = over or (limits.max_sessions is not None and sessions > limits.max_sessions)
                    if over and not self._is_live(conversation, name, entered_at):
                        self._db.execute(REMOVE, (conversation,))
                        self._removed.conversations += 1
                        continue
                messages += unsaved
                kept.append(conversation)
            before = page[-1][2]
            if self._enough(len(page)):
                yield
        if limits.max_messages is not None and messages > limits.max_messages:
            yield from self._messages(owner, kept, messages - limits.max_messages)

    # Messages of one owner.

    def _messages(self, owner: str, conversations: list[int], excess: int) -> Iterator[None]:
        """Remove the oldest turns until `excess` messages are gone; those of saved conversations last."""
        heads: list[Head] = []
        for conversation in conversations:
            self._push_head(heads, owner, conversation)
            if self._enough(1):
                yield
        touched: set[int] = set()
        while heads and excess > 0:
            _, _, conversation = heapq.heappop(heads)
            messages, work = self._drop_oldest(owner, conversation)
            if messages:
                excess -= messages
                touched.add(conversation)
                self._push_head(heads, owner, conversation)
            if self._enough(work):
                self._settle(touched)
                yield
        self._settle(touched)

    def _oldest(self, owner: str, conversation: int) -> tuple[Row, Row] | None:
        # Its number may be another conversation's by now: numbers are used again.
        look = one(self._db, LOOK, conversation)
        if look is None or look[0] != owner:
            return None
        oldest = one(self._db, OLDEST_TURN, conversation, look[3])
        return (look, oldest) if oldest is not None else None

    def _push_head(self, heads: list[Head], owner: str, conversation: int) -> None:
        found = self._oldest(owner, conversation)
        if found is not None:
            (_, _, _, saved_turn), (_, _, at) = found
            heapq.heappush(heads, (saved_turn > 0, at, conversation))

    def _drop_oldest(self, owner: str, conversation: int) -> tuple[int, int]:
        """Remove the oldest turn that is not saved, if that may be; answers how many messages and rows it had."""
        found = self._oldest(owner, conversation)
        if found is None:
            return 0, 1
        (_, name, entered_at, _), (turn, messages, _) = found
        if self._is_live(conversation, name, entered_at):
            return 0, 1
        self._db.execute(DROP_TURN_EVENTS, (conversation, turn))
        work = self._db.changes() + 1
        self._db.execute(DROP_TURN, (conversation, turn))
        self._db.execute(COUNT_OUT, (messages, conversation))
        self._removed.turns += 1
        return messages, work

    def _settle(self, touched: set[int]) -> None:
        """What lost its first turns has another title, or is gone; within the step that took them."""
        for conversation in touched:
            first = one(self._db, FIRST_EVENT, conversation)
            if first is None:
                self._db.execute(DROP_CONVERSATION, (conversation,))
                self._removed.conversations += 1
            else:
                self._db.execute(SET_TITLE, (title(_DECODE(first[0]).content), conversation))
        touched.clear()

    # Rows of conversations that are nobody's.

    def _purge(self) -> Iterator[None]:
        while (found := one(self._db, ANY_REMOVED, NOBODY)) is not None:
            (conversation,) = found
            cut = one(self._db, SOME_EVENTS, conversation, SLICE - 1)
            (turn,) = cut or (LAST_TURN,)
            self._db.execute(DROP_EVENTS, (conversation, SLICE))
            work = self._db.changes()
            self._db.execute(DROP_TURNS, (conversation, turn))
            if cut is None:
                self._db.execute(DROP_CONVERSATION, (conversation,))
            if self._enough(work + 1):
                yield


_DECODE = msgspec.json.Decoder(UserEvent).decode

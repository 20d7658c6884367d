"""A store with much in it, most of it over the limits of retention, and what of it must stay.

Written through the store's own operations, with a clock of our own: what a sweep finds is what the service would
have left there.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from actors.store import Store
from protocol.errors import Fault
from protocol.streamer import ToolCall
from protocol.writer import (
    Append,
    BeginTurn,
    Closed,
    Event,
    HopEvent,
    Operation,
    SaveSession,
    ToolEnded,
    ToolStarted,
    UserEvent,
)

DAY_S = 86_400.0
BATCH = 256  # operations of one commit
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "nobody", "counts", "words")
Rows = list[tuple[object, ...]]


class Prefilled(NamedTuple):
    """A database file and what is in it."""

    path: Path
    events: int
    saved: list[str]
    """Conversations that are saved whole, of many owners."""
    live: list[str]
    """Conversations of `local`, long over every limit, that clients are to be in."""


def prefill(path: Path, events: int, live: int) -> Prefilled:
    """Make a store of about so many events, with so many conversations to be live.

    Two fifths are in conversations of two days ago (over `max_age_hours`), three tenths in ten recent ones per
    owner (`max_sessions`), three tenths in one long conversation per owner (`max_messages`). One in ten is saved.
    """
    chance = random.Random(7)
    made = Prefilled(path, events, [], [])
    with closing(Store(str(path))) as store:
        store.open()
        commits = Commits(store)
        now = time.time()
        for number in range(live):
            made.live.append(f"live-{number}")
            commits.conversation("local", made.live[-1], 10, now - 2 * DAY_S, chance)
        number = 0
        for share, turns, age_s, owned in ((0.4, 12, 2 * DAY_S, 4), (0.3, 12, 3600.0, 10), (0.3, 2500, 7200.0, 1)):
            until = commits.events + share * events
            while commits.events < until:
                name, owner = f"old-{number}", f"{age_s:g}-{number // owned}"
                commits.conversation(owner, name, turns, now - age_s + number / 1000, chance)
                if number % 10 == 3 and turns < 100:
                    commits.add(SaveSession(owner, name, "kept", f"s-{number}"), now - age_s)
                    made.saved.append(name)
                number += 1
        commits.flush()
        return made._replace(events=commits.events)


class Commits:
    """Operations on their way into a store, in batches, at the times that they are to have."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Operation] = []
        self._at = 0.0
        self.events = 0

    def add(self, operation: Operation, at: float) -> None:
        """Commit it with the next batch."""
        self._waiting.append(operation)
        self._at = at
        if len(self._waiting) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Commit what waits."""
        with mock.patch("actors.store.time.time", return_value=self._at):
            answers = self._store.commit(self._waiting)
        assert not any(isinstance(answer, Fault) for answer in answers), answers
        self._waiting.clear()

    def conversation(self, owner: str, name: str, turns: int, at: float, chance: random.Random) -> None:
        """One with so many turns, from its beginning."""
        self.flush()  # their times are those of their batch
        for turn in range(1, turns + 1):
            question = UserEvent(words(chance, 20), f"{name}-{turn}", streaming=True)
            self.add(BeginTurn(owner, name, turn, question, queued=False), at)
            events = list(answer(chance, tools=turn % 5 == 0))
            self.add(Append(name, turn, "all", events), at)
            self.events += 1 + len(events)
        self.flush()


def answer(chance: random.Random, *, tools: bool) -> Iterator[Event]:
    """The events of an answer, perhaps with a tool call."""
    if tools:
        call = ToolCall("c1", "add", '{"a": 1, "b": 2}')
        yield HopEvent(1, "", words(chance, 30), [call], {}, "bench", "m", None, "tool_calls")
        yield ToolStarted("call-1", "c1", 3, "add", "demo", call.arguments)
        yield ToolEnded("call-1", "c1", 4, "completed", words(chance, 40), 12)
    text = words(chance, 150)
    yield HopEvent(1 + tools, text, "", [], {}, "bench", "m", {"total_tokens": 200}, "stop")
    yield Closed("completed", 9, text, "", {"total_tokens": 200}, "m", "stop", None)


def words(chance: random.Random, count: int) -> str:
    """So many words."""
    return " ".join(chance.choices(WORDS, k=count))


def contents(path: Path, conversations: list[str]) -> dict[str, Rows]:
    """All that a store has of each of those conversations."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        query = (
            "SELECT turn.turn, pos, kind, body FROM conversation JOIN turn ON turn.conversation = conversation.n "
            "JOIN event ON event.turn = turn.n WHERE conversation.id = ? ORDER BY turn.turn, pos"
        )
        return {name: db.execute(query, (name,)).fetchall() for name in conversations}


def count(path: Path) -> int:
    """Events in a store."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        (events,) = db.execute("SELECT count(*) FROM event").fetchone()
        return int(events)

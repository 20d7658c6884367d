"""What retention promises: within the limits, the oldest first, and never what is live or saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import retention, transcript
from actors.retention import DAY_S, ENTERED_S, HOUR_S, Limits, Removed
from actors.schema import Database
from actors.store import MEMORY, Store
from protocol.errors import Fault
from protocol.writer import (
    Enter,
    History,
    ListConversations,
    ListedConversation,
    ListSaved,
    LoadHistory,
    LoadSaved,
    ReadSaved,
    SavedPage,
    SaveSession,
    StoredEvent,
    UserEvent,
)
from tests.stores import append, ask, begin, delta, do, history, hop, opened, sweep, tick, whole

OWNERS = ("ann", "bob")


class Clock:
    """The store's, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def at_a_time() -> Iterator[tuple[Store, Database, Clock]]:
    """A store in memory, its connection, and its clock."""
    made: list[Database] = []
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.store.time.time", clock)
        with opened(MEMORY, made.append) as s:
            yield s, made[0], clock


def sweep_now(of: Store, limits: Limits, live: frozenset[str] = frozenset()) -> Removed:
    removed = Removed()
    for _ in of.sweep(limits, live, removed):
        pass
    return removed


def names(of: Store, owner: str = "ann") -> list[str]:
    return [found.conversation for found in ask(of, ListConversations(owner)).conversations]


def turns(of: Store, conversation: str = "c", owner: str = "ann") -> list[int]:
    found = ask(of, LoadHistory(owner, conversation, missing_ok=True)).events
    return sorted({stored.turn for stored in found})


def counts(db: Database) -> tuple[int, int, int]:
    """Of events, turns and conversations."""
    tables = "(SELECT count(*) FROM event), (SELECT count(*) FROM turn), (SELECT count(*) FROM conversation)"
    events, turns_, conversations = db.execute("SELECT " + tables).get
    return events, turns_, conversations


# Each limit, by itself.


def test_the_newest_conversations_stay() -> None:
    with opened(MEMORY) as s:
        for name in "abcde":
            whole(s, 1, conversation=name)
        for name in "xyz":
            whole(s, 1, conversation=name, owner="bob")
        do(s, Enter("ann", "b", ""))
        assert sweep(s, Limits(max_sessions=3)) == Removed(conversations=2)
        assert names(s) == ["b", "e", "d"]
        assert names(s, "bob") == ["z", "y", "x"], "limits count per owner"
        with pytest.raises(Fault):
            history(s, "a")
        whole(s, 7, conversation="a")
        assert turns(s, "a") == [7], "it may begin anew, with whatever turn its client goes on"


def test_idle_conversations_go_by_age() -> None:
    with at_a_time() as (s, _, clock):
        whole(s, 1, conversation="idle")
        do(s, begin(1, conversation="answered"))
        clock.now += 2 * HOUR_S
        do(s, append(hop(1, "late"), conversation="answered", key="1"))
        do(s, Enter("ann", "new!", "empty"))
        assert sweep_now(s, Limits(max_age_hours=2.01)) == Removed()
        assert sweep_now(s, Limits(max_age_hours=1.99)) == Removed(conversations=1)
        assert names(s) == ["answered"], "its turn still runs"
        s.recover()
        clock.now += 1.5 * HOUR_S
        assert sweep_now(s, Limits(max_age_hours=2)) == Removed(), "an answer is an activity"
        clock.now += HOUR_S
        assert sweep_now(s, Limits(max_age_hours=2)) == Removed(conversations=2), "one without messages goes, too"


def test_the_oldest_turns_of_an_owner_go_whole() -> None:
    with opened(MEMORY) as s:
        whole(s, 1, conversation="a")
        whole(s, 1, conversation="b")
        whole(s, 2, conversation="a")
        whole(s, 2, conversation="b")
        whole(s, 3, "", conversation="a")
        whole(s, 1, conversation="c", owner="bob")
        assert sweep(s, Limits(max_messages=6)) == Removed(turns=2), "seven and six would still be too many"
        assert (turns(s, "a"), turns(s, "b"), turns(s, "c", "bob")) == ([2, 3], [2], [1])
        found = {row.conversation: row for row in ask(s, ListConversations("ann")).conversations}
        assert (found["a"].title, found["a"].messages, found["b"].messages) == ("question 2", 3, 2)
        assert sweep(s, Limits(max_messages=1)) == Removed(turns=3, conversations=2)
        assert (turns(s, "a"), names(s), names(s, "bob")) == ([3], ["a"], [])
        assert history(s, "a").last_turn == 3


def test_saves_go_by_age_and_number_the_oldest_first() -> None:
    with at_a_time() as (s, _, clock):
        whole(s, 1)
        whole(s, 1, conversation="d", owner="bob")
        for number in range(5):
            clock.now += DAY_S
            do(s, SaveSession("ann", "c", "n", f"s{number}"))
        do(s, SaveSession("bob", "d", "n", "b"))
        clock.now += DAY_S
        assert sweep_now(s, Limits(max_age_hours=1, retention_days=3.5)) == Removed(saved=2)
        assert [found.saved_id for found in ask(s, ListSaved("ann"))] == ["s4", "s3", "s2"]
        assert sweep_now(s, Limits(max_age_hours=1, max_saved=1)) == Removed(saved=2)
        assert [found.saved_id for found in ask(s, ListSaved("ann"))] == ["s4"]
        assert len(ask(s, ListSaved("bob"))) == 1
        assert sweep_now(s, Limits(max_age_hours=1, retention_days=0.5)) == Removed(saved=2, conversations=2), (
            "without its saves a conversation is as old as it is, in the same sweep"
        )


def test_no_limit_removes_nothing() -> None:
    with opened(MEMORY) as s:
        for turn in range(1, 20):
            whole(s, turn, conversation=f"c{turn}")
            do(s, SaveSession("ann", f"c{turn}", "n", f"s{turn}"))
        assert sweep(s, Limits()) == Removed()
        assert len(names(s)) == 19


# What is left alone.


@pytest.mark.parametrize("why", ["running", "queued", "in use", "just entered", "saved"])
def test_a_live_or_saved_conversation_is_not_touched(why: str) -> None:
    with at_a_time() as (s, _, clock):
        for turn in (1, 2, 3):
            whole(s, turn, conversation="kept")
        if why in ("running", "queued"):
            do(s, begin(4, conversation="kept", queued=why == "queued"))
        if why == "saved":
            do(s, SaveSession("ann", "kept", "n", "s"))
        before = history(s, "kept")
        for name in ("a", "b"):
            clock.now += HOUR_S
            whole(s, 1, conversation=name)
        clock.now += 100 * HOUR_S
        if why == "just entered":
            do(s, Enter("ann", "kept", ""))
            clock.now += ENTERED_S / 2
        live = frozenset({"kept"}) if why == "in use" else frozenset[str]()
        assert sweep_now(s, Limits(max_age_hours=1, max_sessions=1, max_messages=1), live).conversations == 2
        assert history(s, "kept") == before


def test_the_oldest_turns_of_unsaved_conversations_go_before_those_that_follow_a_save() -> None:
    with opened(MEMORY) as s:
        whole(s, 1, conversation="saved")
        do(s, SaveSession("ann", "saved", "n", "s"))
        whole(s, 2, conversation="saved")
        whole(s, 3, conversation="saved")
        for turn in (1, 2):
            whole(s, turn, conversation="other")
        sweep(s, Limits(max_messages=8))
        assert (turns(s, "saved"), turns(s, "other")) == ([1, 2, 3], [1, 2]), "saved messages do not count"
        sweep(s, Limits(max_messages=6))
        assert (turns(s, "saved"), turns(s, "other")) == ([1, 2, 3], [2])
        sweep(s, Limits(max_messages=2))
        assert (turns(s, "saved"), turns(s, "other")) == ([1, 3], [])


# Slices.


def test_a_sweep_is_cut_into_short_transactions_and_a_removed_conversation_is_gone_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "SLICE", 10)
    with at_a_time() as (s, db, clock):
        for turn in range(1, 41):
            whole(s, turn, conversation="long")  # three events each
        clock.now += HOUR_S
        whole(s, 1, conversation="new")

        def rows() -> int:
            return sum(counts(db)[:2])

        left = rows()
        slices = 0
        for _ in s.sweep(Limits(max_sessions=1), (), Removed()):
            slices += 1
            now = rows()
            assert left - now <= 20, "ten events, and the turns that held them"
            assert names(s) == ["new"], "nobody sees a part of it"
            assert do(s, Enter("ann", "latest", "")).conversation == "new"
            left = now
        assert slices >= 12
        assert rows() == 4


def test_a_sweep_that_was_broken_off_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 10)
    with at_a_time() as (s, db, clock):
        for turn in range(1, 41):
            whole(s, turn)
        clock.now += HOUR_S
        started = s.sweep(Limits(max_age_hours=0.5), (), Removed())
        next(started)
        next(started)
        assert 0 < int(db.execute("SELECT count(*) FROM event").get) < 120
        assert sweep_now(s, Limits()) == Removed()
        assert counts(db) == (0, 0, 0)


def test_what_comes_between_two_slices_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 4)
    live: set[str] = set()
    with at_a_time() as (s, db, clock):
        for name in ("a", "b", "c"):
            for turn in range(1, 6):
                whole(s, turn, conversation=name)
        clock.now += HOUR_S
        started = s.sweep(Limits(max_messages=1), live, Removed())
        while len(turns(s, "a")) == 5:
            next(started)
            for row in ask(s, ListConversations("ann")).conversations:
                check(row, next(c for c in held(s, db) if c.name == row.conversation))
        live.add("a")
        do(s, SaveSession("ann", "b", "n", "s"))
        do(s, begin(6, conversation="c"))
        now = {name: turns(s, name) for name in ("a", "b", "c")}
        for _ in started:
            pass
        assert {name: turns(s, name) for name in ("a", "b", "c")} == now


def test_a_number_that_was_used_again_is_another_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 1)
    with at_a_time() as (s, db, clock):
        for name in ("a", "b"):
            for turn in range(1, 4):
                whole(s, turn, conversation=name)
        clock.now += HOUR_S
        started = s.sweep(Limits(max_messages=1), (), Removed())
        while len(turns(s, "a")) == 3:
            next(started)
        db.execute("UPDATE conversation SET owner = 'al' WHERE id = 'b'")  # whose turn in the sweep is over
        for _ in started:
            pass
        assert turns(s, "b", "al") == [1, 2, 3]


# Whatever the history was.


class Held(NamedTuple):
    """A conversation as it is before a sweep."""

    name: str
    owner: str
    entered_at: float
    updated_at: float
    events: list[StoredEvent]
    open: bool

    def messages(self, first: int = 0) -> int:
        """As `history` shows them, of turns after `first`."""
        return sum(len(transcript.page(events)) for turn, events in self.by_turn().items() if turn > first)

    def by_turn(self) -> dict[int, list[StoredEvent]]:
        found: dict[int, list[StoredEvent]] = defaultdict(list)
        for event in self.events:
            found[event.turn].append(event)
        return dict(found)


class Kept(NamedTuple):
    """A saved session as it is before a sweep."""

    saved_id: str
    owner: str
    conversation: str
    at: float
    up_to_turn: int


def held(of: Store, db: Database) -> list[Held]:
    found: list[Held] = []
    for name, owner, entered_at, updated_at in db.execute("SELECT id, owner, entered_at, updated_at FROM conversation"):
        page: History = ask(of, LoadHistory(owner, name, limit=500))
        found.append(Held(name, owner, entered_at, updated_at, page.events, bool(page.running or page.queued)))
    return found


def kept_sessions(of: Store) -> list[Kept]:
    return [
        Kept(found.saved_id, owner, found.conversation, found.at, found.up_to_turn)
        for owner in OWNERS
        for found in ask(of, ListSaved(owner))
    ]


def expected(
    conversations: list[Held], saves: list[Kept], limits: Limits, live: frozenset[str], now: float
) -> tuple[set[str], dict[str, list[int]]]:
    """The ids of saves, and the turns of conversations, that are left: the promise in plain words."""
    left_saves: list[Kept] = []
    for owner in OWNERS:
        mine = sorted((save for save in saves if save.owner == owner), key=lambda save: -save.at)
        if limits.retention_days is not None:
            mine = [save for save in mine if save.at >= now - limits.retention_days * DAY_S]
        left_saves += mine[: limits.max_saved]
    pinned = {
        name: max((s.up_to_turn for s in left_saves if s.conversation == name), default=0) for name in names_of(saves)
    }
    left: dict[str, list[int]] = {}
    for owner in OWNERS:
        mine_now = sorted((c for c in conversations if c.owner == owner), key=lambda c: -c.entered_at)
        safe = {c.name for c in mine_now if c.open or c.name in live or c.entered_at > now - ENTERED_S}
        staying: list[Held] = []
        rank = 0
        for c in mine_now:
            if not pinned.get(c.name):
                old = limits.max_age_hours is not None and (
                    max(c.entered_at, c.updated_at) < now - limits.max_age_hours * HOUR_S
                )
                rank += not old
                beyond = limits.max_sessions is not None and rank > limits.max_sessions
                if (old or beyond) and c.name not in safe:
                    continue
            staying.append(c)
        left.update({c.name: sorted(c.by_turn()) for c in staying})
        if limits.max_messages is None:
            continue
        over = sum(c.messages(pinned.get(c.name, 0)) for c in staying) - limits.max_messages
        takeable = [
            (pinned.get(c.name, 0) > 0, events[0].at, c, turn)
            for c in staying
            if c.name not in safe
            for turn, events in c.by_turn().items()
            if turn > pinned.get(c.name, 0)
        ]
        for _, _, c, turn in sorted(takeable, key=lambda entry: entry[:2]):
            if over <= 0:
                break
            over -= len(transcript.page(c.by_turn()[turn]))
            left[c.name].remove(turn)
            if not left[c.name]:
                del left[c.name]
    return {save.saved_id for save in left_saves}, left


def names_of(saves: list[Kept]) -> set[str]:
    return {save.conversation for save in saves}


CONVERSATIONS = [(owner, f"{owner}-{number}") for owner in OWNERS for number in range(3)]
STEPS = st.tuples(
    st.sampled_from(["whole", "whole", "whole", "silent", "open", "save", "load", "enter", "end"]),
    st.sampled_from(CONVERSATIONS),
    st.integers(0, 30).map(lambda tenths: tenths * HOUR_S / 10),
)
# Never just as old as something is: the store's clock moves on by a little with every operation.
HOURS = st.integers(0, 300).map(lambda tenths: tenths / 10 + 0.05)
LIMITS = st.builds(
    Limits,
    max_age_hours=st.none() | HOURS,
    max_sessions=st.none() | st.integers(1, 4),
    max_messages=st.none() | st.integers(1, 30),
    retention_days=st.none() | HOURS.map(lambda hours: hours / 24),
    max_saved=st.none() | st.integers(1, 3),
)


def live_through(s: Store, clock: Clock, steps: list[tuple[str, tuple[str, str], float]]) -> None:
    turn: dict[str, int] = defaultdict(int)
    for number, (what, (owner, name), pause) in enumerate(steps):
        clock.now += pause
        turn[name] += 1
        match what:
            case "whole" | "silent":
                whole(s, turn[name], "answer" if what == "whole" else "", conversation=name, owner=owner)
            case "open":
                do(s, begin(turn[name], conversation=name, owner=owner))
                do(s, tick(delta(1, "half", turn=turn[name], conversation=name)))
            case "end":
                s.recover()
            case "save":
                s.commit([SaveSession(owner, name, "n", f"s{number}")])
            case "load":
                for save in ask(s, ListSaved(owner))[:1]:
                    do(s, LoadSaved(owner, save.saved_id, f"loaded{number}"))
            case "enter":
                do(s, Enter(owner, "new!", name))


@given(
    st.lists(STEPS, max_size=40),
    LIMITS,
    st.frozensets(st.sampled_from([name for _, name in CONVERSATIONS]), max_size=2),
    st.sampled_from([1, 3, 200]),
)
def test_a_sweep_leaves_exactly_what_it_should(
    steps: list[tuple[str, tuple[str, str], float]], limits: Limits, live: frozenset[str], rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, at_a_time() as (s, db, clock):
        patch.setattr(retention, "SLICE", rows)
        patch.setattr(retention, "PAGE", rows)
        live_through(s, clock, steps)
        conversations, saves = held(s, db), kept_sessions(s)
        pages: dict[str, SavedPage] = {save.saved_id: ask(s, ReadSaved(save.owner, save.saved_id)) for save in saves}
        left_saves, left = expected(conversations, saves, limits, live, clock.now)

        sweep_now(s, limits, live)

        assert {save.saved_id for save in kept_sessions(s)} == left_saves
        for save in saves:
            if save.saved_id in left_saves:
                assert ask(s, ReadSaved(save.owner, save.saved_id)) == pages[save.saved_id]
        now = {c.name: c for c in held(s, db)}
        assert {name: sorted(c.by_turn()) for name, c in now.items()} == left
        for before in conversations:
            if before.name in now:
                turns_left = now[before.name].by_turn()
                assert turns_left == {turn: before.by_turn()[turn] for turn in turns_left}, "whole turns, unchanged"
        for owner in OWNERS:
            for row in ask(s, ListConversations(owner)).conversations:
                check(row, now[row.conversation])
        assert db.execute("SELECT count(*) FROM event WHERE turn NOT IN (SELECT n FROM turn)").get == 0
        assert list(db.pragma("foreign_key_check") or []) == []
        assert sweep_now(s, limits, live) == Removed(), "a second sweep finds nothing to do"


def check(row: ListedConversation, found: Held) -> None:
    first = found.events[0].event
    assert isinstance(first, UserEvent)
    assert (row.title, row.messages) == (first.content, found.messages())

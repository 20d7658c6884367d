"""What operations and queries promise: once or twice the same, and nobody sees what is another's."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import cast

import apsw
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import claims, pending, pins, recovery, retention, rows, saved, ticks, transcript
from actors.retention import Limits
from actors.schema import migrate
from actors.store import MEMORY, Store
from protocol.errors import Code, Fault
from protocol.mail import Request
from protocol.writer import (
    PAGE_BYTES,
    Append,
    AppendDeltas,
    Began,
    BeginTurn,
    Closed,
    Done,
    Enter,
    Entered,
    Event,
    ListConversations,
    ListedConversation,
    ListSaved,
    ListUnfinished,
    LoadHistory,
    LoadSaved,
    Operation,
    Saved,
    SaveSession,
    StartTurn,
    ToolEnded,
    ToolStarted,
    Unfinished,
    UserEvent,
)
from tests.stores import append, ask, begin, closed, delta, do, events, history, hop, opened, sweep, tick, whole

# One turn, kept.


def test_a_turn_is_kept_as_it_was_said_and_outlives_the_process(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Grüße ☃ \u0000"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    started = ToolStarted("call-1", "m1", 3, "add", "demo", '{"a": 1}')
    ended = ToolEnded("call-1", "m1", 4, "completed", "2", 12)
    with opened(tmp_path / "chat.db") as first:
        assert do(first, begin(content=parts)) == Began(1, repeated=False)
        do(first, append(hop(1, "let me", tools=["add"]), started, key="a"))
        do(first, append(ended, key="b"))
        do(first, append(hop(2, "it is 2"), closed(), key="c"))
    with opened(tmp_path / "chat.db") as second:
        assert second.recover() == 0
        kept = history(second)
    said = UserEvent(parts, "r1", streaming=True)
    assert [e.event for e in kept.events] == [
        said,
        hop(1, "let me", tools=["add"]),
        started,
        ended,
        hop(2, "it is 2"),
        closed(),
    ]
    assert (kept.last_turn, kept.more, kept.queued, kept.running) == (1, False, [], [])


def test_pages_of_history() -> None:
    with opened(MEMORY) as s:
        for turn in (1, 2, 3, 5, 8):
            do(s, begin(turn))

        def page(*, before: int = 0, after: int = 0, limit: int = 50) -> tuple[list[int], bool]:
            found = history(s, before=before, after=after, limit=limit)
            return [stored.turn for stored in found.events], found.more

        assert page() == ([1, 2, 3, 5, 8], False)
        assert page(limit=2) == ([5, 8], True)
        assert page(limit=2, before=5) == ([2, 3], True)
        assert page(limit=2, before=2) == ([1], False)
        assert page(limit=2, before=1) == ([], False)
        assert page(limit=2, after=1) == ([2, 3], True)
        assert page(limit=2, after=3) == ([5, 8], False)
        assert page(after=8) == ([], False)
        assert page(after=1, before=8) == ([2, 3, 5], False)
        assert page(limit=0) == ([8], True), "a page has one turn at least"
        assert history(s, limit=1, before=3).last_turn == 8


# Conversations and owners.


def test_conversations_are_listed_in_pages_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(MEMORY) as s:
        for number in range(5):
            monkeypatch.setattr("actors.store.time.time", lambda now=1000.0 + number: now)
            whole(s, 3, conversation=f"c{number}")
        do(s, Enter("ann", "new!", "empty"))
        do(s, Enter("ann", "c1", ""))
        whole(s, 1, conversation="d", owner="bob")

        def page(before: float = 0.0, limit: int = 2) -> tuple[list[ListedConversation], bool]:
            found = ask(s, ListConversations("ann", before, limit))
            return found.conversations, found.more

        seen: list[str] = []
        before, more = 0.0, True
        while more:
            listed, more = page(before)
            seen += [row.conversation for row in listed]
            before = listed[-1].at
        assert seen == ["c1", "c4", "c3", "c2", "c0"], "one without messages is not listed"
        assert page(limit=5)[1] is False
        last = page(limit=5)[0][-1]
        assert (last.title, last.messages, last.created_at) == ("question 3", 2, 1000.0)
        assert last.created_at <= last.at < last.updated_at


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("  one\n\ttwo  three ", "one two three"),
        ("x" * 1000, "x" * 100),
        ([{"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": "what is it?"}], "what is it?"),
        ([{"type": "image_url", "image_url": {"url": "u"}}], ""),
        ([{"type": "text", "text": 7}, "odd", {"type": "text"}], ""),
        ("", ""),
    ],
)
def test_a_conversation_is_named_by_its_first_message(content: object, title: str) -> None:
    with opened(MEMORY) as s:
        do(s, begin(1, content=content))
        do(s, begin(2, content="the second"))
        (row,) = ask(s, ListConversations("ann")).conversations
        assert (row.title, row.messages) == (title, 2)


def test_messages_are_counted_as_history_shows_them() -> None:
    with opened(MEMORY) as s:
        expected = 0
        ends: list[list[Event]] = [
            [hop(1, "a"), closed()],
            [Closed("stopped", 2, "", "", None, "", "", None)],
            [ToolStarted("c", "m", 1, "t", "s", "{}"), Closed("failed", 2, "", "", None, "", "", None)],
        ]
        for turn, end in enumerate(ends, 1):
            do(s, begin(turn))
            do(s, append(*end, turn=turn))
            (row,) = ask(s, ListConversations("ann")).conversations
            expected = len(transcript.page(history(s).events))
            assert row.messages == expected
        assert expected == 5


def test_latest_is_the_conversation_entered_or_written_to_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(MEMORY) as s:
        assert do(s, Enter("ann", "latest", "a")) == Entered("a", new=True)
        assert do(s, Enter("ann", "new", "a")) == Entered("a", new=True)
        assert do(s, Enter("ann", "latest", "b")) == Entered("b", new=True), "no row was made for a"
        monkeypatch.setattr("actors.store.time.time", lambda: 1_000_000.0)  # the clock stands: order must not need it
        do(s, begin(conversation="a"))
        assert do(s, Enter("ann", "new!", "b")) == Entered("b", new=False)
        assert do(s, Enter("ann", "latest", "x")).conversation == "b"
        do(s, begin(conversation="c"))
        assert do(s, Enter("ann", "latest", "x")).conversation == "c"
        assert do(s, Enter("ann", "a", "x")) == Entered("a", new=False)
        assert do(s, Enter("ann", "latest", "x")).conversation == "a"
        monkeypatch.setattr("actors.store.time.time", lambda: 500_000.0)  # and goes back
        do(s, begin(2, conversation="b"))
        assert do(s, Enter("ann", "latest", "x")).conversation == "b"
        assert do(s, Enter("bob", "latest", "x")) == Entered("x", new=True), "another owner has his own"


def test_a_foreign_conversation_answers_exactly_as_an_unknown_one() -> None:
    with opened(MEMORY) as s:
        do(s, begin(conversation="anns"))

        def answers(conversation: str) -> list[object]:
            said: list[object] = []
            for operation in (Enter("bob", conversation, "f"), Enter("bob", conversation, "f")):
                with pytest.raises(Fault) as refused:
                    do(s, operation)
                said.append(refused.value.body)
            with pytest.raises(Fault) as refused:
                history(s, conversation, "bob")
            return [*said, refused.value.body]

        assert answers("anns") == answers("nobodys")
        with pytest.raises(Fault) as refused:
            do(s, begin(2, conversation="anns", owner="bob"))
        assert refused.value.code is Code.NOT_FOUND
        with pytest.raises(Fault):
            ask(s, LoadHistory("bob", "anns", missing_ok=True))
        assert history(s, "anns").last_turn == 1
        assert ask(s, LoadHistory("bob", "nobodys", missing_ok=True)).events == []


def test_a_turn_id_is_never_used_twice() -> None:
    with opened(MEMORY) as s:
        do(s, begin(4))
        for turn in (4, 3, 0, -1):
            again = BeginTurn("ann", "c", turn, UserEvent("other", f"other{turn}", streaming=False), queued=False)
            with pytest.raises(Fault) as refused:
                do(s, again)
            assert refused.value.code is Code.INTERNAL
        assert history(s).last_turn == 4
        assert len(history(s).events) == 1


def test_what_is_not_there_is_not_found() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        for operation in (StartTurn("c", 2), append(closed(), turn=2), append(conversation="d")):
            with pytest.raises(Fault) as refused:
                do(s, cast(Request[Done], operation))
            assert refused.value.code is Code.NOT_FOUND
        assert do(s, tick(delta(1, "x", turn=2), delta(1, "y", conversation="d"))) == Done()


# Queue.


def test_queued_turns_wait_run_or_are_closed(tmp_path: Path) -> None:
    with opened(tmp_path / "chat.db") as s:
        do(s, begin(1))
        for turn in (2, 3, 4):
            do(s, begin(turn, queued=True))
        do(s, begin(1, conversation="d", owner="bob", queued=True))
        assert ask(s, ListUnfinished()) == [Unfinished("ann", "c"), Unfinished("bob", "d")]
        do(s, StartTurn("c", 2))
        do(s, append(closed("stopped"), turn=3, key="end"))
        now = history(s)
        assert (now.running, now.queued) == ([1, 2], [4])
        do(s, StartTurn("c", 3))
        assert history(s).running == [1, 2], "a closed turn does not run again"
    with opened(tmp_path / "chat.db") as s:
        assert s.recover() == 2
        after = history(s)
        assert (after.running, after.queued) == ([], [4])


# Deltas.


def kept(of: Store, since: int = 1, turn: tuple[int, int] = (1, 1)) -> list[str]:
    return [part.text for part in ticks.texts(of.db, {turn: since})[turn]]


def rows_of_text(of: Store) -> int:
    return len(of.db.execute("SELECT n FROM tick").fetchall())


def test_a_hop_supersedes_its_deltas_and_the_end_drops_them() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        do(s, tick(delta(2, "")))  # where it is may be told ahead of its text
        do(s, tick(delta(2, "a"), delta(5, "b")))
        do(s, tick(delta(7, "c", hop=2)))
        assert kept(s) == ["a", "b", "c"]
        do(s, append(hop(1, "ab"), key="1"))
        assert kept(s) == ["c"]
        do(s, tick(delta(6, "late", hop=1), delta(9, "d", hop=2)))
        do(s, tick(delta(9, "repeated", hop=2)))
        assert kept(s) == ["c", "d"]
        do(s, append(hop(2, "cd"), ToolStarted("c1", "m1", 10, "x", "s", "{}"), key="2"))
        assert rows_of_text(s) == 0, "a call that begins says that all of the hop is known"
        do(s, tick(delta(12, "e", hop=3)))
        do(s, append(closed(), key="3"))
        do(s, tick(delta(13, "later", hop=4)))
        assert rows_of_text(s) == 0


def test_text_is_a_row_a_tick_and_goes_when_no_older_answer_runs() -> None:
    with opened(MEMORY) as s:
        for name in "cde":
            do(s, begin(conversation=name))
        do(s, tick(delta(1, "c1")))
        for seq in (2, 3):
            do(s, tick(*(delta(seq, f"{name}{seq}", conversation=name) for name in "cde")))
        assert rows_of_text(s) == 3
        do(s, append(closed(), conversation="d"))
        assert rows_of_text(s) == 3, "an older answer is in all of them"
        do(s, append(closed()))
        assert rows_of_text(s) == 2
        assert kept(s, turn=(3, 1)) == ["e2", "e3"]
        do(s, append(closed(), conversation="e"))
        assert rows_of_text(s) == 0


def test_text_of_a_conversation_that_is_gone_is_not_that_of_the_next_with_its_number() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        do(s, tick(delta(1, "runs on")))
        do(s, begin(conversation="d"))
        do(s, tick(delta(1, "of one that goes", conversation="d")))
        do(s, append(closed(), conversation="d"))
        assert sweep(s, Limits(max_sessions=0)).conversations == 1
        do(s, begin(conversation="e"))
        do(s, tick(delta(1, "of the next", conversation="e")))
        assert [part.conversation for part in ticks.texts(s.db, {(2, 1): 1})[2, 1]] == [2], "the number is the same"
        assert s.recover() == 2
        end = [row.event for row in history(s, "e").events][-1]
        assert isinstance(end, Closed)
        assert end.message == "of the next"


# Once or twice.


def test_a_closed_turn_takes_nothing_more() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        do(s, append(closed("stopped"), hop(9, "after the end"), key="1"))
        before = events(s)
        assert before[-1] == closed("stopped"), "what comes after the end in one message is dropped"
        do(s, append(hop(1, "late"), closed("completed"), key="2"))
        assert events(s) == before


CONVERSATIONS = ("a", "b")
APPENDED: dict[str, list[Event]] = {
    "hop1": [hop(1, "one ", "t1", tools=["x"])],
    "started": [ToolStarted("c1", "m1", 3, "x", "s", "{}")],
    "ended": [ToolEnded("c1", "m1", 4, "completed", "r", 1)],
    "hop2": [hop(2, "two ")],
    "end": [closed("completed", 30)],
    "all": [hop(3, "three "), closed("failed", 40)],
}
PLACES = st.tuples(st.sampled_from(CONVERSATIONS), st.integers(1, 3))
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(lambda p, q: begin(p[1], conversation=p[0], owner=f"of {p[0]}", queued=q), PLACES, st.booleans()),
    st.builds(lambda p: StartTurn(p[0], p[1]), PLACES),
    st.builds(lambda p, k: Append(p[0], p[1], k, APPENDED[k]), PLACES, st.sampled_from(sorted(APPENDED))),
    st.builds(
        lambda p, s: tick(delta(s, f"{s} ", hop=1 + s // 4, conversation=p[0], turn=p[1])), PLACES, st.integers(1, 12)
    ),
    st.builds(lambda c: Enter(f"of {c}", "new!", c), st.sampled_from(CONVERSATIONS)),
    st.builds(lambda p: SaveSession(f"of {p[0]}", p[0], "n", f"{p[0]}{p[1]}"), PLACES),
    st.builds(lambda p: LoadSaved(f"of {p[0]}", f"{p[0]}{p[1]}", f"loaded {p[0]}"), PLACES),
)


def timeless(answer: object) -> object:
    """What was answered, the same at any time."""
    return msgspec.structs.replace(answer, at=0.0) if isinstance(answer, Saved) else answer


def image(of: Store) -> list[object]:
    """All that anybody can see of a store, before and after a recovery; without times."""
    seen: list[object] = []
    for _ in range(2):
        for name in CONVERSATIONS:
            owner = f"of {name}"
            for conversation in (name, f"loaded {name}"):
                found = ask(of, LoadHistory(owner, conversation, missing_ok=True))
                seen.append([(e.turn, e.event) for e in found.events])
                seen.append((found.last_turn, found.queued, found.running))
            seen.append([timeless(save) for save in ask(of, ListSaved(owner))])
            listed = ask(of, ListConversations(owner)).conversations
            seen.append([(row.conversation, row.title, row.messages) for row in listed])
            seen.append(do(of, Enter(owner, "latest", "fresh")))
        seen.append(ask(of, ListUnfinished()))
        of.recover()
    return seen


def effective(of: Store, operation: Operation, answer: object) -> bool:
    """It was done: sending it again is a repeat. Deltas of a turn that is not there (yet) were not.

    Entering again later is none: it makes that conversation the latest once more.
    """
    if isinstance(operation, Enter):
        return False
    if isinstance(operation, AppendDeltas):
        (only,) = operation.deltas
        found = ask(of, LoadHistory(f"of {only.conversation}", only.conversation, missing_ok=True))
        return only.turn in {stored.turn for stored in found.events}
    return not isinstance(answer, Fault)


def is_repeat(of: Store, operation: Operation) -> bool:
    """Sending it again now changes nothing: entering what was left since is no repeat, it makes it the latest again."""
    if isinstance(operation, Enter):
        return do(of, Enter(operation.owner, "latest", "fresh")).conversation == operation.fresh_id
    return True


def test_entering_again_makes_it_the_latest_again() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        do(s, append(closed()))
        do(s, SaveSession("ann", "c", "n", "s1"))
        for into, name in ((None, "c"), ("loaded", "loaded"), (None, "c"), (None, "c"), ("other", "other")):
            do(s, LoadSaved("ann", "s1", into) if into else Enter("ann", "new!", name))
            assert do(s, Enter("ann", "latest", "fresh")) == Entered(name, new=False)
        do(s, LoadSaved("ann", "s1", "loaded"))  # a repeat
        assert do(s, Enter("ann", "latest", "fresh")) == Entered("other", new=False)


@given(st.lists(operations, max_size=30), st.data())
def test_repeats_change_nothing(sequence: list[Operation], data: st.DataObject) -> None:
    with opened(MEMORY) as plain, opened(MEMORY) as repeated:
        done: list[tuple[Operation, object]] = []
        for operation in sequence:
            (answer,) = plain.commit([operation])
            batch = [operation]
            if effective(plain, operation, answer):
                done.append((operation, answer))
            repeats = [entry for entry in done if is_repeat(plain, entry[0])]
            again = data.draw(st.lists(st.sampled_from(repeats), max_size=3)) if repeats else []
            answers = repeated.commit([*batch, *(old for old, _ in again)])
            assert str(timeless(answers[0])) == str(timeless(answer))
            for (_, first), second in zip(again, answers[1:], strict=True):
                again_said = Began(first.turn, repeated=True) if isinstance(first, Began) else timeless(first)
                assert timeless(second) == again_said
        assert image(repeated) == image(plain)


@given(st.lists(operations, max_size=30), st.data())
def test_how_operations_are_batched_changes_nothing(sequence: list[Operation], data: st.DataObject) -> None:
    with opened(MEMORY) as singly, opened(MEMORY) as batched:
        expected = [str(timeless(singly.commit([operation])[0])) for operation in sequence]
        answers: list[object] = []
        left = list(sequence)
        while left:
            size = data.draw(st.integers(1, len(left)))
            answers += batched.commit(left[:size])
            del left[:size]
        assert [str(timeless(answer)) for answer in answers] == expected
        assert image(batched) == image(singly)


def test_a_page_has_an_end_in_bytes_too_and_what_runs_is_always_on_it() -> None:
    def shown(most_bytes: int = PAGE_BYTES, before: int = 0, after: int = 0) -> tuple[list[int], bool]:
        page = ask(s, LoadHistory("ann", "c", before, after, most_bytes=most_bytes))
        return sorted({stored.turn for stored in page.events}), page.more

    with opened(MEMORY) as s:
        for turn in range(1, 6):
            do(s, begin(turn, content="x" * 1000, queued=turn > 3))
            if turn < 4:
                do(s, append(closed(), turn=turn, key=f"{turn}"))
        assert shown() == ([1, 2, 3, 4, 5], False)
        assert shown(most_bytes=5200) == ([2, 3, 4, 5], True)
        assert shown(most_bytes=1) == ([4, 5], True)
        assert shown(most_bytes=1, before=4) == ([3], True)
        assert shown(most_bytes=2600, before=4) == ([2, 3], True)
        assert shown(most_bytes=2600, after=1) == ([2, 3, 4, 5], False)
        assert shown(most_bytes=1, after=1, before=4) == ([2], True)
        assert shown(most_bytes=1, before=2) == ([1], False)


# Every statement finds its rows by an index.

BOUND = ("INDEX turn_open", "INDEX conversation_front", "INDEX pending_due")
"""Partial ones: open turns, what is claimed, what waits for a person."""


@pytest.mark.parametrize(
    "module", [rows, ticks, saved, retention, claims, recovery, pending, pins], ids=lambda module: module.__name__
)
def test_every_statement_is_bound_by_an_index(module: ModuleType) -> None:
    wanted = {
        name: sql
        for name, sql in vars(module).items()
        if name.isupper() and isinstance(sql, str) and re.match("SELECT|UPDATE|DELETE|INSERT .* SELECT", sql)
    }
    assert len(wanted) > 3
    db = apsw.Connection(":memory:")
    migrate(db)
    for name, sql in wanted.items():
        plan = [str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", (0,) * sql.count("?"))]
        for step in plan:
            # All of such an index is wanted, or its first row.
            bound = not step.startswith("SCAN") or step.endswith(BOUND)
            assert bound or (name == "ALL_OPEN" and "turn_open" in step), f"{name}: {step}"
            assert "TEMP B-TREE" not in step, f"{name}: {step}"
    db.close()

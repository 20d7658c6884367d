"""What the store promises: all or nothing, once or twice the same, and never a file that is not its own."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar, cast

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import rows, store
from actors.recovery import SEQ_GAP
from actors.schema import Database, migrate
from actors.store import MEMORY, Busy, Fatal, Full, Store, Unavailable
from protocol.errors import Code, Fault
from protocol.mail import Request
from protocol.streamer import ToolCall
from protocol.writer import (
    Append,
    AppendDeltas,
    Began,
    BeginTurn,
    Closed,
    Delta,
    Done,
    DropQueued,
    Enter,
    Entered,
    Event,
    FindRequest,
    History,
    HopEvent,
    ListUnfinished,
    LoadHistory,
    Operation,
    Query,
    StartTurn,
    ToolEnded,
    ToolStarted,
    Unfinished,
    UserEvent,
)

R = TypeVar("R")


@contextmanager
def opened(path: Path | str, watch: Callable[[Database], None] = lambda _: None) -> Iterator[Store]:
    with closing(Store(str(path), watch)) as opening:
        opening.open()
        yield opening


def do(into: Store, operation: Request[R]) -> R:
    """Commit one; its answer, a fault raised."""
    (answer,) = into.commit([cast(Operation, operation)])
    if isinstance(answer, Fault):
        raise answer
    return cast(R, answer)


def ask(of: Store, query: Request[R]) -> R:
    return cast(R, of.query(cast(Query, query)))


def begin(
    turn: int = 1, *, conversation: str = "c", owner: str = "ann", content: object = "hi", queued: bool = False
) -> BeginTurn:
    return BeginTurn(owner, conversation, turn, UserEvent(content, f"r{turn}", streaming=True), queued)


def hop(number: int, content: str, thinking: str = "", tools: Sequence[str] = ()) -> HopEvent:
    calls = [ToolCall(name, name, "{}") for name in tools]
    return HopEvent(number, content, thinking, calls, {"x": [1]}, "p", "m", {"total_tokens": number, "id": "u"}, "stop")


def closed(outcome: str = "completed", seq: int = 9) -> Closed:
    return Closed(outcome, seq, "text", "", {"total_tokens": 3}, "m", "stop", None)


def append(*events: Event, turn: int = 1, key: str = "k", conversation: str = "c") -> Append:
    return Append(conversation, turn, key, list(events))


def tick(*deltas: Delta) -> AppendDeltas:
    return AppendDeltas(list(deltas))


def delta(seq: int, text: str, *, hop: int = 1, thinking: str = "", turn: int = 1, conversation: str = "c") -> Delta:
    return Delta(conversation, turn, hop, seq, text, thinking)


def history(
    of: Store, conversation: str = "c", owner: str = "ann", *, before: int = 0, after: int = 0, limit: int = 50
) -> History:
    return ask(of, LoadHistory(owner, conversation, before, after, limit))


def events(of: Store, turn: int = 1) -> list[Event]:
    return [stored.event for stored in history(of).events if stored.turn == turn]


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


def test_what_people_said_is_not_for_others_to_read(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "chat.db") as s:
        do(s, begin())
        for file in (tmp_path / "deep").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name


def test_writing_is_durable(tmp_path: Path) -> None:
    made: list[Database] = []
    with opened(tmp_path / "chat.db", made.append):
        writer = made[0]
        assert writer.pragma("journal_mode") == "wal"
        assert writer.pragma("synchronous") == 2
        assert writer.pragma("foreign_keys") == 1


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
        for operation in (StartTurn("c", 2), DropQueued("c", 2), append(closed(), turn=2), append(conversation="d")):
            with pytest.raises(Fault) as refused:
                do(s, cast(Request[Done], operation))
            assert refused.value.code is Code.NOT_FOUND
        assert ask(s, FindRequest("c", "r2")) is None
        assert ask(s, FindRequest("d", "r1")) is None
        assert ask(s, FindRequest("c", "r1")) == Began(1, repeated=True)
        assert do(s, tick(delta(1, "x", turn=2), delta(1, "y", conversation="d"))) == Done()


# Queue.


def test_queued_turns_wait_run_or_are_dropped(tmp_path: Path) -> None:
    with opened(tmp_path / "chat.db") as s:
        do(s, begin(1))
        for turn in (2, 3, 4):
            do(s, begin(turn, queued=True))
        do(s, begin(1, conversation="d", owner="bob", queued=True))
        assert ask(s, ListUnfinished()) == [Unfinished("ann", "c"), Unfinished("bob", "d")]
        do(s, StartTurn("c", 2))
        do(s, DropQueued("c", 3))
        do(s, DropQueued("c", 2))  # it runs: too late
        now = history(s)
        assert (now.running, now.queued) == ([1, 2], [4])
        user, end = events(s, 3)
        assert isinstance(user, UserEvent)
        assert isinstance(end, Closed)
        assert (end.outcome, end.message) == ("stopped", "")
        do(s, StartTurn("c", 3))
        assert history(s).running == [1, 2], "a closed turn does not run again"
    with opened(tmp_path / "chat.db") as s:
        assert s.recover() == 2
        after = history(s)
        assert (after.running, after.queued) == ([], [4])


# Deltas and recovery.


def test_a_hop_supersedes_its_deltas_and_the_end_drops_them() -> None:
    made: list[Database] = []

    def kept() -> list[object]:
        return [row[0] for row in made[0].execute("SELECT text FROM delta ORDER BY conversation, turn, seq")]

    with opened(MEMORY, made.append) as s:
        do(s, begin())
        do(s, tick(delta(2, "a"), delta(5, "b"), delta(7, "c", hop=2)))
        assert kept() == ["a", "b", "c"]
        do(s, append(hop(1, "ab"), key="1"))
        assert kept() == ["c"]
        do(s, tick(delta(6, "late", hop=1), delta(9, "d", hop=2)))
        assert kept() == ["c", "d"]
        do(s, append(closed(), key="2"))
        do(s, tick(delta(10, "later", hop=3)))
        assert kept() == []
        assert made[0].execute("SELECT count(*) FROM applied").fetchall() == [(0,)]


def test_a_running_turn_is_closed_with_what_is_stored(tmp_path: Path) -> None:
    with opened(tmp_path / "chat.db") as s:
        do(s, begin())
        do(s, append(hop(1, "Let me add. ", "hm, ", tools=["add", "slow"]), key="1"))
        do(s, append(ToolStarted("c1", "m1", 5, "add", "demo", "{}"), key="2"))
        do(s, append(ToolStarted("c2", "m2", 6, "slow", "demo", "{}"), key="3"))
        do(s, append(ToolEnded("c1", "m1", 7, "completed", "3", 1), key="4"))
        do(s, tick(delta(8, "It ", hop=2, thinking="ah"), delta(12, "is", hop=2)))
    with opened(tmp_path / "chat.db") as s:
        assert s.recover() == 1
        *_, unknown, part, end = events(s)
        assert s.recover() == 0
        assert isinstance(unknown, ToolEnded)
        assert (unknown.call_id, unknown.model_call_id, unknown.status) == ("c2", "m2", "unknown")
        assert unknown.seq == 12 + SEQ_GAP
        assert isinstance(part, HopEvent)
        assert (part.hop, part.content, part.thinking, part.provider) == (2, "It is", "ah", "p")
        assert isinstance(end, Closed)
        assert (end.outcome, end.message, end.thinking) == ("interrupted", "Let me add. It is", "hm, ah")
        assert end.seq == 12 + SEQ_GAP + 2, "assistant_message has the one between"
        assert end.usage == {"total_tokens": 1}
        assert history(s).running == []
        do(s, begin(2))
        assert history(s).running == [2]


def test_a_turn_of_which_nothing_is_stored_is_closed_too() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        assert s.recover() == 1
        end = events(s)[-1]
        assert isinstance(end, Closed)
        assert (end.outcome, end.seq, end.message, end.usage) == ("interrupted", SEQ_GAP, "", None)


def test_the_last_seq_survives_the_deltas_that_carried_it() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        do(s, tick(delta(40, "ab")))
        do(s, append(hop(1, "ab"), key="1"))
        s.recover()
        end = events(s)[-1]
        assert isinstance(end, Closed)
        assert end.seq == 40 + SEQ_GAP + 1


# All or nothing, once or twice.


def test_a_closed_turn_takes_nothing_more() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        do(s, append(closed("stopped"), hop(9, "after the end"), key="1"))
        before = events(s)
        assert before[-1] == closed("stopped"), "what comes after the end in one message is dropped"
        do(s, append(hop(1, "late"), closed("completed"), key="2"))
        assert events(s) == before


def test_a_bad_operation_does_not_fail_the_others(caplog: pytest.LogCaptureFixture) -> None:
    bad: list[Operation] = [
        begin(2, content="half a \ud800 pair"),
        begin(2**70),
        append(hop(1, "x"), key="\ud800"),
        append(HopEvent(1, "x", "", [], {"x": object()}, "p", "m", None, "stop"), key="object"),
        tick(delta(1, "fine", hop=9), delta(2, "\udc00", hop=9)),
    ]
    with opened(MEMORY) as s, caplog.at_level(logging.CRITICAL, "actors.store"):
        do(s, begin())
        for number, operation in enumerate(bad):
            good = [append(hop(1, f"a{number}"), key=f"a{number}"), append(hop(1, f"b{number}"), key=f"b{number}")]
            first, refused, last = s.commit([good[0], operation, good[1]])
            assert (first, last) == (Done(), Done())
            assert isinstance(refused, Fault)
            assert refused.code is Code.INVALID_MESSAGE
            assert not refused.body.retryable
        assert [e.content for e in events(s) if isinstance(e, HopEvent)] == [
            f"{letter}{number}" for number in range(len(bad)) for letter in "ab"
        ]
        do(s, begin(2))
        s.recover()
        assert "fine" not in str(history(s).events), "an operation is done whole or not at all"


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
    st.builds(lambda p: DropQueued(p[0], p[1]), PLACES),
    st.builds(lambda p, k: Append(p[0], p[1], k, APPENDED[k]), PLACES, st.sampled_from(sorted(APPENDED))),
    st.builds(
        lambda p, s: tick(delta(s, f"{s} ", hop=1 + s // 4, conversation=p[0], turn=p[1])), PLACES, st.integers(1, 12)
    ),
    st.builds(lambda c: Enter(f"of {c}", "new!", c), st.sampled_from(CONVERSATIONS)),
)


def image(of: Store) -> list[object]:
    """All that anybody can see of a store, before and after a recovery; without times."""
    seen: list[object] = []
    for _ in range(2):
        for name in CONVERSATIONS:
            found = ask(of, LoadHistory(f"of {name}", name, missing_ok=True))
            seen.append([(e.turn, e.event) for e in found.events])
            seen.append((found.last_turn, found.queued, found.running))
            seen.append(do(of, Enter(f"of {name}", "latest", "fresh")))
        seen.append(ask(of, ListUnfinished()))
        of.recover()
    return seen


def effective(of: Store, operation: Operation, answer: object) -> bool:
    """It was done: sending it again is a repeat. Deltas of a turn that is not there (yet) were not."""
    if isinstance(operation, AppendDeltas):
        (only,) = operation.deltas
        return ask(of, FindRequest(only.conversation, f"r{only.turn}")) is not None
    return not isinstance(answer, Fault)


@settings(max_examples=150, deadline=None)
@given(st.lists(operations, max_size=30), st.data())
def test_repeats_change_nothing(sequence: list[Operation], data: st.DataObject) -> None:
    with opened(MEMORY) as plain, opened(MEMORY) as repeated:
        done: list[tuple[Operation, object]] = []
        for operation in sequence:
            (answer,) = plain.commit([operation])
            batch = [operation]
            if effective(plain, operation, answer):
                done.append((operation, answer))
            again = data.draw(st.lists(st.sampled_from(done), max_size=3)) if done else []
            answers = repeated.commit([*batch, *(old for old, _ in again)])
            assert str(answers[0]) == str(answer)
            for (_, first), second in zip(again, answers[1:], strict=True):
                assert second == (Began(first.turn, repeated=True) if isinstance(first, Began) else first)
        assert image(repeated) == image(plain)


@settings(max_examples=50, deadline=None)
@given(st.lists(operations, max_size=30), st.data())
def test_how_operations_are_batched_changes_nothing(sequence: list[Operation], data: st.DataObject) -> None:
    with opened(MEMORY) as singly, opened(MEMORY) as batched:
        expected = [str(singly.commit([operation])[0]) for operation in sequence]
        answers: list[object] = []
        left = list(sequence)
        while left:
            size = data.draw(st.integers(1, len(left)))
            answers += batched.commit(left[:size])
            del left[:size]
        assert [str(answer) for answer in answers] == expected
        assert image(batched) == image(singly)


# Every statement finds its rows by an index.


def test_every_statement_is_bound_by_an_index() -> None:
    statements = {
        name: sql for name, sql in vars(rows).items() if name.isupper() and isinstance(sql, str) and " " in sql
    }
    wanted = {name: sql for name, sql in statements.items() if sql.startswith(("SELECT", "UPDATE", "DELETE"))}
    assert len(wanted) > 15
    db = apsw.Connection(":memory:")
    migrate(db)
    for name, sql in wanted.items():
        plan = [str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", (0,) * sql.count("?"))]
        for step in plan:
            # The partial index holds open turns only: all of it is what these two want.
            bound = not step.startswith("SCAN") or step.endswith("USING COVERING INDEX turn_open")
            assert bound or (name == "ALL_OPEN" and "turn_open" in step), f"{name}: {step}"
            assert "TEMP B-TREE" not in step, f"{name}: {step}"
    db.close()


# Files that cannot be used.


def refused(path: Path | str) -> str:
    with pytest.raises(Fatal) as refusal, opened(path):
        pass
    return str(refusal.value)


def test_garbage_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    path.write_bytes(b"these are my tax papers\n" * 500)
    before = path.read_bytes()
    text = refused(path)
    assert str(path) in text
    assert "not a SQLite database" in text
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat.db", "chat.db.lock"]


def test_a_newer_file_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path):
        pass
    with closing(apsw.Connection(str(path))) as db:
        db.pragma("user_version", 99)
        db.wal_checkpoint()
    before = path.read_bytes()
    assert "newer version" in refused(path)
    assert path.read_bytes() == before


def unclean_copy(tmp_path: Path, name: str) -> Path:
    """A store as a killed process leaves it: rows in the file and newer ones in its log."""
    with opened(tmp_path / "original.db") as s:
        do(s, begin())
        for turn in range(2, 200):
            do(s, begin(turn, content="x" * 1000))
        s.checkpoint()
        do(s, begin(200))
        for suffix in ("", "-wal"):
            shutil.copyfile(tmp_path / f"original.db{suffix}", tmp_path / f"{name}{suffix}")
    return tmp_path / name


def test_an_unclean_stop_loses_nothing(tmp_path: Path) -> None:
    path = unclean_copy(tmp_path, "copy.db")
    assert (tmp_path / "copy.db-wal").stat().st_size > 0
    with opened(path) as s:
        assert history(s).last_turn == 200
    assert not (tmp_path / "copy.db-wal").exists(), "closing moves the log into the file"


def test_damage_is_found_after_an_unclean_stop(tmp_path: Path) -> None:
    path = unclean_copy(tmp_path, "copy.db")
    with path.open("r+b") as file:
        for page in range(10, 30):
            file.seek(page * 4096)
            file.write(b"\xff" * 100)
    text = refused(path)
    assert str(path) in text
    assert "damaged" in text


def test_a_log_without_its_file_is_not_taken_for_an_empty_store(tmp_path: Path) -> None:
    path = unclean_copy(tmp_path, "copy.db")
    path.unlink()
    assert "is missing or empty" in refused(path)
    assert not path.exists()
    path.touch()
    assert "is missing or empty" in refused(path)


def test_a_path_that_cannot_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.db").mkdir()
    assert "its directory is a file" in refused(tmp_path / "file" / "chat.db")
    assert "Not a directory" in refused(tmp_path / "file" / "deep" / "chat.db")
    assert "Is a directory" in refused(tmp_path / "folder.db")


@pytest.mark.parametrize("there_already", [False, True])
def test_a_directory_that_may_not_be_written(tmp_path: Path, there_already: bool) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    if there_already:
        with opened(folder / "chat.db"):
            pass
        (folder / "chat.db.lock").unlink()
    chattr = shutil.which("chattr")
    # An immutable directory stops root too, which mode bits do not.
    if chattr is None or subprocess.run([chattr, "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("this system cannot make a directory immutable (chattr +i)")
    try:
        assert "cannot be opened for writing" in refused(folder / "chat.db")
    finally:
        subprocess.run([chattr, "-i", str(folder)], check=True)


def test_one_owner_per_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as s:
        text = refused(path)
        assert f"process {os.getpid()}" in text
        do(s, begin())
    with opened(path) as s:
        assert history(s).last_turn == 1


# Trouble that passes.


def test_a_full_disk_refuses_writing_keeps_reading_and_heals(tmp_path: Path) -> None:
    made: list[Database] = []
    with opened(tmp_path / "chat.db", made.append) as s:
        do(s, begin(content="before"))
        made[0].pragma("max_page_count", int(made[0].pragma("page_count")) + 5)
        with pytest.raises(Full, match="No space is left"):
            s.commit([begin(2), append(hop(1, "x" * 100_000))])
        assert history(s).last_turn == 1, "nothing of the batch was written"
        with pytest.raises(Full):
            s.commit([append(hop(1, "x" * 100_000))])
        made[0].pragma("max_page_count", 1_000_000)
        assert s.commit([begin(2), append(hop(1, "x" * 100_000))]) == [Began(2, repeated=False), Done()]


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path / "chat.db") as s:
        do(s, begin())
        resource.setrlimit(resource.RLIMIT_FSIZE, (s.sizes().log + 10_000, hard))
        try:
            with pytest.raises(Full):
                s.commit([append(hop(1, "x" * 1_000_000))])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert history(s).last_turn == 1
        assert s.commit([append(hop(1, "x" * 1_000_000))]) == [Done()]


def test_another_program_that_holds_the_file_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_MS", 1)
    with opened(tmp_path / "chat.db") as s, closing(apsw.Connection(str(tmp_path / "chat.db"))) as other:
        do(s, begin())
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy):
            s.commit([begin(2)])
        assert history(s).last_turn == 1
        other.execute("ROLLBACK")
        do(s, begin(2))


def test_the_log_is_moved_into_the_file_past_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(store, "TRUNCATE_PAGES", 200)
    monkeypatch.setattr(store, "BUSY_MS", 1)
    path = tmp_path / "chat.db"
    with opened(path) as s:
        turn, most = 0, 0
        for turn in range(1, 101):
            do(s, begin(turn, content="x" * 2000))
            if s.checkpoint_due:
                s.checkpoint()
            most = max(most, s.sizes().log)
        assert most < 60 * 4096, "without a reader in the way it never grows far past the limit"
        with closing(apsw.Connection(str(path))) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM event").fetchall()
            for turn in range(101, 301):
                do(s, begin(turn, content="x" * 2000))
                if s.checkpoint_due:
                    s.checkpoint()
            assert s.sizes().log > 200 * 4096, "the reader keeps what it may still read"
            reader.execute("ROLLBACK")
        while not s.checkpoint_due:
            turn += 1
            do(s, begin(turn, content="x" * 2000))
        s.checkpoint()
        assert s.sizes().log == 0
        assert history(s, limit=1).last_turn == turn


def test_a_closed_store_is_unavailable() -> None:
    with opened(MEMORY) as s:
        s.close()
        with pytest.raises(Unavailable):
            s.commit([begin()])

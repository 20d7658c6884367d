"""What the store promises: all or nothing, and never a file that is not its own."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from actors import rows, store
from actors.schema import MIGRATIONS, Database, migrate
from actors.store import AT_ONCE, MEMORY, Storage, Store
from actors.store_errors import Busy, Fatal, Full, Unavailable
from protocol.errors import Code, Fault
from protocol.writer import (
    Began,
    Done,
    HopEvent,
    LoadHistory,
    Operation,
    ToolStarted,
    UserEvent,
)
from tests.stores import append, begin, closed, delta, do, events, history, hop, opened, tick

FRAME_BYTES = 24 + 4096  # one page in the log


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


def test_a_disk_too_full_for_a_new_form_of_the_file_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.db"
    with apsw.Connection(str(path)) as old:
        migrate(old, MIGRATIONS[:-1])
        rows.add_conversation(old, "c", "ann", 1.0)
        old.execute("INSERT INTO turn (conversation, turn, request_id, state) VALUES (1, 1, 'r1', 'completed')")
        body = json.dumps({"type": "user", "content": "x" * 3_000_000, "request_id": "r1", "streaming": True})
        old.execute(
            "INSERT INTO event (conversation, turn, pos, kind, at, body) VALUES (1, 1, 1, 'user', 1.0, ?)", (body,)
        )
    old.close()
    monkeypatch.setattr(store, "CACHE_KB", 64)  # so that much of it is written before its end
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, hard))
    try:
        with pytest.raises(Full), opened(path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with opened(path) as s:
        assert [len(event.content) for event in events(s) if isinstance(event, UserEvent)] == [3_000_000]


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
    with opened(path):
        pass  # what its tables take is moved when it is closed
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


def test_what_runs_is_together_on_few_pages_however_long_the_conversations_are(tmp_path: Path) -> None:
    conversations = [f"c{number}" for number in range(50)]
    with opened(tmp_path / "chat.db") as s:

        def pages(*batch: Operation) -> float:
            s.db.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)
            s.commit(batch)
            return s.sizes().log / FRAME_BYTES / len(batch)

        for turn in range(1, 81):
            began = pages(*(begin(turn, conversation=name) for name in conversations))
            called = ToolStarted("call", "m", 3, "add", "demo", "{}")
            journaled = pages(*(append(called, turn=turn, key="hop-1", conversation=name) for name in conversations))
            ended = pages(*(append(closed(), turn=turn, key="closed", conversation=name) for name in conversations))
        assert began < 3, "one of each index that is ordered by conversation, and some for all of them"
        assert journaled < 0.5
        assert ended < 0.5


def test_a_plain_turn_takes_four_statements_to_begin_and_five_to_end() -> None:
    statements: list[str] = []

    def traced(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        statements.append(sql)
        return True

    with opened(MEMORY) as s:
        do(s, begin(1))
        do(s, append(hop(1, "text"), closed(), turn=1))
        s.db.exec_trace = traced
        for count in (1, 10):
            operations = [begin(turn) for turn in range(100 * count, 100 * count + count)]
            s.commit(operations)
            assert len(statements) == 2 + 4 * count, statements
            statements.clear()
            s.commit([append(hop(1, "text"), closed(), turn=operation.turn) for operation in operations])
            assert len(statements) == 2 + 5 * count, statements
            statements.clear()


def test_a_closed_store_is_unavailable() -> None:
    with opened(MEMORY) as s:
        s.close()
        with pytest.raises(Unavailable):
            s.commit([begin()])


async def test_what_a_turn_stores_in_memory_is_committed_at_once_unless_the_thread_is_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    committing: list[int] = []
    commit = Store.commit

    def noted(self: Store, batch: list[Operation]) -> list[object]:
        committing.append(threading.get_ident())
        return commit(self, batch)

    monkeypatch.setattr(Store, "commit", noted)
    storage = await Storage.open(MEMORY)
    try:
        long: list[Operation] = [begin(), append(*[hop(number, "x" * 100) for number in range(20_000)])]
        await storage.commit(long)
        await storage.commit([begin(turn) for turn in range(2, 3 + AT_ONCE)])
        begun, go_on = threading.Event(), threading.Event()

        def held(self: Store, _: object) -> object:
            begun.set()
            return go_on.wait(5)

        monkeypatch.setattr(Store, "query", held)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.query, LoadHistory("ann", "c"), 5.0)
            while not begun.is_set():
                await trio.lowlevel.checkpoint()
            nursery.start_soon(storage.commit, [begin(100)])
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        mine = threading.get_ident()
        assert [ident == mine for ident in committing] == [True, False, False]
    finally:
        await storage.aclose()


async def test_a_query_can_be_ended_after_a_commit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    queries: dict[str, Callable[[Store], object]] = {
        "quick": lambda self: self.db.execute("SELECT 1").get,
        "endless": lambda self: self.db.execute(endless).get,
    }
    monkeypatch.setattr(Store, "query", lambda self, name: queries[name](self))
    storage = await Storage.open(MEMORY)
    ask: Any = storage.query
    try:
        for turn in (1, 2):
            await storage.commit([begin(2 * turn)])
            await storage.commit([begin(2 * turn + 1)])
            assert await ask("quick", 5.0) == 1
            await storage.commit([begin(100 + turn)])
            with pytest.raises(Unavailable, match="took longer"):
                await ask("endless", 0.01)
        assert await ask("quick", 5.0) == 1
    finally:
        await storage.aclose()

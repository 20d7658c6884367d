"""What the store's files promise: steps in order, each whole, and no hand laid on what is not ours."""

from __future__ import annotations

import json
from pathlib import Path

import apsw
import pytest

from actors import rows
from actors.recovery import SEQ_GAP
from actors.schema import APPLICATION_ID, MIGRATIONS, Unfit, inspect, migrate
from protocol.writer import Append, Closed, HopEvent
from tests.stores import closed, do, history, opened


def tables(db: apsw.Connection) -> list[tuple[str, str]]:
    return [(str(name), str(sql)) for name, sql in db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name")]


@pytest.mark.parametrize("steps", range(len(MIGRATIONS) + 1))
def test_every_older_version_becomes_the_newest(tmp_path: Path, steps: int) -> None:
    path = str(tmp_path / "chat.db")
    with apsw.Connection(path) as old:
        assert migrate(old, MIGRATIONS[:steps]) == steps
    old.close()
    db, fresh = apsw.Connection(path), apsw.Connection(":memory:")
    assert inspect(db) == steps
    assert migrate(db) == len(MIGRATIONS) - steps
    assert migrate(db) == 0, "a second run finds nothing to do"
    migrate(fresh)
    assert tables(db) == tables(fresh)
    assert (db.pragma("user_version"), db.pragma("application_id")) == (len(MIGRATIONS), APPLICATION_ID)
    db.close()
    fresh.close()


def test_what_was_said_before_there_were_saves_is_counted_and_named(tmp_path: Path) -> None:
    path = str(tmp_path / "chat.db")
    with apsw.Connection(path) as old:
        migrate(old, MIGRATIONS[:3])
        old.execute("INSERT INTO conversation VALUES (1, 'c', 'ann', 1, 1, 1, 4), (2, 'd', 'ann', 2, 2, 2, 1)")
        events = [
            (1, 1, 1, "completed", '{"type":"user","content":"two\\nlines"}'),
            (1, 1, 2, "completed", '{"type":"hop","content":"an answer"}'),
            (1, 1, 3, "completed", '{"type":"closed","message":"an answer"}'),
            (1, 2, 1, "stopped", '{"type":"user","content":"no answer"}'),
            (1, 2, 2, "stopped", '{"type":"closed","message":""}'),
            (1, 3, 1, "failed", '{"type":"user","content":"tools only"}'),
            (1, 3, 2, "failed", '{"type":"tool_started"}'),
            (1, 3, 3, "failed", '{"type":"closed","message":""}'),
            (1, 4, 1, "running", '{"type":"user","content":"not yet"}'),
            (1, 4, 2, "running", '{"type":"tool_started"}'),
            (2, 1, 1, "running", '{"type":"user","content":[{"type":"text","text":"parts"}]}'),
        ]
        for conversation, turn, pos, state, body in events:
            row = (conversation, turn, f"r{turn}", state)
            old.execute("INSERT OR IGNORE INTO turn (conversation, turn, request_id, state) VALUES (?, ?, ?, ?)", row)
            kind = json.loads(body)["type"]
            old.execute("INSERT INTO event VALUES (?, ?, ?, NULL, ?, 0, ?)", (conversation, turn, pos, kind, body))
        what, order = (
            "SELECT conversation, turn.turn, pos, key, kind, at, body",
            "ORDER BY conversation, turn.turn, pos",
        )
        before = old.execute(f"{what} FROM event AS turn {order}").fetchall()
        assert migrate(old) == len(MIGRATIONS) - 3
        assert old.execute(f"{what} FROM event JOIN turn ON event.turn = turn.n {order}").fetchall() == before
        turns = old.execute("SELECT messages FROM turn ORDER BY conversation, turn").fetchall()
        assert [row[0] for row in turns] == [2, 1, 2, 1, 1]
        assert list(old.pragma("foreign_key_check") or []) == []
        assert old.execute("SELECT title, messages FROM conversation").fetchall() == [("two lines", 6), ("", 1)]
    old.close()


def test_text_of_answers_that_an_older_program_did_not_finish_is_theirs(tmp_path: Path) -> None:
    path = str(tmp_path / "chat.db")
    text = '"two"\nlines, a \x00 and \U0001f600'
    with apsw.Connection(path) as old:
        migrate(old, MIGRATIONS[:9])
        for n, name in enumerate("cde", 1):
            rows.add_conversation(old, name, "ann", float(n))
            turn = (n, 1, "r1", "running", int(name == "d"), 7)
            old.execute(
                "INSERT INTO turn (conversation, turn, request_id, state, hop, seq) VALUES (?, ?, ?, ?, ?, ?)", turn
            )
            body = '{"type":"user","content":"hi","request_id":"r1","streaming":true}'
            old.execute("INSERT INTO event VALUES (NULL, ?, 1, 1, NULL, 'user', 1.0, ?)", (n, body))
        for row in ((1, 1, 5, 1, text, "hm"), (1, 1, 7, 1, ", the end", ""), (2, 1, 7, 2, "second", "")):
            old.execute(
                "INSERT INTO delta (conversation, turn, seq, hop, text, thinking) VALUES (?, ?, ?, ?, ?, ?)", row
            )
    old.close()
    with opened(path) as s:
        do(s, Append("d", 1, "k", [closed()]))
        assert s.recover() == 2
        ends = [[row.event for row in history(s, name).events] for name in "ce"]
        assert [end[-2].content for end in ends[:1] if isinstance(end[-2], HopEvent)] == [text + ", the end"]
        assert [end[-1].message for end in ends if isinstance(end[-1], Closed)] == [text + ", the end", ""]
        assert {end[-1].seq for end in ends if isinstance(end[-1], Closed)} == {SEQ_GAP + 7, SEQ_GAP + 8}
        assert s.db.execute("SELECT count(*) FROM tick").fetchone() == (0,)


def test_a_failing_step_leaves_the_whole_version_before_it(tmp_path: Path) -> None:
    def broken(db: apsw.Connection) -> None:
        db.execute("CREATE TABLE half (x)")
        raise LookupError("the power is out")

    db = apsw.Connection(str(tmp_path / "chat.db"))
    with pytest.raises(LookupError):
        migrate(db, (*MIGRATIONS, broken))
    assert inspect(db) == len(MIGRATIONS)
    assert "half" not in dict(tables(db))
    db.close()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "chat.db"))
    migrate(db)
    db.pragma("user_version", len(MIGRATIONS) + 1)
    with pytest.raises(Unfit, match=rf"schema {len(MIGRATIONS) + 1}, this one knows {len(MIGRATIONS)}"):
        migrate(db)
    db.close()


@pytest.mark.parametrize("sql", ["CREATE TABLE theirs (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"])
def test_another_programs_file_is_refused(tmp_path: Path, sql: str) -> None:
    db = apsw.Connection(str(tmp_path / "other.db"))
    db.execute(sql)
    before = tables(db)
    with pytest.raises(Unfit, match="another program"):
        migrate(db)
    assert tables(db) == before
    db.close()


def test_every_table_is_strict() -> None:
    db = apsw.Connection(":memory:")
    migrate(db)
    kinds = {str(row[1]): row[5] for row in db.execute("PRAGMA table_list") if not str(row[1]).startswith("sqlite_")}
    assert kinds
    assert set(kinds.values()) == {1}
    db.close()

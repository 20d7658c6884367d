"""What the store's files promise: steps in order, each whole, and no hand laid on what is not ours."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from actors.schema import APPLICATION_ID, MIGRATIONS, Unfit, inspect, migrate


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

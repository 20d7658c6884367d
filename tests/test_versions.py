"""The history: what is kept, in which order, and what becomes of files that are none of ours."""

from __future__ import annotations

import os
from pathlib import Path

from actors.versions import FOLDER, KEPT, MOST_KEYS, History, made


def test_the_newest_come_first_and_only_so_many_are_kept(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.newest() is None
    assert history.rows(5) == []
    for number in range(1, KEPT + 11):
        history.add(made(number, "cli", ["a.b"], {"a": {"b": number}}))
    assert [row.version for row in history.rows(3)] == [KEPT + 10, KEPT + 9, KEPT + 8]
    assert len(history.rows(10**6)) == KEPT
    assert history.rows(0) == history.rows(-1) == []
    assert history.get(10) is None
    newest = history.newest()
    assert newest is not None
    assert newest.over == {"a": {"b": KEPT + 10}}
    assert (newest.author, newest.changed) == ("cli", ["a.b"])


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add(made(1, "file", [], {}))
    folder = tmp_path / FOLDER
    (folder / "00000002.json").write_text("{")
    (folder / "00000003.json").write_text((folder / "00000001.json").read_text())
    (folder / "00000004.json").mkdir()
    (folder / "notes.txt").write_text("")
    newest = history.newest()
    assert newest is not None
    assert newest.version == 1
    assert [row.version for row in history.rows(20)] == [1]


def test_only_the_owner_may_read_it_and_long_lists_are_cut(tmp_path: Path) -> None:
    history = History(tmp_path / "state")
    history.add(made(1, "file", [f"k{n}" for n in range(200)], {}))
    [row] = history.rows(1)
    assert len(row.changed) == MOST_KEYS + 1
    assert row.changed[-1] == "..."
    assert row.at.endswith("Z")
    folder = tmp_path / "state" / FOLDER
    assert (os.stat(folder).st_mode & 0o777, os.stat(folder / "00000001.json").st_mode & 0o777) == (0o700, 0o600)

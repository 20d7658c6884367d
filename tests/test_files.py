"""Files are replaced whole, and the edit that somebody makes at the same time is never lost."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from actors import files
from actors.files import Changed, exchange, read, real, replace


@pytest.fixture(params=["exchange", "plain"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with `old` in it; on a file system that can exchange files, and on one that cannot."""
    if request.param == "plain":
        monkeypatch.setattr(files, "_swap", lambda one, other: False)
    made = tmp_path / "file"
    made.write_text("old")
    made.chmod(0o640)
    return made


def alone(path: Path, *others: str) -> None:
    """Nothing is left beside the file."""
    assert sorted(os.listdir(path.parent)) == sorted([path.name, *others])


def test_what_is_expected_is_replaced(path: Path) -> None:
    exchange(path, "new", "old")
    assert read(path) == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    alone(path)


def test_what_is_not_expected_stays(path: Path) -> None:
    before = path.stat().st_ino
    with pytest.raises(Changed):
        exchange(path, "new", "older")
    assert (read(path), path.stat().st_ino) == ("old", before)
    alone(path)


def test_a_file_that_should_not_be_there_stays(path: Path) -> None:
    with pytest.raises(Changed):
        exchange(path, "new", None)
    assert read(path) == "old"
    path.unlink()
    exchange(path, "new", None)
    assert read(path) == "new"
    alone(path)


def test_a_file_that_went_is_noticed(path: Path) -> None:
    path.unlink()
    with pytest.raises(Changed):
        exchange(path, "new", "old")
    assert os.listdir(path.parent) == []


def test_what_is_kept_aside_is_kept_whatever_it_is(path: Path) -> None:
    path.write_bytes(b"\xff")
    exchange(path, "new", None, aside=path.with_name("kept"))
    assert read(path) == "new"
    assert path.with_name("kept").read_bytes() == b"\xff"
    alone(path, "kept")


def test_a_link_stays_a_link(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    exchange(link, "new", "old")
    assert link.is_symlink()
    assert read(path) == "new"
    assert real(link) == path


def between(monkeypatch: pytest.MonkeyPatch, *edits: Callable[[], object]) -> None:
    """Each edit happens just after one more swap, the first just before the first."""
    left = list(edits)
    swap = files._swap

    def swapped(one: Path, other: Path) -> bool:
        if len(left) == len(edits):
            left.pop(0)()
        done = swap(one, other)
        if left:
            left.pop(0)()
        return done

    monkeypatch.setattr(files, "_swap", swapped)


def nothing() -> None:
    """No edit."""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file with `old` in it."""
    made = tmp_path / "file"
    made.write_text("old")
    return made


def in_place(path: Path, text: str) -> Callable[[], object]:
    return lambda: path.write_text(text)


def by_rename(path: Path, text: str) -> Callable[[], object]:
    def edit() -> None:
        new = path.with_name("new")
        new.write_text(text)
        os.replace(new, path)

    return edit


@pytest.mark.parametrize("how", [in_place, by_rename])
def test_an_edit_at_the_last_moment_is_given_back(
    plain: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path, str], Callable[[], object]]
) -> None:
    between(monkeypatch, how(plain, "edited"))
    with pytest.raises(Changed):
        exchange(plain, "ours", "old")
    assert read(plain) == "edited"
    alone(plain)


@pytest.mark.parametrize("how", [in_place, by_rename])
@pytest.mark.parametrize("then", [in_place, by_rename])
def test_an_edit_of_what_was_in_place_for_a_moment_is_the_newest(
    plain: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[Path, str], Callable[[], object]],
    then: Callable[[Path, str], Callable[[], object]],
) -> None:
    between(monkeypatch, how(plain, "first"), then(plain, "second"))
    with pytest.raises(Changed):
        exchange(plain, "ours", "old")
    assert read(plain) == "second"
    alone(plain)


def test_a_link_that_is_swapped_at_the_last_moment_counts(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, other = plain.with_name("link"), plain.with_name("other")
    other.write_text("elsewhere")
    link.symlink_to(plain)

    def swap_link() -> None:
        plain.with_name("new").symlink_to(other)
        os.replace(plain.with_name("new"), link)

    between(monkeypatch, swap_link)
    with pytest.raises(Changed):
        exchange(link, "ours", "old")
    assert (read(link), read(plain), read(other)) == ("elsewhere", "old", "elsewhere")


def test_a_failed_write_leaves_the_old_file_alone(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(plain, "new")
    with pytest.raises(OSError, match="No space left"):
        exchange(plain, "new", "old")
    assert read(plain) == "old"
    alone(plain)

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from actors import kept_results
from actors.kept_results import keep, keeper, read
from protocol.errors import Code, Fault


def test_what_is_kept_is_read_in_pieces_by_its_conversation_only(tmp_path: Path) -> None:
    state = str(tmp_path)
    found = keep(state, "c1", b"0123456789", text=False)
    file = tmp_path / "results" / "c1" / found
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    assert read(state, "c1", found, 0, 4) == (b"0123", 0, 10)
    assert read(state, "c1", found, 4, 100) == (b"456789", 4, 10)
    assert read(state, "c1", found, 2**62, 4) == (b"", 10, 10)
    for conversation, name in (("c2", found), ("c1", "b-" + "0" * 32), ("c1", "../c1/" + found), ("..", found)):
        with pytest.raises(Fault) as caught:
            read(state, conversation, name, 0, 1)
        assert caught.value.code is Code.NOT_FOUND


def test_pieces_of_a_text_are_whole_characters_and_together_the_text(tmp_path: Path) -> None:
    text = "aä€😀" * 50
    found = keep(str(tmp_path), "c1", text.encode(), text=True)
    for limit in range(4, 12):
        pieces, offset = list[str](), 0
        while True:
            piece = read(str(tmp_path), "c1", found, offset, limit)
            pieces.append(piece.data.decode())
            offset = piece.offset + len(piece.data)
            if offset >= piece.size:
                break
        assert "".join(pieces) == text
    assert read(str(tmp_path), "c1", found, 2, 4).data.decode() == "€"  # from within a character: the next one


@pytest.mark.parametrize("conversation", ["", "..", "a/b", "x" * 300])
def test_nothing_is_kept_outside_of_a_conversations_folder(conversation: str, tmp_path: Path) -> None:
    assert keeper(str(tmp_path), conversation) is None
    kept_results.remove(str(tmp_path), [conversation])
    assert tmp_path.is_dir()


def test_what_is_the_same_is_kept_once_and_too_much_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_results, "MOST_BYTES", 10)
    first = keep(str(tmp_path), "c1", b"123456", text=True)
    assert keep(str(tmp_path), "c1", b"123456", text=True) == first
    assert keep(str(tmp_path), "c1", b"12345", text=True) == ""
    assert os.listdir(tmp_path / "results" / "c1") == [first]
    assert keep(str(tmp_path), "c2", b"12345", text=True) != ""


def test_what_cannot_be_written_has_no_id(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    assert keep(str(tmp_path), "c1", b"x", text=True) == ""


def test_a_copy_of_a_conversation_keeps_what_the_first_one_loses(tmp_path: Path) -> None:
    state = str(tmp_path)
    found = keep(state, "c1", b"x", text=True)
    for _ in range(2):
        kept_results.link(state, "c1", "c2")
    kept_results.link(state, "nothing", "c3")
    kept_results.remove(state, ["c1"])
    assert read(state, "c2", found, 0, 9).data == b"x"
    assert sorted(os.listdir(tmp_path / "results")) == ["c2"]


def test_only_folders_that_have_settled_are_looked_at(tmp_path: Path) -> None:
    assert kept_results.folders(str(tmp_path)) == []
    keep(str(tmp_path), "new", b"x", text=True)
    keep(str(tmp_path), "old", b"x", text=True)
    os.utime(tmp_path / "results" / "old", (1, 1))
    assert kept_results.folders(str(tmp_path)) == ["old"]

"""The directory of a run: there while it runs, and removed by the next run where a kill left it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from supervisors.placement import runtime_directory
from supervisors.tree import role_of


def test_the_directory_is_ours_alone_and_goes_with_the_run(tmp_path: Path) -> None:
    with runtime_directory(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "runtime").read_text().strip() == str(folder)
        assert len(str(folder / "front12.123")) < 100, "a Unix socket's path has 107 characters"
    assert not folder.exists()
    assert not (tmp_path / "runtime").exists()


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name, kept in (("mcp-actors-run-x", False), ("other", True)):
        left = temporary / name
        left.mkdir()
        (tmp_path / "runtime").write_text(f"{left}\n")
        with runtime_directory(tmp_path):
            assert left.exists() is kept


def test_paths_belong_to_roles() -> None:
    roles = {"watcher": "root", "door": "root", "roster": "mcp", "mcp/a": "mcp", "store/writer": "store"}
    assert {path: role_of(path) for path in roles} == roles
    assert role_of("front2/sessions/x") == "front2"
    assert role_of("front2//logs") == "front2"
    assert role_of("mcp-demo-1a2b3c//logs") == "mcp", "what is below a process is reached through it"

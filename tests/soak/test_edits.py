"""1,000 random edits by an external editor beside running changes; see tests/edits.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import actors.watcher
from tests.edits import edited


@pytest.mark.seconds(900)
async def test_a_thousand_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.watcher, "POLL_S", 0.02)
    monkeypatch.setattr(actors.watcher, "SETTLED_S", 0.02)
    answered, rows = await edited(tmp_path / "state", 1000, seed=1)
    assert answered > 100
    assert {row.author for row in rows} == {"file", "client:local"}

"""Random edits by an external editor beside running changes: a twentieth of what tests/soak/test_edits.py does."""

from __future__ import annotations

from pathlib import Path

import pytest

import actors.watcher
from tests.edits import edited


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps at shorter intervals: the clock must be the real one, files have no other."""
    monkeypatch.setattr(actors.watcher, "POLL_S", 0.02)
    monkeypatch.setattr(actors.watcher, "SETTLED_S", 0.02)


@pytest.mark.seconds(90)
async def test_the_service_stays_on_the_last_valid_version(tmp_path: Path) -> None:
    answered, rows = await edited(tmp_path / "state", 50, seed=7)
    assert answered
    assert {row.author for row in rows} == {"file", "client:local"}

"""50 MB beside a client that reads nothing; see tests/behind.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.behind import read_nothing_of


@pytest.mark.seconds(120)
async def test_a_client_that_reads_nothing_of_50_mb(tmp_path: Path) -> None:
    await read_nothing_of(6400, tmp_path)

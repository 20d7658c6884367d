"""Exact tokens at full speed, beside clients that are slow, die and come back; the soak does far more of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crowd import flood


@pytest.mark.usefixtures("quiet_gateway")
async def test_everybody_gets_exactly_what_was_said_whoever_is_beside(tmp_path: Path) -> None:
    await flood(tmp_path, turns=3, pieces=200, times=1, seed=1)

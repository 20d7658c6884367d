"""Every fault of MCP servers with its full count, and ends as patient as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_server_faults import all_faults


@pytest.mark.seconds(120)
async def test_all_faults_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await all_faults(tmp_path, caplog, share=1)

"""Every fault of MCP servers with its full count, and ends as patient as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.mail import Gone
from protocol.mcp_server import Catalogue
from protocol.spec import Down
from protocol.watcher import ServerLimits
from tests.mcp_house import house, odd
from tests.test_server_faults import all_faults


@pytest.mark.seconds(120)
async def test_all_faults_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await all_faults(tmp_path, caplog, share=1)


async def test_a_server_that_has_used_up_its_processor_time_is_ended_and_comes_back() -> None:
    async with house(odd("spins", limits=ServerLimits(cpu_seconds=1))) as at:
        await at.next(Catalogue)
        with pytest.raises(Gone):
            await at.call("hello")
        assert "was ended by SIGXCPU" in (await at.next(Down)).reason
        assert await at.next(Catalogue)

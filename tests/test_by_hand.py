"""Parts restarted by hand: actors, groups, one that is parked; and what is said of paths that nobody has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.errors import Code, Fault
from protocol.reporter import PartState, RestartPart
from protocol.spec import Status
from tests.fakes import ask_tool, say
from tests.mcp_house import ODD
from tests.service import connected, of_type, service

NOT_YET = "import os, sys; os.path.exists('{there}') or sys.exit('not yet'); sys.argv = ['', 'normal']"
IMPATIENT = {"timeout": 0.3, "breaker": {"failures": 1}}


async def test_any_part_is_restarted_also_one_that_is_parked(tmp_path: Path) -> None:
    there = tmp_path / "there"
    code = f"{NOT_YET.format(there=there)}; exec(open({ODD!r}).read())"
    hangs = (ask_tool("hang"), say("done"))
    servers = {"odd": {"command": "python", "args": ["-c", code], "autoReconnect": False, **IMPATIENT}}
    async with service(tmp_path, *hangs, *hangs, say("fine")) as s, s.client() as client:
        (s.state / "servers_config.json").write_text(json.dumps({"mcpServers": servers}))
        await s.tree.until(lambda: "mcp/odd" in s.tree.slots and s.tree.state("mcp/odd") is Status.PARKED)
        await client.until("degraded", what="mcp/odd")
        there.touch()
        reporter = s.ref("reporter")
        assert await reporter.ask(RestartPart("mcp/odd"), within=15) == PartState("mcp/odd", "running")
        await connected(s, "odd")
        await client.until("recovered", what="mcp/odd")

        assert (await client.say("hi"))[-1]["outcome"] == "completed"
        degraded = of_type(client.seen, "degraded")[-1]  # its tool did not answer
        assert (degraded["what"], degraded["retry_in_ms"]) == ("mcp/odd", 30_000)
        assert "mcp/odd failed too often and is left alone for a while" in (await s.get("/readyz"))[2].decode()
        again = of_type(await client.say("again"), "tool_execution")[-1]
        assert "failed 1 times in a row and is left alone; ask again in" in again["result"]
        facts = s.tree.slots["mcp/odd"].facts
        assert (facts["breaker"], facts["refused"]) == ("open", 1)
        for path in ("llm/streamer", "front/gateway", "logs", "mcp"):
            assert await reporter.ask(RestartPart(path), within=15) == PartState(path, "running")
        assert s.tree.slots["llm/streamer"].incarnation == 2
        assert s.tree.slots["mcp/odd"].incarnation == 3
        await client.until("recovered", what="mcp/odd")
        await connected(s, "odd")
        assert s.tree.slots["mcp/odd"].facts["breaker"] == "closed"
        assert (await client.say("once more"))[-1]["outcome"] == "completed"

        for path, code, says in (
            ("mcp/nope", Code.NOT_FOUND, "There is no part 'mcp/nope'; there are: mcp, mcp/odd."),
            ("nope", Code.NOT_FOUND, "There is no part 'nope'; there are: logs, store, store/writer, llm"),
            ("", Code.NOT_FOUND, "There is no part ''"),
            ("watcher", Code.FORBIDDEN, "watcher passes this order on"),
        ):
            with pytest.raises(Fault) as caught:
                await reporter.ask(RestartPart(path), within=15)
            assert caught.value.code is code
            assert says in caught.value.body.text

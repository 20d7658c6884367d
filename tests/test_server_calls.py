"""Deadlines of calls to an MCP server, to the moment: virtual time, and a connection that does not let go."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from actors.server_calls import CEILING, Calls
from actors.server_health import Health
from actors.server_subscriptions import Subscriptions
from protocol.errors import Code, Fault
from protocol.mail import Mailbox
from protocol.mcp_server import CallTool, ToolOutcome
from protocol.spec import Child, Context, Group
from protocol.watcher import BreakerOptions, McpServer, ServerLimits
from supervisors.supervisor import Tree, running
from tests.mcp_house import odd

TIMEOUT_S = 3.0
REST_S = 10.0
LETS_GO_S = 5.0  # what the package may take to write a cancellation to a server that does not read


class Stubborn:
    """A connection whose calls never end, say how far they are as often as they are told, and are slow to let go."""

    bad_lines = broken_promises = 0
    healed = False
    """Calls that begin now are answered at once."""

    def __init__(self, progress_s: float) -> None:
        self.progress_s = progress_s
        self.running = 0

    async def call(self, tool: str, arguments: dict[str, Any], progress: Callable[..., None], keep: object) -> Any:
        if self.healed:
            return ToolOutcome(ok=False, text="what a tool says is an answer")
        self.running += 1
        try:
            steps = 0
            while True:
                await trio.sleep(self.progress_s)
                progress(steps := steps + 1, None, "")
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(LETS_GO_S)
            self.running -= 1


class Desk:
    """An actor that has nothing but calls, on such a connection."""

    def __init__(self, server: McpServer, connection: Stubborn, state: Path) -> None:
        self.server = server
        self.connection = connection
        self.state = state

    async def run(self, box: Mailbox[Any], ctx: Context) -> None:
        subscriptions = Subscriptions(self.server.name, {}, lambda *_: None)
        calls = Calls(self.server, box, ctx, Health(self.server), subscriptions)
        calls.tools = cast(Any, dict.fromkeys(["hang"]))
        calls.connect(cast(Any, self.connection))
        async with trio.open_nursery() as nursery:
            async for message in box:
                calls.take(message, nursery)


def desk(tmp_path: Path, progress_s: float = math.inf, **limits: Any) -> tuple[Group, Stubborn]:
    left_alone = BreakerOptions(failures=2, rest=REST_S)
    server = odd("", timeout=TIMEOUT_S, limits=ServerLimits(**limits), breaker=left_alone)
    connection = Stubborn(progress_s)
    actor = Desk(server, connection, tmp_path)
    return Group("root", (Child("odd", actor.run, args={"state_dir": str(tmp_path)}),)), connection


async def refused(tree: Tree, call: str) -> tuple[Code, float]:
    """How the call ended, and after how many seconds."""
    began = trio.current_time()
    message = CallTool(call=call, tool="hang", arguments={}, to="nobody")
    with pytest.raises(Fault) as caught:
        await tree.ref("odd").ask(message, within=1000)
    return caught.value.code, round(trio.current_time() - began, 6)


@pytest.mark.autojump
async def test_a_call_is_answered_at_its_deadline_however_long_the_package_holds_on(tmp_path: Path) -> None:
    spec, connection = desk(tmp_path)
    async with running(spec) as tree:
        assert await refused(tree, "1") == (Code.TOOL_TIMEOUT, TIMEOUT_S)
        assert connection.running == 1  # it has not let go of it


@pytest.mark.autojump
async def test_progress_moves_the_deadline_to_the_ceiling_and_not_past_it(tmp_path: Path) -> None:
    spec, _ = desk(tmp_path, progress_s=1.0)
    async with running(spec) as tree:
        assert await refused(tree, "1") == (Code.TOOL_TIMEOUT, CEILING * TIMEOUT_S)


@pytest.mark.autojump
async def test_a_call_that_waits_for_its_turn_waits_for_its_timeout(tmp_path: Path) -> None:
    spec, _ = desk(tmp_path, concurrent=1, queue=2)
    ended: list[tuple[Code, float]] = []
    async with running(spec) as tree, trio.open_nursery() as nursery:

        async def one(call: str) -> None:
            ended.append(await refused(tree, call))

        for call in ("runs", "waits", "waits too", "one too many"):
            nursery.start_soon(one, call)
    assert sorted(ended) == [
        (Code.MCP_SERVER_UNAVAILABLE, 0.0),
        *[(Code.MCP_SERVER_UNAVAILABLE, TIMEOUT_S)] * 2,
        (Code.TOOL_TIMEOUT, TIMEOUT_S),
    ]


@pytest.mark.autojump
async def test_the_minute_is_waited_for_within_the_timeout_only(tmp_path: Path) -> None:
    spec, connection = desk(tmp_path, progress_s=1.0, per_minute=1)
    async with running(spec) as tree:
        await refused(tree, "1")
        assert await refused(tree, "2") == (Code.RATE_LIMITED, 0.0)  # the next may begin in half a minute
        await trio.sleep(60 - CEILING * TIMEOUT_S - TIMEOUT_S / 2)
        assert await refused(tree, "3") == (Code.TOOL_TIMEOUT, TIMEOUT_S / 2 + CEILING * TIMEOUT_S)
    assert connection.running == 0


@pytest.mark.autojump
async def test_a_server_that_keeps_failing_is_left_alone_and_then_tried_with_one_call(tmp_path: Path) -> None:
    spec, connection = desk(tmp_path)
    late, alone = (Code.TOOL_TIMEOUT, TIMEOUT_S), (Code.MCP_SERVER_UNAVAILABLE, 0.0)
    async with running(spec) as tree:
        assert [await refused(tree, call) for call in ("1", "2", "3")] == [late, late, alone]
        await trio.sleep(REST_S)
        both: list[tuple[Code, float]] = []

        async def one(call: str) -> None:
            both.append(await refused(tree, call))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "probe")
            nursery.start_soon(one, "another")
        assert sorted(both) == [alone, late]  # one is let through, and fails: then it rests for twice as long
        await trio.sleep(2 * REST_S - 0.1)
        assert await refused(tree, "4") == alone
        connection.healed = True
        await trio.sleep(0.1)
        for call in ("5", "6"):
            message = CallTool(call=call, tool="hang", arguments={}, to="nobody")
            assert not (await tree.ref("odd").ask(message, within=1)).ok
        facts = tree.slots["odd"].facts
        assert (facts["breaker"], facts["calls"], facts["refused"]) == ("closed", 5, 3)
        assert "last_failure" not in facts

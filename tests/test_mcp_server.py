"""The actor of one MCP server, under the real supervisor, with real child processes.

`odd_servers.py` plays all that a server can do wrong; `Servers/demo_server.py` is one that does it right.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from actors import mcp_client, mcp_server, server_calls, server_offer, server_resources
from protocol.contents import Content
from protocol.errors import Code, Fault
from protocol.mail import Gone
from protocol.mcp_server import (
    CancelCall,
    Catalogue,
    GetPrompt,
    PromptMessage,
    ReadResource,
    ResourceContent,
    Resting,
    SetServerLog,
    TellTools,
    ToolOutcome,
    ToolProgress,
)
from protocol.spec import Down, Status, Up
from protocol.watcher import BreakerOptions, ServerLimits
from tests.mcp_house import ODD, ODD_TOOLS, House, connection, demo, house, light, names, odd

RUN_ODD = f"exec(open({ODD!r}).read())"
NEVER_ALONE = BreakerOptions(failures=0)

# A server that does it right.


async def test_the_demo_server_is_listed_read_called_and_cancelled() -> None:
    async with house(demo()) as at:
        catalogue: Catalogue = await at.next(Catalogue)
        assert names(catalogue) == ["add", "dice", "echo", "fail", "now", "slow"]
        assert catalogue.resources == []
        catalogue = await at.next(Catalogue)
        assert [resource.uri for resource in catalogue.resources] == ["demo://readme"]
        assert [prompt.name for prompt in catalogue.prompts] == ["haiku"]
        assert catalogue.instructions
        add = next(tool for tool in catalogue.tools if tool.name == "add")
        assert set(add.schema["properties"]) == {"a", "b"}
        assert add.annotations["readOnlyHint"] is True

        (content,) = await at.ref("demo").ask(ReadResource("demo://readme"), within=15)
        assert content.text is not None
        assert content.text.startswith("A server to try MCP with")
        filled = await at.ref("demo").ask(GetPrompt("haiku", {"topic": "rivers"}), within=15)
        assert "rivers" in str(filled.messages[0].content.text)
        with pytest.raises(Fault) as caught:
            await at.ref("demo").ask(ReadResource("demo://nothing"), within=15)
        assert caught.value.code is Code.NOT_FOUND

        outcome = await at.call("add", "demo", a=2, b=3)
        assert (outcome.ok, outcome.text, outcome.structured) == (True, "5.0", {"result": 5.0})
        failed = await at.call("fail", "demo", message="no luck")
        assert not failed.ok
        assert "no luck" in failed.text
        refused = await at.call("add", "demo", a="many")
        assert not refused.ok
        assert (await at.fault("subtract", "demo")).code is Code.TOOL_NOT_FOUND

        slow = await at.call("slow", "demo", call="c7", steps=3, step_s=0.01)
        assert slow.text == "done after 3 steps"
        progress: ToolProgress = await at.next(ToolProgress)
        assert (progress.call, progress.total) == ("c7", 3.0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled_slow, at)
            while (await at.next(ToolProgress)).call != "c8":
                pass
            at.ref("demo").offer(CancelCall(call="never heard of"))
            at.ref("demo").offer(CancelCall(call="c8"))
        assert (await at.call("echo", "demo", text="still here")).text == "still here"
        facts = at.facts("demo")
        assert (facts["state"], facts["era"], facts["tools"]) == ("ready", "modern", 6)
        assert (facts["calls"], facts["failures"]) == (10, 5)


async def cancelled_slow(at: House) -> None:
    fault = await at.fault("slow", "demo", call="c8", steps=1000, step_s=0.05)
    assert (fault.code, fault.body.text) == (Code.TOOL_FAILED, "cancelled")


async def test_a_stop_lets_a_running_call_end() -> None:
    async with house(light()) as at:
        await at.next(Catalogue)
        outcomes: list[ToolOutcome] = []

        async def slow() -> None:
            outcomes.append(await at.call("slow", "demo", steps=2, step_s=0.2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            await at.next(ToolProgress)
            at.tree.drop_child("mcp/demo")
        assert outcomes[0].ok


async def test_a_stopped_server_withdraws_what_it_offered() -> None:
    async with house(odd("normal")) as at:
        assert names(await at.next(Catalogue)) == ODD_TOOLS
        at.tree.drop_child("mcp/odd")
        assert await at.next(Catalogue) == Catalogue("odd", [], [], [], "")


# Resources and prompts.


async def test_only_resources_that_can_be_read_are_offered_and_the_tools_do_not_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_resources, "EACH_S", 0.3)
    monkeypatch.setattr(server_offer, "CHECK_PAUSE_S", 0.01)
    async with house(odd("resources")) as at:
        first = await at.next(Catalogue)
        assert (names(first), first.resources) == (ODD_TOOLS, [])
        assert [resource.uri for resource in (await at.next(Catalogue)).resources] == ["odd://good"]
        assert (at.facts()["resources"], at.facts()["resources_unavailable"]) == (1, 4)
        await at.call("hello")  # now another one is there
        while [resource.uri for resource in (await at.next(Catalogue)).resources] != ["odd://later"]:
            pass


async def test_resources_are_looked_at_again_without_a_word_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_offer, "CHECK_PAUSE_S", 0.01)
    monkeypatch.setattr(server_offer, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(server_resources, "EACH_S", 0.05)
    async with house(odd("resources")) as at:
        while (await at.next(Catalogue)).resources == []:
            pass
        await at.call("count")  # takes it away
        assert (await at.next(Catalogue)).resources == []


async def test_a_resource_is_read_and_failures_are_typed() -> None:
    async with house(odd("resources", timeout=0.5)) as at:
        read = functools.partial(at.ref().ask, within=15)
        assert await read(ReadResource("odd://good")) == [ResourceContent("odd://good", "", 4, text="good")]
        for uri, code, says in (
            ("odd://gone", Code.NOT_FOUND, "MCP server 'odd' says: no odd://gone here"),
            ("odd://nonsense", Code.TOOL_FAILED, "against the protocol"),
            ("odd://hangs", Code.TOOL_TIMEOUT, "resource 'odd://hangs' of MCP server 'odd' gave no sign of life"),
        ):
            with pytest.raises(Fault, match=says) as caught:
                await read(ReadResource(uri))
            assert caught.value.code is code


async def test_a_prompt_is_filled_in_and_failures_are_typed() -> None:
    async with house(odd("resources")) as at:
        filled = await at.ref().ask(GetPrompt("greet", {"who": "you"}), within=15)
        assert filled.messages == [PromptMessage("user", Content("text", 9, text="Hello you"))]
        with pytest.raises(Fault, match="unknown prompt") as caught:
            await at.ref().ask(GetPrompt("insult", {}), within=15)
        assert caught.value.code is Code.NOT_FOUND


# What a server logs.


async def test_a_server_logs_at_our_level_and_is_told_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = tmp_path / "seen"
    caplog.set_level(logging.DEBUG, "actors.mcp.odd")
    async with house(odd("logs", str(seen)), log_level="WARNING") as at:
        await at.call("hello")
        assert logged(caplog) == ["[db] warning", "[db] emergency"]
        at.ref().offer(SetServerLog("INFO"))
        await at.call("hello", call="2")
        assert logged(caplog)[2:] == ["[db] info", "[db] warning", "[db] emergency"]
        with pytest.raises(Gone):
            await at.call("die")
        await at.next(Down)
        await at.call("hello", call="3")
        assert logged(caplog)[5:] == ["[db] info", "[db] warning", "[db] emergency"]
    told = [line for line in seen.read_text().splitlines() if line.startswith("logging/setLevel")]
    assert told[:1] + told[-1:] == ["logging/setLevel warning", "logging/setLevel info"]


MODERN = """
from mcp.server.mcpserver import Context, MCPServer
server = MCPServer("modern")
@server.tool()
async def hello(ctx: Context) -> str:
    for level in ("debug", "info", "error"):
        await ctx.log(level, level, logger_name="db")
    return "hello"
server.run("stdio")
"""


async def test_a_server_of_the_newer_era_logs_what_each_request_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "actors.mcp.odd")
    async with house(odd("", args=["-W", "ignore", "-c", MODERN]), log_level="INFO") as at:
        await at.next(Catalogue)
        while logged(caplog) == []:  # until it was asked for, nothing comes
            await at.call("hello")
        assert at.facts()["era"] == "modern"
        assert logged(caplog) == ["[db] info", "[db] error"]


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for name, _, text in caplog.record_tuples if name == "actors.mcp.odd" and text.startswith("[db]")]


# What a server can do wrong before it is connected.


async def test_a_server_that_exits_at_start_is_parked_after_its_attempts() -> None:
    on = connection(attempts=2)
    async with house(odd("exits", env={"TOKEN": "planted-secret"}), on=on) as at:
        downs = [await at.next(Down) for _ in range(3)]
        assert [down.parked for down in downs] == [False, False, True]
        assert [down.retry_in_ms is None for down in downs] == [False, False, False]
        assert "ended with exit code 4. Its last words: no config file found, token is ***" in downs[0].reason
        assert (at.facts()["exit_code"], at.facts()["stderr"]) == (4, "no config file found, token is ***")
        with pytest.raises(Gone):
            await at.call("hello")


async def test_without_reconnect_the_first_failure_parks_for_ever() -> None:
    async with house(odd("exits", auto_reconnect=False)) as at:
        down = await at.next(Down)
        assert (down.parked, down.retry_in_ms) == (True, None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"command": "surely-not-installed"}, "'surely-not-installed' was not found; install it or correct `command`"),
        ({"cwd": "surely/not/there"}, "does not exist; correct `cwd`"),
        ({"env": {"KEY": "${SURELY_NOT_SET}"}}, "environment variable SURELY_NOT_SET"),
        ({"args": [ODD, "wrong_version"]}, "Unsupported protocol version from the server: 1999-01-01"),
    ],
)
async def test_what_no_restart_can_help_parks_at_once(fields: dict[str, Any], says: str) -> None:
    async with house(odd("", **fields)) as at:
        down = await at.next(Down)
        assert down.parked
        assert says in down.reason
        assert at.tree.slots["mcp/odd"].status is Status.PARKED


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with house(odd("silent"), on=connection(attempts=0, connect_s=0.3)) as at:
        down = await at.next(Down)
        assert "was not connected and listed within 0.3 s" in down.reason
        assert down.parked


async def test_a_server_that_is_slow_to_connect_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mcp_server, "SLOW_S", 0.05)
    go = tmp_path / "go"
    os.mkfifo(go)
    slow = odd("", args=["-c", f"import sys; open({str(go)!r}).read(); sys.argv = ['', 'normal']; {RUN_ODD}"])
    async with house(slow) as at:
        at.ref().offer(TellTools(to="front/gateway"))
        rests: Resting = await at.next(Resting)
        assert "it has not connected within 0.05 s; its tools are missing" in rests.reason
        await trio.to_thread.run_sync(go.write_text, "")
        assert await at.next(Resting) == Resting("mcp/odd", "")


async def test_a_call_waits_for_the_connection_within_its_own_deadline() -> None:
    async with house(odd("silent", timeout=0.2)) as at:
        fault = await at.fault("hello")
        assert (fault.code, fault.body.retryable) == (Code.MCP_SERVER_UNAVAILABLE, True)
        assert "was not connected within 0.2 s" in fault.body.text


async def test_a_call_made_while_connecting_is_run_then() -> None:
    async with house(odd("normal")) as at:
        assert at.tree.slots["mcp/odd"].facts.get("state") != "ready"
        assert (await at.call("hello", who="me")).text == "hello"


async def test_a_changed_list_is_announced() -> None:
    async with house(odd("changing")) as at:
        assert names(await at.next(Catalogue)) == ODD_TOOLS
        await at.call("hello")
        assert names(await at.next(Catalogue)) == [*ODD_TOOLS, "later"]


async def test_a_gateway_that_comes_back_is_told_again() -> None:
    async with house(odd("normal")) as at:
        first = await at.next(Catalogue)
        at.ref().offer(Up("front/gateway", 2))
        assert await at.next(Catalogue) == first


# What a server can do wrong when it is connected.


async def test_a_death_in_a_call_ends_it_at_once_and_the_next_one_runs() -> None:
    async with house(odd("normal")) as at:
        await at.next(Catalogue)
        with pytest.raises(Gone):
            await at.call("die")
        down = await at.next(Down)
        assert "ended with exit code 7. Its last words: dying in the call" in down.reason
        assert (await at.call("hello")).text == "hello"


async def test_an_idle_death_is_noticed() -> None:
    async with house(odd("dies_idle"), on=connection(attempts=0)) as at:
        down = await at.next(Down)
        assert "ended with exit code 5. Its last words: tired of waiting" in down.reason


async def test_an_idle_server_that_answers_no_probe_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_server, "PROBE_AFTER_S", 0.05)
    on = msgspec.structs.replace(connection(attempts=0), ping_timeout=0.2)
    async with house(odd("stops_reading"), on=on) as at:
        assert "was idle and gave no sign of life for 0.2 s" in (await at.next(Down)).reason


@pytest.mark.parametrize(("protocol", "question"), [("legacy", "ping"), ("auto", "server/discover")])
async def test_an_idle_server_that_answers_stays(
    protocol: str, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_server, "PROBE_AFTER_S", 0.02)
    asked = trio.Event()
    real = mcp_client.Connected.answers

    async def answers(self: mcp_client.Connected, within: float) -> bool:
        answered = await real(self, within)
        if answered:
            asked.set()
        return answered

    monkeypatch.setattr(mcp_client.Connected, "answers", answers)
    seen = tmp_path / "seen"
    server = odd("recorded", str(seen), protocol=protocol) if protocol == "legacy" else light()
    async with house(server) as at:
        await asked.wait()
        assert at.tree.slots[f"mcp/{server.name}"].incarnation == 1
    if protocol == "legacy":
        assert question in seen.read_text().split()


async def test_a_server_that_works_on_a_call_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_server, "PROBE_AFTER_S", 0.02)
    on = msgspec.structs.replace(connection(attempts=0), ping_timeout=0.05)
    async with house(odd("stops_reading", timeout=0.5), on=on) as at:
        assert (await at.fault("hello")).code is Code.TOOL_TIMEOUT


async def test_an_answer_against_the_protocol_fails_its_call() -> None:
    async with house(odd("nonsense")) as at:
        await at.next(Catalogue)
        fault = await at.fault("hello")
        assert fault.code is Code.TOOL_FAILED
        assert "an answer against the protocol" in fault.body.text


async def test_an_error_of_the_server_is_told_to_the_model() -> None:
    async with house(odd("refusing")) as at:
        await at.next(Catalogue)
        outcome = await at.call("hello")
        assert (outcome.ok, outcome.text) == (False, "who is missing")


async def test_a_call_that_hangs_times_out_alone_and_the_server_is_told() -> None:
    async with house(odd("normal", timeout=0.3)) as at:
        await at.next(Catalogue)
        fault = await at.fault("hang")
        assert fault.code is Code.TOOL_TIMEOUT
        assert "'hang' of MCP server 'odd' gave no sign of life for 0.3 s" in fault.body.text
        assert (await at.call("count")).text == "1"


async def test_progress_keeps_a_call_alive_up_to_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_calls, "CEILING", 3)
    async with house(light(timeout=0.5)) as at:
        await at.next(Catalogue)
        assert (await at.call("slow", "demo", steps=3, step_s=0.25)).ok
        fault = await at.fault("slow", "demo", steps=100, step_s=0.1)
        assert fault.code is Code.TOOL_TIMEOUT
        assert "was not done within 1.5 s" in fault.body.text


async def test_a_server_that_stops_reading_times_out_and_others_do_not_notice() -> None:
    async with house(odd("stops_reading", timeout=0.5), odd("normal", name="other")) as at:
        await at.next(Catalogue)
        await at.next(Catalogue)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(times_out, at, "a" * 1_000_000)
            nursery.start_soon(times_out, at, "b")
            for number in range(20):
                assert (await at.call("hello", "other", call=str(number))).text == "hello"


async def times_out(at: House, text: str) -> None:
    assert (await at.fault("hello", call=text[:1], text=text)).code is Code.TOOL_TIMEOUT


async def test_more_calls_than_it_may_hold_are_refused() -> None:
    limits = ServerLimits(concurrent=3, queue=4)
    async with house(odd("normal", timeout=0.3, limits=limits, breaker=NEVER_ALONE)) as at:
        await at.next(Catalogue)
        faults: list[Fault] = []

        async def hang(number: int) -> None:
            faults.append(await at.fault("hang", call=str(number)))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(hang, number)
        texts = [fault.body.text for fault in faults]
        assert sum("has 3 calls running and 4 waiting already" in text for text in texts) == 5
        assert sum("gave no sign of life" in text for text in texts) >= 3
        assert {fault.code for fault in faults} == {Code.TOOL_TIMEOUT, Code.MCP_SERVER_UNAVAILABLE}


async def test_calls_over_the_limit_of_a_minute_are_refused_when_they_would_wait_too_long() -> None:
    async with house(odd("normal", limits=ServerLimits(per_minute=2))) as at:
        assert [(await at.call("hello", call=str(number))).text for number in (1, 2)] == ["hello", "hello"]
        fault = await at.fault("hello")
        assert (fault.code, fault.body.retryable) == (Code.RATE_LIMITED, True)
        assert re.search(r"takes 2 calls a minute; the next may begin in \d\d s", fault.body.text)


async def test_a_result_over_its_limit_is_cut_for_the_model() -> None:
    async with house(odd("big", limits=ServerLimits(result_bytes=1000))) as at:
        outcome = await at.call("hello")
        assert outcome.text == f"{'x' * 1000}\n[cut here: these are the first 1000 of 5000000 bytes]"


async def test_a_server_that_keeps_failing_is_left_alone_and_that_is_told() -> None:
    async with house(odd("normal", timeout=0.2, breaker=BreakerOptions(failures=2, rest=30.0))) as at:
        await at.next(Catalogue)
        assert [(await at.fault("hang", call=str(number))).code for number in (1, 2)] == [Code.TOOL_TIMEOUT] * 2
        refused = await at.fault("hello")
        assert (refused.code, refused.body.retryable) == (Code.MCP_SERVER_UNAVAILABLE, True)
        assert "failed 2 times in a row and is left alone; ask again in" in refused.body.text
        assert "actors-main restart mcp/odd" in refused.body.hint
        facts = at.facts()
        assert (facts["breaker"], facts["refused"], facts["failures"]) == ("open", 1, 2)
        assert "gave no sign of life" in facts["last_failure"]
        rests: Resting = await at.next(Resting)
        assert (rests.path, rests.retry_in_ms) == ("mcp/odd", 30_000)
        assert "it failed 2 times in a row; the last time: The tool 'hang' of MCP" in rests.reason


async def test_an_idle_server_is_ended_and_started_by_the_next_call() -> None:
    asleep = ServerLimits(idle_timeout=0.05)
    async with house(odd("normal", limits=asleep), odd("silent", name="other")) as at:
        assert names(await at.next(Catalogue)) == ODD_TOOLS
        await asleep_now(at)
        assert "pid" not in at.facts()
        at.ref().offer(TellTools(to="front/gateway"))
        assert names(await at.next(Catalogue)) == ODD_TOOLS  # stays offered
        assert (await at.call("hello")).text == "hello"
        assert at.facts()["calls"] == 1
        await asleep_now(at)
        slot = at.tree.slots["mcp/odd"]
        assert (slot.incarnation, slot.last_error) == (1, "")


async def asleep_now(at: House) -> None:
    while at.facts().get("state") != "asleep":  # noqa: ASYNC110 - facts are for people: nobody is told of them
        await trio.sleep(0.01)  # between two looks


async def test_a_sleeping_server_that_does_not_come_back_in_time_fails_the_call(tmp_path: Path) -> None:
    once = tmp_path / "once"
    at_first = f"import os, sys; os.path.exists({str(once)!r}) and os.execv('/bin/sleep', ['sleep', '60'])"
    server = odd("", args=["-c", f"{at_first}; open({str(once)!r}, 'w'); sys.argv = ['', 'normal']; {RUN_ODD}"])
    limits = ServerLimits(idle_timeout=0.05)
    async with house(msgspec.structs.replace(server, limits=limits, timeout=0.3)) as at:
        await at.next(Catalogue)
        await asleep_now(at)
        fault = await at.fault("hello")
        assert fault.code is Code.MCP_SERVER_UNAVAILABLE
        assert "was not connected within 0.3 s" in fault.body.text


async def test_an_id_in_use_is_refused() -> None:
    async with house(odd("normal", timeout=0.3)) as at:
        await at.next(Catalogue)
        codes: list[Code] = []

        async def hang() -> None:
            codes.append((await at.fault("hang")).code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang)
            nursery.start_soon(hang)
        assert codes == [Code.TOOL_FAILED, Code.TOOL_TIMEOUT]


def test_the_actor_does_not_import_the_mcp_package() -> None:
    code = "import sys, actors.mcp_server; sys.exit('mcp' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

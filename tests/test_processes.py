"""The service as several processes: whatever dies behind the fronts, no socket is lost and every turn ends once.

A service of this kind takes seconds to start, so one shows in turn what can be shown of it.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
import yaml

from tests.fleet import Fleet, Node, Talk, chaos, fleet, kept, renew
from tests.scripts import Pause, Script, ask_tool, say
from tests.service import LIGHT, Client, of_type, text_of
from tests.test_server_asks import asking
from tests.test_server_requests import FORM

pytestmark = pytest.mark.seconds(60)  # each starts a service of six processes and goes through all that it can show

WORDS = [f"w{number} " for number in range(30)]
TWENTIETH_S = 3.0  # of the minute of tests/soak
PIECE_S = 0.02  # between two words: whatever happens, happens in mid-answer
APART = {"apart": {**LIGHT["demo"], "isolate": True}}
ODD = str(Path(__file__).with_name("odd_servers.py"))


def answer(body: dict[str, Any]) -> Script:
    """A call of the tool that the user's last message is about if none has run; else an answer that takes a while."""
    last = body["messages"][-1]
    named = {"can": "can", "tool": "add", "apart": "apart__add", "slow": "apart__slow"}
    if last["role"] == "user" and last["content"] in named:
        offered = [tool["function"]["name"] for tool in body.get("tools", [])]
        name = next((name for name in offered if name.endswith(named[last["content"]])), "add")
        return ask_tool(name, {"steps": 500} if last["content"] == "slow" else {"a": 1, "b": 2})
    if last["role"] == "user" and last["content"] == "asked":
        return ask_tool("ask", {"requests": {"form": FORM}})
    if last["content"] == "rest":
        return Script((*WORDS[:20], Pause(30), "never"))
    return say(*WORDS)


def commands(pid: int) -> list[str]:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def until_runs(client: Client, tool: str) -> None:
    """A turn calls that tool, with success."""
    for number in range(200):
        frames = await client.say(tool, request_id=f"{tool}{number}{len(client.seen)}")
        if any(frame["status"] == "completed" for frame in of_type(frames, "tool_execution")):
            return
        await trio.sleep(0.05)  # servers connect behind the start
    raise AssertionError("no tool ran")


async def test_they_are_seen_share_the_configuration_die_alone_and_are_replaced_without_loss(tmp_path: Path) -> None:
    async with fleet(tmp_path, answer, servers={**LIGHT, **APART, **asking("older")}, interval=PIECE_S) as (f, _):
        await are_shown_and_share_the_configuration(f)
        await what_a_server_asks_is_answered_at_another_front(f)
        await a_server_in_a_process_of_its_own_dies_alone(f)
        await a_front_dies_and_its_clients_go_on_at_the_other(f)
        await all_are_replaced_under_load_and_no_turn_is_lost(f)


async def are_shown_and_share_the_configuration(f: Fleet) -> None:
    processes = await f.processes()
    assert set(processes) - {"apart"} == {"store", "llm", "mcp", "front1", "front2"}
    for role, node in processes.items():
        assert role in " ".join(commands(node.pid)), "the role can be read in ps"
    actors = {node.path for node in (await f.status()).all() if node.kind == "actor"}
    assert {"watcher", "store/writer", "llm/streamer", "mcp/demo", "front1/gateway", "front2/gateway"} <= actors
    async with f.client() as client:
        await until_runs(client, "tool")
        frames = await client.say("text")
        assert text_of(frames) == "".join(WORDS)
        assert frames[-1]["outcome"] == "completed"

        path = f.state / "runtime_config.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["chat"].setdefault("websocket", {})["endpoint"] = "/ws/chat"
        settings["chat"]["service"]["max_tool_hops"] = 3
        settings["logging"] = {"level": "ERROR"}
        path.write_text(yaml.safe_dump(settings))
        await client.until("config_changed")
        assert (await client.say("text"))[-1]["outcome"] == "completed"
        await all_log_at(f, "ERROR")
        settings["logging"] = {"level": "INFO"}
        path.write_text(yaml.safe_dump(settings))
        await all_log_at(f, "INFO")


async def all_log_at(f: Fleet, level: str) -> None:
    """Every process follows the configuration."""
    while True:
        levels = [node.facts.get("level") for node in (await f.status()).all() if node.path == "logs"]
        if levels == [level] * 7:  # the root, five roles, and the server that has a process of its own
            return
        await trio.sleep(0.05)  # an edit counts within a second


async def what_a_server_asks_is_answered_at_another_front(f: Fleet) -> None:
    async with f.client("?conversation=new") as one:
        await until_runs(one, "can")  # the server is there
        other = one.conversation
        while await f.owner(other) == await f.owner(one.conversation):
            async with f.client("?conversation=new") as elsewhere:
                await elsewhere.say("text")
                other = elsewhere.conversation
        async with f.client(f"?conversation={other}") as elsewhere:
            await one.send("user_message", message="asked")
            asked = (await one.until("question"))[-1]
            answer = {"question_id": asked["question_id"], "action": "accept", "content": {"name": "Ada"}}
            await elsewhere.send("answer", **answer)
            frames = await one.until("turn_finished")
            [ended] = [frame for frame in of_type(frames, "tool_execution") if frame["status"] == "completed"]
            assert json.loads(ended["result"]) == {"form": {"action": "accept", "content": {"name": "Ada"}}}
            assert (await elsewhere.until("question_settled", outcome="accepted"))[-1]["question_id"]
            # a front that dies takes what was asked through it along: the server works on the next call
            await one.send("user_message", message="asked")
            await one.until("question")
            owner = await f.owner(one.conversation)
            pid = await f.kill(owner)
            await until_runs(elsewhere, "can")
            await f.replaced(owner, pid)


def below(root: Node, path: str) -> list[Node]:
    return [node for node in root.all() if node.path == path]


async def a_server_in_a_process_of_its_own_dies_alone(f: Fleet) -> None:
    """`isolate: true`; nobody notices it but the status."""
    async with f.client() as client:
        await until_runs(client, "apart")
        tree = await f.status()
        [stand_in, real] = below(tree, "mcp/apart")
        [mcp] = [node for node in tree.all() if node.kind == "process" and node.name == "mcp"]
        [demo] = below(tree, "mcp/demo")
        assert stand_in.kind == "process"
        assert len({stand_in.pid, mcp.pid, f.program.pid}) == 3
        assert real.pid == stand_in.pid
        assert demo.pid == mcp.pid
        await client.send("user_message", message="slow", request_id="slow")
        await client.until("tool_execution", status="progress")
        os.kill(stand_in.pid, signal.SIGKILL)
        frames = await client.until("turn_finished")
        assert frames[-1]["outcome"] == "completed", "a call that fails does not end the turn"
        assert of_type(frames, "tool_execution")[-1]["status"] in ("failed", "unknown")
        await until_runs(client, "apart")
        tree = await f.status()
        assert below(tree, "mcp/apart")[0].pid != stand_in.pid
        assert [node.pid for node in below(tree, "mcp/demo")] == [mcp.pid]
        assert below(tree, "mcp/demo")[0].restarts == 0


async def a_front_dies_and_its_clients_go_on_at_the_other(f: Fleet) -> None:
    async with f.client("?conversation=new") as first:
        await first.send("user_message", message="rest", request_id="r1")
        frames = await first.until("assistant_delta")
        owner = await f.owner(first.conversation)
        async with f.client(f"?conversation={first.conversation}") as second:
            # wherever it landed, it sees the turn from its start
            seen = await second.until("assistant_delta")
            assert next(frame["type"] for frame in seen if "turn" in frame) == "turn_started"
        while len(text_of(frames)) < len("".join(WORDS[:20])):
            frames.append(await first.next())
        await trio.sleep(0.3)  # the text is on disk within a tick
        pid = await f.kill(owner)
        with pytest.raises(trio_websocket.ConnectionClosed):
            await first.until("nothing that comes")
        position = frames[-1]["seq"]
        async with f.client(f"?conversation={first.conversation}") as back:
            assert back.conversation == first.conversation
            await back.send("resume", turn=1, seq=position)
            closing = await back.until("turn_finished")
            assert closing[-1]["outcome"] == "interrupted"
            [whole] = of_type(closing, "assistant_message")
            assert whole["message"] == text_of(frames)
        await f.replaced(owner, pid)
    await all_servers_are_offered_at(f, owner)


async def all_servers_are_offered_at(f: Fleet, front: str) -> None:
    """Also at a front that came after them, and also what lives in a process of its own."""
    while True:
        async with f.client("?conversation=new") as client:
            await client.say("text")
            if await f.owner(client.conversation) != front:
                continue
            for _ in range(200):
                await client.send("list_tools")
                if {"demo", "apart"} <= {tool["server"] for tool in (await client.until("tools"))[-1]["tools"]}:
                    return
                await trio.sleep(0.05)  # it has only just come
            raise AssertionError(f"{front} does not know what is offered")


async def all_are_replaced_under_load_and_no_turn_is_lost(f: Fleet) -> None:
    before = {role: node.pid for role, node in (await f.processes()).items()}
    talks, over = [Talk() for _ in range(6)], trio.Event()
    async with trio.open_nursery() as nursery:
        for one in talks:
            nursery.start_soon(renew, f, one, over)
        for one in talks:
            await one.talking.wait()
        f.program.signal(signal.SIGHUP)
        await f.program.logged("SIGHUP: done")
        over.set()
    after = await f.processes()
    assert set(after) - {"apart"} == {"store", "llm", "mcp", "front3", "front4"}
    assert not {node.pid for node in after.values()} & {*before.values()}
    await all_servers_are_offered_at(f, "front3")
    for one in talks:
        assert len(one.acknowledged) == len(one.outcomes)
        assert {*one.outcomes.values()} == {"completed"}
    await kept(f, talks)


async def test_roles_are_killed_under_talking_clients_no_socket_is_lost_and_nothing_outlives_a_killed_root(
    tmp_path: Path,
) -> None:
    servers = {**LIGHT, "stubborn": {"command": "python", "args": [ODD, "stubborn", str(tmp_path / "grandchild")]}}
    async with fleet(tmp_path, answer, servers=servers, interval=PIECE_S) as (f, _):
        roles = ("llm", "mcp", "store")
        happened = await chaos(f, seconds=TWENTIETH_S, clients=8, seed=1, roles=roles)
        assert {*happened.kills} == {*roles}
        turns = [outcome for one in happened.talks for outcome in one.outcomes.values()]
        assert len(turns) > 20
        assert "completed" in turns
        assert set().union(*(one.notices for one in happened.talks)) == {"degraded", "recovered"}
        assert happened.probes > 5
        await kept(f, happened.talks)

        await f.program.children(8)  # five roles, two servers, and a child of one of these that ignores everything
        f.program.signal(signal.SIGKILL)
        await f.program.nothing_left()

"""The service as several processes: whatever dies behind the fronts, no socket is lost and every turn ends once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
import yaml

from tests.fleet import Talk, chaos, fleet, kept, renew
from tests.program import outcomes
from tests.scripts import Pause, Script, ask_tool, say
from tests.service import Client, of_type, text_of

pytestmark = pytest.mark.seconds(45)  # each starts a service of six processes

WORDS = [f"w{number} " for number in range(30)]
TWENTIETH_S = 3.0  # of the minute of tests/soak


def answer(body: dict[str, Any]) -> Script:
    """A tool call where the user's last message asks for one and none has run; else an answer that takes a while."""
    last = body["messages"][-1]
    if last["role"] == "user" and last["content"] == "tool":
        return ask_tool("add", {"a": 1, "b": 2})
    return say(*WORDS)


def commands(pid: int) -> list[str]:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def until_tools(client: Client) -> None:
    """Turns are offered tools."""
    for number in range(100):
        frames = await client.say("tool", request_id=f"try{number}")
        if any(frame["status"] == "completed" for frame in of_type(frames, "tool_execution")):
            return
        await trio.sleep(0.05)  # servers connect behind the start
    raise AssertionError("no tool ran")


async def test_several_processes_are_shown_share_the_configuration_and_take_turns_with_tools(tmp_path: Path) -> None:
    async with fleet(tmp_path, answer) as (f, _):
        processes = await f.processes()
        assert set(processes) == {"store", "llm", "mcp", "front1", "front2"}
        for role, node in processes.items():
            assert role in commands(node.pid), "the role can be read in ps"
        actors = {node.path for node in (await f.status()).all() if node.kind == "actor"}
        assert {"watcher", "store/writer", "llm/streamer", "mcp/demo", "front1/gateway", "front2/gateway"} <= actors
        async with f.client() as client:
            await until_tools(client)
            where = ["--state", str(f.state)]
            again, nope = await outcomes(["restart", *where, "mcp/demo"], ["restart", *where, "mcp/nope"])
            assert again == (0, "mcp/demo was restarted and is running\n", "")
            assert nope[0] == 1
            assert "There is no part 'mcp/nope'; there are: mcp, mcp/demo." in nope[2]
            [demo] = [node for node in (await f.status()).all() if node.path == "mcp/demo"]
            assert demo.restarts == 1
            frames = await client.say("text")
            assert text_of(frames) == "".join(WORDS)
            assert frames[-1]["outcome"] == "completed"

            path = f.state / "runtime_config.yaml"
            settings = yaml.safe_load(path.read_text())
            settings["chat"].setdefault("websocket", {})["endpoint"] = "/ws/chat"
            settings["chat"]["service"]["max_tool_hops"] = 3
            path.write_text(yaml.safe_dump(settings))
            await client.until("config_changed")
            assert (await client.say("text"))[-1]["outcome"] == "completed"


async def test_roles_are_killed_under_talking_clients_and_no_socket_is_lost(tmp_path: Path) -> None:
    async with fleet(tmp_path, answer, interval=0.02) as (f, _):
        roles = ("llm", "mcp", "store")
        happened = await chaos(f, seconds=TWENTIETH_S, clients=8, seed=1, roles=roles)
        assert {*happened.kills} == {*roles}
        turns = [outcome for one in happened.talks for outcome in one.outcomes.values()]
        assert len(turns) > 20
        assert "completed" in turns
        assert set().union(*(one.notices for one in happened.talks)) == {"degraded", "recovered"}
        assert happened.probes > 5
        await kept(f, happened.talks)


async def test_a_front_dies_and_its_clients_go_on_at_the_other(tmp_path: Path) -> None:
    script = Script((*WORDS[:10], Pause(0.1), *WORDS[10:20], Pause(30), "never"))
    async with fleet(tmp_path, script, servers={}) as (f, _), f.client("?conversation=new") as first:
        await first.send("user_message", message="text", request_id="r1")
        frames = await first.until("assistant_delta")
        owner = await f.owner(first.conversation)
        async with f.client(f"?conversation={first.conversation}") as second:
            # wherever it landed, it sees the turn from its start
            seen = await second.until("assistant_delta")
            assert seen[0]["type"] == "turn_started"
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


async def test_nothing_outlives_a_root_that_is_killed(tmp_path: Path) -> None:
    odd = str(Path(__file__).with_name("odd_servers.py"))
    servers = {"stubborn": {"command": "python", "args": [odd, "stubborn", str(tmp_path / "grandchild")]}}
    async with fleet(tmp_path, answer, servers=servers) as (f, _):
        await f.program.children(7)  # with the server's own child
        f.program.remember_children()
        f.program.signal(signal.SIGKILL)
        await f.program.nothing_left()


async def test_every_process_is_replaced_under_load_and_no_turn_is_lost(tmp_path: Path) -> None:
    async with fleet(tmp_path, answer, interval=0.02) as (f, _):
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
        assert set(after) == {"store", "llm", "mcp", "front3", "front4"}
        assert not {node.pid for node in after.values()} & {*before.values()}
        for one in talks:
            assert len(one.acknowledged) == len(one.outcomes)
            assert {*one.outcomes.values()} == {"completed"}
        await kept(f, talks)

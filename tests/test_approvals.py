"""Calls that wait for a person: nothing is made before it is allowed, and whoever dies, the turn goes on.

The store's part is in test_pending.py, the rules are in test_policy.py.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio_websocket
import yaml

from actors.effects import Ask, Close, RunCalls, Start, Suspend
from actors.rebuilding import rebuilt
from actors.store import Store
from actors.turn import Turns
from actors.waiting import waited_for
from protocol.errors import Code, Fault
from protocol.pending import OpenPending, Pending, ReadPending
from protocol.watcher import ToolNotifications
from protocol.writer import (
    Append,
    BeginTurn,
    Enter,
    Event,
    FrontGone,
    LoadHistory,
    Release,
    TakeUnfinished,
    ToolApproved,
    ToolEnded,
    ToolStarted,
    Unfinished,
    UserEvent,
)
from tests.fakes import FakeProvider, Script, ask_tool, ask_tools, say
from tests.program import program
from tests.service import LIGHT, Client, Frame, Service, merge_into, of_type, prepare, service, text_of
from tests.stores import ask, closed, do, hop
from tests.test_claims import store
from tests.test_crash import client_of

ASK_ADD: dict[str, Any] = {"chat": {"tools": {"policy": {"demo/add": "ask", "dice": "deny"}}}}
HOPS = "The model asked for tools more than 8 times in one turn."
ADD = ask_tool("add", {"a": 1, "b": 2}, text=("let ", "me see"))


async def change(s: Service, client: Client, changes: Mapping[str, Any]) -> None:
    path = s.state / "runtime_config.yaml"
    settings = yaml.safe_load(path.read_text())
    merge_into(settings, changes)
    path.write_text(yaml.safe_dump(settings))
    await client.until("config_changed")


def ends(frames: list[Frame]) -> dict[str, str]:
    """How each tool's call ended."""
    return {f["tool_name"]: f["status"] for f in of_type(frames, "tool_execution") if f["status"] != "executing"}


def told(s: Service, request: int) -> dict[str, str]:
    """What the model was told of its calls, by the model's id."""
    messages = s.provider.requests[request - 1].json["messages"]
    return {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}


async def test_what_is_asked_waits_and_all_else_goes_on(tmp_path: Path) -> None:
    no_arguments: dict[str, Any] = {}
    calls = (("1", "add", {"a": 1, "b": 2}), ("2", "echo", {"text": "hi"}), ("3", "dice", no_arguments))
    replies = (ask_tools(*calls), say("one"), ADD, say("two"), ADD, say("three"), ADD, say("four"))
    async with service(tmp_path, *replies, servers=LIGHT, settings=ASK_ADD) as s, s.client() as client:
        await client.send("user_message", message="go", request_id="r1")
        frames = await client.until("approval_request")
        while "completed" not in (now := ends(frames)).values() or "denied" not in now.values():
            frames.append(await client.next())
        assert now == {"echo": "completed", "dice": "denied"}, "they do not wait for the third"
        [request] = of_type(frames, "approval_request")
        [begun] = [f for f in of_type(frames, "tool_execution") if f["tool_name"] == "add"]
        assert (request["turn"], request["call_id"]) == (1, begun["call_id"])
        assert (request["server"], request["arguments"]) == ("demo", {"a": 1, "b": 2})
        assert "demo/add: ask" in request["reason"]
        await client.send("approve", approval_id=request["approval_id"], decision="once", arguments={"a": 40, "b": 2})
        frames = await client.until("turn_finished")
        assert (frames[-1]["outcome"], ends(frames)) == ("completed", {"add": "completed"})
        said = told(s, 2)
        assert '"a":40' in said["1"]
        assert "42" in said["1"], "and the model knows why"
        assert said["2"] == "hi"
        assert said["3"].startswith("FORBIDDEN")
        await client.send("history")
        [_, answer] = (await client.until("history"))[-1]["messages"]
        used = {tool["tool_name"]: tool for tool in answer["tools"]}
        assert json.loads(used["add"]["arguments"]) == {"a": 40, "b": 2}, "what was really run"
        assert used["dice"]["status"] == "denied"

        # always: this owner is asked no more, for this tool of this server
        await client.send("user_message", message="again", request_id="r2")
        request = (await client.until("approval_request"))[-1]
        await client.send("approve", approval_id=request["approval_id"], decision="always")
        frames = await client.until("turn_finished")
        assert ends(frames) == {"add": "completed"}
        frames = await client.say("and again", request_id="r3")
        assert not of_type(frames, "approval_request")
        assert ends(frames) == {"add": "completed"}

        # until it is taken back
        await client.send("list_grants")
        [granted] = (await client.until("grants"))[-1]["grants"]
        assert (granted["server"], granted["name"]) == ("demo", "add")
        await client.send("revoke_grant", server="demo", name="add")
        assert (await client.until("grants"))[-1]["grants"] == []
        await client.send("revoke_grant", server="demo", name="add")
        assert (await client.until("error"))[-1]["error_code"] == "NOT_FOUND"

        # a rule that comes later counts at once, over what was allowed
        await change(s, client, {"chat": {"tools": {"policy": {"demo/add": "deny"}}}})
        assert ends(await client.say("once more", request_id="r4")) == {"add": "denied"}


async def test_it_is_denied_by_a_person_by_time_and_by_the_entry_of_its_server_and_a_stop_ends_it(
    tmp_path: Path,
) -> None:
    servers = {"demo": {**LIGHT["demo"], "policy": {"add": "ask"}}}
    replies = (ADD, say("no?"), ADD, say("late"), ADD, say("after"))
    async with service(tmp_path, *replies, servers=servers) as s, s.client() as client:
        await client.send("user_message", message="1", request_id="r1")
        request = (await client.until("approval_request"))[-1]
        assert "entry of server 'demo'" in request["reason"]
        await client.send("approve", approval_id=request["approval_id"], decision="deny")
        assert ends(await client.until("turn_finished")) == {"add": "denied"}
        assert "user does not allow" in told(s, 2)["call_1"]

        incarnation = s.tree.slots["mcp/demo"].incarnation
        await change(s, client, {"chat": {"tools": {"approval_timeout": 0.2, "policy": {"echo": "ask"}}}})
        frames = await client.say("2", request_id="r2")
        assert (frames[-1]["outcome"], ends(frames)) == ("completed", {"add": "denied"})
        assert of_type(frames, "approval_settled")[-1]["outcome"] == "expired"
        assert "nobody approved" in told(s, 4)["call_1"]

        await change(s, client, {"chat": {"tools": {"approval_timeout": 600.0}}})
        await client.send("user_message", message="3", request_id="r3")
        request = (await client.until("approval_request"))[-1]
        await client.send("stop")
        frames = await client.until("turn_finished")
        if not (settled := of_type(frames, "approval_settled")):
            settled = (await client.until("approval_settled"))[-1:]
        assert settled[0]["outcome"] == "cancelled"
        assert (frames[-1]["outcome"], ends(frames)) == ("stopped", {"add": "cancelled"})
        await client.send("approve", approval_id=request["approval_id"], decision="once")
        assert (await client.until("error"))[-1]["error_code"] == "ALREADY_SETTLED"
        assert len(s.provider.requests) == 5
        assert s.tree.slots["mcp/demo"].incarnation == incarnation, "rules restart no server"


async def test_a_session_that_dies_goes_on_waiting_and_so_does_the_next_service(tmp_path: Path) -> None:
    replies = (
        ask_tools(("1", "add", {"a": 1, "b": 2}), ("2", "echo", {"text": "x"}), text=("let ", "me")),
        say("done"),
    )
    async with service(tmp_path, *replies, servers=LIGHT, settings=ASK_ADD) as s, s.client() as client:
        await client.send("user_message", message="go", request_id="r1")
        frames = await client.until("approval_request")
        while not ends(frames):
            frames.append(await client.next())
        request = of_type(frames, "approval_request")[0]
        path, tapped = f"front/sessions/{client.conversation}", trio.Event()

        def die(message: object) -> None:
            if not tapped.is_set():
                tapped.set()
                raise RuntimeError("boom")

        # the outcome of the other call is stored a moment after it is shown
        while not any(
            isinstance(e.event, ToolEnded)
            for e in (await s.ref("store/writer").ask(LoadHistory("local", client.conversation), within=5)).events
        ):
            await trio.lowlevel.checkpoint()
        s.tree.tap(path, die)
        s.ref(path).nudge()
        await tapped.wait()
        seen = [*frames, *await client.until("recovered")]
        last = max(frame["seq"] for frame in seen if "seq" in frame)
        conversation = client.conversation
        assert not of_type(seen, "turn_finished")
    async with (
        service(tmp_path, say("done"), servers=LIGHT, settings=ASK_ADD) as s,
        s.client(f"?conversation={conversation}") as late,
        s.client(f"?conversation={conversation}") as back,
    ):
        await back.send("resume", turn=1, seq=last)
        for client in (late, back):
            if not of_type(client.seen, "approval_request"):
                await client.until("approval_request", approval_id=request["approval_id"])
        await late.send("approve", approval_id=request["approval_id"], decision="once")
        frames = await late.until("turn_finished")
        shown = [f for f in late.seen if f.get("turn") == 1]
        assert (frames[-1]["outcome"], frames[-1]["turn"]) == ("completed", 1)
        assert text_of(shown) == "let medone" == of_type(shown, "assistant_message")[0]["message"]
        assert ends(shown) == {"echo": "completed", "add": "completed"}
        said = told(s, 1)
        assert (said["1"], said["2"]) == ("3", "x") or said["1"].startswith("3")
        # who had a position gets what comes after it, and nothing twice
        rest = [f for f in [*back.seen, *await back.until("turn_finished")] if f.get("turn") == 1 and "seq" in f]
        assert [f["seq"] for f in rest] == sorted(f["seq"] for f in shown if f.get("seq", 0) > last)
        assert text_of(rest) == "done"


async def test_what_nobody_approved_while_the_service_was_down_is_denied(tmp_path: Path) -> None:
    async with service(tmp_path, ADD, servers=LIGHT, settings=ASK_ADD) as s, s.client() as client:
        await client.send("user_message", message="go")
        await client.until("approval_request")
        path = str(s.state / "chat_history.db")
    with closing(apsw.Connection(path)) as db:
        db.execute("UPDATE pending SET expires_at = made_at")  # much time has passed
    async with service(tmp_path, say("too late"), servers=LIGHT, settings=ASK_ADD) as s, s.client() as client:
        await client.send("resume", turn=1, seq=0)  # it may be over before anybody has come
        frames = [*client.seen, *await client.until("turn_finished")]
        assert (frames[-1]["outcome"], ends(frames)) == ("completed", {"add": "denied"})
        assert "nobody approved" in told(s, 1)["call_1"]


@pytest.mark.seconds(60)
async def test_a_stop_and_a_kill_of_the_service_leave_it_waiting(tmp_path: Path) -> None:
    def reply(asked: Any) -> Script:
        return say("done") if asked["messages"][-1]["role"] == "tool" else ADD

    async with FakeProvider(reply) as provider:
        settings = {"chat": {**ASK_ADD["chat"], "service": {"drain_s": 60.0}}}
        prepare(tmp_path, provider, settings, LIGHT)
        arguments = ("--state", str(tmp_path), "--port", "0")
        async with program(*arguments) as p, client_of(await p.listening()) as client:
            while not (await answered(client, "tool")):
                pass
            conversation = client.conversation
            p.signal(signal.SIGTERM)
            assert await p.ended() == 0, "it does not wait for the person, nor call the turn interrupted"
            assert "interrupted" not in p.log
        async with program(*arguments) as p, client_of(await p.listening()) as client:
            request = (await client.until("approval_request"))[-1]
            p.signal(signal.SIGKILL)
            with contextlib.suppress(trio_websocket.ConnectionClosed):
                await client.until("nothing more comes")
        async with program(*arguments) as p, client_of(await p.listening()) as client:
            assert client.conversation == conversation
            await client.send("approve", approval_id=request["approval_id"], decision="once")
            frames = await client.until("turn_finished")
            assert (frames[-1]["outcome"], ends([f for f in client.seen if f.get("turn") == frames[-1]["turn"]])) == (
                "completed",
                {"add": "completed"},
            )
            p.signal(signal.SIGTERM)
            assert await p.ended() == 0


async def answered(client: Client, message: str) -> bool:
    """Say it; whether a person is asked. The tools may not be there yet: then there is nothing to be asked."""
    await client.send("user_message", message=message)
    while (frame := await client.next())["type"] not in ("approval_request", "turn_finished"):
        pass
    return bool(frame["type"] == "approval_request")


# The journal.


def test_a_turn_is_let_go_of_only_where_it_waits_for_nothing_else() -> None:
    turns = Turns(0, 8)
    assert turns.adopt_waiting(3, ["a", "b"], attached=False, hop=2) == [Start(3), RunCalls(3)]
    assert turns.suspend(["a", "b"]) == [], "the service does not stop"
    turns.drain(now=False)
    assert turns.suspend(["a"]) == [], "b runs"
    assert turns.call_ended(3, "b") == []
    assert turns.suspend(["a"]) == [Suspend(3)]
    assert turns.current is None
    assert turns.stop(1, None, None) != [], "nothing runs any more"
    turns = Turns(0, 8)
    assert turns.adopt_waiting(3, ["a"], attached=True, hop=8) == [RunCalls(3)], "its sockets have seen it begin"
    assert turns.call_ended(3, "a") == [Ask(3, 9)]
    assert turns.finished(3, ["c"])[1] == Close(3, "failed", Fault(Code.TOOL_HOPS_EXCEEDED, HOPS).body), (
        "rounds count on"
    )


def started(call: str, seq: int) -> ToolStarted:
    return ToolStarted(call, f"m{call}", seq, "add", "demo", "{}")


def ended(call: str, seq: int) -> ToolEnded:
    return ToolEnded(call, f"m{call}", seq, "completed", "3", 1)


def test_a_turn_waits_for_a_person_only_while_nothing_else_is_unknown() -> None:
    asked = ["a", "b"]
    begun: list[Event] = [UserEvent("hi", "r1", True), hop(1, "x", tools=["add"]), started("a", 2), started("c", 3)]
    assert waited_for(begun, asked) == [], "what became of c is not known"
    assert waited_for([*begun, ended("c", 4)], asked) == ["a"]
    assert waited_for([*begun, ended("c", 4), ToolApproved("a", "{}", "once")], asked) == [], "nor whether a was made"
    assert waited_for([*begun, ended("c", 4), ended("a", 5)], asked) == [], "it waits for nothing"
    assert waited_for([*begun, ended("c", 4), closed()], asked) == []
    assert waited_for([*begun, ended("c", 4), started("b", 5)], asked) == ["a", "b"]


def test_a_log_that_is_made_again_has_everything_where_it_was() -> None:
    notices = ToolNotifications(enabled=True, show_args=True, icon="", format="{tool_name}")
    events: list[Event] = [
        UserEvent("hi", "r1", True),
        hop(1, "text", thinking="hm"),
        started("a", 10),
        started("b", 11),
        ended("b", 13),
        ended("a", 12),
        hop(2, "more"),
        started("c", 20),
    ]
    log = rebuilt("c", 1, events, notices, streaming=True)
    assert (log.seq, log.hop, log.hop_start, log.stored) == (20, 2, 13, 20)
    assert (log.text(), log.thinking(), list(log.calls)) == ("textmore", "hm", ["c"])
    data, index = log.frames(0)
    assert index == 20
    found = [json.loads(part[part.index(b"{") :]) for part in split(data)]
    kinds = [(f["type"], f.get("call_id", f.get("text")), f["seq"]) for f in found]
    assert kinds[0] == ("thinking_delta", "hm", 1)
    assert kinds[1][:2] == ("assistant_delta", "text")
    assert [kind[1:] for kind in kinds if kind[0] == "tool_execution"] == [
        *(("a", 10), ("b", 11), ("a", 12), ("b", 13), ("c", 20)),
    ]
    assert log.frames(19)[0] == log.entries[19], "who has seen all but the last gets that"


def split(data: bytes) -> list[bytes]:
    """WebSocket frames, one after the other."""
    found = []
    while data:
        size, head = data[1], 2
        if size == 126:
            size, head = int.from_bytes(data[2:4], "big"), 4
        found.append(data[: head + size])
        data = data[head + size :]
    return found


A, B = "run:front1#1", "run:front2#1"


def waiting_at(s: Store, front: str, turn: int = 1) -> None:
    do(s, BeginTurn("ann", "c", turn, UserEvent("hi", f"r{turn}", True), False, front))
    call = f"call{turn}"
    do(s, Append("c", turn, "h", [hop(1, "x", tools=["add"]), started(call, 2)], front))
    body = {"tool_name": "add", "arguments": {}, "reason": ""}
    row = Pending(f"approval-{call}", "approval", "ann", "demo", body, "c", turn, call, "add", front=front)
    do(s, OpenPending(row, 60.0))


@pytest.mark.parametrize("how", ["front dies", "front lets go", "service dies"])
def test_whoever_has_the_conversation_next_takes_the_turn_up(tmp_path: Path, how: str) -> None:
    s = store(tmp_path / "db")
    waiting_at(s, A)
    if how == "front dies":
        do(s, FrontGone(A))
    elif how == "front lets go":
        do(s, Release(A, ["c"]))
    else:
        s.close()
        s = store(tmp_path / "db", run="next")
        assert s.recover() == 0
    front = "next:front1#1" if how == "service dies" else B
    assert do(s, Enter("ann", "c", "x", front)).waiting, "who enters it must see to it"
    assert do(s, TakeUnfinished(front)) == [Unfinished("ann", "c")]
    found = ask(s, LoadHistory("ann", "c"))
    assert (found.running, found.waiting) == ([1], ["call1"])
    assert ask(s, ReadPending("approval-call1")).state == "open"
    # once it is to be made nobody else may go on with it
    do(s, Append("c", 1, "a", [ToolApproved("call1", "{}", "once")], front))
    do(s, Release(front, ["c"]))
    do(s, FrontGone(front))
    found = ask(s, LoadHistory("ann", "c"))
    assert (found.running, found.waiting) == ([], [])
    assert ask(s, ReadPending("approval-call1")).state == "cancelled"
    s.close()

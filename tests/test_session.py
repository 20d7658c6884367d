"""Promises of a session beyond the scenarios: a store that is away, crashes between commit and answer, refusals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from protocol.client import MAX_QUEUED
from protocol.spec import Status
from tests.fakes import Script, Stall, ask_tool, say
from tests.service import LIGHT, front_of, of_type, service, text_of


class Boom(Exception):
    """What taps raise."""


async def test_a_store_that_is_away_is_told_and_the_message_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, say("late")) as s, s.client() as client:
        await client.say("hello", request_id="r0")  # what is not of this test takes the time that it needs

        # the writer dies at every BeginTurn, faster than it can ever commit one
        def die(message: object) -> None:
            if type(message).__name__ == "BeginTurn":
                raise Boom

        s.tree.tap("store/writer", die)
        with monkeypatch.context() as impatient:
            impatient.setattr("actors.session.COMMIT_S", 0.1)
            await client.send("user_message", message="hi", request_id="r1")
            [*told, error] = await client.until("error")
        assert error["error_code"] == "STORAGE_UNAVAILABLE"
        assert error["request_id"] == "r1"
        assert error["retryable"] is True
        assert not of_type(told, "turn_started")
        s.tree.tap("store/writer", None)
        frames = await client.say("hi", request_id="r1")
        assert of_type(frames, "assistant_message")[0]["message"] == "late"


async def test_a_closing_commit_that_is_not_acknowledged_ends_the_turn_failed_and_is_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.durable.PAUSE_S", 0.01)
    gate = trio.Event()
    async with service(tmp_path, Script((Stall(gate),)) + say("answer").items) as s, s.client() as client:
        await client.send("user_message", message="hi")
        await client.until("turn_started")
        deaths = 0

        def die(message: object) -> None:
            nonlocal deaths
            # The fourth is more than 0.1 s after the first, since a restart waits longer each time; after the sixth
            # the service would begin anew.
            if type(message).__name__ == "Append" and deaths < 4:
                deaths += 1
                raise Boom

        s.tree.tap("store/writer", die)
        monkeypatch.setattr("actors.session.COMMIT_S", 0.1)
        gate.set()
        frames = await client.until("turn_finished")
        assert text_of(frames) == "answer"
        assert frames[-1]["outcome"] == "failed"
        assert frames[-1]["error"]["error_code"] == "STORAGE_UNAVAILABLE"
        # the commit stays queued: the stored turn is complete once the store is back
        while True:
            await client.send("history")
            [*_, answer] = (await client.until("history"))[-1]["messages"]
            if answer["role"] == "assistant":
                break
        assert (answer["content"], answer["status"]) == ("answer", "complete")


async def test_too_many_waiting_messages_are_refused(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script((Stall(gate),)) + say("x").items) as s, s.client() as client:
        for number in range(MAX_QUEUED + 2):
            await client.send("user_message", message=f"m{number}", request_id=f"r{number}")
        [*_, error] = await client.until("error")
        assert error["error_code"] == "OVERLOADED"
        assert error["request_id"] == f"r{MAX_QUEUED + 1}"
        gate.set()
        frames = [*client.seen, *await client.until("turn_finished", turn=MAX_QUEUED + 1)]
        started = [f["request_id"] for f in of_type(frames, "turn_started")]
        assert started == [f"r{n}" for n in range(MAX_QUEUED + 1)]


async def test_a_poisonous_message_is_refused_after_two_tries_and_others_go_on(tmp_path: Path) -> None:
    async with service(tmp_path, say("fine")) as s, s.client() as client:

        def die(message: object) -> None:
            if type(message).__name__ == "BeginTurn" and getattr(message, "event").content == "poison":  # noqa: B009 - any message
                s.tree.slots[f"front/sessions/{client.conversation}"].box.nudge()

        def session_dies(message: object) -> None:
            session = s.tree.slots[f"front/sessions/{client.conversation}"]
            if type(message).__name__ == "Nudge" and session.incarnation <= 2:
                raise Boom

        s.tree.tap("store/writer", die)
        s.tree.tap("front/sessions/*", session_dies)
        await client.send("user_message", message="poison", request_id="p")
        frames = await client.until("turn_finished")
        # whatever it cost, the message has one turn, or one error, and the next one is answered
        assert len(of_type(frames, "turn_started")) == 1
        s.tree.tap("store/writer", None)
        s.tree.tap("front/sessions/*", None)
        assert (await client.say("next"))[-1]["outcome"] == "completed"


async def test_the_death_of_a_tool_server_in_a_call_fails_the_call_and_the_turn_goes_on(tmp_path: Path) -> None:
    replies = (ask_tool("slow", {"steps": 100, "step_s": 0.1}), say("sorry"))
    async with service(tmp_path, *replies, servers=LIGHT) as s, s.client() as client:
        await client.send("user_message", message="go")
        await client.until("tool_execution", status="progress")
        pid = s.tree.slots["mcp/demo"].facts["pid"]

        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        frames = await client.until("turn_finished")
        failed = of_type(frames, "tool_execution")[-1]
        assert failed["status"] == "failed"
        assert "MCP_SERVER_UNAVAILABLE" in failed["result"]
        assert of_type(frames, "assistant_message")[0]["message"] == "sorry"
        assert frames[-1]["outcome"] == "completed"
        assert any(f["what"] == "mcp/demo" for f in of_type(client.seen, "degraded"))
        await s.tree.reached("mcp/demo", Status.RUNNING, incarnation=2)


async def test_a_session_that_nobody_needs_is_let_go_and_comes_back(tmp_path: Path) -> None:
    async with service(tmp_path, say("one"), say("two")) as s:
        async with s.client() as client:
            await client.say("hi")
            conversation = client.conversation
        front = front_of(s)
        await s.tree.until(lambda: True)
        while front.sockets:
            await trio.lowlevel.checkpoint()
        front.retire(idle_s=-1.0)
        await s.tree.until(lambda: f"front/sessions/{conversation}" not in s.tree.slots)
        assert conversation not in front.conversations
        async with s.client() as client:
            assert client.conversation == conversation
            frames = await client.say("again")
            assert frames[0]["turn"] == 2


async def test_a_message_that_is_repeated_before_its_commit_is_not_forgotten_in_a_crash(tmp_path: Path) -> None:
    gate, trying, repeated = trio.Event(), trio.Event(), trio.Event()
    async with service(tmp_path, Script((Stall(gate),)) + say("there").items) as s, s.client() as client:
        path = f"front/sessions/{client.conversation}"
        says = 0

        def store_dies(message: object) -> None:
            if type(message).__name__ == "BeginTurn":
                trying.set()
                raise Boom

        def session_dies(message: object) -> None:
            nonlocal says
            says += type(message).__name__ == "Say"
            if says == 2:
                repeated.set()
            if type(message).__name__ == "Nudge" and repeated.is_set() and s.tree.slots[path].incarnation == 1:
                raise Boom

        s.tree.tap("store/writer", store_dies)
        s.tree.tap(path, session_dies)
        await client.send("user_message", message="are you there?", request_id="r1")
        await trying.wait()
        await client.send("user_message", message="are you there?", request_id="r1")
        await repeated.wait()
        s.ref(path).nudge()
        await s.tree.reached(path, Status.RUNNING, incarnation=2)
        s.tree.tap("store/writer", None)
        gate.set()
        frames = await client.until("turn_finished")
        assert [f["request_id"] for f in of_type(frames, "turn_started")] == ["r1"]
        assert of_type(frames, "assistant_message")[0]["message"] == "there"


async def test_a_repeat_of_a_waiting_message_is_acknowledged_after_the_commit_only(tmp_path: Path) -> None:
    gate, trying, repeated = trio.Event(), trio.Event(), trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items) as s, s.client() as client:
        await client.send("user_message", message="one", request_id="r1")
        await client.until("assistant_delta")
        says = 0

        def store_dies(message: object) -> None:
            if type(message).__name__ == "BeginTurn":
                trying.set()
                raise Boom

        def see(message: object) -> None:
            nonlocal says
            says += type(message).__name__ == "Say"
            if says == 2:
                repeated.set()

        s.tree.tap("store/writer", store_dies)
        s.tree.tap(f"front/sessions/{client.conversation}", see)
        await client.send("user_message", message="two", request_id="r2")
        await trying.wait()
        await client.send("user_message", message="two", request_id="r2")
        await repeated.wait()
        assert not of_type(await client.alive(), "message_queued")
        s.tree.tap("store/writer", None)
        await client.until("message_queued", request_id="r2")
        gate.set()
        frames = await client.until("turn_finished", turn=2)
        assert not of_type(frames, "message_queued")
        assert [f["request_id"] for f in of_type(frames, "turn_started")] == ["r2"]

"""What MCP servers ask in the turns of the whole product: who is asked, who may answer, and what comes of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from protocol.spec import Status
from tests.fakes import USAGE, Reply, Script, Stall, Usage, ask_tool, say
from tests.service import Client, Frame, Service, front_of, merge_into, of_type, service
from tests.test_server_requests import ASKING, FORM, MODEL, NAME, PAGE

BOTH = pytest.mark.parametrize("era", ["older", "newer"])
USED = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def asking(era: str, **more: Any) -> dict[str, Any]:
    return {"ask": {"command": "python", "args": ["-I", "-S", ASKING, era], **more}}


def replies(asked: Any) -> Script:
    """The model asks for what the user says, as JSON; then it says what the tool gave. A server gets its answer."""
    messages = asked["messages"]
    last = messages[-1]
    if messages[0] == {"role": "system", "content": "Be brief."}:
        return Script((*say("fo", "ur").items, Usage(USED)))
    if last["role"] == "tool":
        return say(last["content"])
    return ask_tool("ask", {"requests": json.loads(last["content"])})


@asynccontextmanager
async def product(folder: Path, era: str, *more: Reply, **given: Any) -> AsyncIterator[Service]:
    settings: Mapping[str, Any] = given.pop("settings", {})
    async with service(folder, *(more or (replies,)), servers=asking(era, **given), settings=settings) as s:
        yield s


async def begin(client: Client, **requests: Any) -> None:
    """A turn in which the server asks."""
    await client.send("user_message", message=json.dumps(requests))
    await client.until("turn_started")


async def question(client: Client, **requests: Any) -> Frame:
    """Likewise; the frame that asks the user."""
    await begin(client, **requests)
    return (await client.until("question"))[-1]


async def settled(client: Client, asked: Frame) -> str:
    """How the question was settled, as this client is told, or has been told."""
    while True:
        for frame in of_type(client.seen, "question_settled"):
            if frame["question_id"] == asked["question_id"]:
                return str(frame["outcome"])
        await client.next()


async def end(client: Client) -> tuple[Any, list[Frame]]:
    """What the server was answered, as its tool tells; and the frames of the turn, which is over."""
    turn = max(frame["turn"] for frame in of_type(client.seen, "turn_started"))
    if not [frame for frame in of_type(client.seen, "turn_finished") if frame["turn"] == turn]:
        await client.until("turn_finished")
    frames = [frame for frame in client.seen if frame.get("turn") == turn]
    [ended] = [frame for frame in of_type(frames, "tool_execution") if frame["status"] in ("completed", "failed")]
    return (json.loads(ended["result"]) if ended["status"] == "completed" else ended["result"]), frames


@BOTH
async def test_a_form_an_address_and_what_is_no_answer(tmp_path: Path, era: str) -> None:
    async with product(tmp_path, era) as s, s.client() as client:
        asked = await question(client, form=FORM)
        assert (asked["server"], asked["message"], asked["schema"]) == ("ask", "Who?", NAME)
        assert (asked["turn"], asked["conversation_id"]) == (1, client.conversation)
        for wrong, why in (({"name": 5}, "'name' must be text"), ({}, "'name' is required"), ([], "object")):
            await client.send("answer", question_id=asked["question_id"], action="accept", content=wrong)
            error = (await client.until("error"))[-1]
            assert error["error_code"] == "INVALID_MESSAGE"
            assert why in error["error_message"]
        # whoever comes sees it, wherever it is from; nobody else's is answered
        async with s.client(f"?conversation={client.conversation}") as other, s.client("?conversation=new") as apart:
            assert (await other.until("question"))[-1] == asked
            await other.send("answer", question_id="nothing", action="decline", request_id="r")
            assert (await other.until("error", request_id="r"))[-1]["error_code"] == "NOT_FOUND"
            content = {"name": "Ada"}
            await apart.send("answer", question_id=asked["question_id"], action="accept", content=content)
            for socket in (client, apart, other):
                assert await settled(socket, asked) == "accepted"
            await other.send("answer", question_id=asked["question_id"], action="decline", request_id="late")
            assert (await other.until("error", request_id="late"))[-1]["error_code"] == "ALREADY_SETTLED"
        given, frames = await end(client)
        assert given == {"form": {"action": "accept", "content": {"name": "Ada"}}}
        assert frames[-1]["outcome"] == "completed"
        asked = await question(client, page=PAGE)
        assert asked["url"] == "https://a.example/b"
        await client.send("answer", question_id=asked["question_id"], action="accept", content={"left": "out"})
        assert (await end(client))[0] == {"page": {"action": "accept"}}
        for action in ("decline", "cancel"):
            asked = await question(client, form=FORM)
            await client.send("answer", question_id=asked["question_id"], action=action)
            assert (await end(client))[0] == {"form": {"action": action}}


@BOTH
async def test_it_ends_with_its_time_its_turn_and_its_server(tmp_path: Path, era: str) -> None:
    settings = {"chat": {"tools": {"question_timeout": 0.1}}}
    async with product(tmp_path, era, settings=settings) as s, s.client() as client:
        asked = await question(client, form=FORM)
        assert await settled(client, asked) == "expired"
        assert (await end(client))[0] == {"form": {"action": "cancel"}}
        await change(s, client, {"chat": {"tools": {"question_timeout": 300}}})
        asked = await question(client, form=FORM)
        await client.send("stop")
        assert (await client.until("turn_finished"))[-1]["outcome"] == "stopped"
        assert await settled(client, asked) == "cancelled"
        asked = await question(client, form=FORM)
        os.kill(int(s.tree.slots["mcp/ask"].facts["pid"]), signal.SIGKILL)
        assert await settled(client, asked) == "cancelled"
        told, frames = await end(client)
        assert "MCP_SERVER_UNAVAILABLE" in told
        assert frames[-1]["outcome"] == "completed"


async def change(s: Service, client: Client, changes: Mapping[str, Any]) -> None:
    path = s.state / "runtime_config.yaml"
    settings = yaml.safe_load(path.read_text())
    merge_into(settings, changes)
    path.write_text(yaml.safe_dump(settings))
    await client.until("config_changed")


@BOTH
async def test_a_model_is_asked_for_a_server_once_somebody_agrees(tmp_path: Path, era: str) -> None:
    async with product(tmp_path, era) as s, s.client() as client:
        await begin(client, model=MODEL)
        asked = (await client.until("approval_request"))[-1]
        assert (asked["tool_name"], asked["server"]) == ("sampling/createMessage", "ask")
        assert asked["arguments"]["system_prompt"] == "Be brief."
        await client.send("approve", approval_id=asked["approval_id"], decision="once")
        given, frames = await end(client)
        said = {"role": "assistant", "content": {"type": "text", "text": "four"}, "model": "fake-model"}
        assert given == {"model": {**said, "stopReason": "endTurn"}}
        request = [one.json for one in s.provider.requests if one.json["messages"][0]["content"] == "Be brief."]
        assert [(one["max_tokens"], one["temperature"], one["stop"]) for one in request] == [(5, 0.5, ["!"])]
        assert request[0]["messages"][1:] == [{"role": "user", "content": "2+2?"}]
        assert "tools" not in request[0]
        # what it used is the turn's
        [message] = of_type(frames, "assistant_message")
        assert message["usage"]["prompt_tokens"] == 2 * USAGE["prompt_tokens"] + USED["prompt_tokens"]

        await begin(client, model=MODEL)
        asked = (await client.until("approval_request"))[-1]
        await client.send("approve", approval_id=asked["approval_id"], decision="deny")
        told, _ = await end(client)
        assert "The user did not allow it." in json.dumps(told)

        # what was agreed to for always is not asked again, and limits count at once
        await begin(client, model=MODEL)
        asked = (await client.until("approval_request"))[-1]
        await client.send("approve", approval_id=asked["approval_id"], decision="always")
        await end(client)
        await change(s, client, {"chat": {"tools": {"sampling_tokens": 2, "sampling_requests": 1}}})
        await begin(client, a=MODEL, b=MODEL)
        told, frames = await end(client)
        assert not of_type(frames, "approval_request")
        assert "One call may have a model asked 1 times." in json.dumps(told)
        await change(s, client, {"chat": {"tools": {"sampling": "deny"}}})
        await begin(client, model=MODEL)
        assert "The operator does not allow it." in json.dumps((await end(client))[0])
        await change(s, client, {"chat": {"tools": {"sampling": "allow"}}})
        assert "- ask: Ask." in s.provider.requests[-1].json["messages"][0]["content"]
        await change(s, client, {"chat": {"tools": {"instructions": False}}})
        await begin(client, model=MODEL)
        assert "four" in json.dumps((await end(client))[0])
        *_, turn, aside, after = [one.json for one in s.provider.requests]
        assert "Ask." not in turn["messages"][0]["content"]
        assert aside["max_tokens"] == 2
        assert after["messages"][-1]["role"] == "tool"


async def test_a_question_outlives_the_gateway_and_a_stop_ends_what_the_model_is_asked(tmp_path: Path) -> None:
    gate = trio.Event()

    def stalls(asked: Any) -> Script:
        brief = asked["messages"][0] == {"role": "system", "content": "Be brief."}
        return Script(("fo", Stall(gate))) if brief else replies(asked)

    settings = {"chat": {"tools": {"sampling": "allow"}}}
    async with product(tmp_path, "newer", stalls, settings=settings) as s, s.client() as client:
        asked = await question(client, form=FORM)
        crashed: list[object] = []

        def crash(message: object) -> None:
            if not crashed:
                crashed.append(message)
                raise RuntimeError("for the test")

        s.tree.tap("front/gateway", crash)
        s.ref("front/gateway").nudge()
        await s.tree.reached("front/gateway", Status.RUNNING, incarnation=2)
        await client.send("answer", question_id=asked["question_id"], action="accept", content={"name": "Ada"})
        assert (await end(client))[0] == {"form": {"action": "accept", "content": {"name": "Ada"}}}

        await begin(client, model=MODEL)
        asides = front_of(s).asides
        request = await s.provider.request(4)
        while not (asides and next(iter(asides.values())).text):
            await client.alive()
        await client.send("stop")
        assert (await client.until("turn_finished"))[-1]["outcome"] == "stopped"
        await request.abandoned.wait()
        assert not asides
        assert not front_of(s).server_asks
        # the streamer dies while the model is asked: the server is told, and the turn goes on
        await begin(client, model=MODEL)
        while not (asides and next(iter(asides.values())).text):
            await client.alive()
        crashed.clear()
        s.tree.tap("llm/streamer", crash)
        s.ref("llm/streamer").nudge()
        told, frames = await end(client)
        assert "failed while the answer came" in json.dumps(told)
        assert frames[-1]["outcome"] == "completed"

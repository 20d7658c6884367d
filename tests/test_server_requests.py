"""What a server asks in a call: who is asked, what comes back to it, and what becomes of it when nobody answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from actors import server_calls, server_requests
from protocol.errors import Fault
from protocol.mail import Gone
from protocol.mcp_server import (
    AnswerQuestion,
    AnswerSampling,
    CancelCall,
    Catalogue,
    RequestEnded,
    SamplingRequest,
    ToolOutcome,
    ToolProgress,
    UrlVisited,
    UserQuestion,
)
from protocol.spec import Down
from protocol.watcher import McpServer
from tests.http_servers import Asked, Reply, http_server
from tests.mcp_house import House, house, odd

ASKING = str(Path(__file__).with_name("asking_server.py"))
NAME: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FORM: dict[str, Any] = {
    "method": "elicitation/create",
    "params": {"mode": "form", "message": "Who?", "requestedSchema": NAME},
}
PAGE = {
    "method": "elicitation/create",
    "params": {"mode": "url", "message": "Look", "url": "https://a.example/b", "elicitationId": "e1"},
}
MODEL = {
    "method": "sampling/createMessage",
    "params": {
        "messages": [{"role": "user", "content": {"type": "text", "text": "2+2?"}}],
        "maxTokens": 5,
        "systemPrompt": "Be brief.",
        "temperature": 0.5,
        "stopSequences": ["!"],
        "modelPreferences": {"hints": [{"name": "small"}]},
        "includeContext": "allServers",
    },
}
BOTH = pytest.mark.parametrize("era", ["older", "newer"])


def asking(era: str, **more: Any) -> McpServer:
    return odd("", name="ask", args=["-I", "-S", ASKING, era], **more)


@asynccontextmanager
async def asked(era: str, **more: Any) -> AsyncIterator[House]:
    async with house(asking(era, **more)) as at:
        await at.next(Catalogue)
        yield at


class Given:
    """What a call of `ask` gave: what the server was answered, or what went wrong."""

    def __init__(self) -> None:
        self.it: Any = None
        self.there = trio.Event()

    async def wait(self) -> Any:
        await self.there.wait()
        return self.it


def begin(nursery: trio.Nursery, at: House, call: str = "c", **requests: Any) -> Given:
    """Call `ask`."""
    given = Given()

    async def run() -> None:
        try:
            outcome = await at.call("ask", "ask", call=call, requests=requests)
            given.it = json.loads(outcome.text) if outcome.ok else outcome.text
        except (Fault, Gone) as error:
            given.it = error
        given.there.set()

    nursery.start_soon(run)
    return given


@BOTH
async def test_a_form_an_address_and_a_model(era: str) -> None:
    async with asked(era) as at:
        server = at.ref("ask")
        can = json.loads((await at.call("can", "ask")).text)
        assert can == {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}}
        async with trio.open_nursery() as nursery:
            given = begin(nursery, at, form=FORM, page=PAGE)
            questions = [await at.next(UserQuestion), await at.next(UserQuestion)]
            form, page = sorted(questions, key=lambda question: question.message, reverse=True)
            assert (form.call, form.server, form.message, form.schema, form.url) == ("c", "ask", "Who?", NAME, None)
            assert (page.schema, page.url) == (None, "https://a.example/b")
            # the first answer counts, and who comes later is told that
            assert await server.ask(AnswerQuestion(form.question, "accept", {"name": "Ada"}), within=5)
            assert not await server.ask(AnswerQuestion(form.question, "decline"), within=5)
            assert await server.ask(AnswerQuestion(page.question, "accept"), within=5)
        assert given.it == {"form": {"action": "accept", "content": {"name": "Ada"}}, "page": {"action": "accept"}}
        await at.call("visited", "ask", id="e1")
        if era == "older":  # the newer one has no such notice
            assert await at.next(UrlVisited) == UrlVisited(page.question)
        async with trio.open_nursery() as nursery:
            given = begin(nursery, at, model=MODEL)
            request: SamplingRequest = await at.next(SamplingRequest)
            assert (request.call, request.system_prompt, request.max_tokens) == ("c", "Be brief.", 5)
            assert (request.temperature, request.stop, request.hints) == (0.5, ["!"], ["small"])
            assert request.messages == [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}]
            answer = AnswerSampling(request.request, [{"type": "text", "text": "4"}], "m", "endTurn")
            assert await server.ask(answer, within=5)
        said = {"role": "assistant", "content": {"type": "text", "text": "4"}, "model": "m", "stopReason": "endTurn"}
        assert given.it == {"model": said}
        async with trio.open_nursery() as nursery:
            given = begin(nursery, at, model=MODEL)
            request = await at.next(SamplingRequest)
            await server.ask(AnswerSampling(request.request, refused="The user said no."), within=5)
        # what it may not have ends the call in the newer era: there is no way to tell it
        no = {"model": {"code": -1, "message": "The user said no."}}
        assert given.it == (no if era == "older" else "The user said no.")
        async with trio.open_nursery() as nursery:
            params = {**FORM["params"], "requestedSchema": {"type": "object", "properties": {"a": {"type": "object"}}}}
            given = begin(nursery, at, form={**FORM, "params": params})
        assert "the property 'a' is none of text, number" in str(given.it)
        assert at.facts("ask")["asked"] == 5


@BOTH
async def test_what_is_asked_is_over_with_its_call_and_with_the_server(era: str) -> None:
    async with asked(era) as at, trio.open_nursery() as nursery:
        given = begin(nursery, at, form=FORM)
        question: UserQuestion = await at.next(UserQuestion)
        at.ref("ask").offer(CancelCall("c"))
        assert (await at.next(RequestEnded)).request == question.question
        assert not await at.ref("ask").ask(AnswerQuestion(question.question, "accept"), within=5)
        given = begin(nursery, at, call="d", form=FORM)
        question = await at.next(UserQuestion)
        os.kill(at.facts("ask")["pid"], signal.SIGKILL)
        assert (await at.next(RequestEnded)).request == question.question
        await at.next(Catalogue)
        assert isinstance(await given.wait(), Gone)
        given = begin(nursery, at, call="e", form=FORM)
        question = await at.next(UserQuestion)
        # whoever was asked is gone for good
        at.ref("ask").offer(Down("front/gateway", 1, "", None, parked=False))
        assert await given.wait() == {"form": {"action": "cancel"}}


@BOTH
async def test_the_time_that_somebody_is_asked_is_not_the_calls(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_calls, "CEILING", 1)
    async with asked(era, timeout=0.4) as at, trio.open_nursery() as nursery:
        given = begin(nursery, at, form=FORM)
        question: UserQuestion = await at.next(UserQuestion)
        with trio.move_on_after(0.6):
            await trio.sleep_forever()  # more than the call may take
        assert not given.there.is_set()
        await at.ref("ask").ask(AnswerQuestion(question.question, "decline"), within=5)
        assert await given.wait() == {"form": {"action": "decline"}}


async def test_in_the_newer_era_each_request_is_asked_in_its_own_call() -> None:
    async with asked("newer") as at, trio.open_nursery() as nursery:
        given = [begin(nursery, at, call=call, form=FORM) for call in ("a", "b")]
        questions = [await at.next(UserQuestion), await at.next(UserQuestion)]
        for question in questions:
            await at.ref("ask").ask(AnswerQuestion(question.question, "accept", {"name": question.call}), within=5)
        assert [(await one.wait())["form"]["content"]["name"] for one in given] == ["a", "b"]


async def test_what_names_no_call_is_declined_while_none_or_several_run_and_then_calls_come_one_by_one() -> None:
    async with asked("older") as at:
        await at.call("loose", "ask", requests={"form": FORM, "model": MODEL})
        while len(told := json.loads((await at.call("told", "ask")).text)) < 2:
            pass
        unknown = "it cannot be told in which call this is asked"
        assert told == {"form": {"action": "decline"}, "model": {"code": -1, "message": unknown}}
        assert at.facts("ask")["one_at_a_time"]
        # that is remembered by the next incarnation
        os.kill(at.facts("ask")["pid"], signal.SIGKILL)
        await at.next(Catalogue)
        async with trio.open_nursery() as nursery:
            given = {call: begin(nursery, at, call=call, form=FORM) for call in ("a", "b")}
            for _ in given:
                question = await at.next(UserQuestion)
                assert [call for call in given if not given[call].there.is_set()].count(question.call) == 1
                await at.ref("ask").ask(AnswerQuestion(question.question, "accept", {"name": question.call}), within=5)
                assert (await given[question.call].wait())["form"]["content"]["name"] == question.call


async def test_a_server_asks_only_so_often_in_a_call_and_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_requests, "QUESTIONS_MAX", 2)
    async with asked("older") as at, trio.open_nursery() as nursery:
        given = begin(nursery, at, a=FORM, b=FORM, c=FORM)
        for _ in range(2):
            question = await at.next(UserQuestion)
            await at.ref("ask").ask(AnswerQuestion(question.question, "decline"), within=5)
        assert [answer["action"] for answer in (await given.wait()).values()] == ["decline"] * 3
        assert at.facts("ask")["asked"] == 3
        for _ in range(2):
            await at.call("loose", "ask", requests={"form": FORM, "model": MODEL})
        while len(json.loads((await at.call("told", "ask")).text)) < 2:
            pass
    assert sum("cannot be told in which call" in line for line in caplog.messages) == 1


async def test_several_calls_run_side_by_side_and_what_is_asked_in_one_of_them_is_declined() -> None:
    async with asked("older") as at, trio.open_nursery() as nursery:
        nursery.start_soon(at.fault, "hold", "ask")
        await at.next(ToolProgress)
        given = begin(nursery, at, form=FORM)
        assert await given.wait() == {"form": {"action": "decline"}}
        at.ref("ask").offer(CancelCall("hold"))


async def test_a_call_that_wants_an_address_visited_first_is_made_once_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asked("older") as at, trio.open_nursery() as nursery:
        outcomes: list[ToolOutcome] = []

        async def gated() -> None:
            outcomes.append(await at.call("gated", "ask"))

        for action in ("decline", "accept"):  # declined, it stays refused
            nursery.start_soon(gated)
            question: UserQuestion = await at.next(UserQuestion)
            assert (question.message, question.url) == ("Sign in", "https://a.example/in")
            assert await at.ref("ask").ask(AnswerQuestion(question.question, action), within=5)
        await at.call("visited", "ask", id="e9")
        assert await at.next(UrlVisited) == UrlVisited(question.question)
        nursery.cancel_scope.deadline = trio.current_time() + 20
        while len(outcomes) < 2:
            await at.call("say", "ask", text="again")
        assert [(outcome.ok, outcome.text) for outcome in outcomes] == [(False, "sign in"), (True, "inside")]
        monkeypatch.setattr(server_requests, "VISIT_S", 0.0)
        os.kill(at.facts("ask")["pid"], signal.SIGKILL)
        await at.next(Catalogue)
        nursery.start_soon(gated)
        question = await at.next(UserQuestion)
        await at.ref("ask").ask(AnswerQuestion(question.question, "accept"), within=5)
        while len(outcomes) < 3:
            await at.call("say", "ask", text="again")
        assert outcomes[2].text == "sign in"


async def test_over_http_each_request_of_the_older_era_is_asked_in_its_own_call() -> None:
    async with http_server() as server:

        async def asks(asked: Asked, reply: Reply) -> None:
            number = asked.message["id"]
            await reply.begin()
            await reply.event({"jsonrpc": "2.0", "id": f"q{number}", **FORM})
            answers: list[dict[str, Any]] = []
            while not answers:
                await server.news.wait()
                answers = [one.message for one in server.seen if one.message.get("id") == f"q{number}"]
            text = json.dumps(answers[0]["result"])
            await reply.event({"jsonrpc": "2.0", "id": number, "result": {"content": [{"type": "text", "text": text}]}})
            await reply.end()

        server.faults["tools/call"] = asks
        given: dict[str, Any] = {}
        served = odd("", name="web", command="", args=[], url=server.url(), type="http")
        async with house(served) as at, trio.open_nursery() as nursery:
            await at.next(Catalogue)

            async def call(name: str) -> None:
                given[name] = json.loads((await at.call("hello", "web", call=name)).text)

            for name in ("a", "b", "c"):
                nursery.start_soon(call, name)
            questions = [await at.next(UserQuestion) for _ in range(3)]  # all of them wait at once
            for question in questions:
                answer = AnswerQuestion(question.question, "accept", {"name": question.call})
                assert await at.ref("web").ask(answer, within=5)
        assert given == {name: {"action": "accept", "content": {"name": name}} for name in "abc"}


async def test_a_server_that_may_not_ask_is_told_so() -> None:
    async with asked("older", elicitation=False, sampling="deny") as at, trio.open_nursery() as nursery:
        assert json.loads((await at.call("can", "ask")).text) == {}
        given = begin(nursery, at, form=FORM, model=MODEL)
        assert [one["code"] for one in (await given.wait()).values()] == [-32600, -32600]

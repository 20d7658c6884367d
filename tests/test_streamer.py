"""The streamer over real sockets: what it asks, what comes back, and what ends it."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
import trio
import trio.testing

from actors import outlet, streamer
from actors.completion import Completion
from actors.sending import prepare
from protocol.errors import Code
from protocol.spec import Down, Status
from protocol.streamer import Failed, Piece, Text, Thinking
from protocol.watcher import Configured
from supervisors import status
from tests.fakes import (
    Asked,
    Cut,
    FakeProvider,
    Pause,
    Script,
    Stall,
    Thought,
    ask_tool,
    by_message,
    fail,
    page,
    raw,
    say,
    think,
)
from tests.peer import tasks
from tests.stops import hanging, stopped
from tests.streaming import KEY, Harness, harness, provider, snapshot

# The request


async def test_an_answer_streams_and_ends_once() -> None:
    async with FakeProvider(think("Hm.", then=["Yes", "."])) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        finished = await h.finished(1)
        assert h.pieces(1)[:-1] == [Thinking(1, "Hm."), Text(1, "Yes"), Text(1, ".")]
        assert (finished.finish_reason, finished.model, finished.tool_calls) == ("stop", "fake-model", [])
        assert finished.usage is not None
        assert finished.usage["total_tokens"] == 18
        assert finished.raw == {"reasoning_content": "Hm."}


async def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    monkeypatch.setenv("FAKE_ORG", "org-1")
    parameters = {"temperature": 0.5, "provider": {"order": ["a", {"b": [None, 1.5]}]}, "timeout": 3, "top_p": None}
    headers = {"X-Org": "${FAKE_ORG}/x", "user-agent": "mine"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with FakeProvider() as upstream:
        settings = provider(upstream.base_url, key="FAKE_KEY", parameters=parameters, headers=headers)
        async with harness(settings) as h:
            h.ask(1, tools=tools, model="m2")
            await h.finished(1)
        (asked,) = upstream.requests
        assert asked.json == {
            "model": "m2",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "provider": {"order": ["a", {"b": [None, 1.5]}]},
            "timeout": 3,
            "tools": tools,
        }
        sent = {
            name: asked.headers[name] for name in ("accept", "accept-encoding", "authorization", "x-org", "user-agent")
        }
        assert sent == {
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "authorization": f"Bearer {KEY}",
            "x-org": "org-1/x",
            "user-agent": "mine",
        }
        assert asked.path == "/v1/chat/completions"


async def asked_twice(upstream: FakeProvider, address: str, authorization: str) -> list[dict[str, str]]:
    """What was sent with two requests, one after the other, of a provider with that header."""
    async with harness(provider(address, headers={"Authorization": authorization})) as h:
        for request in (1, 2):
            h.ask(request)
            await h.finished(request)
    return [asked.headers for asked in upstream.requests]


async def test_a_name_and_password_in_the_address_and_the_cookies_of_a_provider_are_sent_to_it() -> None:
    script = Script((*say("a").items,), headers={"Set-Cookie": "route=7; Path=/"})
    async with FakeProvider(script) as upstream:
        address = upstream.base_url.replace("//", "//me:p%40ss@")
        sent = await asked_twice(upstream, address, "Bearer other")
        assert [headers["authorization"] for headers in sent] == ["Basic bWU6cEBzcw=="] * 2
        assert [headers.get("cookie") for headers in sent] == [None, "route=7"]
        assert all("@" not in headers["host"] for headers in sent)


async def test_a_cookie_that_no_header_can_carry_and_a_name_that_is_empty_are_not_sent() -> None:
    async with FakeProvider(Script((*say("a").items,), headers={"Set-Cookie": "route=\xe9; Path=/"})) as upstream:
        address = upstream.base_url.replace("//", "//:@")
        sent = await asked_twice(upstream, address, "Bearer mine")
        assert [headers["authorization"] for headers in sent] == ["Bearer mine"] * 2
        assert [headers.get("cookie") for headers in sent] == [None] * 2


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeProvider() as proxy, FakeProvider() as upstream:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with harness(provider(upstream.base_url)) as h:
            h.ask(1)
            await h.finished(1)
        assert (len(proxy.requests), len(upstream.requests)) == (0, 1)


async def test_tool_calls_come_whole() -> None:
    async with FakeProvider(ask_tool("add", {"a": 1}, id="c1", text=["let me"])) as upstream:
        async with harness(provider(upstream.base_url)) as h:
            h.ask(1)
            finished = await h.finished(1)
            (call,) = finished.tool_calls
            assert (call.id, call.name, call.arguments) == ("c1", "add", '{"a": 1}')
            assert (h.text(1), finished.finish_reason) == ("let me", "tool_calls")


async def test_without_streaming_the_same_pieces_come() -> None:
    async with FakeProvider(think("Hm.", then=["Yes", "."]), ask_tool("add", {"a": 1})) as upstream:
        async with harness(provider(upstream.base_url, stream=False)) as h:
            h.ask(1)
            assert (await h.finished(1)).raw == {"reasoning_content": "Hm."}
            assert h.pieces(1)[:-1] == [Thinking(1, "Hm."), Text(1, "Yes.")]
            h.ask(2)
            assert [call.arguments for call in (await h.finished(2)).tool_calls] == ['{"a": 1}']
        assert [asked.json["stream"] for asked in upstream.requests] == [False, False]


@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
async def test_every_framing(framing: str, done: bool, line_end: str) -> None:
    script = say("a", "b").but(framing=framing, done=done, line_end=line_end)
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        await h.finished(1)
        assert h.text(1) == "ab"


async def test_a_connection_is_used_again() -> None:
    async with FakeProvider(say("a")) as upstream, harness(provider(upstream.base_url)) as h:
        for request in (1, 2, 3):
            h.ask(request)
            await h.finished(request)
        assert upstream.connections == 1


# Many requests


async def test_one_message_has_the_pieces_of_all_running_requests() -> None:
    async with FakeProvider(by_message) as upstream, harness(provider(upstream.base_url), taking=False, mailbox=1) as h:
        for request in range(1, 21):
            h.ask(request, "say 10 words")
        for number in range(1, 21):
            await (await upstream.request(number)).finished.wait()
        h.gate.set()
        for request in range(1, 21):
            await h.finished(request)
            assert h.text(request) == "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10"
        assert max(len({piece.request for piece in batch}) for batch in h.batches) > 5
        assert len(h.batches) < 100 < sum(len(batch) for batch in h.batches)
        assert h.facts() == {"configured": 1, "running": 0, "done": 20, "failed": 0, "providers": 1, "clients": 1}


async def test_cancel_closes_the_upstream_and_leaves_the_others() -> None:
    hold = trio.Event()
    async with FakeProvider(lambda asked: _held(asked, hold)) as upstream:
        async with harness(provider(upstream.base_url)) as h:
            h.ask(1, "first")
            h.ask(2, "second")
            await h.until(lambda: h.text(1) == h.text(2) == "begin ")
            asked = {a.json["messages"][0]["content"]: a for a in upstream.requests}
            h.cancel(1)
            await asked["first"].abandoned.wait()
            await asked["first"].closed.wait()
            assert not asked["second"].closed.is_set()
            hold.set()
            await h.finished(2)
            assert h.text(2) == "begin end"
            assert h.pieces(1) == [Text(1, "begin ")]  # and nothing more
            h.cancel(1)  # unknown by now: ignored
            h.cancel(99)
            h.ask(3)
            await h.finished(3)
            assert h.tree.state("llm/streamer") == Status.RUNNING


async def test_no_task_waits_for_an_answer_that_flows_and_yet_it_ends_as_ever() -> None:
    hold = trio.Event()
    ends = {"cut": Script(("begin ", Stall(hold), Cut())), "say": _held(None, hold)}
    async with FakeProvider(lambda body: ends[body["messages"][0]["content"]]) as upstream:
        async with harness(provider(upstream.base_url, retries=0, total_timeout=60.0)) as h:
            for request in range(1, 9):
                h.ask(request, "cut" if request > 6 else "say")
            await h.until(lambda: all(h.text(request) == "begin " for request in range(1, 9)))
            await trio.testing.wait_all_tasks_blocked()  # what was shown goes out before they end
            assert not [task for task in tasks() if task.name.startswith("request ")]
            assert h.facts()["running"] == 8
            for request in (1, 2):
                h.cancel(request)
                h.cancel(request)
            h.ask(3, "say")  # in the place of the one that runs
            await h.until(lambda: h.text(3) == "begin begin ")
            hold.set()
            for request in (4, 5, 6):
                await h.finished(request)
                assert h.text(request) == "begin end"
            for request in (7, 8):
                assert (await h.failed(request)).fault.code == Code.LLM_STREAM_BROKEN
            await h.finished(3)
            await trio.testing.wait_all_tasks_blocked()
            assert h.facts()["running"] == 0
            assert upstream.open == 4  # kept for the next requests, but for those that were cancelled or cut


def _held(_: Any, hold: trio.Event) -> Script:
    return Script(("begin ", Stall(hold), *say("end").items))


async def test_stopped_requests_leave_neither_task_nor_connection() -> None:
    # A thousand, and memory, in tests/soak/test_stops.py.
    async with hanging() as upstream, harness(provider(upstream.base_url)) as h:
        left = await stopped(h, upstream, 50)
        assert left.tasks[1] <= left.tasks[0] + 2  # some are about to end
        assert left.connections == [0, 0]
        assert (h.facts()["running"], h.facts()["clients"]) == (0, 1)


async def test_cancel_before_the_head_closes_too() -> None:
    async with FakeProvider(Script(before_head=Stall())) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        asked = await upstream.request(1)
        h.cancel(1)
        await asked.closed.wait()
        assert h.pieces(1) == []


async def test_what_a_gone_front_asked_for_is_closed_and_a_restarted_ones_is_not() -> None:
    hold = trio.Event()
    async with FakeProvider(lambda asked: _held(asked, hold)) as upstream:
        async with harness(provider(upstream.base_url)) as h:
            h.ask(1)
            asked = await upstream.request(1)
            await h.until(lambda: h.text(1) == "begin ")
            streamer = h.tree.ref("llm/streamer")
            streamer.offer(Down("front2/gateway", 1, "its process ended", None, parked=False))
            streamer.offer(Down("front/gateway", 1, "it fell", 0, parked=False))
            h.ask(2)
            await h.until(lambda: h.text(2) == "begin ")
            assert not asked.closed.is_set()
            streamer.offer(Down("front/gateway", 1, "its process ended", None, parked=False))
            await asked.closed.wait()


async def test_a_stop_fails_what_does_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamer, "LAST_S", 0.05)
    async with FakeProvider(Script(("begin ", Stall()))) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        await h.until(lambda: h.text(1) == "begin ")
        with trio.move_on_after(5):
            await h.tree.restart("llm/streamer")
        last = h.pieces(1)[-1]
        assert isinstance(last, Failed)
        assert last.fault.code is Code.LLM_STREAM_BROKEN


async def test_what_waits_of_a_cancelled_request_is_not_sent() -> None:
    async with FakeProvider(by_message) as upstream, harness(provider(upstream.base_url), taking=False, mailbox=1) as h:
        h.ask(1, "say 2 words")
        await (await upstream.request(1)).finished.wait()
        await trio.testing.wait_all_tasks_blocked(cushion=0.05)
        assert h.tree.slots["front/gateway"].box.depth == 1  # full: all further pieces wait in the streamer
        h.ask(2, "stall after 5")
        stalled = await upstream.request(2)
        await stalled.started.wait()
        h.ask(3, "say 3 words")
        await (await upstream.request(3)).finished.wait()
        await trio.testing.wait_all_tasks_blocked(cushion=0.05)
        h.cancel(2)
        await stalled.closed.wait()
        h.gate.set()
        await h.finished(3)
        assert (h.text(1), h.pieces(2), h.text(3)) == ("w1 w2", [], "w1 w2 w3")


async def test_the_same_number_again_replaces_the_running_request() -> None:
    async with (
        FakeProvider(Script(("old", Stall())), say("new")) as upstream,
        harness(provider(upstream.base_url)) as h,
    ):
        h.ask(1)
        await h.until(lambda: h.text(1) == "old")
        h.ask(1)
        await h.finished(1)
        await upstream.requests[0].closed.wait()
        assert h.text(1) == "oldnew"


async def test_a_receiver_that_does_not_take_stops_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "MOST_WAITING", 50)
    monkeypatch.setattr(status, "BEAT_S", 100.0)  # else something moves all the time
    word = "x" * 10_000
    script = say(*[word] * 2000)  # 20 MB: more than the sockets hold
    async with FakeProvider(script) as upstream:
        async with harness(provider(upstream.base_url, idle_timeout=0.8), taking=False, mailbox=1) as h:
            h.ask(1)
            asked = await upstream.request(1)
            # Nothing moves any more, for longer than the idle timeout: it must not strike, it is we who wait.
            await trio.testing.wait_all_tasks_blocked(cushion=1.0)
            assert not asked.finished.is_set()
            assert not asked.closed.is_set()
            h.gate.set()
            await h.finished(1)
            assert len(h.text(1)) == 2000 * len(word)
            assert max(len(batch) for batch in h.batches) < 200


async def test_a_receiver_that_is_gone_ends_its_requests() -> None:
    async with FakeProvider(Script(("a", Stall())), say("b")) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1, to="front/nobody")
        asked = await upstream.request(1)
        await asked.closed.wait()
        h.ask(2)
        await h.finished(2)
        assert h.facts()["running"] == 0


async def test_a_crash_in_one_request_touches_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    real = Completion.take

    def crash(self: Completion, event: Any, out: list[Piece]) -> None:
        if self.request == 1:
            raise RuntimeError(f"a bug that quotes {KEY}")
        real(self, event, out)

    monkeypatch.setattr(Completion, "take", crash)
    async with FakeProvider(say("a")) as upstream, harness(provider(upstream.base_url, key="FAKE_KEY")) as h:
        h.ask(1)
        h.ask(2)
        assert (await h.failed(1)).fault.code == Code.INTERNAL
        await h.finished(2)
        assert h.tree.slots["llm/streamer"].incarnation == 1
    assert "RuntimeError" in caplog.text
    assert KEY not in caplog.text


# What goes wrong upstream

BROKEN: dict[str, tuple[Script, Code, str]] = {
    "cut": (Script(("some ", "text", Cut())), Code.LLM_STREAM_BROKEN, "some text"),
    "reset": (Script(("some ", "text", Cut(reset=True))), Code.LLM_STREAM_BROKEN, "some text"),
    "end without finish": (Script(("some",), done=False), Code.LLM_STREAM_BROKEN, "some"),
    "page": (page("<html><title>Log in</title><body><p>Please log in"), Code.LLM_UNAVAILABLE, ""),
    "page that says it is a stream": (raw(b"<!doctype html><p>Log in"), Code.LLM_UNAVAILABLE, ""),
    "error object": (raw(b'{"error":{"message":"out of order","code":400}}'), Code.LLM_REJECTED, ""),
    "error in the stream": (
        Script(("some", {"error": {"message": "the model fell over", "code": 502}})),
        Code.LLM_UNAVAILABLE,
        "some",
    ),
    "401": (fail(401, "Incorrect API key provided"), Code.LLM_AUTH_FAILED, ""),
    "403": (fail(403), Code.LLM_AUTH_FAILED, ""),
    "404": (fail(404, "no such model"), Code.LLM_REJECTED, ""),
    "422": (fail(422), Code.LLM_REJECTED, ""),
    "redirect": (fail(301, headers={"Location": "http://127.0.0.1:9/"}), Code.LLM_REJECTED, ""),
    "too long": (fail(400, "This model's maximum context length is 10 tokens"), Code.LLM_CONTEXT_TOO_LONG, ""),
    "spent": (fail(429, code="insufficient_quota"), Code.LLM_RATE_LIMITED, ""),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_broken_upstreams(what: str) -> None:
    script, code, said = BROKEN[what]
    async with FakeProvider(script, say("fine")) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        failed = await h.failed(1)
        assert (failed.fault.code, h.text(1)) == (code, said)
        assert failed.fault.text.startswith("p: ")
        assert "<" not in failed.fault.text
        assert failed.fault.hint
        assert len(upstream.requests) == 1  # none of these is asked again
        h.ask(2)
        await h.finished(2)


async def test_the_end_of_the_connection_after_the_finish_is_no_failure() -> None:
    script = Script((*say("whole").items, Cut(reset=True)))
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        assert (await h.finished(1)).finish_reason == "stop"


@pytest.mark.autojump
@pytest.mark.parametrize("mark", [b"", b"data: [DONE]\n\n"], ids=["finish", "end mark"])
async def test_signs_of_life_behind_the_end_do_not_prolong_it(mark: bytes) -> None:
    alive = [item for _ in range(200) for item in (b": alive\n\n", Pause(0.08))]
    script = Script((*say("whole").items, *([mark] if mark else []), *alive), done=False)
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        assert (await h.finished(1)).finish_reason == "stop"
        await upstream.requests[0].closed.wait()
        assert upstream.requests[0].sent < len(script.items) - 200


async def test_an_upstream_that_stays_after_the_end_mark_is_not_waited_for() -> None:
    script = Script((*say("whole").items, b"data: [DONE]\n\n", Stall()), done=False)
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        await h.finished(1)
        await upstream.requests[0].closed.wait()


AGAIN = {
    "500": fail(500),
    "503 page": page("<h1>Bad gateway</h1>", status=503),
    "408": fail(408),
    "409": fail(409),
    "429": fail(429, headers={"Retry-After": "0"}),
    "429, a date in the past": fail(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "429, nonsense": fail(429, headers={"Retry-After": "soon"}),
    "no head": Script(before_head=Cut(reset=True)),
    "nothing": Script(done=False),
    "only the end mark": Script(),
    "garbage": raw(b"\x00\xff\xfe garbage\nmore"),
    "garbage in an event": raw(b"data: {nonsense\n\n"),
    "error object before any text": raw(b'data: {"error":{"message":"busy","code":503}}\n\n'),
}


@pytest.mark.parametrize("what", AGAIN)
async def test_what_is_tried_again(what: str) -> None:
    async with (
        FakeProvider(AGAIN[what], AGAIN[what], say("fine")) as upstream,
        harness(provider(upstream.base_url)) as h,
    ):
        h.ask(1)
        await h.finished(1)
        assert (h.text(1), len(upstream.requests)) == ("fine", 3)
        first, *others = [asked.body for asked in upstream.requests]
        assert others == [first, first]


async def test_tries_are_limited_and_the_last_error_is_told() -> None:
    async with FakeProvider(fail(503, "at capacity")) as upstream:
        async with harness(provider(upstream.base_url, retries=1), provider(upstream.base_url, "q", retries=0)) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, fault.retryable, len(upstream.requests)) == (Code.LLM_UNAVAILABLE, True, 2)
            assert fault.text == "p: the provider failed (HTTP 503): at capacity"
            h.ask(2, provider="q")
            await h.failed(2)
            assert len(upstream.requests) == 3
            assert "at capacity" in h.facts()["last_error"]


async def test_nothing_is_tried_again_once_text_was_shown() -> None:
    script = Script((Thought("hm"), {"error": {"message": "busy", "code": 503}}))
    async with FakeProvider(script, say("again")) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        await h.failed(1)
        assert len(upstream.requests) == 1


async def test_a_kept_connection_that_the_upstream_dropped_costs_nothing() -> None:
    async with FakeProvider(say("a"), Script(before_head=Cut(reset=True)), say("b")) as upstream:
        async with harness(provider(upstream.base_url, http2=True)) as h:
            h.ask(1)
            await h.finished(1)
            h.ask(2)
            await h.finished(2)
            assert h.text(2) == "b"


async def test_nobody_listens() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with harness(provider(f"http://127.0.0.1:{port}/v1", retries=1)) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert (fault.code, fault.retryable) == (Code.LLM_UNAVAILABLE, True)
        assert "could not be reached" in fault.text


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (Script(("some", Stall())), Code.LLM_STREAM_BROKEN, "some"),
        (Script((b": comment\n\n", Stall())), Code.LLM_UNAVAILABLE, ""),
        (Script(before_head=Stall()), Code.LLM_UNAVAILABLE, ""),
        (Script((b'{"choices":', Stall()), content_type="application/json"), Code.LLM_UNAVAILABLE, ""),
    ],
)
async def test_silence_ends_a_request(script: Script, code: Code, said: str) -> None:
    async with FakeProvider(script) as upstream:
        async with harness(provider(upstream.base_url, first_token_timeout=0.3, idle_timeout=0.3)) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, h.text(1)) == (code, said)
            assert "0.3 s" in fault.text
            await upstream.requests[0].closed.wait()


WORKING = tuple(part for _ in range(200) for part in (b": working\n\n", Pause(0.05)))


@pytest.mark.parametrize(
    ("scripts", "code", "said", "asked"),
    [
        (
            (Script(("a", *(part for i in range(200) for part in (f" {i}", Pause(0.05))))),),
            Code.LLM_STREAM_BROKEN,
            "a 0",
            1,
        ),
        ((Script(WORKING),), Code.LLM_UNAVAILABLE, "", 1),
        ((fail(503, headers={"Retry-After": "0"}), Script(before_head=Stall())), Code.LLM_UNAVAILABLE, "", 2),
        ((fail(429, headers={"Retry-After": "30"}),), Code.LLM_UNAVAILABLE, "", 1),
    ],
    ids=["text flows", "only comments flow", "the second try", "the wait between tries"],
)
async def test_the_whole_request_is_bounded(scripts: tuple[Script, ...], code: Code, said: str, asked: int) -> None:
    async with FakeProvider(*scripts) as upstream:
        async with harness(provider(upstream.base_url, total_timeout=0.4, retries=5)) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, len(upstream.requests)) == (code, asked)
            assert h.text(1).startswith(said)
            assert "0.4 s" in fault.text
            assert "client.total_timeout" in fault.hint
            if code == Code.LLM_STREAM_BROKEN or asked == 2:
                await upstream.requests[-1].closed.wait()


async def test_a_whole_answer_that_only_lacks_its_end_when_time_is_up_is_one() -> None:
    script = Script((*say("whole", usage=None).items, Stall()))
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url, total_timeout=0.4)) as h:
        h.ask(1)
        assert (await h.finished(1)).finish_reason == "stop"
        await upstream.requests[0].closed.wait()


@pytest.mark.parametrize(("expiry", "connections"), [(0.05, 2), (60.0, 1)])
async def test_a_connection_that_was_idle_for_longer_than_configured_is_not_used_again(
    expiry: float, connections: int
) -> None:
    async with FakeProvider(say("a")) as upstream:
        async with harness(provider(upstream.base_url, keepalive_expiry=expiry)) as h:
            h.ask(1)
            await h.finished(1)
            await trio.sleep(0.1)  # idleness itself is what is tested
            h.ask(2)
            await h.finished(2)
            assert (upstream.connections, upstream.open) == (connections, 1)


async def test_comments_do_not_count_as_an_answer_but_as_a_sign_of_life() -> None:
    slow = [piece for _ in range(8) for piece in (b": working\n\n", Pause(0.15))]
    script = Script(("a", *slow, *say("b").items))
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url, idle_timeout=1.0)) as h:
        h.ask(1)
        await h.finished(1)
        assert h.text(1) == "ab"


# Configuration and secrets


async def test_without_a_provider() -> None:
    async with harness() as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert fault.code == Code.LLM_NOT_CONFIGURED
        assert "--extra local" in fault.hint


async def test_unknown_provider() -> None:
    async with harness(provider("http://127.0.0.1:9/")) as h:
        h.ask(1, provider="other")
        fault = (await h.failed(1)).fault
        assert fault.code == Code.LLM_NOT_CONFIGURED
        assert "'other'" in fault.text
        assert "p" in fault.hint


async def test_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)
    async with harness(provider("https://llm.invalid/v1", key="FAKE_KEY")) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert fault.code == Code.LLM_NOT_CONFIGURED
        assert "FAKE_KEY=" in fault.hint
        assert "uv run --extra local actors-main" in fault.hint


async def test_a_provider_on_this_machine_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)
    async with FakeProvider() as upstream, harness(provider(upstream.base_url, key="FAKE_KEY")) as h:
        h.ask(1)
        await h.finished(1)
        assert "authorization" not in upstream.requests[0].headers


@pytest.mark.parametrize("key", ["sk-4711\r\nX: y", "sk-4711-é"])
async def test_a_key_that_no_header_can_carry_is_not_quoted(
    key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_KEY", key)
    async with harness(provider("http://127.0.0.1:9/", key="FAKE_KEY")) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert fault.code == Code.LLM_NOT_CONFIGURED
        assert "FAKE_KEY" in fault.text
        assert "4711" not in str(fault) + caplog.text


@pytest.mark.parametrize("address", ["no address", "ftp://x/", "http://[::1", "http:///v1", f"http://{'x' * 64}.test/"])
async def test_unusable_addresses(address: str) -> None:
    async with harness(provider(address)) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert fault.code == Code.LLM_NOT_CONFIGURED
        assert "base_url" in fault.hint


async def test_a_certificate_file_that_is_not_there() -> None:
    async with harness(provider("https://127.0.0.1:9/", ca_file="/nowhere.pem")) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert (fault.code, "client.ca_file" in fault.text) == (Code.LLM_NOT_CONFIGURED, True)


LEAKS = {
    "error body": lambda a: fail(400, f"bad key {a.headers['authorization']} for {a.headers['x-org']}"),
    "auth error": lambda a: fail(401, f"bad key {a.headers['authorization']}"),
    "cut in two by the limit": lambda a: fail(400, "x" * 280 + a.headers["authorization"]),
    "in the stream": lambda a: Script(({"error": {"message": f"{a.headers['authorization']} {a.headers['x-org']}"}},)),
    "garbage": lambda a: raw(f"data: {a.headers['authorization']}\n\n".encode()),
    "page": lambda a: page(f"<p>{a.headers['authorization']}"),
}


@pytest.mark.parametrize("where", LEAKS)
async def test_secrets_are_never_told(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FAKE_KEY", KEY)
    monkeypatch.setenv("FAKE_ORG", "org-secret-99")
    upstream = FakeProvider()
    upstream.replies = [lambda _: LEAKS[where](upstream.requests[-1])]
    async with upstream:
        settings = provider(upstream.base_url, key="FAKE_KEY", headers={"X-Org": "id=${FAKE_ORG}"}, retries=0)
        async with harness(settings) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            told = f"{fault} {h.facts()} {caplog.text} {prepare(settings)!r}"
    assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"
    for secret in (KEY, KEY[:9], "org-secret-99", "org-secret"):
        assert secret not in told


async def test_a_change_of_configuration_is_for_requests_that_begin_later() -> None:
    hold = trio.Event()
    async with FakeProvider(lambda a: _held(a, hold)) as old, FakeProvider(say("new")) as new:
        async with harness(provider(old.base_url)) as h:
            h.ask(1)
            await h.until(lambda: h.text(1) == "begin ")
            h.tree.ref("watcher").offer(Configured(snapshot(provider(new.base_url), version=2)))
            asked = await _asked_until(h, new)
            assert asked.json["model"] == "m1"
            assert not old.requests[0].closed.is_set()  # still in use
            hold.set()
            await h.finished(1)
            assert h.text(1) == "begin end"
            await old.requests[0].closed.wait()  # the old client closed with its last request
            assert h.facts()["clients"] == 1


async def _asked_until(h: Harness, upstream: FakeProvider) -> Asked:
    """Ask until the new configuration is in force there: it comes through two mailboxes."""
    for request in range(10, 200):
        h.ask(request)
        if upstream.requests:
            break
        await trio.testing.wait_all_tasks_blocked(0.01)
    return await upstream.request(1)


async def test_an_idle_client_of_a_provider_that_is_gone_closes_at_once() -> None:
    async with FakeProvider() as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        await h.finished(1)
        assert upstream.open == 1
        h.tree.ref("watcher").offer(Configured(snapshot(version=2)))
        await upstream.requests[0].closed.wait()


async def test_its_end_closes_all_upstreams() -> None:
    async with FakeProvider(Script(("a", Stall()))) as upstream:
        async with harness(provider(upstream.base_url)) as h:
            h.ask(1)
            h.ask(2)
            await h.until(lambda: h.text(1) == h.text(2) == "a")
        for asked in upstream.requests:
            await asked.closed.wait()
        assert upstream.open == 0


def test_the_process_has_no_key_of_ours() -> None:
    assert "FAKE_KEY" not in os.environ

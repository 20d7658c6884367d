"""A request on its way through its providers: when the next one is asked, and what is told in the end."""

from __future__ import annotations

import itertools
import logging

import pytest
import trio

from actors.completion import Completion
from actors.sse import Event
from protocol.errors import Code
from protocol.streamer import Piece, Text
from tests.fakes import Cut, FakeProvider, Script, Stall, Thought, fail, page, raw, say
from tests.streaming import KEY, harness, provider

NOT_THE_REQUESTS: dict[str, Script] = {
    "unreachable": Script(before_head=Cut(reset=True)),
    "unavailable": fail(503, "at capacity"),
    "too many requests": fail(429),
    "wants more than a person waits": fail(429, headers={"Retry-After": "600"}),
    "used up": fail(429, code="insufficient_quota"),
    "wrong key": fail(401),
    "a page": page("<h1>Log in"),
    "cut before anything was shown": raw(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n', Cut()),
    "silent": Script(before_head=Stall()),
}


@pytest.mark.parametrize("what", NOT_THE_REQUESTS)
async def test_a_fallback_answers_what_is_not_the_requests_fault(what: str) -> None:
    async with FakeProvider(NOT_THE_REQUESTS[what]) as first, FakeProvider(say("from q")) as second:
        providers = (
            provider(first.base_url, "p", retries=1, first_token_timeout=0.3),
            provider(second.base_url, "q", parameters={"top_k": 7}),
        )
        async with harness(*providers, fallbacks=["q"]) as h:
            h.ask(1, model="m-of-p")
            finished = await h.finished(1)
            assert (h.text(1), finished.provider) == ("from q", "q")
            assert (first.requests[0].json["model"], second.requests[0].json["model"]) == ("m-of-p", "m1")
            assert second.requests[0].json["top_k"] == 7
            assert h.facts()["failed"] == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (fail(400, "no such parameter"), Code.LLM_REJECTED),
        (fail(400, code="context_length_exceeded"), Code.LLM_CONTEXT_TOO_LONG),
        (Script(("some", Cut())), Code.LLM_STREAM_BROKEN),
        (Script((Thought("hm"), {"error": {"message": "busy", "code": 503}})), Code.LLM_UNAVAILABLE),
    ],
    ids=["rejected", "too long", "broken after text", "broken after thoughts"],
)
async def test_none_is_asked_where_the_request_is_wrong_or_something_was_shown(script: Script, code: Code) -> None:
    async with FakeProvider(script) as first, FakeProvider(say("from q")) as second:
        async with harness(provider(first.base_url, "p"), provider(second.base_url, "q"), fallbacks=["q"]) as h:
            h.ask(1)
            assert (await h.failed(1)).fault.code == code
            assert (len(first.requests), len(second.requests)) == (1, 0)


async def test_in_their_order_and_what_each_said_is_told() -> None:
    async with (
        FakeProvider(fail(503, "p is full")) as first,
        FakeProvider(fail(400, "q rejects it")) as second,
        FakeProvider(fail(401, "r wants a key"), say("from r")) as third,
    ):
        providers = [
            provider(one.base_url, name, retries=0) for one, name in ((first, "p"), (second, "q"), (third, "r"))
        ]
        async with harness(*providers, fallbacks=["q", "r"]) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, fault.retryable) == (Code.LLM_UNAVAILABLE, True)
            assert fault.text == (
                "p: the provider failed (HTTP 503): p is full; q: the provider rejected the request (HTTP 400): "
                "q rejects it; r: the provider refused our key (HTTP 401): r wants a key."
            )
            h.ask(2)
            assert (await h.finished(2)).provider == "r"


async def test_a_fallback_answers_at_once_for_a_provider_that_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeProvider(fail(500)) as first, FakeProvider(say("from q")) as second:
        settings = provider(first.base_url, "p", retries=0, breaker={"failures": 2, "rest": 1000.0})
        async with harness(settings, provider(second.base_url, "q"), fallbacks=["q"]) as h:
            for request in range(1, 6):
                h.ask(request)
                await h.finished(request)
            assert (len(first.requests), len(second.requests)) == (2, 5)
            assert "q is asked instead" in caplog.text


async def test_a_fallback_whose_key_is_missing_is_one_of_those_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)
    async with FakeProvider(fail(500)) as first:
        providers = (provider(first.base_url, "p", retries=0), provider("https://llm.invalid", "q", key="FAKE_KEY"))
        async with harness(*providers, fallbacks=["q"]) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert fault.code == Code.LLM_UNAVAILABLE
            assert "q: the environment has no FAKE_KEY" in fault.text


async def test_the_whole_is_bounded_by_the_time_of_the_asked_one() -> None:
    async with FakeProvider(fail(500)) as first, FakeProvider(Script(("a", Stall()))) as second:
        providers = (provider(first.base_url, "p", retries=0, total_timeout=0.3), provider(second.base_url, "q"))
        async with harness(*providers, fallbacks=["q"]) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, h.pieces(1)[0]) == (Code.LLM_STREAM_BROKEN, Text(1, "a"))
            await second.requests[0].closed.wait()


async def test_a_stop_reaches_the_fallback() -> None:
    async with FakeProvider(fail(500)) as first, FakeProvider(Script(("a", Stall()))) as second:
        providers = (provider(first.base_url, "p", retries=0), provider(second.base_url, "q"))
        async with harness(*providers, fallbacks=["q"]) as h:
            h.ask(1)
            await h.until(lambda: h.text(1) == "a")
            h.cancel(1)
            await second.requests[0].closed.wait()
            assert h.pieces(1) == [Text(1, "a")]


async def test_a_provider_that_forbids_another_try_is_not_tried_again() -> None:
    async with FakeProvider(fail(500, headers={"X-Should-Retry": "false"})) as upstream:
        async with harness(provider(upstream.base_url)) as h:
            h.ask(1)
            await h.failed(1)
            assert len(upstream.requests) == 1


@pytest.mark.autojump
async def test_the_waits_between_tries_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)
    came: list[float] = []

    def reply(_: object) -> Script:
        came.append(trio.current_time())
        return fail(500)

    async with FakeProvider(reply) as upstream:
        async with harness(provider(upstream.base_url, retries=6), backoff_s=0.5) as h:
            h.ask(1)
            await h.failed(1)
    assert [round(later - earlier, 2) for earlier, later in itertools.pairwise(came)] == [0.5, 1, 2, 4, 8, 8]


async def test_a_crash_after_a_fallback_took_over_tells_no_secret_of_either(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("P_KEY", KEY)
    monkeypatch.setenv("Q_KEY", "sk-other-0815")

    def crash(self: Completion, event: Event, out: list[Piece]) -> None:
        raise RuntimeError(f"a bug that quotes {KEY} and sk-other-0815")

    monkeypatch.setattr(Completion, "take", crash)
    async with FakeProvider(fail(401, f"bad key {KEY}"), say("a")) as first:
        providers = (provider(first.base_url, "p", "P_KEY", retries=0), provider(first.base_url, "q", "Q_KEY"))
        async with harness(*providers, fallbacks=["q"]) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert fault.code == Code.INTERNAL
            told = f"{fault} {h.facts()} {caplog.text}"
    assert "RuntimeError" in told
    assert KEY not in told
    assert "sk-other-0815" not in told

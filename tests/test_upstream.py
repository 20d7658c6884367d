"""What is asked of one provider by all requests together: limits, the peace that it asks for, the breaker.

Time is virtual: provider, streamer and receiver live in the same run.
"""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
import trio
import trio.testing

from protocol.errors import Code
from tests.fakes import FakeProvider, Script, Stall, fail, say
from tests.streaming import Harness, harness, provider

pytestmark = pytest.mark.autojump


async def settled() -> None:
    """Everything that can happen without time passing has happened."""
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_so_many_requests_at_a_time_the_others_wait_in_order() -> None:
    hold = trio.Event()
    script = Script(("a", Stall(hold), *say("b").items))
    async with FakeProvider(script) as upstream:
        limits = {"concurrent": 2, "queue": 3, "wait": 1000.0}
        async with harness(provider(upstream.base_url, limits=limits, idle_timeout=10_000)) as h:
            for request in range(1, 8):
                h.ask(request, said=str(request))
                await settled()  # tasks that begin together begin in any order
            for request in (6, 7):  # as many wait as may
                fault = (await h.failed(request)).fault
                assert (fault.code, fault.retryable) == (Code.OVERLOADED, True)
                assert "3 requests wait" in fault.text
            await settled()
            assert (len(upstream.requests), h.facts()["waiting"]) == (2, 3)
            h.cancel(3)  # gives up waiting: it is never asked for
            h.cancel(1)
            await upstream.request(3)
            hold.set()
            for request in (2, 4, 5):
                await h.finished(request)
            assert [a.json["messages"][0]["content"] for a in upstream.requests] == ["1", "2", "4", "5"]
            assert "waiting" not in h.facts()


async def test_a_turn_that_does_not_come_in_time() -> None:
    async with FakeProvider(Script(("a", Stall()))) as upstream:
        limits = {"concurrent": 1, "wait": 5.0}
        async with harness(provider(upstream.base_url, limits=limits, idle_timeout=10_000)) as h:
            h.ask(1)
            await upstream.request(1)
            h.ask(2)
            begun = trio.current_time()
            fault = (await h.failed(2)).fault
            assert (fault.code, fault.retryable) == (Code.LLM_RATE_LIMITED, True)
            assert "limits" in fault.hint
            assert 5.0 <= trio.current_time() - begun < 6.0
            assert len(upstream.requests) == 1


async def test_so_many_requests_a_minute_further_tries_included() -> None:
    async with FakeProvider(fail(500), say("a")) as upstream:
        async with harness(provider(upstream.base_url, limits={"per_minute": 3, "wait": 200.0})) as h:
            begun = trio.current_time()
            for request in range(1, 7):
                h.ask(request)
            for request in range(1, 7):
                await h.finished(request)
            assert len(upstream.requests) == 7
            assert 120.0 <= trio.current_time() - begun < 121.0


async def test_who_would_wait_in_vain_is_told_at_once() -> None:
    async with FakeProvider(say("a")) as upstream:
        async with harness(provider(upstream.base_url, limits={"per_minute": 1, "wait": 20.0})) as h:
            begun = trio.current_time()
            h.ask(1)
            await h.finished(1)
            h.ask(2)
            fault = (await h.failed(2)).fault
            assert fault.code == Code.LLM_RATE_LIMITED
            assert "another 60 s" in fault.text
            await trio.sleep(45)
            h.ask(3)
            await h.finished(3)
            assert 60.0 <= trio.current_time() - begun < 61.0


async def test_more_requests_than_connections_wait_for_one() -> None:
    hold = trio.Event()
    async with FakeProvider(Script(("a", Stall(hold), *say("b").items))) as upstream:
        async with harness(provider(upstream.base_url, max_connections=2, first_token_timeout=1.0)) as h:
            for request in range(1, 6):
                h.ask(request)
            await settled()
            await trio.sleep(10)  # longer than the time for a first token: waiting for a turn is none of it
            assert upstream.connections == 2
            hold.set()
            for request in range(1, 6):
                await h.finished(request)
            assert upstream.connections == 2


@pytest.mark.parametrize("how", ["seconds", "milliseconds", "a date", "words"])
async def test_all_requests_leave_a_provider_alone_that_asks_for_it(how: str) -> None:
    asks = {
        "seconds": fail(429, headers={"Retry-After": "20"}),
        "milliseconds": fail(429, headers={"Retry-After-Ms": "20000"}),
        "a date": fail(429, headers={"Retry-After": formatdate(time.time() + 21, usegmt=True)}),  # whole seconds
        "words": fail(429, "Rate limit reached. Please try again in 20s."),
    }
    async with FakeProvider(asks[how], say("a")) as upstream:
        async with harness(provider(upstream.base_url)) as h:
            begun = trio.current_time()
            h.ask(1)
            await (await upstream.request(1)).finished.wait()
            await settled()
            h.ask(2)
            await h.finished(1)
            await h.finished(2)
            assert 19.0 <= trio.current_time() - begun <= 24.0
            assert len(upstream.requests) == 3


async def test_whoever_asks_for_more_than_a_person_waits_is_not_asked_again() -> None:
    async with FakeProvider(fail(429, "Try again in 10 minutes", headers={"Retry-After": "600"})) as upstream:
        async with harness(provider(upstream.base_url, limits={"wait": 40.0})) as h:
            begun = trio.current_time()
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, fault.retryable) == (Code.LLM_RATE_LIMITED, True)
            assert "Try again in 10 minutes" in fault.text
            assert fault.hint == "Wait 600 s, then send the message again."
            h.ask(2)  # told at once, without asking: it would wait for longer than it may
            fault = (await h.failed(2)).fault
            assert (fault.code, len(upstream.requests)) == (Code.LLM_RATE_LIMITED, 1)
            assert "asked for no requests" in fault.text
            assert trio.current_time() - begun < 1.0


async def fails(h: Harness, request: int) -> str:
    """Ask; the text of the failure that comes."""
    h.ask(request)
    fault = (await h.failed(request)).fault
    assert (fault.code, fault.retryable) == (Code.LLM_UNAVAILABLE, True)
    return fault.text


async def test_a_provider_that_fails_is_left_alone_and_asked_again_by_one() -> None:
    down = [fail(503, "at capacity")] * 4
    hold = trio.Event()
    async with FakeProvider(*down, Script((Stall(hold), *say("back").items)), say("b")) as upstream:
        settings = provider(upstream.base_url, retries=0, breaker={"failures": 3, "rest": 10.0})
        async with harness(settings) as h:
            for request in (1, 2, 3):
                assert "at capacity" in await fails(h, request)
            assert h.facts()["resting"] == "p open"
            text = await fails(h, 4)
            assert "not asked for another 10 s" in text
            assert "3 times in a row" in text
            assert len(upstream.requests) == 3
            await trio.sleep(11)
            assert "at capacity" in await fails(h, 5)  # asked again, and no better
            await trio.sleep(11)
            assert "not asked" in await fails(h, 6)  # rests twice as long
            await trio.sleep(10)
            h.ask(7)
            await upstream.request(5)
            await settled()
            assert h.facts()["resting"] == "p half-open"
            assert "not asked" in await fails(h, 8)
            hold.set()
            await h.finished(7)
            assert "resting" not in h.facts()
            h.ask(9)
            await h.finished(9)


async def test_a_stopped_probe_leaves_its_place_and_a_wrong_request_says_nothing_of_the_provider() -> None:
    replies = (fail(503), Script((Stall(),)), fail(400, "no"), say("a"))
    async with FakeProvider(*replies) as upstream:
        async with harness(provider(upstream.base_url, retries=0, breaker={"failures": 1, "rest": 5.0})) as h:
            await fails(h, 1)
            await trio.sleep(6)
            h.ask(2)
            await upstream.request(2)
            h.cancel(2)
            await upstream.requests[1].closed.wait()
            await settled()
            h.ask(3)
            assert (await h.failed(3)).fault.code == Code.LLM_REJECTED
            h.ask(4)
            await h.finished(4)
            assert "resting" not in h.facts()


async def test_without_a_breaker_it_is_always_asked() -> None:
    async with FakeProvider(fail(503)) as upstream:
        async with harness(provider(upstream.base_url, retries=0, breaker={"failures": 0})) as h:
            for request in range(1, 21):
                await fails(h, request)
            assert len(upstream.requests) == 20


async def test_a_corrected_configuration_is_tried_at_once() -> None:
    async with FakeProvider(fail(503)) as wrong, FakeProvider(say("a")) as right:
        breaker = {"failures": 1, "rest": 1000.0}
        async with harness(provider(wrong.base_url, retries=0, breaker=breaker)) as h:
            await fails(h, 1)
            assert "not asked" in await fails(h, 2)
            h.configure(provider(wrong.base_url, retries=0, breaker=breaker, parameters={"top_k": 1}))
            await h.until_configured(2)
            assert "not asked" in await fails(h, 3)  # nothing that could help has changed
            h.configure(provider(right.base_url, retries=0, breaker=breaker), version=3)
            await h.until_configured(3)
            h.ask(4)
            await h.finished(4)
            assert "resting" not in h.facts()


async def test_other_limits_count_for_those_who_wait() -> None:
    async with FakeProvider(Script(("a", Stall()))) as upstream:
        settings = provider(upstream.base_url, limits={"concurrent": 1, "wait": 10_000.0}, idle_timeout=10_000)
        async with harness(settings) as h:
            for request in (1, 2, 3):
                h.ask(request)
            await settled()
            assert len(upstream.requests) == 1
            h.configure(provider(upstream.base_url, limits={"concurrent": 2, "wait": 10_000.0}, idle_timeout=10_000))
            await upstream.request(2)
            await settled()
            assert (len(upstream.requests), h.facts()["waiting"]) == (2, 1)

"""The pool of connections: bounded, in order, used again, and the work for a request does not grow with the others."""

from __future__ import annotations

from typing import Any

import httpcore
import pytest
import trio
import trio.testing
from httpcore._async.connection import AsyncHTTPConnection
from httpcore._async.interfaces import AsyncConnectionInterface

from actors import heads
from actors.pool import Pool
from tests.fakes import FakeProvider, Script, Stall, say
from tests.streaming import harness, provider


def test_httpcore_calls_what_is_replaced() -> None:
    code = httpcore.AsyncConnectionPool.handle_async_request.__code__
    assert {"_assign_requests_to_connections", "_requests", "append", "remove"} <= {*code.co_names}


async def test_at_most_so_many_connections_and_who_waits_comes_in_its_order() -> None:
    hold = trio.Event()
    scripts = [Script((f"{n} ", Stall(hold), *say("end").items)) for n in range(6)]
    async with FakeProvider(*scripts) as upstream:
        async with harness(provider(upstream.base_url, max_connections=2, limits={"concurrent": 100})) as h:
            for request in range(1, 7):
                h.ask(request)
                await trio.testing.wait_all_tasks_blocked(0.005)
            assert len(upstream.requests) == 2
            h.cancel(4)
            hold.set()
            for request in (1, 2, 3, 5, 6):
                await h.finished(request)
            assert {h.text(3), h.text(5)} == {"2 end", "3 end"}  # two were free at the same time
            assert h.text(6) == "4 end"
            assert upstream.connections == 2


async def test_idle_connections_are_kept_up_to_their_number_and_the_rest_are_closed() -> None:
    hold = trio.Event()
    async with FakeProvider(*[Script(("a", Stall(hold), *say("b").items))] * 5, say("c")) as upstream:
        async with harness(provider(upstream.base_url, max_keepalive_connections=2)) as h:
            for request in range(1, 6):
                h.ask(request)
            await h.until(lambda: all(h.text(request) == "a" for request in range(1, 6)))
            hold.set()
            for request in range(1, 6):
                await h.finished(request)
            for request in (6, 7, 8):
                h.ask(request)
                await h.finished(request)
            assert upstream.connections == 5


async def test_a_request_that_begins_or_ends_looks_at_no_other_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    for name in ("is_idle", "is_closed", "has_expired", "is_available", "can_handle_request"):
        was = getattr(AsyncHTTPConnection, name)

        def counted(self: AsyncHTTPConnection, *of: object, was: object = was) -> object:
            nonlocal looks
            looks += 1
            return was(self, *of)  # type: ignore[operator]  # one of the five

        monkeypatch.setattr(AsyncHTTPConnection, name, counted)
    many, hold = 60, trio.Event()
    async with FakeProvider(*[Script(("a", Stall(hold), *say("b").items))] * many) as upstream:
        client = provider(upstream.base_url, max_connections=many, max_keepalive_connections=many)
        async with harness(client) as h:
            for request in range(many):
                h.ask(request)
            await h.until(lambda: all(h.text(request) == "a" for request in range(many)))
            hold.set()
            for request in range(many):
                await h.finished(request)
            assert upstream.connections == many
    assert looks <= 10 * many


async def test_a_request_that_finds_a_connection_idle_does_not_queue_and_its_head_is_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queued, heads_made = 0, 0
    assign, opening = Pool._assign_requests_to_connections, heads.opening

    def counted(self: Pool) -> list[AsyncConnectionInterface]:
        nonlocal queued
        queued += bool(self._requests.waiting)
        return assign(self)

    def made(*of: Any) -> bytes | None:
        nonlocal heads_made
        heads_made += 1
        return opening(*of)

    monkeypatch.setattr(Pool, "_assign_requests_to_connections", counted)
    monkeypatch.setattr(heads, "opening", made)
    async with FakeProvider() as upstream, harness(provider(upstream.base_url)) as h:
        for request in range(1, 11):
            h.ask(request)
            await h.finished(request)
        assert upstream.connections == 1
        assert len(upstream.requests) == 10
    assert (queued, heads_made) == (0, 1)


async def test_a_request_that_is_cancelled_before_it_has_a_connection_leaves_none_behind() -> None:
    async with FakeProvider(say("a")) as upstream:
        pool = Pool(max_connections=1)
        url = upstream.base_url + "/chat/completions"
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await pool.request("POST", url, content=b"{}")
        assert (await pool.request("POST", url, content=b'{"stream": true}')).status == 200
        assert len(pool.connections) == 1
        await pool.aclose()

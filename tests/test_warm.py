"""Connections that are there before they are needed, and only these: over TLS, and plain where it is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.certificates import Authority
from tests.fakes import FakeProvider, Script, Stall, say
from tests.http2_provider import Http2Provider
from tests.streaming import Harness, harness, provider


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def connected(upstream: FakeProvider | Http2Provider, count: int) -> None:
    while upstream.open != count:
        await trio.testing.wait_all_tasks_blocked(0.005)


async def answered(h: Harness, request: int) -> None:
    h.ask(request)
    await h.finished(request)


async def test_the_first_request_finds_a_connection_with_its_tls(authority: Authority) -> None:
    async with FakeProvider(say("a"), tls=authority.server("http/1.1")) as upstream:
        async with harness(provider(upstream.base_url, ca_file=str(authority.file))) as h:
            await connected(upstream, 1)
            assert upstream.requests == []  # nothing is said on it
            await answered(h, 1)
            await answered(h, 2)
            assert upstream.connections == 1
        await connected(upstream, 0)


async def test_a_request_that_comes_while_one_is_opened_takes_that_and_no_more_than_one_does() -> None:
    hold = trio.Event()
    async with FakeProvider(Script(("a", Stall(hold), *say("b").items))) as upstream:
        async with harness(provider(upstream.base_url, prewarm=1)) as h:
            h.ask(1)
            h.ask(2)
            await upstream.request(2)
            assert upstream.connections == 2
            hold.set()
            await h.finished(1)
            await h.finished(2)


async def test_one_is_enough_for_http_2(authority: Authority) -> None:
    async with Http2Provider(authority.server("h2"), say("a")) as upstream:
        async with harness(provider(upstream.base_url, ca_file=str(authority.file), http2=True, prewarm=3)) as h:
            await connected(upstream, 1)
            await answered(h, 1)
            assert upstream.connections == 1


async def test_as_many_as_configured_plain_ones_too() -> None:
    async with FakeProvider(say("a")) as upstream:
        async with harness(provider(upstream.base_url, prewarm=2)) as h:
            await connected(upstream, 2)
            await answered(h, 1)
            assert upstream.connections == 2
    async with FakeProvider(say("a")) as upstream, harness(provider(upstream.base_url)) as h:
        await answered(h, 1)  # a plain one costs nothing to open
        assert upstream.connections == 1


async def test_the_provider_that_becomes_active_is_warmed_and_the_other_let_go() -> None:
    async with FakeProvider(say("a")) as first, FakeProvider(say("b")) as second:
        providers = provider(first.base_url, "p", prewarm=1), provider(second.base_url, "q", prewarm=1)
        async with harness(*providers) as h:
            await connected(first, 1)
            assert second.open == 0
            h.configure(providers[1], providers[0])
            await connected(second, 1)
            h.configure(providers[1], version=3)
            await connected(first, 0)
            await answered(h, 1)
            assert second.connections == 1


async def test_what_the_provider_has_closed_is_not_used() -> None:
    async with FakeProvider(say("b")) as upstream:
        async with harness(provider(upstream.base_url, prewarm=1)) as h:
            await connected(upstream, 1)
            await upstream.hang_up()
            await connected(upstream, 0)
            await answered(h, 1)
            assert (upstream.connections, len(upstream.requests)) == (2, 1)


@pytest.mark.autojump
async def test_what_is_not_taken_in_its_time_is_closed() -> None:
    async with FakeProvider(say("b")) as upstream:
        async with harness(provider(upstream.base_url, prewarm=2, keepalive_expiry=20)) as h:
            await connected(upstream, 2)
            await trio.sleep(19)
            assert upstream.open == 2
            await trio.sleep(2)
            assert upstream.open == 0
            await answered(h, 1)


async def test_who_lacks_its_key_or_cannot_be_reached_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)
    closed = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = closed.socket.getsockname()[1]
    await closed.aclose()
    async with FakeProvider(say("a")) as upstream:
        async with harness(provider(f"http://127.0.0.1:{port}", prewarm=1), provider(upstream.base_url, "q")) as h:
            h.ask(1, provider="q")
            await h.finished(1)
            h.configure(provider("https://llm.invalid", key="FAKE_KEY"), provider(upstream.base_url, "q"))
            await h.until_configured(2)
            h.ask(2, provider="q")
            await h.finished(2)
            assert h.tree.slots["llm/streamer"].incarnation == 1


@pytest.mark.parametrize("prewarm", [0, 1])
async def test_a_handshake_that_is_given_up_leaves_no_connection(prewarm: int) -> None:
    async with trio.open_nursery() as nursery:
        accepted, ended = trio.Event(), trio.Event()

        async def mute(stream: trio.SocketStream) -> None:
            accepted.set()
            while await stream.receive_some():
                pass  # the client's hello, and no answer to it
            ended.set()

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, mute, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with harness(provider(f"https://127.0.0.1:{port}", prewarm=prewarm)) as h:
            if not prewarm:
                h.ask(1)
            await accepted.wait()
            if prewarm:
                h.configure()
            else:
                h.cancel(1)
            await ended.wait()
        nursery.cancel_scope.cancel()

"""HTTP/2 and TLS to providers, against real servers: h2 over TLS on loopback, and HTTP/1.1 over TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.errors import Code
from protocol.streamer import Text
from tests.certificates import Authority
from tests.fakes import FakeProvider, Script, Stall, fail, raw, say
from tests.http2_provider import Http2Provider
from tests.streaming import harness, provider


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_many_requests_share_one_connection(authority: Authority) -> None:
    hold = trio.Event()
    async with Http2Provider(authority.server("h2"), Script(("a", Stall(hold), *say("b").items))) as upstream:
        async with harness(provider(upstream.base_url, http2=True, ca_file=str(authority.file))) as h:
            h.ask(1)
            await h.until(lambda: h.text(1) == "a")
            for request in range(2, 21):
                h.ask(request, said="x" * 100_000)  # past the windows that a server begins with
            await upstream.request(20)
            hold.set()
            for request in range(1, 21):
                assert (await h.finished(request)).usage is not None
                assert h.text(request) == "ab"
            assert upstream.connections == 1
            asked = upstream.requests[-1]
            assert (asked.headers[":path"], asked.json["messages"][0]["content"]) == (
                "/v1/chat/completions",
                "x" * 100_000,
            )


async def test_http_1_1_where_the_server_offers_no_other(authority: Authority) -> None:
    for offered in ((), ("http/1.1",)):
        async with FakeProvider(say("a"), tls=authority.server(*offered)) as upstream:
            async with harness(provider(upstream.base_url, http2=True, ca_file=str(authority.file))) as h:
                for request in (1, 2):
                    h.ask(request)
                    await h.finished(request)
                assert (upstream.connections, h.text(2)) == (1, "a")


async def test_http_1_1_where_no_other_is_configured(authority: Authority) -> None:
    async with FakeProvider(say("a"), tls=authority.server("h2", "http/1.1")) as upstream:
        async with harness(provider(upstream.base_url, ca_file=str(authority.file))) as h:
            h.ask(1)
            await h.finished(1)


@pytest.mark.parametrize("after", ["before the head", "in the body"])
async def test_a_stop_resets_its_stream_and_no_other(authority: Authority, after: str) -> None:
    held, hold = trio.Event(), trio.Event()
    stalled = Script(("a", Stall(held))) if after == "in the body" else Script(before_head=Stall(held))
    async with Http2Provider(
        authority.server("h2"), Script(("a", Stall(hold), *say("b").items)), stalled, say("c")
    ) as upstream:
        async with harness(provider(upstream.base_url, http2=True, ca_file=str(authority.file))) as h:
            h.ask(1)
            await h.until(lambda: h.text(1) == "a")
            h.ask(2)
            asked = await upstream.request(2)
            if after == "in the body":
                await h.until(lambda: h.text(2) == "a")
            h.cancel(2)
            await asked.reset.wait()
            assert not upstream.requests[0].reset.is_set()
            hold.set()
            await h.finished(1)
            h.ask(3)
            await h.finished(3)
            assert (h.text(1), h.text(3), upstream.connections) == ("ab", "c", 1)
            assert not upstream.requests[2].reset.is_set()  # what is whole is not reset


async def test_more_stops_than_a_connection_has_streams(authority: Authority) -> None:
    # Without the reset each would hold one of the connection's 100 streams for ever.
    large = "x" * 10_000
    async with Http2Provider(authority.server("h2"), Script((large, large, Stall()))) as upstream:
        async with harness(provider(upstream.base_url, http2=True, ca_file=str(authority.file))) as h:
            for request in range(1, 111):
                h.ask(request)
                await h.until(lambda request=request: bool(h.pieces(request)))  # type: ignore[misc]  # of a lambda
                h.cancel(request)
                await (await upstream.request(request)).reset.wait()
            assert upstream.connections == 1


async def test_errors_and_broken_streams_over_http_2(authority: Authority) -> None:
    broken = raw(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
    async with Http2Provider(authority.server("h2"), fail(400, "no"), broken, fail(503), say("b")) as upstream:
        async with harness(provider(upstream.base_url, http2=True, ca_file=str(authority.file))) as h:
            h.ask(1)
            assert (await h.failed(1)).fault.code == Code.LLM_REJECTED
            h.ask(2)
            assert (await h.failed(2)).fault.code == Code.LLM_STREAM_BROKEN
            assert h.pieces(2)[0] == Text(2, "a")
            h.ask(3)
            await h.finished(3)
            assert upstream.connections == 1


async def test_a_server_that_ends_the_connection(authority: Authority) -> None:
    async with harness(provider("https://127.0.0.1:1", http2=True)) as h:
        async with Http2Provider(authority.server("h2"), Script(("a", Stall()))) as upstream:
            h.configure(provider(upstream.base_url, http2=True, ca_file=str(authority.file), retries=0))
            await h.until_configured(2)
            h.ask(1)
            await h.until(lambda: h.text(1) == "a")
        fault = (await h.failed(1)).fault
        assert fault.code == Code.LLM_STREAM_BROKEN


@pytest.mark.parametrize("http2", [True, False])
async def test_who_is_not_trusted_is_not_asked(authority: Authority, http2: bool) -> None:
    async with FakeProvider(say("a"), tls=authority.server("h2", "http/1.1")) as upstream:
        # The system does not know this authority.
        async with harness(provider(upstream.base_url, http2=http2, prewarm=0)) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, fault.retryable) == (Code.LLM_UNAVAILABLE, False)
            assert "its certificate is not trusted" in fault.text
            assert "client.ca_file" in fault.hint
            assert upstream.connections == 1  # it is not tried again
            assert not upstream.requests


async def test_https_where_nobody_speaks_it() -> None:
    async with FakeProvider(say("a")) as upstream:
        async with harness(provider(upstream.base_url.replace("http:", "https:"))) as h:
            h.ask(1)
            fault = (await h.failed(1)).fault
            assert (fault.code, fault.retryable) == (Code.LLM_UNAVAILABLE, False)
            assert "no encrypted connection" in fault.text
            assert "https" in fault.hint

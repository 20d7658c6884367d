"""Bodies that are read past httpcore: how they end, which connections are used again, and who is read when.

The provider is real, and so are its sockets; what it sends and when is written here to the byte.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpcore
import pytest
import trio
import trio.testing

from actors import http1
from actors.alarm import Alarm
from actors.chunked import Chunked, Torn
from actors.http1 import Body
from actors.poller import MANY, TICK_S, Pace, Poller
from actors.raw_stream import RawStream
from protocol.streamer import Text
from tests.certificates import Authority
from tests.fakes import FakeProvider, Script, Stall, say
from tests.streaming import harness, provider


def test_httpcore_looks_it_up_where_it_was_put() -> None:
    made = httpcore.AsyncConnectionPool().create_connection(httpcore.Origin(b"http", b"a", 80))
    assert type(made).handle_async_request.__globals__["AsyncHTTP11Connection"] is http1.Connection


@asynccontextmanager
async def body() -> AsyncIterator[tuple[Body, trio.SocketStream]]:
    """A chunked body on a real connection, and its other end."""
    near, far = socket.create_server(("127.0.0.1", 0)), trio.socket.socket()
    with near:
        await far.connect(near.getsockname())
        stream = RawStream(near.accept()[0])
    async with trio.SocketStream(far) as peer:
        try:
            yield Body(stream, Chunked(), b""), peer
        finally:
            stream.close()


class Kept(list[bytes]):
    def take(self, data: bytes, _: float) -> bool:
        """A sink that always wants more."""
        self.append(data)
        return True


@asynccontextmanager
async def polling() -> AsyncIterator[Poller]:
    poller = Poller(lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.run)
        yield poller
        nursery.cancel_scope.cancel()
    assert not len(poller)
    poller.close()


async def test_who_reads_what_is_closed_is_told_so_each_time() -> None:
    async with body() as (answer, _):
        answer.wire.close()
        for _ in range(2):
            with pytest.raises(httpcore.ReadError):
                await answer.wire.read(1)
            with pytest.raises(trio.ClosedResourceError):
                await answer.wire.wait()


async def test_an_end_that_comes_with_the_last_of_the_body_is_one() -> None:
    async with polling() as poller, body() as (answer, peer), trio.open_nursery() as nursery:
        came = Kept()

        async def send() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await peer.send_all(b"1\r\na\r\n0\r\n\r\n")

        nursery.start_soon(send)
        assert await poller.follow(answer, came.take)
        assert (came, answer.clean) == ([b"a"], True)


async def test_a_sink_that_wants_no_more_stops_its_own_stream_and_no_other() -> None:
    async with polling() as poller, body() as (first, peer), body() as (second, other):
        came = Kept()

        def no_more(data: bytes, _: float) -> bool:
            came.append(data)
            return False

        await peer.send_all(b"1\r\na\r\n")
        assert await poller.follow(first, no_more) is False
        await peer.send_all(b"1\r\nb\r\n")
        await other.send_all(b"1\r\nc\r\n0\r\n\r\n")
        assert await poller.follow(second, came.take)
        assert came == [b"a", b"c"]
        assert await poller.follow(first, no_more) is False
        assert came == [b"a", b"c", b"b"]


async def test_what_fails_in_one_stream_ends_that_one() -> None:
    async with polling() as poller, body() as (first, peer), body() as (second, other), body() as (third, last):

        def fail(data: bytes, _: float) -> bool:
            raise ValueError(data)

        async def torn() -> None:
            with pytest.raises(Torn):
                await poller.follow(first, lambda *_: True)

        async def failing() -> None:
            with pytest.raises(ValueError, match="a"):
                await poller.follow(second, fail)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(torn)
            nursery.start_soon(failing)
            await trio.testing.wait_all_tasks_blocked()
            assert len(poller) == 2
            await peer.send_all(b"1\r\na\r\n")
            await peer.send_eof()
            await other.send_all(b"1\r\na\r\n")
        await last.send_all(b"1\r\na\r\n0\r\n\r\n")
        assert await poller.follow(third, lambda *_: True)


def test_who_is_alone_is_read_at_once_and_many_are_gathered() -> None:
    pace, now, rests = Pace(0.0), 0.0, []
    for _ in range(1000):  # 50 streams of 50 deltas a second
        now += 1 / 2500
        pace.looked(now, 1)
        rests.append(pace.rest_s(now))
    assert not any(rests)
    now += 1  # then nobody
    for _ in range(MANY):  # 400 of them; the first are not gathered
        now += 1 / 20_000
        pace.looked(now, 1)
    assert pace.rest_s(now) == 0
    for _ in range(MANY):
        now += 1 / 20_000
        pace.looked(now, 1)
    assert pace.rest_s(now) == pytest.approx(TICK_S)
    for _ in range(1000):
        now += TICK_S
        pace.looked(now, 20)
        assert pace.rest_s(now + TICK_S / 4) == pytest.approx(TICK_S * 3 / 4)
        assert pace.rest_s(now + TICK_S * 2) == 0
    pace.looked(now + TICK_S, 0)
    assert pace.rest_s(now + TICK_S) == 0
    pace.looked(now + 1, 1)
    assert pace.rest_s(now + 1) == 0


async def test_what_few_streams_say_is_told_of_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = 0
    came = Kept()
    kept = trio.Event()

    def taken() -> None:
        nonlocal told
        told += 1
        if came:
            kept.set()

    async def sleep(_: Alarm, seconds: float) -> None:
        raise AssertionError(f"it waited {seconds} s for others")

    monkeypatch.setattr(Alarm, "sleep", sleep)
    poller = Poller(taken)
    async with body() as (answer, peer), trio.open_nursery() as nursery:
        nursery.start_soon(poller.run)
        nursery.start_soon(poller.follow, answer, came.take)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(MANY // 2):
            before, kept = told, trio.Event()
            came.clear()
            await peer.send_all(b"1\r\n%d\r\n" % number)
            await kept.wait()
            assert (came, told) == ([b"%d" % number], before + 1)
        nursery.cancel_scope.cancel()
    poller.close()


async def test_what_many_streams_say_is_told_of_once_and_comes_whole() -> None:
    told = 0

    def taken() -> None:
        nonlocal told
        told += 1

    poller = Poller(taken)
    async with AsyncExitStack() as stack:
        bodies = [await stack.enter_async_context(body()) for _ in range(MANY * 2)]
        came = [Kept() for _ in bodies]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            for (answer, _), kept in zip(bodies, came, strict=True):
                nursery.start_soon(poller.follow, answer, kept.take)
            await trio.testing.wait_all_tasks_blocked()
            before = told
            for number in range(10):
                for _, peer in bodies:  # nobody else runs in between
                    peer.socket._sock.send(b"1\r\n%d\r\n" % number)  # type: ignore[attr-defined]  # trio's own yields
                while not all(len(kept) > number for kept in came):
                    await trio.lowlevel.checkpoint()
            assert told - before <= 2 * 10
            nursery.cancel_scope.cancel()
    poller.close()
    assert all(b"".join(kept) == b"0123456789" for kept in came)


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}, {"Content-Encoding": "identity"}])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_is_used_again_unless_the_provider_wants_its_end(
    headers: dict[str, str], tls: bool, tmp_path: Path
) -> None:
    authority = Authority(tmp_path) if tls else None
    options = {"ca_file": str(authority.file)} if authority else {}
    script = Script((*say("a ", "b").items,), headers=headers)
    async with FakeProvider(script, tls=authority.server("http/1.1") if authority else None) as upstream:
        async with harness(provider(upstream.base_url, prewarm=0, **options)) as h:
            for request in (1, 2):
                h.ask(request)
                await h.finished(request)
                assert h.text(request) == "a b"
            assert upstream.connections == (2 if "Connection" in headers else 1)


async def test_a_body_of_many_records_comes_whole_and_in_order(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    words = [f"{number} " * 500 for number in range(400)]
    async with FakeProvider(say(*words), tls=authority.server("http/1.1")) as upstream:
        async with harness(provider(upstream.base_url, ca_file=str(authority.file))) as h:
            for request in range(1, 5):
                h.ask(request)
            for request in range(1, 5):
                await h.finished(request)
                assert [piece.text for piece in h.pieces(request) if isinstance(piece, Text)] == words


async def test_what_is_over_is_freed_at_once_and_not_when_a_collection_comes_by() -> None:
    async with FakeProvider(*[say("a")] * 4) as upstream, harness(provider(upstream.base_url)) as h:
        gc.collect()
        gc.disable()
        try:
            before = sum(isinstance(kept, httpcore.Request | httpcore.Response) for kept in gc.get_objects())
            for request in range(1, 5):
                h.ask(request, "a long history " * 1000)
                await h.finished(request)
            await trio.testing.wait_all_tasks_blocked()
            after = sum(isinstance(kept, httpcore.Request | httpcore.Response) for kept in gc.get_objects())
        finally:
            gc.enable()
        assert after <= before


async def test_a_request_that_is_cancelled_closes_its_connection_and_others_go_on() -> None:
    hold = trio.Event()
    async with FakeProvider(Script(("a", Stall())), Script(("b", Stall(hold), *say("c").items))) as upstream:
        async with harness(provider(upstream.base_url)) as h:
            h.ask(1)
            stopped = await upstream.request(1)
            h.ask(2)
            await h.until(lambda: h.text(1) == "a" and h.text(2) == "b")
            h.cancel(1)
            await stopped.abandoned.wait()
            hold.set()
            await h.finished(2)
            assert h.text(2) == "bc"

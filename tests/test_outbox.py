"""What a socket's outbox promises: bytes in order and whole, a bounded buffer, and an end when the peer is gone."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from actors.outbox import HIGH, LOW, Outbox
from actors.timer import Timer
from tests.behind import read_nothing_of

BUFFER = 8192  # of the kernel, each way: so that little fits into it


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Outbox, trio.SocketStream, trio.Nursery]]:
    """An outbox, its peer's end of a real connection with small kernel buffers, and the nursery of its drain task."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    raw = trio.socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    await raw.connect(listener.socket.getsockname())
    async with (
        listener,
        trio.SocketStream(raw) as peer,
        await listener.accept() as stream,
        trio.open_nursery() as tasks,
    ):
        yield Outbox(stream.socket, tasks, Timer()), peer, tasks
        tasks.cancel_scope.cancel()


async def read(peer: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await peer.receive_some(65536)
        assert part
        data += part
    return bytes(data)


def reset(peer: trio.SocketStream) -> None:
    """Close it so that the other end gets a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


async def test_what_fits_is_sent_at_once_without_a_task() -> None:
    async with connected() as (outbox, peer, tasks):
        outbox.write(b"hello")
        assert outbox.waiting == 0
        assert not tasks.child_tasks
        assert await read(peer, 5) == b"hello"


@pytest.mark.parametrize("seed", range(5))
async def test_bytes_keep_their_order_whatever_the_peer_takes(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([1, 100, 5000, 60_000, 400_000]) for _ in range(60)]
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]

    async with connected() as (outbox, peer, tasks):

        async def write() -> None:
            for part in parts:
                outbox.write(part)
                if rng.random() < 0.3:
                    await outbox.wait_room()
                if rng.random() < 0.3:
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as writing:
            writing.start_soon(write)
            assert await read(peer, sum(sizes)) == b"".join(parts)
        await outbox.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert not tasks.child_tasks, "the drain task ends with what there was to drain"


async def test_a_full_buffer_is_told_and_filled_again_when_it_has_drained() -> None:
    async with connected() as (outbox, peer, _):
        chunk, sent, waited = b"x" * 50_000, [0], list[int]()

        def fill() -> None:
            while not outbox.full and sent[0] < 3_000_000:
                outbox.write(chunk)
                sent[0] += len(chunk)

        def room() -> None:
            waited.append(outbox.waiting)
            fill()

        outbox.on_room = room
        fill()
        assert outbox.full
        assert HIGH <= outbox.waiting < HIGH + len(chunk)
        await trio.testing.wait_all_tasks_blocked()
        assert not waited, "nothing is read: nobody is called"
        assert len(await read(peer, 3_000_000)) == 3_000_000
        assert waited
        assert all(size <= LOW for size in waited)
        assert outbox.waiting == 0


async def test_waiting_for_room_is_until_little_is_left_and_flushing_until_nothing() -> None:
    async with connected() as (outbox, peer, _):
        await outbox.wait_room()
        await outbox.flush()
        outbox.write(b"x" * 2 * HIGH)
        order: list[str] = []

        async def room() -> None:
            await outbox.wait_room()
            assert outbox.waiting <= LOW
            order.append("room")

        async def flushed() -> None:
            await outbox.flush()
            assert outbox.waiting == 0
            order.append("flushed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flushed)
            nursery.start_soon(room)
            await trio.testing.wait_all_tasks_blocked()
            assert not order
            await read(peer, 2 * HIGH)
        assert order == ["room", "flushed"]


async def test_a_drain_that_is_cancelled_cuts_no_bytes() -> None:
    async with connected() as (outbox, peer, tasks):
        outbox.write(b"a" * 2 * HIGH)
        await trio.testing.wait_all_tasks_blocked()
        assert tasks.child_tasks
        tasks.cancel_scope.cancel()  # as at a stop: what waits is sent by who flushes
        outbox.write(b"b")
        found: list[bytes] = []

        async def reads() -> None:
            found.append(await read(peer, 2 * HIGH + 1))

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reads)
                await outbox.flush()
        assert found == [b"a" * 2 * HIGH + b"b"]


async def test_a_reset_in_the_middle_ends_everything_that_waits() -> None:
    async with connected() as (outbox, peer, tasks):
        called: list[bool] = []
        outbox.on_room = lambda: called.append(True)
        outbox.write(b"x" * 4 * HIGH)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.wait_room)
            nursery.start_soon(outbox.flush)
            await trio.testing.wait_all_tasks_blocked()
            reset(peer)
        assert outbox.broken
        assert outbox.waiting == 0
        assert not called, "there is no room in what is broken"
        outbox.write(b"dropped")
        assert outbox.waiting == 0
        await trio.testing.wait_all_tasks_blocked()
        assert not tasks.child_tasks


async def test_closing_drops_what_waits_and_leaves_no_task() -> None:
    async with connected() as (outbox, _, tasks):
        outbox.write(b"x" * 4 * HIGH)
        await trio.testing.wait_all_tasks_blocked()
        assert tasks.child_tasks
        outbox.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not tasks.child_tasks
        assert outbox.broken
        outbox.write(b"dropped")
        await outbox.flush()
        await outbox.wait_room()


async def test_after_the_close_frame_nothing_is_written() -> None:
    async with connected() as (outbox, peer, _):
        outbox.write(b"close")
        outbox.sealed = True
        outbox.write(b"a frame of ours")
        assert await read(peer, 5) == b"close"
        assert outbox.waiting == 0
        outbox.close()
        assert not await peer.receive_some()


async def test_who_gives_the_connection_up_wakes_who_reads_it_and_gets_what_did_not_go_out() -> None:
    async with connected() as (outbox, peer, _):
        data = bytes(range(256)) * HIGH
        outbox.write(data)

        async def reads() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(outbox._sock)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads)
            await trio.testing.wait_all_tasks_blocked()
            unsent = outbox.release()
        assert await read(peer, len(data) - len(unsent)) + unsent == data


@pytest.mark.autojump
async def test_it_knows_when_the_peer_last_took_something() -> None:
    async with connected() as (outbox, peer, _):
        await trio.sleep(10)  # virtual
        outbox.write(b"x" * 4 * HIGH)
        blocked = trio.current_time()
        assert outbox.progress_at == blocked
        await trio.sleep(10)  # virtual
        outbox.write(b"x")
        assert outbox.progress_at == blocked, "more to send is no progress"
        await read(peer, 4 * HIGH + 1)
        assert outbox.progress_at >= blocked + 10


# Through the service: what a socket may cost that reads nothing.


@pytest.mark.seconds(60)
async def test_a_client_that_reads_nothing_costs_little_delays_nobody_and_misses_nothing(tmp_path: Path) -> None:
    await read_nothing_of(320, tmp_path)  # 2.6 MB; tests/soak/test_outbox.py does twenty times as much

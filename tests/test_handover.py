"""What handing over a connection promises: one front has it, never two, and what is wrong with one harms no other."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from actors import handover
from actors.handover import Handover, Passage, Passed
from protocol.errors import Code, Fault

A, B = "run:front1#1", "run:front2#3"
WHOLE = Passed(b"GET / HTTP/1.1\r\n\r\n", "c", Fault(Code.NOT_FOUND).body, "frame", b"\x00rest", b"unsent")


class House:
    """A front that notes what it is given."""

    def __init__(self, folder: Path, front: str) -> None:
        self.handover = Handover(front, str(folder / "{role}.{life}"))
        send, self.given = trio.open_memory_channel[tuple[trio.SocketStream, Passed]](10)
        self._send = send

    async def take(self, stream: trio.SocketStream, passed: Passed) -> None:
        await self._send.send((stream, passed))


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[House, House]]:
    a, b = House(folder, A), House(folder, B)
    async with a.handover.listening(a.take), b.handover.listening(b.take):
        yield a, b


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """A client, and the server's end."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        async with client, await listener.accept() as stream:
            yield client, stream


async def reached(house: House, front: str) -> Passage:
    passage = await house.handover.reach(front)
    assert passage is not None
    return passage


async def test_a_connection_goes_over_and_nothing_of_it_stays(tmp_path: Path) -> None:
    large = msgspec.structs.replace(WHOLE, rest=os.urandom(1_000_000))
    async with two(tmp_path) as (a, b):
        for passed in (WHOLE, large):
            async with connected() as (client, stream):
                await client.send_all(b"early")
                passage = await reached(a, B)
                await passage.give(stream, passed)
                passage.close()
                await stream.aclose()
                theirs, found = await b.given.receive()
                assert found == passed
                async with theirs:
                    assert await theirs.receive_some() == b"early"
                    await theirs.send_all(b"answer")
                    assert await client.receive_some() == b"answer"
                assert await client.receive_some() == b"", "there was no other end"
    assert os.listdir(tmp_path) == []


async def test_only_who_is_meant_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "READY_S", 0.05)
    async with two(tmp_path) as (a, _):
        assert await a.handover.reach("run:front2#4") is None, "nobody listens there"
        assert await a.handover.reach("nonsense") is None
        os.rename(tmp_path / "front2.3", tmp_path / "front2.2")
        assert await a.handover.reach("run:front2#2") is None, "another life listens there"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy:
            busy.bind(str(tmp_path / "front9.1"))
            busy.listen(1)
            assert await a.handover.reach("run:front9#1") is None, "it says nothing"
        (tmp_path / "front2.2").unlink()


async def test_what_is_not_given_whole_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short, too large, no descriptor, two of them, not understood: the client's connection stays where it was."""
    data = msgspec.msgpack.encode(WHOLE)
    async with two(tmp_path) as (_, b), connected() as (client, stream):
        own = stream.socket.fileno()

        async def send(size: int, *parts: bytes, fds: tuple[int, ...] = (own,)) -> None:
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way:
                await way.connect(str(tmp_path / "front2.3"))
                assert await way.recv(100) == B.encode()
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds).tobytes())] if fds else []
                await way.sendmsg([struct.pack("!Q", size)], rights)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has seen enough
                    for part in parts:
                        await way.send(part)

        await send(len(data), data[:-1])
        await send(2**63, data)
        await send(len(data), data, fds=())
        await send(len(data), data, fds=(own, own))
        await send(3, b"\xc1\xc1\xc1")
        await send(len(data))
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way:
            await way.connect(str(tmp_path / "front2.3"))  # and goes without a word
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            b.given.receive_nowait()
        await stream.send_all(b"still here")
        assert await client.receive_some() == b"still here"
        await send(len(data), data)
        theirs, _ = await b.given.receive()
        await theirs.aclose()


async def test_who_gives_learns_that_it_was_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "TAKE_S", 0.05)
    large = msgspec.structs.replace(WHOLE, rest=bytes(5_000_000))
    async with two(tmp_path) as (a, _), connected() as (client, stream):
        monkeypatch.setattr(handover, "MOST_BYTES", 1000)
        passage = await reached(a, B)
        with pytest.raises(OSError, match="too much"):
            await passage.give(stream, large)
        passage.close()
        monkeypatch.setattr(handover, "MOST_BYTES", 10**9)
        for there, said in ((True, "takes nothing"), (False, "Broken pipe")):
            ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                if not there:
                    theirs.close()
                with pytest.raises(OSError, match=said):
                    await Passage(ours).give(stream, large)
        await stream.send_all(b"still here")
        assert await client.receive_some() == b"still here"


async def test_a_path_that_a_killed_life_has_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "front1.1").touch()
    async with two(tmp_path) as (a, b):
        (await reached(b, A)).close()
        assert a.handover is not None

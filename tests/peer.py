"""A WebSocket peer of bytes: what the libraries of well-behaved clients do not let a test do.

async with peer(s) as p:                    # TCP, handshake, nothing read yet
    await p.frame(TEXT, b"...", mask=False)
    assert await p.closed() == 1002
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
import trio.testing

from tests.service import Service, front_of

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
Headers = dict[str, str | bytes | None]
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def upgrade(port: int, changes: Headers | None = None, path: str = "/ws/chat") -> bytes:
    """The head of a WebSocket handshake; `changes` replace, add or (None) leave out headers."""
    headers: Headers = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        **(changes or {}),
    }
    head = f"GET {path} HTTP/1.1\r\n".encode()
    for name, value in headers.items():
        if value is not None:
            head += name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return head + b"\r\n"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    mask: bool = True,
    length: int | None = None,
    key: bytes = bytes(4),
) -> bytes:
    """One frame; `length` lies about the payload's; `key` masks, and one of zeros leaves the payload as it is."""
    size = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if mask else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not mask:
        return head + payload
    return head + key + (bytes(byte ^ key[at % 4] for at, byte in enumerate(payload)) if any(key) else payload)


class Served(Protocol):
    """A running service, however it runs."""

    port: int


class Peer:
    """One TCP connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.data = b""

    async def send(self, *parts: bytes) -> None:
        await self.stream.send_all(b"".join(parts))

    async def frame(self, opcode: int, payload: bytes = b"", **form: Any) -> None:
        await self.send(frame(opcode, payload, **form))

    async def say(self, type: str, **fields: Any) -> None:
        await self.frame(TEXT, json.dumps({"type": type, **fields}).encode())

    async def _more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self.data += data
        return bool(data)

    async def head(self) -> str:
        """The head of the answer to a handshake."""
        while b"\r\n\r\n" not in self.data:
            assert await self._more(), self.data
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    async def receive(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the stream."""
        while True:
            if len(self.data) >= 2:
                length, at = self.data[1], 2
                if length >= 126:
                    at = 4 if length == 126 else 10
                    length = int.from_bytes(self.data[2:at], "big") if len(self.data) >= at else 2**60
                if len(self.data) >= at + length:
                    found = self.data[0] & 0x0F, self.data[at : at + length]
                    self.data = self.data[at + length :]
                    return found
            if not await self._more():
                assert not self.data, "the server cut a frame"
                return None

    async def next(self) -> dict[str, Any]:
        """The next text frame, as JSON."""
        while (found := await self.receive()) is not None:
            if found[0] == TEXT:
                message: dict[str, Any] = json.loads(found[1])
                return message
        raise AssertionError("the connection ended")

    async def until(self, type: str) -> dict[str, Any]:
        """The next frame of that type."""
        while (message := await self.next())["type"] != type:
            pass
        return message

    async def closed(self, *, answer: bool = True) -> tuple[int, str]:
        """Code and reason of the server's close frame; what came before is dropped. Then the end must come."""
        while (found := await self.receive()) is not None:
            if found[0] == CLOSE:
                if answer:
                    await self.frame(CLOSE, found[1][:2])
                assert await self.receive() is None, "something came behind the close frame"
                return int.from_bytes(found[1][:2], "big"), found[1][2:].decode()
        raise AssertionError("the connection ended without a close frame")

    async def over(self) -> None:
        """Wait until the server has ended the connection, however."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass

    def reset(self) -> None:
        """Close with RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


@asynccontextmanager
async def dial(s: Served) -> AsyncIterator[Peer]:
    """A TCP connection on which nothing was said."""
    async with await trio.open_tcp_stream("127.0.0.1", s.port) as stream:
        yield Peer(stream)


@asynccontextmanager
async def peer(s: Served, query: str = "", headers: Headers | None = None) -> AsyncIterator[Peer]:
    """A peer that is a WebSocket now; the welcome is not read yet."""
    async with dial(s) as p:
        await p.send(upgrade(s.port, headers, f"/ws/chat{query}"))
        assert (await p.head()).startswith("HTTP/1.1 101 ")
        yield p


def tasks() -> Iterator[trio.lowlevel.Task]:
    """All that live."""
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        if (task := waiting.pop()) is not None:
            yield task
            waiting.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)


def connections(s: Service) -> tuple[int, int, int]:
    """Of the gateway's port: sockets in conversations, tasks, descriptors (of clients in this process too)."""
    ours = sum(task.name.startswith(("actors.connection.", "actors.outbox.", "trio_websocket.")) for task in tasks())
    return len(front_of(s).sockets), ours, sum(_of_port(int(fd), s.port) for fd in os.listdir("/proc/self/fd"))


def _of_port(fd: int, port: int) -> bool:
    try:
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
            return False
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.family == socket.AF_INET and port in (sock.getsockname()[1], sock.getpeername()[1])
    except OSError:  # not connected, or closed meanwhile
        return False


@asynccontextmanager
async def nothing_left(s: Service) -> AsyncIterator[None]:
    """After the body: the gateway has not been restarted, and no socket, task or descriptor is left of it."""
    before = connections(s)
    yield
    while any(now > was for now, was in zip(connections(s), before, strict=True)):
        await trio.testing.wait_all_tasks_blocked(0.005)  # bounded by the test; a leak ends it with TooSlow
    gateway = s.tree.slots["front/gateway"]
    assert (gateway.incarnation, gateway.last_error) == (1, "")

"""A client's connection goes to the front that has its conversation: the descriptor itself, over a Unix socket.

Each front listens on a socket of its own (SOCK_SEQPACKET), whose path follows from its id. Whoever passes a
connection on first waits for the other to say that it is there and who it is: a path may be a dead front's, or its
next life's. Then come the parts of a `Passed`, the descriptor with the first, and with the last one the connection
is the other's; what ends in between leaves it where it was. So one front serves it, never two.

May assume that only processes of the same user reach these sockets (the directory is theirs alone); of sizes and
times nothing is assumed. What can fail: the other is not there (`reach` answers None), or goes while it is given
something (`OSError`). The descriptor is one end of the client's connection: whoever has passed it on closes its own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from protocol.claim import parsed
from protocol.errors import FaultBody

log = logging.getLogger("actors.gateway")

READY_S = 1.0  # for a front to say that it is there; its loop may be busy
TAKE_S = 10.0  # for all of what is passed on
PACKET = 64 * 1024  # bytes; half of what a socket's buffer holds by default
MOST_BYTES = 64 * 2**20  # of one `Passed`: eight of the longest messages, and what waited to be sent
BACKLOG = 4096
OUT_OF_FILES_S = 0.1  # before the next try to accept; as `trio.serve_listeners`
OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

_SIZE = struct.Struct("!Q")


class Passed(msgspec.Struct, frozen=True):
    """What goes with a connection."""

    head: bytes
    """Of the request that it began with what is needed (`Head.brief`); of one that is no WebSocket yet, every byte
    that was read (`Head.raw`)."""
    conversation: str
    """Where its client wants to be."""
    unknown: FaultBody | None = None
    """The client named another one, which is not there: that is still to be told."""
    frame: str | None = None
    """Set: it is a WebSocket, and this message of it is to be handled next."""
    rest: bytes = b""
    """What the client has sent behind that message."""
    unsent: bytes = b""
    """What was written to it and did not go out yet."""
    follows: list[tuple[str, str]] = []
    """Servers and addresses of resources that its client is told the changes of."""
    frame_s: float = 0.0
    """How often its client wants frames of text."""


Take = Callable[[trio.SocketStream, Passed], Awaitable[object]]


class Passage:
    """The way to a front that is there and listens; close it, or give something over it."""

    def __init__(self, way: trio.socket.SocketType) -> None:
        self._way = way

    async def give(self, stream: trio.SocketStream, passed: Passed) -> None:
        """Pass a connection on; its own end is still to be closed. Raises OSError: it was not taken."""
        data = memoryview(msgspec.msgpack.encode(passed))
        if len(data) > MOST_BYTES:
            raise OSError(errno.EMSGSIZE, "too much waits to be handled in this connection")
        own = array("i", [stream.socket.fileno()])
        with trio.move_on_after(TAKE_S) as slow:
            await self._way.sendmsg([_SIZE.pack(len(data))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, own.tobytes())])
            for start in range(0, len(data), PACKET):
                await self._way.send(data[start : start + PACKET])
        if slow.cancelled_caught:
            raise OSError(errno.ETIMEDOUT, "the other front takes nothing")

    def close(self) -> None:
        """It is needed no more."""
        self._way.close()


class Handover:
    """One front's part in it.

    Args:
        front: its id.
        address: path of any front's socket; `{role}` and `{life}` stand for the parts of its id.
    """

    def __init__(self, front: str, address: str) -> None:
        self._front = front
        self._address = address

    def _path(self, front: str) -> str:
        found = parsed(front)
        if found is None:
            return ""
        return self._address.replace("{role}", found.role).replace("{life}", str(found.life))

    @asynccontextmanager
    async def listening(self, take: Take) -> AsyncIterator[None]:
        """Take what others pass on, each in a task of its own, until the block is left. Raises OSError."""
        path = self._path(self._front)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as listener:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # an earlier life's
            await listener.bind(path)
            listener.listen(BACKLOG)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept, listener, take, nursery)
                    yield
                    nursery.cancel_scope.cancel()
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    async def _accept(self, listener: trio.socket.SocketType, take: Take, nursery: trio.Nursery) -> None:
        while True:
            try:
                way, _ = await listener.accept()
            except OSError as error:
                if error.errno not in OUT_OF_FILES:
                    raise
                log.warning("a connection from another front could not be taken: %s", error)
                await trio.sleep(OUT_OF_FILES_S)
            else:
                nursery.start_soon(self._serve, way, take)

    async def _serve(self, way: trio.socket.SocketType, take: Take) -> None:
        taken: tuple[trio.SocketStream, Passed] | None = None
        with way, contextlib.suppress(OSError, trio.ClosedResourceError):  # the other front died, or thought better
            with trio.move_on_after(TAKE_S):
                await way.send(self._front.encode())
                taken = await _taken(way)
        if taken is not None:
            await take(*taken)

    async def reach(self, front: str) -> Passage | None:
        """The way to that front; None where nobody of that id is there."""
        way = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        found = b""
        try:
            with contextlib.suppress(OSError), trio.move_on_after(READY_S):
                await way.connect(self._path(front))
                found = await way.recv(PACKET)
        finally:
            if found != front.encode():
                way.close()
        return Passage(way) if found == front.encode() else None

    async def nobody_is(self, front: str) -> bool:
        """Nobody listens where that front would: it has ended. One that is busy, or hangs, is there."""
        if parsed(front) is None:
            return False
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as way:
            try:
                with trio.move_on_after(READY_S):
                    await way.connect(self._path(front))
            except (ConnectionRefusedError, FileNotFoundError):
                return True
            except OSError:  # its queue is full
                return False
        return False


async def _taken(way: trio.socket.SocketType) -> tuple[trio.SocketStream, Passed] | None:
    """What the other front passes on; None where it does not come whole. Raises OSError."""
    room = socket.CMSG_SPACE(array("i").itemsize)
    data, ancillary, _, _ = await way.recvmsg(PACKET, room, socket.MSG_CMSG_CLOEXEC)
    found = array("i")
    for level, kind, part in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(part[: len(part) - len(part) % found.itemsize])
    with contextlib.ExitStack() as unless_taken:
        ends = [unless_taken.enter_context(socket.socket(fileno=number)) for number in found]
        if len(data) != _SIZE.size or len(ends) != 1:
            return None
        (size,) = _SIZE.unpack(data)
        if size > MOST_BYTES:
            return None
        whole = bytearray()
        while len(whole) < size:
            data = await way.recv(PACKET)
            if not data:
                return None
            whole += data
        try:
            passed = msgspec.msgpack.decode(whole, type=Passed)
        except msgspec.MsgspecError as error:
            log.warning("another front passed on a connection that is not understood: %s", error)
            return None
        unless_taken.pop_all()
        return trio.SocketStream(trio.socket.from_stdlib_socket(ends[0])), passed

"""The stream below one socket's WebSocket protocol: one ordered buffer for every byte that goes out.

Handshake, pongs and close come from the WebSocket library through `send_all`; our text frames through
`write`. Both append; a non-blocking send follows at once, and what the kernel does not take waits for the
drain task, which exists only while something waits. So a frame is never cut by a cancelled write, a
reader that stalls costs its own buffer only, and pongs keep their place among the frames.

Bounded by its users: past `HIGH` bytes `full` is true and frames of a log stay in the log; `on_room` is
called when it has drained. A failed connection is `broken`: what is written then is dropped, since the
reader of the same connection meets the failure too and ends the socket.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

HIGH = 256 * 1024  # bytes that may wait in one socket's buffer before its readers fall behind
LOW = 64 * 1024  # drained to here, readers go on


class Outbox(trio.abc.Stream):
    """Wraps one connection; owns it: closing this closes the connection.

    Args:
        stream: where bytes come from (what was read ahead first, then the connection).
        sock: the connection's socket, for sending without waiting.
        nursery: where the drain task runs while there is something to drain.
    """

    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self._stream = stream
        self._sock = sock
        self._nursery = nursery
        self._buffer = bytearray()
        self._draining = False
        self._was_full = False
        self._room = trio.lowlevel.ParkingLot()
        self.broken = False
        """The connection failed or was closed; whatever is written now is dropped."""
        self.sealed = False
        """A close frame went out; no more frames of ours may follow."""
        self.on_room: Callable[[], None] | None = None
        """Called when a full buffer has drained to LOW."""
        self.frame_s = 0.0
        """Between two frames of text, if the peer wants fewer than there are pieces."""
        self.received_at = trio.current_time()
        """When bytes last came in."""
        self.progress_at = self.received_at
        """When the peer last took bytes, or nothing waited."""

    @property
    def full(self) -> bool:
        """More waits than a socket may cost."""
        return len(self._buffer) >= HIGH

    @property
    def waiting(self) -> int:
        """Bytes that the peer has not taken yet."""
        return len(self._buffer)

    def write(self, data: bytes) -> None:
        """Append whole frames; never waits, never raises."""
        if self.broken or self.sealed or not data:
            return
        if self._buffer:
            self._push(data)
            return
        try:
            sent = os.write(self._sock.fileno(), data)  # as nearly always: all of it, in one go
        except OSError:
            self._push(data)  # finds out what is the matter
            return
        if sent < len(data):
            self._keep(memoryview(data)[sent:])

    def _push(self, data: bytes | bytearray | memoryview) -> None:
        if self._buffer:
            self._buffer += data
            self._was_full = self._was_full or self.full
            return
        sent = self._try_send(data)
        if sent < len(data) and not self.broken:
            self._keep(memoryview(data)[sent:])

    def _keep(self, data: memoryview) -> None:
        """The kernel takes no more for now."""
        self._buffer += data
        self.progress_at = trio.current_time()
        if not self._draining:
            self._draining = True
            self._nursery.start_soon(self._drain)
        self._was_full = self._was_full or self.full

    def _try_send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return os.write(self._sock.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError:
            # reset, broken pipe, or closed under us: the receiving side ends the socket
            self._break()
            return 0

    def _break(self) -> None:
        self.broken = True
        self._buffer.clear()
        self._room.unpark_all()

    async def _drain(self) -> None:
        try:
            while self._buffer and not self.broken:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except (OSError, trio.ClosedResourceError):
                    self._break()  # closed by our own end while it waited
                    return
                sent = self._try_send(self._buffer)
                if sent:
                    del self._buffer[:sent]
                    self.progress_at = trio.current_time()
                if len(self._buffer) <= LOW:
                    self._room.unpark_all()
                    if self._was_full and not self.broken:
                        self._was_full = False
                        if self.on_room is not None:
                            self.on_room()
        finally:
            self._draining = False
            self._room.unpark_all()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it after that time, unless the connection ends before."""
        self._nursery.start_soon(_later, seconds, call)

    async def wait_room(self) -> None:
        """Wait until little is left to send; for answers that only this peer asked for."""
        while self.full and not self.broken:
            await self._room.park()

    # trio.abc.Stream, for the WebSocket library

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes of the WebSocket library; waits while the buffer is full. Raises BrokenResourceError."""
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise trio.BrokenResourceError("the connection is gone")
        self._push(data)
        await self.wait_room()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until little is left to send."""
        await trio.lowlevel.checkpoint()
        await self.wait_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes from the peer; empty at its end. Raises BrokenResourceError, ClosedResourceError."""
        data = bytes(await self._stream.receive_some(max_bytes))
        self.received_at = trio.current_time()
        return data

    async def flush(self) -> None:
        """Wait until everything is sent or the connection is broken; to be bounded by the caller."""
        while self._buffer and not self.broken:
            if self._draining:
                await self._room.park()
            else:  # the drain task was cancelled with its nursery, at a stop
                self._draining = True
                await self._drain()

    def release(self) -> bytes:
        """Give the connection up; returns what the peer has not taken yet. What is written now is dropped."""
        unsent = bytes(self._buffer)
        self._break()
        return unsent

    async def aclose(self) -> None:
        """Close the connection; what waits is dropped."""
        self._break()
        await self._stream.aclose()


async def _later(seconds: float, call: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    call()

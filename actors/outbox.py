"""What goes out to one WebSocket: one ordered buffer for every byte that goes out.

`write` appends whole frames; a non-blocking send follows at once, and what the kernel does not take waits for
the drain task, which exists only while something waits. So a frame is never cut by a cancelled write, a
reader that stalls costs its own buffer only, and pongs keep their place among the frames.

Bounded by its users: past `HIGH` bytes `full` is true and frames of a log stay in the log; `on_room` is
called when it has drained. A failed connection is `broken`: what is written then is dropped, since the
reader of the same connection meets the failure too and ends the socket.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import trio

from actors.timer import Timer

T = TypeVar("T")

HIGH = 256 * 1024  # bytes that may wait in one socket's buffer before its readers fall behind
LOW = 64 * 1024  # drained to here, readers go on


class Outbox:
    """Writes to one connection; who is done with it before its owner may close it here.

    Args:
        sock: the connection's socket.
        nursery: where the drain task runs while there is something to drain.
        timer: for `after`.
    """

    __slots__ = (
        "_buffer",
        "_draining",
        "_nursery",
        "_room",
        "_sock",
        "_timer",
        "_was_full",
        "broken",
        "frame_s",
        "on_room",
        "progress_at",
        "sealed",
    )

    def __init__(self, sock: trio.socket.SocketType, nursery: trio.Nursery, timer: Timer) -> None:
        self._sock = sock
        self._nursery = nursery
        self._timer = timer
        self._buffer = bytearray()
        self._draining = False
        self._was_full = False
        self._room: trio.lowlevel.ParkingLot | None = None
        """Once somebody has waited."""
        self.broken = False
        """The connection failed or was closed; whatever is written now is dropped."""
        self.sealed = False
        """A close frame went out; no more frames of ours may follow."""
        self.on_room: Callable[[], None] | None = None
        """Called when a full buffer has drained to LOW."""
        self.frame_s = 0.0
        """Between two frames of text, if the peer wants fewer than there are pieces."""
        self.progress_at = trio.current_time()
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
        self._tell_room()

    async def _park(self) -> None:
        if self._room is None:
            self._room = trio.lowlevel.ParkingLot()
        await self._room.park()

    def _tell_room(self) -> None:
        if self._room is not None:
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
                    self._tell_room()
                    if self._was_full and not self.broken:
                        self._was_full = False
                        if self.on_room is not None:
                            self.on_room()
        finally:
            self._draining = False
            self._tell_room()

    def after(self, seconds: float, call: Callable[[T], None], about: T) -> None:
        """Call it after that time, also if the connection has ended meanwhile."""
        self._timer.at(trio.current_time() + seconds, call, about)

    async def wait_room(self) -> None:
        """Wait until little is left to send; for answers that only this peer asked for."""
        while self.full and not self.broken:
            await self._park()

    async def flush(self) -> None:
        """Wait until everything is sent or the connection is broken; to be bounded by the caller."""
        while self._buffer and not self.broken:
            if self._draining:
                await self._park()
            else:  # the drain task was cancelled with its nursery, at a stop
                self._draining = True
                await self._drain()

    def release(self) -> bytes:
        """Give the connection up; returns what the peer has not taken yet. Who waits for it here waits no more."""
        unsent = bytes(self._buffer)
        self._break()
        trio.lowlevel.notify_closing(self._sock)
        return unsent

    def close(self) -> None:
        """Close the connection; what waits is dropped."""
        self._break()
        self._sock.close()

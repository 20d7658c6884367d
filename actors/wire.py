"""What the WebSocket library is given instead of the connection: the outbox below, watched in both directions.

The library ends a connection abruptly where a client should be told why (it closes at a protocol error
without a close frame, drops what waits to be sent, and counts a message's characters only after it has
taken them). So it never gets the real end of the connection in its hands: its `aclose` only notes that it is
done. The heads of the peer's frames are followed here: a message that announces more bytes than allowed is
refused before they are taken, and the peer's close frame is noticed. Frames themselves are the library's.

A connection may move to another front in mid-life. For that the bytes of messages that nobody has handled are kept
until they are (`taken`), and the other's library gets a handshake whose answer the peer never sees (`muted`).

Nothing here fails for what a peer sends; what is wrong with a frame otherwise, the library says.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import trio

from actors.outbox import Outbox

MAX_FRAGMENTS = 65_536  # of one message; each costs memory, an empty one too
MAX_FRAME_HEAD = 14  # bytes; RFC 6455, section 5.2
MAX_REASON = 123  # bytes of a close frame's reason; RFC 6455, section 5.5
CONTINUATION, CLOSE = 0x0, 0x8
CLOSE_FRAME = 0x88  # first byte of an unfragmented close frame
FINAL = 0x80  # in a frame's first byte: the last one of its message
MASKED = 0x80


class Wire(trio.abc.Stream):
    """Wraps an outbox for the WebSocket library.

    Args:
        outbox: owns the connection.
        handshake: how many bytes come before the first frame.
        limit: bytes that a message may have now.
        keeps: the bytes of messages are kept until they were `taken`.
        muted: the answer to the handshake is not sent: the peer has had one.
    """

    def __init__(
        self, outbox: Outbox, handshake: int, limit: Callable[[], int], *, keeps: bool = False, muted: bool = False
    ) -> None:
        self._outbox = outbox
        self._handshake = handshake
        self._limit = limit
        self._answered = trio.Event()
        self._receiving: trio.CancelScope | None = None
        self._listening_since = math.inf
        self._skip = handshake
        self._head = bytearray()
        """The beginning of a frame's head whose rest has not come yet."""
        self._message = 0
        self._fragments = 0
        self._muted = muted
        self._kept: bytearray | None = bytearray() if keeps else None
        """What came since the end of the message that was taken last."""
        self._kept_from = 0
        self._position = 0
        """How many bytes have come, as `_kept_from` and `_ends` count them."""
        self._ends: list[int] = []
        """Where the messages end that have come, or begun to, since that one."""
        self._halted = False
        self._idle = trio.Event()
        """The library is done with all that it got, and gets nothing more."""
        self.over = False
        """The library is done, or was told to be: it gets and sends nothing any more."""
        self.closing = False
        """A close frame of ours is among what was sent or waits to be."""
        self.peer_closing = False
        """The peer has sent a close frame."""
        self.refused = ""
        """Why a message was not taken; empty: none was refused."""
        self.ended = False
        """The peer's end was seen."""

    @property
    def silent_s(self) -> float:
        """Seconds in which the peer could have said something and did not; 0 while nobody listens."""
        return max(0.0, trio.current_time() - max(self._outbox.received_at, self._listening_since))

    def stop(self) -> None:
        """The library gets nothing more; afterwards the connection may be read by others."""
        self.over = True
        if self._receiving is not None:
            self._receiving.cancel()

    async def halt(self) -> None:
        """The library gets nothing more; returns when it has done with what it got. It may still send until then."""
        self._halted = True
        if self._receiving is not None:
            self._receiving.cancel()
        await self._idle.wait()
        self.over = True

    def taken(self) -> None:
        """The next message has been handed out by the library: its bytes are needed no more."""
        if self._kept is not None:
            end = self._ends.pop(0)
            del self._kept[: end - self._kept_from]
            self._kept_from = end

    @property
    def untaken(self) -> bytes:
        """What the library got behind the message that was taken last."""
        return bytes(self._kept or b"")

    def say_close(self, code: int, reason: str) -> None:
        """Send a close frame, unless there was one."""
        if not self.closing:
            self.closing = True
            self._outbox.write(close_frame(code, reason))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes from the peer; empty at its end. Raises BrokenResourceError, ClosedResourceError."""
        if self.over or self.refused or self._halted:
            self._idle.set()
            raise trio.ClosedResourceError("this WebSocket takes nothing more")
        if self._handshake:
            max_bytes, self._handshake = self._handshake, 0
        else:
            await self._answered.wait()  # the library would lose what comes before its own answer
        self._listening_since = trio.current_time()
        try:
            with trio.CancelScope() as self._receiving:
                data = await self._outbox.receive_some(max_bytes)
                kept = self.follow(data)
                if not data:
                    self.ended = True
                    self._idle.set()
                if kept or not data:
                    return data[:kept]
        finally:
            self._receiving = None
            self._listening_since = math.inf
        self._idle.set()
        raise trio.ClosedResourceError("this WebSocket takes nothing more")

    def follow(self, data: bytes) -> int:
        """Follow the heads of the frames; returns how many of the bytes come before a refused message."""
        at, size = 0, len(data)
        kept = size
        if self._kept is not None:
            self._kept += data
        while at < size:
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
                continue
            begun, had = at, len(self._head)
            self._head += data[at : at + MAX_FRAME_HEAD - had]
            parsed = frame_head(self._head)
            if parsed is None:
                break
            opcode, head_bytes, self._skip = parsed
            final = self._head[0] & FINAL
            self._head.clear()
            at += head_bytes - had
            if self._kept is not None and final and not opcode & CLOSE:
                self._ends.append(self._position + at + self._skip)
            if opcode & CLOSE:  # control frames; they may stand between the fragments of a message
                self.peer_closing |= opcode == CLOSE
            elif not self._takes(opcode):
                kept = min(kept, begun)
        self._position += size
        return kept

    def _takes(self, opcode: int) -> bool:
        if opcode != CONTINUATION:
            self._message = self._fragments = 0
        self._message += self._skip
        self._fragments += 1
        if self._message > self._limit():
            self.refused = f"a message may have {self._limit()} bytes"
        elif self._fragments > MAX_FRAGMENTS:
            self.refused = f"a message may have {MAX_FRAGMENTS} fragments"
        return not self.refused

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes of the library: the handshake, pongs, its close frame. Raises Closed-, BrokenResourceError."""
        if self.over or self.closing:
            raise trio.ClosedResourceError("this WebSocket sends nothing more")
        if data and data[0] == CLOSE_FRAME:
            # sealed before it is sent: a frame of ours that is being made, such as the welcome, must not follow it
            self.closing = self._outbox.sealed = True
        self._answered.set()  # the first that it sends is the answer to the handshake
        if self._muted:
            self._muted = False
            await trio.lowlevel.checkpoint()
            return
        await self._outbox.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until little is left to send."""
        await self._outbox.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """The library is done; the connection itself is closed by who opened it."""
        self.over = True
        self._idle.set()
        await trio.lowlevel.checkpoint()


def frame_head(data: bytes | bytearray) -> tuple[int, int, int] | None:
    """Opcode, bytes of the head, bytes of the payload; None if the head is not whole."""
    if len(data) < 2:
        return None
    length = data[1] & 0x7F
    extended = {126: 2, 127: 8}.get(length, 0)
    size = 2 + extended + (4 if data[1] & MASKED else 0)
    if len(data) < size:
        return None
    if extended:
        length = int.from_bytes(data[2 : 2 + extended], "big")
    return data[0] & 0x0F, size, length


def close_frame(code: int, reason: str) -> bytes:
    """A close frame of a server; a reason that is too long is cut between characters."""
    text = reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore").encode()
    return struct.pack("!BBH", CLOSE_FRAME, len(text) + 2, code) + text

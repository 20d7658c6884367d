"""One peer's side of a WebSocket: its bytes become messages, its pings are answered, its close frame too.

The heads of its frames are followed before the protocol library sees them: a message that announces more bytes than
allowed is refused before they are taken, and the peer's close frame is noticed whatever comes before it. Frames
themselves are the library's (wsproto, whose importer this is) but for what nearly always comes: one whole text in one
frame in one read. The library is there only while a message has come in part, so that a socket on which nothing
happens costs little.

A connection may move to another front in mid-life. For that the bytes of messages that nobody has handled are kept
until they are (`taken`); pings are not: they have been answered.

Nothing here fails for what a peer sends: what is wrong ends the WebSocket, and `closed` or `refused` say why.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import trio
from wsproto.frame_protocol import Frame, FrameProtocol, Opcode, ParseFailed

from actors.outbox import Outbox

READ_BYTES = 65_536  # at a time
AT_ONCE = 64  # frames that are read before others have a turn; a read may bring ten thousand empty ones
MAX_PARTS = 1024  # of a message before they are joined; each costs more than its bytes, and may have one only
MAX_FRAGMENTS = 65_536  # of one message; each costs time, an empty one too
MAX_FRAME_HEAD = 14  # bytes; RFC 6455, section 5.2
MAX_REASON = 123  # bytes of a close frame's reason; RFC 6455, section 5.5
CONTINUATION, TEXT, CLOSE = 0x0, 0x1, 0x8
CLOSE_FRAME = 0x88  # first byte of an unfragmented close frame
FINAL = 0x80  # in a frame's first byte: the last one of its message
MASKED = 0x80
PLAIN_SIZES = {6: range(126), 8: range(126, 65_536)}
"""Bytes of a text, by those of its frame's head, which is masked then; a longer one need not be quick."""
ABNORMAL = 1006  # the peer ended without a close frame


class Wire:
    """Reads one connection; what it answers goes through the outbox.

    Args:
        outbox: writes to the connection.
        sock: the connection's socket.
        limit: bytes that a message may have now.
        early: what was read of it before.
        keeps: the bytes of messages are kept until they were `taken`.
    """

    __slots__ = (
        "_control",
        "_early",
        "_ends",
        "_fragments",
        "_frames",
        "_head",
        "_joined",
        "_kept",
        "_kept_from",
        "_limit",
        "_listening_since",
        "_message",
        "_outbox",
        "_parts",
        "_plain",
        "_protocol",
        "_received_at",
        "_skip",
        "_sock",
        "_within",
        "closed",
        "closing",
        "ended",
        "over",
        "peer_closing",
        "refused",
    )

    def __init__(
        self,
        outbox: Outbox,
        sock: trio.socket.SocketType,
        limit: Callable[[], int],
        *,
        early: bytes = b"",
        keeps: bool = False,
    ) -> None:
        self._outbox = outbox
        self._sock = sock
        self._limit = limit
        self._early = early
        self._received_at = -math.inf
        self._listening_since = math.inf
        self._protocol: FrameProtocol | None = None
        self._frames: Iterator[Frame] | None = None
        self._plain: str | None = None
        """A message that came by itself."""
        self._parts: list[Any] | None = None
        """Of the message that has come in part."""
        self._joined = 0
        """How many of them, the first ones, were joined of many."""
        self._skip = 0
        self._head = b""
        """The beginning of a frame's head whose rest has not come yet."""
        self._message = 0
        self._fragments = 0
        self._within = False
        """Fragments of a message have come, and not the last."""
        self._kept: bytearray | None = bytearray() if keeps else None
        """Of messages, what came since the end of the one that was taken last."""
        self._kept_from = 0
        """How many bytes of messages came before."""
        self._control: bytes | None = None
        """While the last frame that began is none of a message: what has come of it."""
        self._ends: list[int] | None = [] if keeps else None
        """Where the messages end that have come, or begun to, since that one; counted as `_kept_from` is."""
        self.closed: tuple[int, str] | None = None
        """Code and reason of an end that the peer brought about, once there was one."""
        self.over = False
        """Nothing more is taken."""
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
        return max(0.0, trio.current_time() - max(self._received_at, self._listening_since))

    def halt(self) -> None:
        """Take nothing more. What came is answered; its messages are for others."""
        while self._frames is not None:
            self.next()
        self._plain = None
        self.over = True

    def taken(self) -> None:
        """The next message is handled: its bytes are needed no more."""
        if self._kept is not None and self._ends is not None:
            end = self._ends.pop(0)
            del self._kept[: end - self._kept_from]
            self._kept_from = end

    @property
    def untaken(self) -> bytes:
        """What came behind the message that was taken last, but for what was answered."""
        control = self._control if self._control is not None and self._skip else b""
        return bytes(self._kept or b"") + control + self._head + self._early

    @property
    def drained(self) -> bool:
        """No other message is among what was taken in."""
        return self._frames is None and self._plain is None

    @property
    def _done(self) -> bool:
        return self.over or bool(self.refused) or self.closed is not None

    def say_close(self, code: int, reason: str) -> None:
        """Send a close frame, unless there was one."""
        if not self.closing:
            self.closing = True
            self._outbox.write(close_frame(code, reason))

    async def receive(self) -> bool:
        """Take in what the peer sends next, for `next`; False: there will be no more."""
        if self._frames is not None:
            await trio.lowlevel.checkpoint()
            return True
        if not self._done:
            await self._outbox.wait_room()  # it is to read our answers before it gets more of them
        if self._done:
            return False
        data, self._early = self._early, b""
        if not data:
            self._listening_since = trio.current_time()
            try:
                # never before it was waited for: who sends without end must leave time for others
                await trio.lowlevel.wait_readable(self._sock)
                if self.over:  # since then: what comes is for others
                    return False
                data = os.read(self._sock.fileno(), READ_BYTES)
            except BlockingIOError:
                return True
            except (OSError, trio.ClosedResourceError):
                pass  # reset, or given up: it ends as one that says nothing more
            finally:
                self._listening_since = math.inf
            self._received_at = trio.current_time()
        return self._take_in(data)

    def _take_in(self, data: bytes) -> bool:
        if not data:
            self.ended = True
            self.closed = self.closed or (ABNORMAL, "")
            return False
        kept = self.follow(data)
        if kept == len(data) and self._protocol is None and (text := plain_text(data)) is not None:
            self._plain = text
        elif kept:
            if self._protocol is None:
                self._protocol = FrameProtocol(client=False, extensions=[])
            self._protocol.receive_bytes(data[:kept])
            self._frames = self._protocol.received_frames()
        return kept > 0

    def next(self) -> str | bytes | None:
        """The next message of what was taken in; None: no other is there yet, or `receive` is to be asked first."""
        if self._plain is not None:
            plain, self._plain = self._plain, None
            return plain
        for _ in range(AT_ONCE):
            if self._frames is None or self._protocol is None:
                break
            try:
                frame = next(self._frames, None)
            except ParseFailed as wrong:
                self._end(int(wrong.code), str(wrong))
                return None
            if frame is None:
                self._frames = None
                if not (self._within or self._skip or self._head):
                    self._protocol = None
                return None
            if (message := self._understood(self._protocol, frame)) is not None:
                return message
        return None

    def _understood(self, protocol: FrameProtocol, frame: Frame) -> str | bytes | None:
        """The message that is whole with this frame."""
        payload: Any = frame.payload  # of a type that depends on the opcode
        if frame.opcode is Opcode.PING:
            self._outbox.write(bytes(protocol.pong(payload)))
        elif frame.opcode is Opcode.CLOSE:
            code, reason = payload
            if not self.closing:
                self.closing = True
                self._outbox.write(bytes(protocol.close(code, reason)))
                self._outbox.sealed = True
            self._end(int(code), reason)
        elif frame.opcode is not Opcode.PONG:
            if self._parts is None:
                self._parts, self._joined = [], 0
            self._parts.append(payload)
            if frame.message_finished:
                parts, self._parts = self._parts, None
                return _whole(parts)
            if len(self._parts) - self._joined >= MAX_PARTS:
                self._parts[self._joined :] = [_whole(self._parts[self._joined :])]
                self._joined += 1
        return None

    def _end(self, code: int, reason: str) -> None:
        self.closed = code, reason
        self._protocol = self._frames = self._parts = None

    def follow(self, data: bytes) -> int:
        """Follow the heads of the frames; returns how many of the bytes come before a refused message."""
        at, size = 0, len(data)
        kept = size
        while at < size:
            if self._skip:
                step = min(self._skip, size - at)
                self._keep(data[at : at + step])
                self._skip -= step
                at += step
                continue
            begun, had = at, len(self._head)
            self._head += data[at : at + MAX_FRAME_HEAD - had]
            parsed = frame_head(self._head)
            if parsed is None:
                break
            opcode, head_bytes, self._skip = parsed
            head, self._head = self._head[:head_bytes], b""
            final = bool(head[0] & FINAL)
            at += head_bytes - had
            self._control = b"" if opcode & CLOSE else None
            self._keep(head)
            if self._kept is not None and self._ends is not None and final and not opcode & CLOSE:
                self._ends.append(self._kept_from + len(self._kept) + self._skip)
            if opcode & CLOSE:  # control frames; they may stand between the fragments of a message
                self.peer_closing |= opcode == CLOSE
                continue
            self._within = not final
            if not self._takes(opcode):
                kept = min(kept, begun)
        return kept

    def _keep(self, data: bytes) -> None:
        if self._kept is None or self.over:
            return
        if self._control is None:
            self._kept += data
        else:
            self._control += data

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


def _whole(parts: list[Any]) -> str | bytes:  # all of them text, or all bytes
    whole: str | bytes = parts[0][:0].join(parts)
    return whole


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


def plain_text(data: bytes) -> str | None:
    """The text, where the bytes are one whole frame with a whole text; None: the library must see them."""
    head = frame_head(data[:MAX_FRAME_HEAD]) if data[0] == FINAL | TEXT else None
    if head is None:
        return None
    _, begin, size = head
    if begin + size != len(data) or size not in PLAIN_SIZES.get(begin, ()):
        return None
    mask = int.from_bytes((data[begin - 4 : begin] * (size // 4 + 1))[:size], "little")
    try:
        return (int.from_bytes(data[begin:], "little") ^ mask).to_bytes(size, "little").decode()
    except UnicodeDecodeError:
        return None


def close_frame(code: int, reason: str) -> bytes:
    """A close frame of a server; a reason that is too long is cut between characters."""
    text = reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore").encode()
    return struct.pack("!BBH", CLOSE_FRAME, len(text) + 2, code) + text

"""Where a response's body ends on its connection, free of I/O: bytes of the wire in, bytes of the body out.

RFC 9112, section 6: `Chunked` transfer coding (extensions and trailers are skipped), `Sized` by its
content-length, `Unsized` until the peer closes. Any split of the bytes gives the same body. Fails with `Torn`:
the peer closed too early, or what came is no chunk; after that a framing is not fed again.
"""

from __future__ import annotations

import re
from typing import Protocol

MAX_LINE = 16 * 1024  # bytes of a chunk's head with its extensions, or of all trailers

HEAD = 18  # bytes of a chunk's head without extensions

_head = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n").match


class Torn(Exception):
    """The body is not whole."""


class Framing(Protocol):
    """One body's."""

    @property
    def done(self) -> bool:
        """The body is whole; nothing more is to be fed."""

    @property
    def clean(self) -> bool:
        """It is whole, and its connection stands where the next response begins."""

    def feed(self, data: bytes) -> bytes:
        """What of the body is in these bytes. Raises Torn."""

    def close(self) -> None:
        """The peer closed the connection. Raises Torn: in the middle of the body."""


class Chunked:
    """Transfer-Encoding: chunked."""

    __slots__ = ("_left", "_rest", "_trailing", "clean", "done")

    def __init__(self) -> None:
        self.done = self.clean = False
        self._rest = b""
        """The beginning of a line whose end has not come."""
        self._left = 0
        """Bytes of the chunk that have not come, with the two after it."""
        self._trailing = 0
        """Once the last chunk came: bytes of trailers, and at least 1."""

    def feed(self, data: bytes) -> bytes:
        """As `Framing` says."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self._left and not self._trailing:
            # Nearly always it is one chunk as most write it, and nothing else.
            begin = data.find(b"\r\n", 0, HEAD) + 2
            size = len(data) - begin - 2
            if size > 0 and data[: begin - 2] == b"%x" % size and data.endswith(b"\r\n"):
                return data[begin:-2]
        parts: list[bytes] = []
        at, end = 0, len(data)
        if self._left:
            at = self._go_on(data, parts)
        while at < end and not self._trailing:
            head = _head(data, at)
            if head is None:
                if data.find(b"\r\n", at) >= 0 or end - at > MAX_LINE:
                    raise Torn("what came is no chunk")
                self._rest = data[at:]
                break
            size = int(head[1], 16)
            at = head.end()
            if not size:
                self._trailing = 1
                break
            after = at + size
            if after + 2 <= end:
                if data[after : after + 2] != b"\r\n":
                    raise Torn("a chunk is longer than it says")
                parts.append(data[at:after])
                at = after + 2
            else:
                self._left = size + 2
                self._go_on(data[at:], parts)
                break
        if self._trailing:
            self._trail(data, at)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """As `Framing` says."""
        if not self.done:
            raise Torn("the connection was closed before the last chunk")

    def _go_on(self, data: bytes, parts: list[bytes]) -> int:
        """Take what belongs to the chunk that is not whole; how many bytes that were."""
        left = self._left
        taken = min(left, len(data))
        part = data[: min(taken, left - 2)] if left > 2 else b""
        if part:
            parts.append(part)
        closing = data[len(part) : taken]
        begun = max(0, 2 - left)  # of the two bytes after it, those that came before
        if closing != b"\r\n"[begun : begun + len(closing)]:
            raise Torn("a chunk is longer than it says")
        self._left = left - taken
        return taken

    def _trail(self, data: bytes, at: int) -> None:
        while (stop := data.find(b"\r\n", at)) >= 0:
            if stop == at:
                self.done = True
                self.clean = at + 2 == len(data)
                return
            self._trailing += stop - at
            at = stop + 2
        self._rest = data[at:]
        if self._trailing + len(self._rest) > MAX_LINE:
            raise Torn("its trailers have no end")


class Sized:
    """Content-Length.

    Args:
        size: bytes of the body.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self.done = self.clean = not size

    def feed(self, data: bytes) -> bytes:
        """As `Framing` says."""
        part = data[: self._left]
        self._left -= len(part)
        if not self._left:
            self.done, self.clean = True, len(part) == len(data)
        return part

    def close(self) -> None:
        """As `Framing` says."""
        if not self.done:
            raise Torn(f"the connection was closed {self._left} bytes before the end")


class Unsized:
    """Neither: the connection's end is the body's."""

    def __init__(self) -> None:
        self.done = False
        self.clean = False

    def feed(self, data: bytes) -> bytes:
        """As `Framing` says."""
        return data

    def close(self) -> None:
        """As `Framing` says."""
        self.done = True

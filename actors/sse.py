"""Server-sent events out of raw bytes, free of I/O: bytes in at any split, whole events out.

Follows the event stream format of the WHATWG HTML standard (section 9.2.6): LF, CRLF and CR line ends, one
leading byte order mark, comments, multi-line data, `event:` names; `id:` and `retry:` are of no use here
and are dropped, as is any field that is not known. What a stream's data means is not this module's concern.
Works on bytes: UTF-8 is the concern of who decodes the data, so no split can break a character.
Can fail with `EventTooLarge` only; after that the decoder must not be fed again.
"""

from __future__ import annotations

import msgspec

MAX_EVENT = 16 * 1024 * 1024  # bytes of one event or line; an image in base64 fits, a runaway peer does not

_BOM = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """One event is larger than the decoder's limit; the stream cannot be trusted any more."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of the stream."""

    data: bytes
    """Its `data:` lines, joined by LF."""
    name: bytes = b""
    """Its `event:` field; empty where it has none."""


class Decoder:
    """One stream's decoder.

    Args:
        limit: most bytes of one event.
    """

    __slots__ = ("_limit", "_lines", "_started")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._limit = limit
        self._started = False
        self._lines: _Lines | None = None
        """Once something came that is not plain."""

    def feed(self, chunk: bytes) -> list[Event]:
        """Take bytes, return the events that became whole by them.

        Raises: EventTooLarge.
        """
        if (
            (self._lines is None or self._lines.plain)
            and chunk[:6] == b"data: "
            and chunk[-2:] == b"\n\n"
            and b"\r" not in chunk
        ):
            # Nearly always it is one event of one line, or some, and nothing else.
            end = len(chunk) - 2
            if end - 6 <= self._limit:
                self._started = True
                if chunk.find(b"\n") == end:
                    return [Event(chunk[6:end])]
                found = chunk[6:end].split(b"\n\ndata: ")
                if chunk.count(b"\n") == 2 * len(found):
                    return [Event(data) for data in found]
        if self._lines is None:
            self._lines = _Lines(self._limit, started=self._started)
        return self._lines.feed(chunk)

    def close(self) -> list[Event]:
        """The stream ended: the last event, where it lacks only its blank line.

        The standard drops such an event; providers are seen to end without the blank line. A torn one
        is torn JSON and is noticed by who decodes it.
        """
        return self._lines.close() if self._lines is not None else []


class _Lines:
    """Any part of a stream, line by line.

    Args:
        started: its first line has come before.
    """

    __slots__ = ("_after_cr", "_data", "_limit", "_name", "_parts", "_size", "_started", "_waiting", "plain")

    def __init__(self, limit: int, *, started: bool) -> None:
        self._limit = limit
        self._started = started
        self.plain = False
        """Nothing of an event or line waits for its rest."""
        self._after_cr = False
        # The beginning of a line whose end has not come, in the parts that came: joined once, so that a
        # large event in small parts costs linear time.
        self._parts: list[bytes] = []
        self._waiting = 0
        self._data: list[bytes] = []
        self._size = 0
        self._name = b""

    def feed(self, chunk: bytes) -> list[Event]:
        """As `Decoder`'s."""
        events = self._feed(chunk)
        self.plain = self._started and not (self._after_cr or self._parts or self._data or self._name)
        return events

    def _feed(self, chunk: bytes) -> list[Event]:
        if self._after_cr and chunk:
            # The LF of a CRLF that was split between two chunks.
            self._after_cr = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        if b"\n" not in chunk and b"\r" not in chunk:
            self._keep(chunk)
            return []
        if self._parts:
            self._parts.append(chunk)
            chunk = b"".join(self._parts)
            self._parts.clear()
            self._waiting = 0
        lines = chunk.splitlines()  # bytes are split at LF, CRLF and CR only
        last = chunk[-1]
        if last == 0x0D:
            self._after_cr = True
        elif last != 0x0A:
            self._keep(lines.pop())
        return self._read(lines)

    def close(self) -> list[Event]:
        """As `Decoder`'s."""
        line = b"".join(self._parts)
        self._parts.clear()
        return self._read([line, b""] if line else [b""])

    def _keep(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._waiting += len(part)
            self._check(self._waiting)

    def _check(self, more: int) -> None:
        if self._size + more > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit} bytes")

    def _read(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        data = self._data
        if not self._started and lines:
            self._started = True
            lines[0] = lines[0].removeprefix(_BOM)
        for line in lines:
            if not line:
                if data:
                    events.append(Event(data[0] if len(data) == 1 else b"\n".join(data), self._name))
                    data.clear()
                    self._size = 0
                self._name = b""
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._check(len(value))
                self._size += len(value) + 1
                data.append(value)
            elif line.startswith(b"event:"):
                self._name = line[6:].removeprefix(b" ")
            elif line == b"data":
                self._check(1)
                self._size += 1
                data.append(b"")
            elif line == b"event":
                self._name = b""
        return events

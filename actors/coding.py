"""Bodies that come compressed although that was not asked for; free of I/O.

gzip and deflate are read as they come, in parts of a bounded size however much they expand to. `deflate` is
sent with a zlib header or, by some servers, without: the first byte tells. Fails with `Unreadable` only.
"""

from __future__ import annotations

import zlib

CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
PART = 1 << 20  # bytes that are given out at once
_AUTO = 32 + zlib.MAX_WBITS  # a gzip or zlib header
_RAW = -zlib.MAX_WBITS


class Unreadable(Exception):
    """The bytes are not what their coding says."""


class Inflater:
    """One body's."""

    def __init__(self) -> None:
        self._inflate: zlib._Decompress | None = None
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """The next bytes as they came; all that `part` can make of those before was taken."""
        self._rest += data

    def part(self) -> bytes:
        """Some of the body; b"" where more bytes are needed. Raises Unreadable."""
        while self._rest:
            if self._inflate is None:
                # A zlib header begins with 0x78 in practice, gzip's with 0x1f; anything else is bare deflate.
                self._inflate = zlib.decompressobj(_AUTO if self._rest[0] in (0x78, 0x1F) else _RAW)
            try:
                made = self._inflate.decompress(self._rest, PART)
            except zlib.error:
                raise Unreadable from None
            self._rest = self._inflate.unconsumed_tail
            if self._inflate.eof:
                # gzip allows several members in a row; what else follows is padding.
                self._rest = self._inflate.unused_data if self._inflate.unused_data[:1] == b"\x1f" else b""
                self._inflate = None if self._rest else self._inflate
            if made:
                return made
        return b""

"""How much one MCP server may make us read: a burst at once, then so much a second in small pieces.

Whoever floods would otherwise keep two cores busy, its own and that of the process that takes what it says, and the
answers of everybody else late. What is not read stays in the pipe, so the flooder itself is slowed down, and nothing
is lost. Measured in bytes; each message weighs as much as the bytes that cost the same processor time.
It may assume one reader, and a clock that does not go back.
"""

from __future__ import annotations

BYTES_S = 10e6  # a tenth of a core
BURST = 10e6  # bytes: whoever says less is never slowed down
MESSAGE = 8_000  # bytes that cost as much as a message of any size does
PIECE = 40_000  # of that weight at once: others wait for less than half a millisecond
MOST = 65_536  # bytes of a read
LEAST = 64


class Allowance:
    """What is left of it.

    Args:
        now: seconds of any clock.
    """

    def __init__(self, now: float) -> None:
        self._left = BURST
        self._at = now
        self._weight = 1.0
        """Of a byte, lately."""

    def wait_s(self, now: float) -> float:
        """For so long nothing more should be read."""
        self._left = min(BURST, self._left + (now - self._at) * BYTES_S)
        self._at = now
        return max(0.0, -self._left / BYTES_S)

    @property
    def most(self) -> int:
        """Bytes to read at once."""
        return min(MOST, max(LEAST, int(max(PIECE, self._left) / self._weight)))

    def read(self, size: int, messages: int) -> None:
        """So many bytes were read, with the ends of so many messages."""
        weight = size + messages * MESSAGE
        self._left -= weight
        self._weight = weight / size if size else 1.0

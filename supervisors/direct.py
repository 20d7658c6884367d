"""A connected socket with as little between it and the kernel as there can be: for ports, which carry every token.

trio's `SocketStream` tries to read before it waits, and yields on every call; a port waits anyway before it reads,
and yields when it has nothing to write. That is a quarter of what a tick of a port costs (30 us against 41).

May assume one reader and one writer, and that whoever is cancelled in `send_all` gives the connection up. What can
fail: the peer; as with trio's own, that is BrokenResourceError, and ClosedResourceError if we closed it ourselves.
"""

from __future__ import annotations

import os

import trio


class Direct(trio.abc.Stream):
    """The same stream, read and written directly."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, empty at the end. Always yields."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor())
            try:
                return os.read(self._descriptor(), max_bytes or 65536)
            except BlockingIOError:
                continue  # somebody was wrong about it
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it. Yields only where the kernel does not take it at once."""
        with memoryview(data) as view:
            written = self.send_some(view)
            if written < len(view):
                await self._stream.send_all(view[written:])

    def send_some(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the kernel takes at once; how many bytes that were."""
        try:
            return os.write(self._descriptor(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """As trio's."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()

    def _descriptor(self) -> int:
        # Asked for each time: the number of a closed one may be somebody else's already.
        descriptor = self._stream.socket.fileno()
        if descriptor < 0:
            raise trio.ClosedResourceError
        return descriptor

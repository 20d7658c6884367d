"""The opening handshake of a WebSocket. The importer of trio_websocket in a front.

The library answers it, over a stream that ends with the answer, and is gone afterwards: what it keeps for as long
as a socket lives (a task, a queue, locks, its parsers) is most of what an idle socket would cost. What follows is
read by `actors.wire`. It gets a handshake in plain words, since it fails on a peer's in many ways (bytes that are
not ASCII, names that are not IDNA) and needs nothing of it but the key.

Nothing can fail here but what a peer has sent: `BadRequest`.
"""

from __future__ import annotations

import base64
import re

import trio
import trio_websocket

from actors.http import BadRequest, Head

WEBSOCKET_VERSION = "13"  # the only one there is: RFC 6455
UPGRADE_REQUIRED = 426
KEPT = frozenset({"host", "sec-websocket-key", "sec-websocket-version"})
"""Headers that another front wants to see where it takes a WebSocket over; browsers send five times as much."""
KEY_BYTES = 16  # of Sec-WebSocket-Key, decoded
HEAD_END = re.compile(rb"\n\r?\n")
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)


async def answered(key: bytes) -> bytes:
    """What is said to a peer with that key."""
    stream = Exchange(HANDSHAKE % key)
    async with trio.open_nursery() as nursery:
        request = await trio_websocket.wrap_server_stream(nursery, stream)
        await request.accept()
        nursery.cancel_scope.cancel()
    return stream.answer


def accepted(head: Head) -> tuple[bytes, bytes]:
    """The peer's key, and what it sent behind its handshake. Raises BadRequest: 426 another version, 400 a bad key."""
    version = head.header("sec-websocket-version")
    if version != WEBSOCKET_VERSION:
        raise BadRequest(UPGRADE_REQUIRED if version else 400, "this endpoint speaks WebSocket version 13")
    key = head.header("sec-websocket-key") or ""
    try:
        nonce = base64.b64decode(key.encode("latin-1"), validate=True)
    except ValueError:
        nonce = b""
    if len(nonce) != KEY_BYTES:
        raise BadRequest(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    end = HEAD_END.search(head.raw)
    early = head.raw[end.end() :] if end is not None else b""
    return base64.b64encode(nonce), early


class Exchange(trio.abc.Stream):
    """Gives the library a request, and takes its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.answer = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The request; afterwards nothing ever comes."""
        await trio.lowlevel.checkpoint()
        if not self._request:
            await trio.sleep_forever()
        given, self._request = self._request[:max_bytes], self._request[max_bytes:] if max_bytes else b""
        return given

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """A part of the answer."""
        await trio.lowlevel.checkpoint()
        self.answer += data

    async def wait_send_all_might_not_block(self) -> None:
        """It never does."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """There is nothing to close."""
        await trio.lowlevel.checkpoint()

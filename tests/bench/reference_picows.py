"""Reference: as fast as asyncio gets, uvloop with picows, and the provider's HTTP read by a bare protocol.

It relays and does nothing else: no history, no store, no errors that anybody would understand. Arguments: the
upstream's port and the model. Says `port N`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import picows
import uvloop


class Delta(msgspec.Struct):
    """Of a chunk."""

    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    """Of a chunk."""

    delta: Delta


class Chunk(msgspec.Struct):
    """One event's data."""

    choices: list[Choice]


class Asked(msgspec.Struct):
    """What a client says."""

    message: str


decode = msgspec.json.Decoder(Chunk).decode
decode_asked = msgspec.json.Decoder(Asked).decode
encode = msgspec.json.Encoder().encode


class Provider(asyncio.Protocol):
    """One connection to the upstream: answers one request after the other.

    Args:
        idle: where it is when it has nothing to do.
    """

    def __init__(self, idle: list[Provider]) -> None:
        self._idle = idle
        self._transport: Any = None
        self._buffer = b""
        self._body = b""
        self._headed = False
        self.take: Callable[[bytes | None], None] = lambda _: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = transport

    def ask(self, request: bytes, take: Callable[[bytes | None], None]) -> None:
        """Send a request; `take` gets each event's data, and None at the end."""
        self.take, self._headed = take, False
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Head, then chunks, then events."""
        data = self._buffer + data if self._buffer else data
        if not self._headed:
            _, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._buffer = data
                return
            self._headed, data = True, rest
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:end], 16)
            if len(data) < end + 2 + size + 2:
                break
            if not size:
                self._buffer = b""
                self._idle.append(self)
                self.take(None)
                return
            self._events(data[end + 2 : end + 2 + size])
            at = end + 2 + size + 2
        self._buffer = data[at:]

    def _events(self, data: bytes) -> None:
        *events, self._body = (self._body + data).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: ") and event != b"data: [DONE]":
                self.take(event[6:])


class Relay(picows.WSListener):  # type: ignore[misc]  # of a package that is not followed, see pyproject.toml
    """One client's socket."""

    def __init__(self, upstream: int, model: str, idle: list[Provider]) -> None:
        self._upstream = upstream
        self._model = model
        self._idle = idle
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: Any = None

    def on_ws_connected(self, transport: Any) -> None:
        """The handshake is done."""
        self._transport = transport
        self._send(b'{"type":"welcome"}')

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        """A frame came."""
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close()
            transport.disconnect()
        elif frame.msg_type == picows.WSMsgType.TEXT:
            asked = decode_asked(frame.get_payload_as_bytes())
            task = asyncio.get_running_loop().create_task(self._ask(asked.message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, message: str) -> None:
        messages = [{"role": "user", "content": message}]
        body = encode({"model": self._model, "stream": True, "messages": messages})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        if self._idle:
            provider = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, provider = await loop.create_connection(lambda: Provider(self._idle), "127.0.0.1", self._upstream)
        provider.ask(head.encode() + body, self._take)

    def _take(self, data: bytes | None) -> None:
        if data is None:
            self._send(b'{"type":"turn_finished","outcome":"completed"}')
            return
        for choice in decode(data).choices:
            if choice.delta.reasoning_content:
                self._send(b'{"type":"thinking_delta","text":%b}' % encode(choice.delta.reasoning_content))
            if choice.delta.content:
                self._send(b'{"type":"assistant_delta","text":%b}' % encode(choice.delta.content))

    def _send(self, frame: bytes) -> None:
        self._transport.send(picows.WSMsgType.TEXT, frame)


async def main(upstream: int, model: str) -> None:
    """Serve until told to end."""
    idle: list[Provider] = []
    server = await picows.ws_create_server(lambda _: Relay(upstream, model, idle), "127.0.0.1", 0, backlog=4096)
    print(f"port {server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201 - a command's output
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2]))

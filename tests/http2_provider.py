"""Http2Provider: a chat/completions upstream that speaks HTTP/2 over TLS, by the h2 package, for tests.

    async with Http2Provider(authority.server("h2"), say("hello")) as upstream:
        ...                                  # point a provider's base_url at upstream.base_url
        await upstream.requests[0].reset.wait()   # the client has given it up

Scripts as in tests/fakes.py, of text, events and stalls.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trio

from tests.scripts import Cut, Pause, Script, Stall, written


@dataclass(eq=False)
class Stream:
    """One request that came."""

    connection: int
    """Which connection it came on, from 1."""
    headers: dict[str, str]
    body: bytes = b""
    reset: trio.Event = field(default_factory=trio.Event)
    """The client gave it up."""
    finished: trio.Event = field(default_factory=trio.Event)
    """The answer was sent, whole as scripted."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    window: trio.Event = field(default_factory=trio.Event)

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


class Http2Provider:
    """The upstream; an async context manager. Nothing of it outlives the block."""

    def __init__(self, context: ssl.SSLContext, *replies: Script) -> None:
        self.requests: list[Stream] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._context = context
        self._replies = iter(replies)
        self._reply = replies[-1]
        self._arrived = trio.Event()
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    @property
    def base_url(self) -> str:
        """`https://127.0.0.1:PORT/v1`"""
        return f"https://127.0.0.1:{self.port}/v1"

    async def request(self, number: int) -> Stream:
        """The request of that number, from 1; waits until it has come."""
        while len(self.requests) < number:
            await self._arrived.wait()
        return self.requests[number - 1]

    def came(self, stream: Stream) -> Script:
        """Note a request; its script."""
        self.requests.append(stream)
        self._arrived.set()
        self._arrived = trio.Event()
        return next(self._replies, self._reply)

    async def __aenter__(self) -> Http2Provider:
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        listeners = await trio.open_ssl_over_tcp_listeners(0, self._context, host="127.0.0.1", https_compatible=True)
        self.port = listeners[0].transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]  # of TCP
        await self._nursery.start(trio.serve_listeners, self._serve, listeners)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, trace)

    async def _serve(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.connections += 1
        try:
            async with trio.open_nursery() as nursery:
                await _Connection(self, stream, self.connections, nursery).run()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away, or does not trust us
        finally:
            await trio.aclose_forcefully(stream)


class _Connection:
    def __init__(
        self, provider: Http2Provider, stream: trio.SSLStream[trio.SocketStream], number: int, nursery: trio.Nursery
    ) -> None:
        self._provider = provider
        self._stream = stream
        self._number = number
        self._nursery = nursery
        self._sending = trio.Lock()
        self._streams: dict[int, Stream] = {}
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))

    async def run(self) -> None:
        await self._stream.do_handshake()
        self._provider.open += 1
        assert self._stream.selected_alpn_protocol() == "h2"
        self._http.initiate_connection()
        await self._flush()
        try:
            while data := await self._stream.receive_some():
                for event in self._http.receive_data(data):
                    self._take(event)
                await self._flush()
        finally:
            self._provider.open -= 1

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                assert event.stream_id is not None
                assert event.headers is not None
                headers = {str(name): str(value) for name, value in event.headers}
                self._streams[event.stream_id] = Stream(self._number, headers)
            case h2.events.DataReceived():
                assert event.stream_id is not None
                assert event.data is not None
                self._streams[event.stream_id].body += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            case h2.events.StreamEnded():
                assert event.stream_id is not None
                asked = self._streams[event.stream_id]
                self._nursery.start_soon(self._answer, event.stream_id, asked, self._provider.came(asked))
            case h2.events.StreamReset():
                assert event.stream_id is not None
                asked = self._streams[event.stream_id]
                asked.reset.set()
                asked.scope.cancel()
            case h2.events.WindowUpdated():
                for asked in self._streams.values():
                    asked.window.set()
            case h2.events.ConnectionTerminated():
                pass  # its farewell; the end of its bytes follows
            case _:
                pass  # settings and the like, which h2 has answered

    async def _answer(self, number: int, asked: Stream, script: Script) -> None:
        with asked.scope:
            if isinstance(script.before_head, Stall):
                await _until(script.before_head).wait()
            head = [(":status", str(script.status)), ("content-type", script.content_type), *script.headers.items()]
            self._http.send_headers(number, head)
            for data in self._data(script):
                if isinstance(data, trio.Event):
                    await self._flush()
                    await data.wait()
                else:
                    await self._send(number, asked, data)
            self._http.end_stream(number)
            await self._flush()
            asked.finished.set()

    def _data(self, script: Script) -> Iterator[bytes | trio.Event]:
        for item in script.items:
            match item:
                case Stall():
                    yield _until(item)
                case Pause() | Cut():
                    raise TypeError(f"{item!r} is not for HTTP/2")
                case bytes():
                    yield item
                case _:
                    yield written(item, script.line_end)
        if script.done:
            yield b"data: [DONE]\n\n"

    async def _send(self, number: int, asked: Stream, data: bytes) -> None:
        while data:
            room = min(self._http.local_flow_control_window(number), self._http.max_outbound_frame_size)
            if not room:
                asked.window = trio.Event()
                await self._flush()
                await asked.window.wait()
                continue
            self._http.send_data(number, data[:room])
            data = data[room:]
        await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
            # What was taken must be sent whole: a stream that is reset meanwhile is one of many.
            with trio.CancelScope(shield=True):
                if data := self._http.data_to_send():
                    await self._stream.send_all(data)


def _until(stall: Stall) -> trio.Event:
    return stall.until if stall.until is not None else trio.Event()

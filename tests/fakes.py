"""FakeProvider: a scripted chat/completions upstream over real TCP, for tests of anything that asks a model.

In a test (same trio run, real sockets)::

    async with FakeProvider(say("hello ", "world")) as upstream:
        ...                                     # point a provider's base_url at upstream.base_url
        asked = upstream.requests[0]            # headers, json, and what became of the connection
        await asked.closed.wait()               # the client closed it, e.g. because a turn was stopped

Scripts are used one per request, in order; after the last, every further request gets the last again. A
callable gets the request's JSON and returns a script, so an upstream can answer by what it is asked::

    FakeProvider(lambda asked: say("again") if asked["messages"][-1]["role"] == "tool" else ask_tool("add", {"a": 1}))

A script is made by `say`, `think`, `ask_tool`, `ask_tools`, `fail`, `page`, `raw`, or by hand of items (see
`tests.scripts.Item`; all names can be imported from here). A request with `"stream": false` gets the same
script as one JSON object.

As a process (for tests of the whole service in child processes)::

    python -m tests.fakes --port 0 [--interval 0.01]

prints one line, its base URL, and answers by the last user message; `by_message` says what it understands.
It ends by SIGTERM, or when its standard input is closed if `--leash` is given.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import h11
import trio

from tests.scripts import (
    USAGE,
    Cut,
    Finish,
    Item,
    Pause,
    Script,
    Stall,
    Thought,
    ToolDelta,
    Usage,
    ask_tool,
    ask_tools,
    by_message,
    fail,
    page,
    raw,
    say,
    think,
    whole,
    written,
)

__all__ = [
    "USAGE",
    "Asked",
    "Cut",
    "FakeProvider",
    "Finish",
    "Item",
    "Pause",
    "Reply",
    "Script",
    "Stall",
    "Thought",
    "ToolDelta",
    "Usage",
    "ask_tool",
    "ask_tools",
    "by_message",
    "fail",
    "page",
    "raw",
    "say",
    "think",
]


@dataclass(eq=False)
class Asked:
    """One request that came."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    json: Any
    """The decoded body; None if it is no JSON."""
    connection: int
    """Which connection it came on, from 1."""
    started: trio.Event = field(default_factory=trio.Event)
    """The head of the answer was sent."""
    finished: trio.Event = field(default_factory=trio.Event)
    """The answer was sent, whole as scripted."""
    closed: trio.Event = field(default_factory=trio.Event)
    """The connection that it came on has ended."""
    abandoned: trio.Event = field(default_factory=trio.Event)
    """The client closed the connection before the answer was whole."""
    sent: int = 0
    """Items of the script that were sent."""


Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Reply = Script | Callable[[Any], Script]


class FakeProvider:
    """The upstream; an async context manager. Nothing of it outlives the block.

    Args:
        replies: scripts, or callables from the request's JSON to a script; see the module's head.
        interval: seconds before each text delta; 0 sends what there is at once.
        path: prefix of its `base_url`.
        tls: it speaks https with this; scripts cannot cut then.
    """

    def __init__(
        self, *replies: Reply, interval: float = 0.0, path: str = "/v1", tls: ssl.SSLContext | None = None
    ) -> None:
        self.replies: list[Reply] = list(replies) or [say("ok")]
        self.requests: list[Asked] = []
        """What came, in order."""
        self.connections = 0
        """Connections that were accepted."""
        self._interval = interval
        self._path = path
        self._tls = tls
        self._next = 0
        self._live: set[Stream] = set()
        self._arrived = trio.Event()
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery | None = None
        self.port = 0

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT/v1`"""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{self._path}"

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._live)

    async def request(self, number: int) -> Asked:
        """The request of that number, from 1; waits until it has come."""
        while len(self.requests) < number:
            await self._arrived.wait()
        return self.requests[number - 1]

    async def hang_up(self) -> None:
        """Close all connections, whatever happens on them."""
        for stream in list(self._live):
            await trio.aclose_forcefully(stream)

    async def listen(self, port: int = 0, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `async with` does it for tests."""
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def __aenter__(self) -> FakeProvider:
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        await self._nursery.start(self.listen)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, trace)

    async def _serve(self, socket_stream: trio.SocketStream) -> None:
        self.connections += 1
        stream: Stream = socket_stream
        if self._tls is not None:
            stream = trio.SSLStream(socket_stream, self._tls, server_side=True, https_compatible=True)
        connection = _Connection(self, stream, self.connections)
        try:
            if isinstance(stream, trio.SSLStream):
                await stream.do_handshake()
            self._live.add(stream)
            await connection.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the client went away, or does not speak HTTP: this connection's end
        finally:
            self._live.discard(stream)
            for asked in connection.asked:
                asked.closed.set()
            await trio.aclose_forcefully(stream)

    def note(self, asked: Asked) -> Script:
        """Record a request and choose its script."""
        self.requests.append(asked)
        self._arrived.set()
        self._arrived = trio.Event()
        reply = self.replies[min(self._next, len(self.replies) - 1)]
        self._next += 1
        return reply if isinstance(reply, Script) else reply(asked.json)

    @property
    def interval(self) -> float:
        """Seconds before each text delta."""
        return self._interval


class _Connection:
    def __init__(self, provider: FakeProvider, stream: Stream, number: int) -> None:
        self._provider = provider
        self._stream = stream
        self._number = number
        self._http = h11.Connection(h11.SERVER)
        self.asked: list[Asked] = []

    async def run(self) -> None:
        while True:
            asked = await self._request()
            if asked is None:
                return
            self.asked.append(asked)
            script = self._provider.note(asked)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, asked, nursery.cancel_scope)
                try:
                    await self._answer(asked, script)
                    asked.finished.set()
                except trio.BrokenResourceError:
                    asked.abandoned.set()  # noticed by sending before it was by receiving
                nursery.cancel_scope.cancel()
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> Asked | None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(bytes(await self._stream.receive_some()))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = {name.decode(): value.decode() for name, value in head.headers}
                try:
                    decoded = json.loads(body)
                except ValueError:
                    decoded = None
                return Asked(head.target.decode(), headers, body, decoded, self._number)
            else:
                return None  # closed, or something that is no request

    async def _watch(self, asked: Asked, answering: trio.CancelScope) -> None:
        """Notice that the client closes while it is being answered."""
        while True:
            try:
                data = await self._stream.receive_some()
            except trio.ClosedResourceError:
                return  # we cut it ourselves
            except trio.BrokenResourceError:
                data = b""
            if not data:
                asked.abandoned.set()
                answering.cancel()
                return
            self._http.receive_data(bytes(data))  # a pipelined request: kept for its turn

    async def _answer(self, asked: Asked, script: Script) -> None:
        if script.before_head is not None and await self._hold(script.before_head):
            return
        streamed = script.content_type.startswith("text/event-stream")
        at_once = streamed and isinstance(asked.json, dict) and not asked.json.get("stream")
        items = (whole(script.items),) if at_once else script.items
        headers = {"Content-Type": "application/json" if at_once else script.content_type, **script.headers}
        if script.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Connection"] = "close"
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send(h11.Response(status_code=script.status, headers=raw))
        asked.started.set()
        for item in items:
            if isinstance(item, Stall | Pause | Cut):
                if await self._hold(item):
                    return
            else:
                if isinstance(item, str) and self._provider.interval:
                    await trio.sleep(self._provider.interval)  # the pace of a real model, where a test wants one
                await self._send(h11.Data(data=item if isinstance(item, bytes) else written(item, script.line_end)))
            asked.sent += 1
        if script.done and streamed and not at_once:
            await self._send(h11.Data(data=f"data: [DONE]{script.line_end * 2}".encode()))
        await self._send(h11.EndOfMessage())
        if script.framing == "close" and isinstance(self._stream, trio.SocketStream):
            await self._stream.send_eof()

    async def _hold(self, item: Stall | Pause | Cut) -> bool:
        """Do what is not sending; True if the connection is no more."""
        if isinstance(item, Stall):
            await (item.until if item.until is not None else trio.Event()).wait()
            return False
        if isinstance(item, Pause):
            await trio.sleep(item.seconds)  # scripted silence is what is tested
            return False
        if self._http.our_state is h11.SEND_BODY:
            # The size of a chunk, and less than that of it.
            await self._stream.send_all(b'64\r\ndata: {"choices":[{"delta":{"content":"')
        if item.reset and isinstance(self._stream, trio.SocketStream):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self._stream)
        return True

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.send_all(data)


async def _main(port: int, interval: float, leash: bool) -> None:
    provider = FakeProvider(by_message, interval=interval)

    async def end_by_signal(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                scope.cancel()

    async def end_by_leash(scope: trio.CancelScope) -> None:
        async with trio.lowlevel.FdStream(0) as stdin:
            while await stdin.receive_some():
                pass
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_by_signal, nursery.cancel_scope)
        if leash:
            nursery.start_soon(end_by_leash, nursery.cancel_scope)
        await nursery.start(partial(provider.listen, port))
        sys.stdout.write(f"{provider.base_url}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fakes", description="A scripted chat/completions upstream.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--interval", type=float, default=0.0, help="seconds before each text delta")
    parser.add_argument("--leash", action="store_true", help="end when standard input is closed")
    options = parser.parse_args()
    trio.run(_main, options.port, options.interval, options.leash)

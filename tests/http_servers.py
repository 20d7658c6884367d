"""MCP servers over HTTP in the same trio run, that do what a test tells them: right by default, wrong on demand.

They speak MCP without its package, over h11: streamable HTTP at `/mcp` in both eras, and the older HTTP+SSE at
`/sse`. `HttpServer.faults` maps a method of MCP (or `GET`, `DELETE`) to what is done instead of answering;
`HttpServer.seen` has all that was asked. Tools: `hello`, `count` (with progress), `hang`, `big`.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import h11
import trio

MODERN = "2026-07-28"
LEGACY = "2025-11-25"
TOOLS = ["big", "count", "hang", "hello"]


@dataclass
class Asked:
    """One request."""

    verb: str
    path: str
    headers: dict[str, str]
    message: dict[str, Any]

    @property
    def method(self) -> str:
        """Of MCP; of HTTP where there is no message."""
        return str(self.message.get("method", self.verb))


class Reply:
    """The answer to one request."""

    def __init__(self, stream: trio.abc.Stream, machine: h11.Connection) -> None:
        self._stream = stream
        self._machine = machine

    async def _send(self, *events: h11.Event) -> None:
        for event in events:
            data = self._machine.send(event)
            if data:
                await self._stream.send_all(data)

    async def whole(self, status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> None:
        """Status and body."""
        head = [("content-type", kind), ("content-length", str(len(body)))]
        head += [(name.replace("_", "-"), value) for name, value in headers.items()]
        await self._send(h11.Response(status_code=status, headers=head), h11.Data(data=body), h11.EndOfMessage())

    async def json(self, value: Any, status: int = 200, **headers: str) -> None:
        """A JSON body."""
        await self.whole(status, json.dumps(value).encode(), "application/json", **headers)

    async def begin(self, kind: str = "text/event-stream", **headers: str) -> None:
        """A body of unknown length."""
        head = [("content-type", kind), ("transfer-encoding", "chunked")]
        head += [(name.replace("_", "-"), value) for name, value in headers.items()]
        await self._send(h11.Response(status_code=200, headers=head))

    async def event(self, value: Any, name: str = "message", number: str = "") -> None:
        """One event of a stream."""
        data = value if isinstance(value, str) else json.dumps(value)
        text = f"event: {name}\ndata: {data}\n" + (f"id: {number}\n" if number else "")
        await self._send(h11.Data(data=text.encode() + b"\n"))

    async def part(self, data: bytes) -> None:
        """Some bytes of a body."""
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """The body is complete."""
        await self._send(h11.EndOfMessage())

    async def cut(self) -> None:
        """Close the connection where it is."""
        await trio.aclose_forcefully(self._stream)


Fault = Callable[[Asked, Reply], Awaitable[None]]
Tell = Callable[[dict[str, Any]], Awaitable[None]]


def status(code: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> Fault:
    """Answer with that."""

    async def fault(_: Asked, reply: Reply) -> None:
        await reply.whole(code, body, kind, **headers)

    return fault


HTML = status(200, b"<!doctype html><title>Log in</title>", "text/html; charset=utf-8")


async def cut(_: Asked, reply: Reply) -> None:
    """Close the connection without a word."""
    await reply.cut()


async def cut_json(_: Asked, reply: Reply) -> None:
    """Close it within a JSON answer."""
    await reply.begin("application/json")
    await reply.part(b'{"jsonrpc": "2.0", "res')
    await reply.cut()


async def cut_stream(asked: Asked, reply: Reply) -> None:
    """Close it within a stream, after a word of progress."""
    await reply.begin()
    await reply.event(_progress(asked, 1.0))
    await reply.cut()


async def end_stream(_: Asked, reply: Reply) -> None:
    """End a stream properly, without an answer in it."""
    await reply.begin()
    await reply.end()


async def silent(_: Asked, __: Reply) -> None:
    """Say nothing."""
    await trio.sleep_forever()


@dataclass
class HttpServer:
    """A running one. Made by `http_server`."""

    modern: bool = False
    """Of the newer era; the older one is refused then."""
    version: str = LEGACY
    """That it answers to `initialize`."""
    sessions: bool = True
    streamed: bool = False
    """Answers come as streams, not as JSON."""
    posted: int = 0
    """Not 0: `/mcp` answers every POST with it, as a server of the older way does."""
    faults: dict[str, Fault] = field(default_factory=dict)
    pages: dict[str, Fault] = field(default_factory=dict)
    """What is at other paths."""
    gate: Callable[[Asked], Fault | None] | None = None
    """Who is not let in gets what it returns."""
    seen: list[Asked] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)
    """Set whenever something is asked, and then made anew."""
    port: int = 0
    scheme: str = "http"
    tools: list[dict[str, Any]] = field(default_factory=lambda: [{"name": name, "inputSchema": {}} for name in TOOLS])
    hanging: int = 0
    """Calls of `hang` that somebody waits for."""
    _session: int = 0
    _listeners: list[trio.MemorySendChannel[Any]] = field(default_factory=list)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _connections: set[trio.CancelScope] = field(default_factory=set)
    _nursery: trio.Nursery | None = None
    _hangs: dict[Any, trio.CancelScope] = field(default_factory=dict)

    def url(self, path: str = "/mcp") -> str:
        """Where it is."""
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def methods(self) -> list[str]:
        """What was asked so far."""
        return [asked.method for asked in self.seen]

    async def asked(self, method: str, times: int = 1) -> Asked:
        """The latest request of that method, once there were so many."""
        while self.methods().count(method) < times:
            await self.news.wait()
        return [asked for asked in self.seen if asked.method == method][-1]

    def forget_sessions(self) -> None:
        """Sessions so far are unknown from now on."""
        self._session += 1

    async def tell(self, message: dict[str, Any]) -> None:
        """Send it to everybody who listens for what is not asked for."""
        for listener in self._listeners:
            listener.send_nowait(message)
        await trio.lowlevel.checkpoint()

    def drop(self) -> None:
        """Close every connection."""
        for scope in self._connections:
            scope.cancel()

    def stop(self) -> None:
        """Die: close every connection and the port."""
        self._scope.cancel()

    async def connected(self, stream: trio.abc.Stream) -> None:
        """Serve one connection."""
        machine = h11.Connection(h11.SERVER)
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                while _state(machine) is h11.IDLE:
                    if (asked := await _received(stream, machine)) is None:
                        break
                    self.seen.append(asked)
                    self._tell_news()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._answer, asked, Reply(stream, machine), nursery.cancel_scope)
                        while data := await stream.receive_some():
                            machine.receive_data(bytes(data))  # asked before this is answered
                        scope.cancel()  # whoever goes away while he waits for an answer wants none any more
                    if _state(machine) is not h11.DONE or machine.their_state is not h11.DONE:
                        break
                    machine.start_next_cycle()
            except* (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
                pass  # the other side is gone, or we closed it
            finally:
                self._connections.discard(scope)
                await trio.aclose_forcefully(stream)

    def _tell_news(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def _answer(self, asked: Asked, reply: Reply, done: trio.CancelScope) -> None:
        page = self.pages.get(asked.path.partition("?")[0])
        fault = page or (self.gate(asked) if self.gate else None) or self.faults.get(asked.method)
        await (fault or self.right)(asked, reply)
        done.cancel()

    async def right(self, asked: Asked, reply: Reply) -> None:
        """Answer as a good server does."""
        path = asked.path.partition("?")[0]
        if path == "/sse" and asked.verb == "GET":
            await self._older(reply)
        elif path == "/messages":
            await reply.whole(202, b"Accepted")
            if asked.method == "notifications/cancelled" and (
                hang := self._hangs.get(asked.message["params"]["requestId"])
            ):
                hang.cancel()
            if self._nursery is not None:
                self._nursery.start_soon(self._say, asked)
        elif path == "/sse" or self.posted:
            await reply.whole(self.posted or 405)
        else:
            await self._streamable(asked, reply)

    async def _say(self, asked: Asked) -> None:
        """Answer on the stream."""
        if (answer := await self._said(asked, self.tell)) is not None:
            await self.tell(answer)

    async def _older(self, reply: Reply) -> None:
        await reply.begin()
        await reply.event("/messages?session_id=1", "endpoint")
        await self._listen(reply)

    async def _listen(self, reply: Reply) -> None:
        into, out = trio.open_memory_channel[Any](100)
        self._listeners.append(into)
        try:
            async for message in out:
                await reply.event(message)
        finally:
            self._listeners.remove(into)

    async def _streamable(self, asked: Asked, reply: Reply) -> None:
        expected = f"s{self._session}"
        if asked.verb == "DELETE":
            await reply.whole(204)
        elif self._keeps(asked) and asked.headers.get("mcp-session-id") != expected:
            await reply.whole(404, b"no such session")
        elif asked.verb == "GET":
            await reply.begin()
            await self._listen(reply)
        elif asked.verb == "POST" and ("id" not in asked.message or "method" not in asked.message):
            await reply.whole(202)
        elif asked.verb == "POST":
            session: dict[str, Any] = {}
            if asked.method == "initialize" and self.sessions:
                session = {"mcp_session_id": expected}
            if self.streamed or asked.message.get("params", {}).get("name") == "count":
                await reply.begin(**session)
                await reply.event(await self._said(asked, reply.event))
                await reply.end()
            else:
                await reply.json(await self._said(asked, None), **session)

    def _keeps(self, asked: Asked) -> bool:
        return self.sessions and not self.modern and asked.method not in ("initialize", "server/discover")

    async def _said(self, asked: Asked, tell: Tell | None) -> dict[str, Any] | None:
        """The answer in MCP."""
        message = asked.message
        if "id" not in message or "method" not in message:
            return None
        result: dict[str, Any] | None = None
        info = {"name": "fake", "version": "1"}
        capabilities = {"tools": {"listChanged": True}, "logging": {}}
        match message["method"]:
            case "initialize" if not self.modern:
                result = {"protocolVersion": self.version, "capabilities": capabilities, "serverInfo": info}
            case "server/discover" if self.modern:
                result = {
                    "supportedVersions": [MODERN],
                    "capabilities": {"tools": {}},
                    "resultType": "complete",
                    "ttlMs": 0,
                    "cacheScope": "private",
                }
            case "tools/list":
                result = {"tools": self.tools, "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
            case "ping" | "logging/setLevel":
                result = {}
            case "tools/call":
                result = await self._called(asked, tell)
        if result is None:
            error = {"code": -32601, "message": "Method not found"}
            return {"jsonrpc": "2.0", "id": message["id"], "error": error}
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}

    async def _called(self, asked: Asked, tell: Tell | None) -> dict[str, Any]:
        text = "hello"
        match asked.message["params"]["name"]:
            case "count" if tell is not None:
                for step in (1.0, 2.0, 3.0):
                    await tell(_progress(asked, step))
                params = {"level": "error", "data": "counted"}
                await tell({"jsonrpc": "2.0", "method": "notifications/message", "params": params})
            case "hang":
                self.hanging += 1
                self._tell_news()
                try:
                    with trio.CancelScope() as self._hangs[asked.message["id"]]:
                        await trio.sleep_forever()
                finally:
                    self.hanging -= 1
                    self._tell_news()
            case "big":
                text = "x" * 2_000_000
        return {"content": [{"type": "text", "text": text}], "resultType": "complete"}


async def _received(stream: trio.abc.Stream, machine: h11.Connection) -> Asked | None:
    """The next request of a connection; None: there is none any more."""
    head: h11.Request | None = None
    body = b""
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            machine.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode(): value.decode() for name, value in head.headers}
            form = headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
            message = dict(parse_qsl(body.decode())) if form else json.loads(body) if body else {}
            return Asked(head.method.decode(), head.target.decode(), headers, message)
        else:
            return None


def _state(machine: h11.Connection) -> object:
    return machine.our_state


def _progress(asked: Asked, done: float) -> dict[str, Any]:
    token = asked.message["params"].get("_meta", {}).get("progressToken", 0)
    params = {"progressToken": token, "progress": done, "total": 3.0}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


@asynccontextmanager
async def http_server(*, tls: ssl.SSLContext | None = None, port: int = 0, **how: Any) -> AsyncIterator[HttpServer]:
    """One that listens on a port of loopback; the rest are fields of `HttpServer`."""
    server = HttpServer(**how, scheme="https" if tls else "http")
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    server.port = listeners[0].socket.getsockname()[1]
    served: Any = [trio.SSLListener(one, tls) for one in listeners] if tls else listeners
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            with server._scope:
                async with trio.open_nursery() as server._nursery:
                    await trio.serve_listeners(server.connected, served)

        nursery.start_soon(serve)
        yield server
        server.stop()

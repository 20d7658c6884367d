"""Messages of MCP between whatever carries them to a server and the streams of the MCP package.

Does what the package does not: a `server/discover` that is never answered is answered for the server after a
while, so that the older handshake is tried; tools with bad schemas are repaired before the package would
reject their whole page. A carrier is a process's lines (`actors.mcp_pipe`) or HTTP (`actors.mcp_http`).
What can fail: what the carrier raises, `ServerEnded` above all.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import NamedTuple, Protocol, get_args

import mcp_types as types
import trio
from mcp.shared._context_streams import ContextReceiveStream, ContextSendStream, create_context_streams
from mcp.shared.message import SessionMessage
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from actors.server_requests import CALL
from actors.tool_schema import Beside, repaired_page

LOST = -31001  # code of an error in place of an answer that was lost on the way: what the request did is unknown
_LOG, _LEVELS = "notifications/message", frozenset[str](get_args(types.LoggingLevel))
OUTGOING = 256  # messages that wait for a server that does not read; later ones wait with their callers

Inbox = ContextSendStream[SessionMessage | Exception]
Outbox = ContextReceiveStream[SessionMessage]
Streams = tuple[ContextReceiveStream[SessionMessage | Exception], ContextSendStream[SessionMessage]]


def worth_a_line(count: int) -> bool:
    """Of what comes again and again, as often as a stranger likes: 1, 10, 100, ..."""
    return str(count).rstrip("0") == "1"


class Unreadable(NamedTuple):
    """In place of an answer that cannot be read."""

    request: types.RequestId
    why: str


Arrived = types.JSONRPCMessage | Unreadable


class Carrier(Protocol):
    """What carries messages to one server and back.

    `CALL` is set to the call that a message is sent in; one that knows in which call a message came sets it likewise.
    """

    transport: str
    """Its name in the servers file: stdio, http or sse."""
    skipped: int
    """How much came so far that was no message."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Ready for messages within; nothing of it is left after."""

    async def send(self, item: SessionMessage) -> None:
        """Hand over a message; for one task at a time. Raises ServerEnded."""

    async def arrived(self) -> list[Arrived]:
        """Wait for the server to say something, be it nothing of use. Raises ServerEnded when nothing more comes."""

    def forget(self, request: types.RequestId) -> None:
        """Nobody waits for that answer any more."""

    async def doubt(self) -> None:
        """Return when there is reason to ask whether the server is still there."""

    def settle(self) -> None:
        """The handshake is done."""


class Wire:
    """Carries messages between a carrier and the package's streams.

    Args:
        carrier: not yet open.
        probe_s: seconds after which an unanswered `server/discover` is answered in the server's place.
        version: the only one that may be spoken; empty: whichever is found.
        clean: takes out of an error what nobody may see: a server may say back what it was given.
        logged: takes level, logger (or nothing) and data of what the server logs. The package, which tells it too,
            starts a task for each line, and there are servers that log without end.
    """

    def __init__(
        self,
        carrier: Carrier,
        probe_s: float,
        version: str = "",
        clean: Callable[[str], str] = str,
        logged: Callable[[str, str, object], None] = lambda level, logger, data: None,
    ) -> None:
        self.bad_tools = 0
        """Tools without a name, left out of listings so far."""
        self.mended: list[str] = []
        """Names of tools whose schema was repaired there."""
        self.beside: dict[str, Beside] = {}
        """What the package is not shown of the tools, by name."""
        self.heard_at = trio.current_time()
        """When the server last said something, whatever it was."""
        self.closed = False
        """Nothing comes any more: the server ended, or the connection is being left."""
        self.ignored_probe = False
        """The server did not answer `server/discover`: it is of the older era."""
        self.carrier = carrier
        self._probe_s = probe_s
        self._version = version
        self._clean = clean
        self._logged = logged
        self._probe: tuple[types.RequestId, trio.CancelScope] | None = None
        self._patience = trio.CancelScope()
        self._listing: set[types.RequestId] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Streams]:
        """A transport in the package's sense."""
        to_session, incoming = create_context_streams[SessionMessage | Exception](0)
        outgoing, from_session = create_context_streams[SessionMessage](OUTGOING)
        async with to_session, incoming, outgoing, from_session:
            async with self.carrier.open(), trio.open_nursery() as nursery:
                nursery.start_soon(self._read, to_session)
                nursery.start_soon(self._write, from_session, to_session, nursery)
                try:
                    yield incoming, outgoing
                finally:
                    nursery.cancel_scope.cancel()

    async def _write(self, source: Outbox, to_session: Inbox, nursery: trio.Nursery) -> None:
        async with source:  # when this ends, nobody may wait for room in there
            async for item in source:
                CALL.set(source.last_context.get(CALL) if source.last_context else None)
                message = item.message
                if isinstance(message, types.JSONRPCRequest):
                    if message.method == "tools/list":
                        self._listing.add(message.id)
                    elif message.method == "initialize" and self._version:
                        if self._version in MODERN_PROTOCOL_VERSIONS:  # no way back to an older one
                            why = f"it does not speak version {self._version}, which is the only one allowed here"
                            await to_session.send(_failed(message.id, types.UNSUPPORTED_PROTOCOL_VERSION, why))
                            continue
                        params = (message.params or {}) | {"protocolVersion": self._version}
                        item.message = message.model_copy(update={"params": params})
                    elif message.method == "server/discover" and self._probe is None and not self._version:
                        self._probe = (message.id, trio.CancelScope())
                        nursery.start_soon(self._bound_probe, *self._probe, to_session)
                await self.carrier.send(item)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What takes its time in here is not the server: nothing is answered in its place."""
        self._patience.deadline = math.inf
        try:
            yield
        finally:
            self._patience.deadline = trio.current_time() + self._probe_s

    async def _bound_probe(self, request: types.RequestId, scope: trio.CancelScope, to_session: Inbox) -> None:
        with scope:
            with trio.move_on_after(self._probe_s) as self._patience:
                await trio.sleep_forever()
            self.ignored_probe = True
            self.carrier.forget(request)
            await to_session.send(_failed(request, types.REQUEST_TIMEOUT, "no answer to server/discover"))

    async def _read(self, to_session: Inbox) -> None:
        try:
            while True:
                arrived = await self.carrier.arrived()
                self.heard_at = trio.current_time()
                for item in arrived:
                    if not self._is_log(item):
                        await to_session.send(self._passed(item))
        finally:
            self.closed = True  # from now on the package tells callers of a closed connection

    def _is_log(self, item: Arrived) -> bool:
        """It was something logged, and has been told. What is not as it should be the package complains of."""
        if not isinstance(item, types.JSONRPCNotification) or item.method != _LOG:
            return False
        match item.params:
            case {"level": str(level), "data": data, **others} if level in _LEVELS:
                logger = others.get("logger")
                if logger is None or isinstance(logger, str):
                    self._logged(level, logger or "", data)
                    return True
        return False

    def _passed(self, item: Arrived) -> SessionMessage:
        if isinstance(item, Unreadable):
            return _failed(item.request, types.PARSE_ERROR, item.why)
        if isinstance(item, types.JSONRPCResponse | types.JSONRPCError):
            if self._probe is not None and item.id == self._probe[0]:
                self._probe[1].cancel()
            if item.id in self._listing:
                self._listing.discard(item.id)
                if isinstance(item, types.JSONRPCResponse):
                    page = repaired_page(item.result)
                    self.bad_tools += page.left_out
                    self.mended += page.mended
                    self.beside |= page.beside
                    item = item.model_copy(update={"result": page.result})
            if isinstance(item, types.JSONRPCError):
                error = item.error.model_copy(update={"message": self._clean(item.error.message)})
                item = item.model_copy(update={"error": error})
        return SessionMessage(item)


def _failed(request: types.RequestId, code: int, message: str) -> SessionMessage:
    return SessionMessage(
        types.JSONRPCError(jsonrpc="2.0", id=request, error=types.ErrorData(code=code, message=message))
    )

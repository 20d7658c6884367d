"""Messages of MCP between a process's lines and the streams of the MCP package.

Does what the package does not: lines that are not JSON-RPC are skipped and counted, and fail the request
that they seem to answer; a `server/discover` that is never answered is answered for the server after a
while, so that the older handshake is tried; tools with bad schemas are repaired before the package would
reject their whole page. What can fail: `ServerEnded`, from the process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import mcp_types as types
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from actors.stdio import Process, TooLong
from actors.tool_schema import repaired_page

OUTGOING = 256  # messages that wait for a server that does not read; later ones wait with their callers
_ID = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,18})\s*,')

log = logging.getLogger(__name__)

Inbox = MemoryObjectSendStream[SessionMessage | Exception]
Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class Wire:
    """Carries messages between the process's lines and the package's streams.

    Args:
        process: the running server.
        probe_s: seconds after which an unanswered `server/discover` is answered in the server's place.
    """

    def __init__(self, process: Process, probe_s: float) -> None:
        self.bad_lines = 0
        """Lines that were not messages and were skipped."""
        self.bad_tools = 0
        """Tools without a name, left out of listings so far."""
        self.mended: list[str] = []
        """Names of tools whose schema was repaired there."""
        self.heard_at = trio.current_time()
        """When the last line of the server came, whatever it was."""
        self.closed = False
        """Nothing comes any more: the process ended, or the connection is being left."""
        self.ignored_probe = False
        """The server did not answer `server/discover`: it is of the older era."""
        self._process = process
        self._probe_s = probe_s
        self._probe: tuple[types.RequestId, trio.CancelScope] | None = None
        self._listing: set[types.RequestId] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Streams]:
        """A transport in the package's sense."""
        to_session, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](OUTGOING)
        with to_session, incoming, outgoing, from_session:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, to_session)
                nursery.start_soon(self._write, from_session, to_session, nursery)
                try:
                    yield incoming, outgoing
                finally:
                    nursery.cancel_scope.cancel()

    async def _write(
        self, source: MemoryObjectReceiveStream[SessionMessage], to_session: Inbox, nursery: trio.Nursery
    ) -> None:
        with source:  # when this ends, nobody may wait for room in there
            async for item in source:
                message = item.message
                if isinstance(message, types.JSONRPCRequest):
                    if message.method == "tools/list":
                        self._listing.add(message.id)
                    elif message.method == "server/discover" and self._probe is None:
                        self._probe = (message.id, trio.CancelScope())
                        nursery.start_soon(self._bound_probe, *self._probe, to_session)
                await self._process.write(
                    message.model_dump_json(by_alias=True, exclude_unset=True).encode("utf-8") + b"\n"
                )

    async def _bound_probe(self, request: types.RequestId, scope: trio.CancelScope, to_session: Inbox) -> None:
        with scope:
            await trio.sleep(self._probe_s)
            self.ignored_probe = True
            await to_session.send(_failed(request, types.REQUEST_TIMEOUT, "no answer to server/discover"))

    async def _read(self, to_session: Inbox) -> None:
        try:
            while True:
                for line in await self._process.lines():
                    self.heard_at = trio.current_time()
                    item = self._decoded(line)
                    if item is not None:
                        await to_session.send(item)
        finally:
            self.closed = True  # from now on the package tells callers of a closed connection

    def _decoded(self, line: bytes | TooLong) -> SessionMessage | None:
        if isinstance(line, TooLong):
            return self._unreadable(line.head, f"its answer has {line.size} bytes, more than a message may have")
        if not line or line.isspace():
            return None
        try:
            message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            return self._unreadable(line, "its answer is not valid JSON-RPC")
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            if self._probe is not None and message.id == self._probe[0]:
                self._probe[1].cancel()
            if message.id in self._listing:
                self._listing.discard(message.id)
                if isinstance(message, types.JSONRPCResponse):
                    page = repaired_page(message.result)
                    self.bad_tools += page.left_out
                    self.mended += page.mended
                    message = message.model_copy(update={"result": page.result})
        return SessionMessage(message)

    def _unreadable(self, line: bytes, why: str) -> SessionMessage | None:
        """What cannot be read at least fails the request that it answers, if that can be seen."""
        self.bad_lines += 1
        log.warning("skipped a line of an MCP server (%d so far): %s: %r", self.bad_lines, why, line[:80])
        found = _ID.match(line)
        return None if found is None else _failed(int(found[1]), types.PARSE_ERROR, why)


def _failed(request: types.RequestId, code: int, message: str) -> SessionMessage:
    return SessionMessage(
        types.JSONRPCError(jsonrpc="2.0", id=request, error=types.ErrorData(code=code, message=message))
    )

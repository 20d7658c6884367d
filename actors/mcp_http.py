"""Messages of MCP over streamable HTTP: the carrier of servers with a `url`.

The protocol is the package's; requests and the meaning of their answers are those of `actors.mcp_exchange`.
What can fail: `ServerEnded`, `Refused`, `Unusable` and `Older`, raised out of `open` in an exception group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context

import anyio
import httpx2
import mcp_types as types
import trio
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from actors.mcp_exchange import Exchange
from actors.mcp_wire import LOST, Arrived
from actors.server_endpoint import Endpoint
from actors.server_requests import CALL

_CUT = "SSE stream ended"  # how the package begins to tell that an answer was lost


class Http:
    """Carries messages over streamable HTTP.

    Args:
        auth: see `Exchange`.
    """

    transport = "http"

    def __init__(self, endpoint: Endpoint, auth: httpx2.Auth | None) -> None:
        self.skipped = 0
        self._endpoint = endpoint
        self._auth = auth
        self._exchange = Exchange(endpoint, auth, older=endpoint.kind == "auto")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Ready for messages within; the server is told of the end."""
        exchange = self._exchange
        async with exchange, trio.open_nursery() as nursery:
            await nursery.start(exchange.watch)
            async with streamable_http_client(
                self._endpoint.url,
                http_client=exchange,
                terminate_on_close=False,  # it would not, when cancelled
                max_sse_event_size=self._endpoint.message_cap,
            ) as (self._incoming, self._outgoing):
                try:
                    yield
                finally:
                    await exchange.leave()
            nursery.cancel_scope.cancel()

    async def send(self, item: SessionMessage) -> None:
        """Hand over a message. Raises ServerEnded."""
        try:
            await self._outgoing.send(item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._exchange.over("ended") from error
        message = item.message
        if isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            self.forget((message.params or {}).get("requestId", ""))

    async def arrived(self) -> list[Arrived]:
        """The next message. Raises ServerEnded."""
        try:
            item = await self._incoming.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError) as error:
            raise self._exchange.over("ended") from error
        if isinstance(item, Exception):
            self.skipped += 1
            return []
        # What comes in answer to a call comes on its own stream, which the package reads where the call was sent.
        context: Context | None = getattr(self._incoming, "last_context", None)
        CALL.set(context.get(CALL) if context is not None else None)
        message = item.message
        if isinstance(message, types.JSONRPCError) and message.error.message.startswith(_CUT):
            self._exchange.suspect()
            message = message.model_copy(update={"error": message.error.model_copy(update={"code": LOST})})
        return [message]

    def forget(self, request: types.RequestId) -> None:
        """Nobody waits for that answer any more."""
        self._exchange.forget(request)

    async def doubt(self) -> None:
        """Return when a connection was cut."""
        await self._exchange.doubt()

    def settle(self) -> None:
        """The handshake is done."""
        self._exchange.settle()

"""Messages of MCP over HTTP+SSE, the way before streamable HTTP: the carrier of servers that know only that.

One stream brings all that the server says, and first of all the address that messages are posted to. Not the
package's own: that one sends one message at a time, says nothing when a message is refused, and takes no event
above a megabyte. What can fail: `ServerEnded`, `Refused`, `Unusable`, raised out of `open` in a group.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import mcp_types as types
import trio
from mcp.shared._httpx_utils import sse_within_origin
from mcp.shared.message import SessionMessage

from actors.mcp_exchange import Exchange
from actors.mcp_wire import Arrived, worth_a_line
from actors.server_endpoint import Endpoint
from actors.server_faults import Refused

INCOMING = 256  # messages that were read and not taken

log = logging.getLogger(__name__)


class Sse:
    """Carries messages over HTTP+SSE.

    Args:
        auth: see `Exchange`.
    """

    transport = "sse"

    def __init__(self, endpoint: Endpoint, auth: httpx2.Auth | None) -> None:
        self.skipped = 0
        self._exchange = Exchange(endpoint, auth, apart=True)
        self._endpoint = endpoint
        self._posting: trio.Nursery
        self._to = ""
        # A server that says more than is taken from here waits with its stream.
        self._into, self._incoming = trio.open_memory_channel[Arrived](INCOMING)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Ready for messages within."""
        async with self._exchange, trio.open_nursery() as nursery:
            await nursery.start(self._exchange.watch)
            await nursery.start(self._listen)
            async with trio.open_nursery() as self._posting:
                yield
                self._posting.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    async def send(self, item: SessionMessage) -> None:
        """Post a message, in a task of its own: some servers answer only when all is done.

        Not what answers the server, of which only so much is under way at a time.
        """
        if isinstance(item.message, types.JSONRPCResponse | types.JSONRPCError):
            await self._post(item.message)
        else:
            self._posting.start_soon(self._post, item.message)

    async def arrived(self) -> list[Arrived]:
        """What came since."""
        return [await self._incoming.receive()]

    def forget(self, request: types.RequestId) -> None:
        """Nobody waits for that answer any more."""
        self._exchange.forget(request)

    async def doubt(self) -> None:
        """Return when a connection was cut."""
        await self._exchange.doubt()

    def settle(self) -> None:
        """The handshake is done."""
        self._exchange.settle()

    async def _listen(self, task_status: trio.TaskStatus[None]) -> None:
        """Read the one stream to its end, which is that of the connection."""
        who = self._exchange.who
        try:
            async with sse_within_origin(
                self._exchange, self._endpoint.url, max_event_size=self._endpoint.message_cap
            ) as source:
                await self._exchange.check(source.response)
                async for event in source:
                    if event.event == "endpoint" and not self._to:
                        self._to = self._within(event.data)
                        task_status.started()
                    elif event.event == "message" and event.data:
                        await self._take(event.data)
        except httpx2.SSEError as error:
            raise Refused(f"{who}: {error}") from error
        except httpx2.HTTPError as error:
            raise self._exchange.over(f"cut the connection ({type(error).__name__})") from error
        raise self._exchange.over("closed the connection")

    def _within(self, address: str) -> str:
        """The whole address. Raises Refused if it is elsewhere: what our headers hold is for this place only."""
        here, there = httpx2.URL(self._endpoint.url), httpx2.URL(self._endpoint.url).join(address)
        if (here.scheme, here.host, here.port) != (there.scheme, there.host, there.port) or there.userinfo:
            raise Refused(f"{self._exchange.who} wants messages to be posted elsewhere, to {there.host!r}.")
        return str(there)

    async def _take(self, data: str) -> None:
        try:
            message = types.jsonrpc_message_adapter.validate_json(data, by_name=False)
        except ValueError:
            self.skipped += 1
            if worth_a_line(self.skipped):
                log.warning("skipped a message of an MCP server (%d so far): %r", self.skipped, data[:80])
            return
        await self._into.send(message)

    async def _post(self, message: types.JSONRPCMessage) -> None:
        """An answer in place of the server's, where the message was not taken."""
        content = message.model_dump_json(by_alias=True, exclude_unset=True)
        response = await self._exchange.post(self._to, content=content, headers={"content-type": "application/json"})
        if isinstance(message, types.JSONRPCRequest) and not response.is_success:
            await self._take(response.text)

"""Which connection a request gets: as httpcore's pool gives them out, without looking at all of them for each.

httpcore looks at every connection for every request that begins or ends, and, where some are idle, at every one for
each of those: with 1,500 running answers a provider's process did nothing else for ten seconds. Here requests and
connections are only looked at when something happens to them; an idle connection when it is to be used again, or once
its time is over. For HTTP/1.1, where a connection has one request. There is no public seam for that: tests/test_pool.py
fails if httpcore's pool does not call what is replaced here any more. What fails is what fails in httpcore's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from typing import cast

import httpcore
from httpcore._async.connection import AsyncHTTPConnection
from httpcore._async.connection_pool import AsyncPoolRequest
from httpcore._async.http11 import HTTP11ConnectionByteStream
from httpcore._async.interfaces import AsyncConnectionInterface
from httpcore._synchronization import AsyncLock

from actors.http1 import Asked

SWEEP_S = 1.0  # between two looks at what is idle


OPENED = AsyncLock()
"""In the place of the lock of each connection that is open: it is taken to open one, and never again."""


class _Requests(list[AsyncPoolRequest]):
    """The pool's requests; notes which are new and which have left."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[AsyncPoolRequest] = deque()
        """Without a connection, in their order; some may have left."""
        self.left: list[AsyncPoolRequest] = []

    def append(self, request: AsyncPoolRequest) -> None:
        """It begins."""
        super().append(request)
        self.waiting.append(request)

    def remove(self, request: AsyncPoolRequest) -> None:
        """It has ended."""
        super().remove(request)
        self.left.append(request)


class _Connection(AsyncHTTPConnection):
    """httpcore's; once it is open, a request waits for nothing."""

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        if self._connection is None:
            response = await super().handle_async_request(request)
            self._request_lock = OPENED
            return response
        return await self._connection.handle_async_request(request)


class _Rest:
    """What is left of an answer, on a connection that goes back to its pool at the end."""

    __slots__ = ("_connection", "_pool", "_stream")

    def __init__(self, stream: HTTP11ConnectionByteStream, connection: AsyncConnectionInterface, pool: Pool) -> None:
        self._stream = stream
        self._connection: AsyncConnectionInterface | None = connection
        self._pool = pool

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        """Be done with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._stream.aclose()
            await self._pool.give_back(connection)


class Pool(httpcore.AsyncConnectionPool):
    """httpcore's, for HTTP/1.1 connections."""

    _requests: _Requests

    def __init__(self, **options: object) -> None:
        super().__init__(**options, http1=True, http2=False)  # type: ignore[arg-type]  # as httpcore's, whatever it takes
        self._requests = _Requests()
        self._idle: dict[AsyncConnectionInterface, None] = {}
        """Those that wait for a request, the one that has waited longest first."""
        self._swept_at = 0.0

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """As httpcore's; a request of a known form does not queue where a connection is idle, or may be opened."""
        connection, closing = None, list[AsyncConnectionInterface]()
        if isinstance(request, Asked) and (origin := request.form.origin) is not None and not self._requests.waiting:
            connection = self._take(origin, closing)
        try:
            await self._close_connections(closing)
            if connection is None:
                return await super().handle_async_request(request)
            response = await connection.handle_async_request(request)
        except BaseException:
            if connection is not None:
                await self.give_back(connection)
            raise
        response.stream = _Rest(cast(HTTP11ConnectionByteStream, response.stream), connection, self)
        return response

    async def give_back(self, connection: AsyncConnectionInterface) -> None:
        """A request that did not queue has ended."""
        closing: list[AsyncConnectionInterface] = []
        self._free(connection, closing)
        if self._requests.waiting:
            closing += self._assign_requests_to_connections()
        else:
            self._tidy(closing)
        await self._close_connections(closing)

    def create_connection(self, origin: httpcore.Origin) -> AsyncConnectionInterface:
        """As httpcore's."""
        return _Connection(origin, self._ssl_context, self._keepalive_expiry, network_backend=self._network_backend)

    async def _close_connections(self, closing: list[AsyncConnectionInterface]) -> None:
        if closing:  # mostly there is none, and httpcore's makes a scope all the same
            await super()._close_connections(closing)

    def _assign_requests_to_connections(self) -> list[AsyncConnectionInterface]:
        requests, closing = self._requests, list[AsyncConnectionInterface]()
        if not requests.waiting and not requests.left:  # a connection was not free after all: who had it asks again
            requests.waiting.extend(request for request in requests if request.is_queued())
        for request in requests.left:
            if request.connection is not None:
                self._free(request.connection, closing)
        requests.left.clear()
        self._tidy(closing)
        while requests.waiting:
            request = requests.waiting[0]
            if request in requests and request.is_queued() and not self._serve(request, closing):
                break
            requests.waiting.popleft()
        return closing

    def _tidy(self, closing: list[AsyncConnectionInterface]) -> None:
        """Drop what has been idle for too long, now and then, and what is more than may be."""
        if time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            for connection in [one for one in self._idle if one.is_closed() or one.has_expired()]:
                self._drop(connection, closing)
        while len(self._idle) > self._max_keepalive_connections:
            self._drop(next(iter(self._idle)), closing)

    def _free(self, connection: AsyncConnectionInterface, closing: list[AsyncConnectionInterface]) -> None:
        """What becomes of the connection of a request that has ended."""
        if connection not in self._connections:
            return
        if connection.is_closed():
            self._connections.remove(connection)
        elif connection.is_idle():
            self._idle[connection] = None
        else:  # given to a request that was cancelled before it could use it
            self._connections.remove(connection)
            closing.append(connection)

    def _take(
        self, origin: httpcore.Origin, closing: list[AsyncConnectionInterface]
    ) -> AsyncConnectionInterface | None:
        """One that is idle, and can be used, or a new one; None: as many are in use as may be."""
        while self._idle:
            connection, _ = self._idle.popitem()  # the one that was used last: others may expire
            if connection.is_available() and connection.can_handle_request(origin) and not connection.has_expired():
                return connection
            self._connections.remove(connection)
            closing.append(connection)
        if len(self._connections) >= self._max_connections:
            return None
        connection = self.create_connection(origin)
        self._connections.append(connection)
        return connection

    def _serve(self, request: AsyncPoolRequest, closing: list[AsyncConnectionInterface]) -> bool:
        """Give it a connection, if there may be one."""
        connection = self._take(request.request.url.origin, closing)
        if connection is None:
            return False
        request.assign_to_connection(connection)
        return True

    def _drop(self, connection: AsyncConnectionInterface, closing: list[AsyncConnectionInterface]) -> None:
        del self._idle[connection]
        self._connections.remove(connection)
        closing.append(connection)

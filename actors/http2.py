"""HTTP/2 connections on which one request can be given up without harm to the others.

httpcore 1.0 leaves a request that is given up running at the server (its pull request 944 was declined), never
gives back the window that unread data took, loses frames of all requests when a write is cancelled, and leaves
a large request waiting for room when another one has read that there is some. Its connection is the right one
but for these; it is replaced by one that resets the stream, acknowledges what was not read, finishes every
write that it began, and tells who waits for room. There is no public seam for that: the class is put where
httpcore looks it up, and tests/test_http2.py fails if it does not look there any more.
"""

from __future__ import annotations

from contextlib import suppress

import httpcore
import trio
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.exceptions import ProtocolError
from httpcore._async import http2

RESET_S = 1.0  # for the few bytes that tell the server; a peer that takes none is gone


class Connection(httpcore.AsyncHTTP2Connection):
    """As httpcore's, but for what the module's head says."""

    def __init__(
        self, origin: httpcore.Origin, stream: httpcore.AsyncNetworkStream, keepalive_expiry: float | None = None
    ) -> None:
        super().__init__(origin, stream, keepalive_expiry)
        self._read = trio.Event()

    async def _receive_events(self, request: httpcore.Request, stream_id: int | None = None) -> None:
        try:
            await super()._receive_events(request, stream_id)
        finally:
            self._read.set()
            self._read = trio.Event()

    async def _wait_for_outgoing_flow(self, request: httpcore.Request, stream_id: int) -> int:
        while not (room := self._room(stream_id)):
            failed: list[Exception] = []
            read = self._read
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_on, request, failed)
                await read.wait()  # by whomever
                nursery.cancel_scope.cancel()
            if failed:
                raise failed[0]
        return room

    def _room(self, stream_id: int) -> int:
        return min(self._h2_state.local_flow_control_window(stream_id), self._h2_state.max_outbound_frame_size)

    async def _read_on(self, request: httpcore.Request, failed: list[Exception]) -> None:
        try:
            await self._receive_events(request)
        except Exception as error:  # noqa: BLE001  # carried over the nursery as it is, to who knows its kinds
            failed.append(error)

    async def _write_outgoing_data(self, request: httpcore.Request) -> None:
        # Bounded by the request's own time for writes.
        with trio.CancelScope(shield=True):
            await super()._write_outgoing_data(request)

    async def _response_closed(self, stream_id: int) -> None:
        try:
            await self._give_up(stream_id)
        finally:
            with trio.CancelScope(shield=True):
                await super()._response_closed(stream_id)

    async def _give_up(self, stream_id: int) -> None:
        for event in self._events.get(stream_id, ()):
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                with suppress(ProtocolError):  # the connection itself is over
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length, stream_id)
        with suppress(ProtocolError):  # it has ended, or never began: nothing to give up
            self._h2_state.reset_stream(stream_id, error_code=ErrorCodes.CANCEL)
        farewell = httpcore.Request("POST", "https://x", extensions={"timeout": {"write": RESET_S}})
        with suppress(httpcore.NetworkError, httpcore.TimeoutException):  # the whole connection is gone
            await self._write_outgoing_data(farewell)


http2.AsyncHTTP2Connection = Connection  # type: ignore[misc]  # see the head

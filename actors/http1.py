"""HTTP/1.1 connections whose bodies are read past httpcore, many events per wake instead of one chain per chunk.

httpcore opens, pools and closes connections, and reads what is not plain (by h11), as ever. A request is sent here,
and the head of a plain answer is read here (actors/heads.py). The body of a plain success on a `RawStream` is offered
as `extensions["body"]` of the response: a `Body`, dechunked by our own code; whoever takes it never iterates the
response. All else is httpcore's: errors, encoded bodies, other backends. There is no public seam for that: the class
is put where httpcore looks it up, as in http2.py; tests/test_http1.py fails if it does not look there any more.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Mapping
from contextlib import suppress
from typing import NamedTuple, cast

import h11
import httpcore
import trio
from httpcore._async import connection, http11
from httpcore._models import ByteStream

from actors import heads
from actors.chunked import Chunked, Framing, Sized, Unsized
from actors.raw_stream import RawStream


class Body:
    """The body of one response, from behind its head.

    Args:
        early: what came of it with the head.
    """

    __slots__ = ("_early", "_framing", "_receive", "wire")

    def __init__(self, wire: RawStream, framing: Framing, early: bytes) -> None:
        self._receive = wire.take
        self.wire = wire
        self._framing = framing
        self._early = early

    @property
    def done(self) -> bool:
        """All of it was taken."""
        return self._framing.done

    @property
    def waiting(self) -> bool:
        """There is something to take that the socket does not tell of."""
        return bool(self._early) or self._framing.done

    @property
    def clean(self) -> bool:
        """All of it was taken, and the connection can be used again."""
        return self._framing.clean and not self._early

    def take(self) -> bytes | None:
        """What has come of it; b"" at its end, None if nothing has. Raises Torn, OSError."""
        framing = self._framing
        while not framing.done:
            data: bytes | None
            if self._early:
                data, self._early = self._early, b""
            else:
                data = self._receive()
                if data is None:
                    return None
                if not data:
                    framing.close()
                    break
            if part := framing.feed(data):
                return part
        return b""

    async def read(self) -> bytes:
        """As `take`, but waits. Raises Torn, OSError, trio.ClosedResourceError."""
        if not self._early:  # which has been waited for already
            await trio.lowlevel.checkpoint()
        while (data := self.take()) is None:
            await self.wire.wait()
        return data

    def close(self) -> None:
        """Nobody takes the rest; unless there is none, the connection is closed, now."""
        if not self.clean:
            self.wire.close()


SPENT = h11.Connection(h11.CLIENT)
"""In the place of all whose own is over; one that is needed again is made anew."""

SENT = ByteStream(b"")
"""In the place of what a request has sent."""

OVER = httpcore.Request("POST", "http://localhost")
"""In the place of a request whose answer flows: httpcore asks it for nothing but whether it is traced."""


class Form:
    """What many requests have in common; made once.

    Args:
        fields: all but the length of the body.
    """

    __slots__ = ("closes", "fields", "method", "opening", "origin", "sized", "url")

    def __init__(self, method: bytes, url: httpcore.URL, fields: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.url = url
        self.origin = url.origin if url.scheme in {b"http", b"https"} else None  # httpcore knows no other's port
        self.fields = fields
        said = heads.said_in(fields)
        self.sized = b"content-length" in said
        """They name a length all the same: it was configured, and is wrong."""
        self.opening = None if self.sized else heads.opening(method, url.target, fields)
        """None: there is something in it that h11 must see."""
        self.closes = _closes(said)


class Asked(httpcore.Request):
    """A request of a form that is known. httpcore's own checks each part of each field, for each request."""

    def __init__(self, form: Form, body: bytes, timeouts: Mapping[str, float]) -> None:
        self.form = form
        self.body = body
        self.method, self.url = form.method, form.url
        length = [] if form.sized else [(b"Content-Length", b"%d" % len(body))]
        self.headers = [*form.fields, *length]
        self.stream = ByteStream(body)
        self.extensions = {"timeout": timeouts}


class Exchanged(NamedTuple):
    """The head of an answer."""

    version: bytes
    status: int
    fields: list[tuple[bytes, bytes]]
    """Names as they came."""
    said: dict[bytes, bytes]
    """The same by their names in small letters."""
    early: bytes
    """What came with it of the body."""


class Came(httpcore.Response):
    """An answer whose fields were checked when they were read."""

    def __init__(self, head: Exchanged, stream: AsyncIterable[bytes]) -> None:
        self.status, self.headers, self.said = head.status, head.fields, head.said
        self.stream = stream
        self.extensions = {"http_version": head.version}
        self._stream_consumed = False


class Connection(httpcore.AsyncHTTP11Connection):
    """As httpcore's, but for what the module's head says."""

    _body: Body | None = None
    _lasting = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """As httpcore's, with the body in the extensions where it may be taken."""
        if self._state not in (http11.HTTPConnectionState.NEW, http11.HTTPConnectionState.IDLE):
            raise httpcore.ConnectionNotAvailable
        # What httpcore has between here and the head (locks, traces, a write per event) takes twice as long as both.
        self._request_count += 1
        self._state, self._expire_at = http11.HTTPConnectionState.ACTIVE, None
        wire = self._network_stream.get_extra_info("wire")
        try:
            came = await self._exchanged(request, wire if isinstance(wire, RawStream) else None)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._response_closed()
            raise
        said = came.said
        response = Came(came, http11.HTTP11ConnectionByteStream(self, request))
        if not isinstance(wire, RawStream) or came.status != 200 or request.method not in {b"GET", b"POST"}:
            return response
        if said.get(b"content-encoding", b"").strip().lower() not in {b"", b"identity"}:
            return response
        framing: Framing
        if b"transfer-encoding" in said:  # h11 lets none pass but chunked
            framing = Chunked()
        elif b"content-length" in said:
            framing = Sized(int(said[b"content-length"].partition(b",")[0]))
        else:
            framing = Unsized()
        asked = request.form.closes if isinstance(request, Asked) else _closes(heads.said_in(request.headers))
        self._lasting = came.version == b"HTTP/1.1" and not (asked or _closes(said))
        request.headers, request.stream = [], SENT  # one that has queued is kept until its answer has ended
        if isinstance(request, Asked):
            request.body = b""
            response.stream = http11.HTTP11ConnectionByteStream(self, OVER)
        self._body = response.extensions["body"] = Body(wire, framing, came.early)
        self._h11_state = SPENT  # what it knows of this exchange is not needed while the body flows
        return response

    async def _exchanged(self, request: httpcore.Request, wire: RawStream | None) -> Exchanged:
        """Head and body leave together: a write of each costs a turn of the scheduler, and the provider a wake."""
        patience = request.extensions.get("timeout", {})
        head: bytes | None = None
        if isinstance(request, Asked):
            body = request.body
            if wire is not None and request.form.opening is not None:
                head = b"%bContent-Length: %d\r\n\r\n" % (request.form.opening, len(body))
        else:
            body = b"".join([part async for part in cast(AsyncIterable[bytes], request.stream)])
            if wire is not None:
                head = heads.written(request.method, request.url.target, request.headers, body)
        stream = self._network_stream if wire is None else wire
        with suppress(httpcore.WriteError):  # servers may answer, and close, before they have read all
            await stream.write(self._encoded(request, body) if head is None else head + body, patience.get("write"))
        if head is not None:
            came = await stream.read(self.READ_NUM_BYTES, patience.get("read"))
            if not came:
                raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
            if (plain := heads.read(came)) is not None:
                return Exchanged(b"HTTP/1.1", 200, plain.fields, plain.said, came[plain.end :])
            self._encoded(request, body)  # so that it knows of the request to which that is an answer
            self._h11_state.receive_data(came)
        version, status, _, fields, early = await self._receive_response_headers(request)
        return Exchanged(version, status, fields, heads.said_in(fields), early)

    def _encoded(self, request: httpcore.Request, body: bytes) -> bytes:
        if self._h11_state is SPENT:
            self._h11_state = h11.Connection(h11.CLIENT, self.MAX_INCOMPLETE_EVENT_SIZE)
        events = h11.Data(body), h11.EndOfMessage()
        try:
            asked = h11.Request(method=request.method, target=request.url.target, headers=request.headers)
            parts = [self._h11_state.send(event) for event in (asked, *events)]
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(error) from error
        return b"".join(part for part in parts if part)

    async def _response_closed(self) -> None:
        body, self._body = self._body, None
        if body is None or not body.clean or not self._lasting:
            # A body that was taken past h11 is one that h11 still waits for: that closes the connection.
            await super()._response_closed()
            return
        self._state = http11.HTTPConnectionState.IDLE
        if self._keepalive_expiry is not None:
            self._expire_at = time.monotonic() + self._keepalive_expiry


def _closes(said: Mapping[bytes, bytes]) -> bool:
    return b"close" in said.get(b"connection", b"").lower()


connection.AsyncHTTP11Connection = Connection  # type: ignore[attr-defined]  # see the head

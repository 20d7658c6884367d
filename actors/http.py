"""Plain HTTP/1.1 on the gateway's port: request heads in, whole responses out, and who may ask.

A connection's head is read here first; then the connection is either answered with one response and
closed, or becomes a WebSocket (`actors.handshake`); one that another front has passed on is read with what
was read of it there (`Replay`). Bodies are read by who expects one.

May assume: a trio stream that somebody else closes. What strangers send may be anything, slow, endless or
cut: that ends in `BadRequest` with the status to answer, or in None where nobody is there to be answered.
The parser is h11, and this is the only module of the gateway that knows it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import msgspec
import trio

MAX_HEAD_BYTES = 32 * 1024  # request line and headers; browsers with many cookies stay well below
MAX_HEADERS = 100  # as Apache's default; a flood of tiny headers costs more than its bytes
MAX_FIELDS = 100  # of a query string
HTTP2_PREFACE = b"PRI * HTTP/2.0"  # RFC 9113, section 3.4
TLS_HANDSHAKE = 0x16  # first byte of every TLS connection; RFC 8446, section 5.1
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class BadRequest(Exception):
    """What came is not a request that is answered here.

    Args:
        status: HTTP status of the answer.
        text: what is wrong, for whoever sent it.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text

    def __str__(self) -> str:
        return f"{self.status}: {self.text}"


class Head(msgspec.Struct, frozen=True):
    """The head of a request, and every byte that was read to get it."""

    method: str
    target: str
    """As sent."""
    path: str
    """Of the target, percent-decoded; bytes that are not UTF-8 become U+FFFD."""
    query: dict[str, str]
    """Of the target, decoded likewise; the last one where a name is repeated."""
    headers: list[tuple[str, str]]
    """Names in lower case, in order. Values are decoded as latin-1, so any byte is allowed in them."""
    raw: bytes
    """Every byte read so far: the head, and what may have come with it."""
    version: str = "1.1"
    """Of HTTP."""

    def header(self, name: str) -> str | None:
        """The value of a header, repeated ones joined by `, ` (RFC 9110, section 5.3); None if absent."""
        wanted = name.lower()
        values = [value for key, value in self.headers if key == wanted]
        return ", ".join(values) if values else None

    def brief(self, names: Container[str]) -> bytes:
        """A head that says the same, but for all headers of other names; they are in lower case."""
        lines = [f"{self.method} {self.target} HTTP/{self.version}"]
        lines += [f"{name}: {value}" for name, value in self.headers if name in names]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1")

    def _has_token(self, name: str, token: str) -> bool:
        return token in (part.strip().lower() for part in (self.header(name) or "").split(","))

    @property
    def wants_websocket(self) -> bool:
        """It asks to become a WebSocket; whether it does so correctly is for the WebSocket code to say."""
        return (
            self.method == "GET"
            and self.version != "1.0"  # whose Upgrade is to be ignored: RFC 9110, section 7.8
            and self._has_token("connection", "upgrade")
            and self._has_token("upgrade", "websocket")
        )


async def read_head(
    stream: trio.abc.ReceiveStream, *, within: float, max_bytes: int = MAX_HEAD_BYTES, max_headers: int = MAX_HEADERS
) -> Head | None:
    """Read a request's head.

    Args:
        within: seconds for the whole head.
        max_bytes: of the head; never more than this is read.
        max_headers: how many headers a head may have.
    Returns: the head; None where nobody waits for an answer: the peer closed or was silent for `within`
        before its first byte (browsers open such connections in advance), or reset the connection.
    Raises:
        BadRequest: 400 (not HTTP/1, or cut), 408 (too slow), 414 (request line too long), 431 (headers too
            long or too many).
        trio.ClosedResourceError: the stream was closed on our side.
    """
    raw = bytearray()
    with trio.move_on_after(within):
        try:
            return await _read(stream, raw, max_bytes, max_headers)
        except trio.BrokenResourceError:
            return None
    if not raw:
        return None
    raise BadRequest(408, f"the request's head did not arrive within {within:g} s")


async def _read(stream: trio.abc.ReceiveStream, raw: bytearray, max_bytes: int, max_headers: int) -> Head | None:
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=max_bytes)
    while True:
        if len(raw) >= max_bytes:
            raise _too_long(raw, max_bytes)
        data = await stream.receive_some(max_bytes - len(raw))
        raw += data
        if not raw:
            return None
        if raw[0] == TLS_HANDSHAKE:
            raise BadRequest(400, "this port speaks plain HTTP: use http:// or ws://, not https:// or wss://")
        if raw.startswith(HTTP2_PREFACE):
            raise BadRequest(400, "this port speaks HTTP/1.1 only, not HTTP/2")
        if not data:
            raise BadRequest(400, "the connection ended within the request's head")
        try:
            parser.receive_data(bytes(data))
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:  # h11 counts the same bytes as we do, and may say it first
                raise _too_long(raw, max_bytes) from None
            raise BadRequest(400, f"this is not an HTTP/1.1 request: {error}") from None
        if isinstance(event, h11.Request):
            return _head(event, bytes(raw), max_headers)


async def read_body(stream: trio.abc.ReceiveStream, head: Head, *, within: float, limit: int) -> bytes:
    """Read the body of the request whose head was read, by length or in chunks; empty where there is none.

    Args:
        within: seconds for what has not come with the head.
        limit: bytes of the body.
    Raises:
        BadRequest: 400 (not a body, or cut), 408 (too slow), 413 (too long).
        trio.BrokenResourceError: the peer reset the connection.
    """
    with trio.move_on_after(within):
        return await _read_body(stream, head, limit)
    raise BadRequest(408, f"the request's body did not arrive within {within:g} s")


async def _read_body(stream: trio.abc.ReceiveStream, head: Head, limit: int) -> bytes:
    # The head is parsed again by the same parser: it knows where it ends and how the body is framed.
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=max(len(head.raw), MAX_HEAD_BYTES))
    parser.receive_data(head.raw)
    body = bytearray()
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit:
                    raise BadRequest(413, f"the request's body is longer than {limit} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif event is h11.NEED_DATA:
                data = await stream.receive_some(limit + 1)
                parser.receive_data(bytes(data))
            elif isinstance(event, h11.ConnectionClosed):
                raise BadRequest(400, "the connection ended within the request's body")
    except h11.RemoteProtocolError as error:
        raise BadRequest(400, f"the request's body cannot be read: {error}") from None


def _too_long(raw: bytearray, max_bytes: int) -> BadRequest:
    if b"\n" in raw:
        return BadRequest(431, f"the request's headers are longer than {max_bytes} bytes")
    return BadRequest(414, f"the request line is longer than {max_bytes} bytes")


def _head(request: h11.Request, raw: bytes, max_headers: int) -> Head:
    headers = list(request.headers)
    if len(headers) > max_headers:
        raise BadRequest(431, f"the request has {len(headers)} headers, more than {max_headers}")
    target = request.target.decode("ascii")  # h11 lets only visible ASCII through
    relative = target
    if not target.startswith("/") and "://" in target:  # absolute form: RFC 9112, section 3.2.2
        _, _, rest = target.partition("://")
        _, slash, path = rest.partition("/")
        relative = slash + path or "/"
    path, _, query = relative.partition("?")
    try:
        fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise BadRequest(400, f"the query has more than {MAX_FIELDS} fields") from None
    return Head(
        method=request.method.decode("ascii"),
        target=target,
        path=unquote(path),
        query=fields,
        headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
        raw=raw,
        version=request.http_version.decode("ascii"),
    )


def response(
    status: int,
    body: bytes,
    content_type: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    head_only: bool = False,
) -> bytes:
    """A whole HTTP/1.1 response, after which the connection is closed.

    Args:
        headers: added; one of these replaces the default of the same name.
        head_only: leave the body out (the answer to HEAD), but still say how long it is.
    Raises: ValueError for a header that cannot be sent as it is (line breaks, not latin-1).
    """
    fields = {
        "date": formatdate(usegmt=True),
        "content-type": content_type,
        "content-length": str(len(body)),
        "connection": "close",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }
    lines = [f"HTTP/1.1 {status} {_reason(status)}"]
    added = [(name.lower(), value) for name, value in headers]
    for name, value in [*(item for item in fields.items() if item[0] not in dict(added)), *added]:
        if any(mark in name + value for mark in "\r\n\0"):
            raise ValueError(f"the header {name!r} would break the response")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else body)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # a status without a registered phrase; the phrase may be empty (RFC 9112, section 4)
        return ""


def origin_allowed(head: Head, *, allow_origins: list[str]) -> bool:
    """Whether the web page that makes this request (its `Origin`) may talk to us.

    A request without `Origin` does not come from a page of another site and is allowed. An empty list
    allows pages from this machine only (`http(s)://` localhost, 127.0.0.0/8, [::1]; any port); `*` allows
    any; else the origin must be in the list, host and scheme compared without case.
    """
    origin = head.header("origin")
    if origin is None or "*" in allow_origins:
        return True
    asked = _origin(origin)
    if asked is None:  # `null`, or not an origin at all
        return False
    if not allow_origins:
        scheme, host, _ = asked
        return scheme in ("http", "https") and is_loopback(host)
    return asked in [_origin(allowed) for allowed in allow_origins]


def host_allowed(head: Head, *, bound_to_loopback: bool) -> bool:
    """Whether `Host` names an address that we listen on: the guard against DNS rebinding.

    Bound to loopback only, a name that is not this machine's own can only come from a page whose name was
    pointed at 127.0.0.1. A request without `Host` (HTTP/1.0) comes from no browser and is allowed.
    """
    host = head.header("host")
    if host is None or not bound_to_loopback:
        return True
    named = _origin(f"http://{host}")
    return named is not None and is_loopback(named[1])


def is_loopback(host: str) -> bool:
    """Whether a host name or address (no port, no brackets) means this machine: by its spelling, not by DNS."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, not an address
        return False


def _origin(text: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port, comparable; None for what is not `scheme://host[:port]`."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:  # bad brackets or port
        return None
    if not parts.scheme or not parts.hostname or "@" in parts.netloc or parts.path.strip("/") or parts.query:
        return None
    return parts.scheme, parts.hostname, DEFAULT_PORTS.get(parts.scheme) if port is None else port


class Replay(trio.abc.Stream):
    """A stream that gives some bytes again before it goes on; everything else is passed through.

    Args:
        raw: `Head.raw`.
        stream: where it was read from; closed with this one.
    """

    def __init__(self, raw: bytes, stream: trio.abc.Stream) -> None:
        self._raw = raw
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As `trio.abc.ReceiveStream.receive_some`."""
        if not self._raw:
            return await self._stream.receive_some(max_bytes)
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be positive")
        await trio.lowlevel.checkpoint()
        size = len(self._raw) if max_bytes is None else max_bytes
        given, self._raw = self._raw[:size], self._raw[size:]
        return given

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream below; what was not given again is gone."""
        self._raw = b""
        await self._stream.aclose()

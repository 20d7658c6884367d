"""Plain heads: written and read as h11 does it, and what is not plain is left to it."""

from __future__ import annotations

import h11
import pytest

from actors import heads

HOST = (b"Host", b"a:80")
TYPE = (b"Content-Type", b"application/json")
LENGTH = (b"Content-Length", b"2")

PLAIN_REQUESTS: list[tuple[bytes, list[tuple[bytes, bytes]], bytes]] = [
    (b"POST", [HOST, (b"Connection", b"keep-alive"), TYPE, LENGTH], b"{}"),
    (b"POST", [HOST, (b"connection", b"close"), (b"x-EMPTY", b""), LENGTH], b"{}"),
    (b"POST", [HOST, (b"Authorization", b"Bearer a b~c:d"), (b"Cookie", b"a=1; b=2"), LENGTH], b"{}"),
    (b"POST", [HOST, (b"Content-Length", b"0")], b""),
    (b"POST", [HOST], b""),
    (b"GET", [HOST, (b"Accept", b"application/json")], b""),
]

UNUSUAL_REQUESTS: list[tuple[bytes, list[tuple[bytes, bytes]], bytes]] = [
    (b"PUT", [HOST, LENGTH], b"{}"),
    (b"POST", [], b""),
    (b"POST", [TYPE, HOST, LENGTH], b"{}"),
    (b"POST", [HOST, HOST, LENGTH], b"{}"),
    (b"POST", [HOST], b"{}"),
    (b"POST", [HOST, (b"Content-Length", b"3")], b"{}"),
    (b"POST", [HOST, LENGTH, LENGTH], b"{}"),
    (b"POST", [HOST, (b"Content-Length", b"02")], b"{}"),
    (b"POST", [HOST, (b"Transfer-Encoding", b"chunked")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"Expect", b"100-continue")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"Upgrade", b"h2c")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"X", b"a\r\nY: b")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"X: y", b"a")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"X\r\nY", b"a")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"", b"a")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"X", b" a")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"X", b"a\n")], b"{}"),
    (b"POST", [HOST, LENGTH, (b"X", "é".encode())], b"{}"),
]

FIRST = b"HTTP/1.1 200 OK\r\n"
STREAM = b"Content-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

PLAIN_ANSWERS = [
    FIRST + STREAM + CHUNKED + b"\r\n",
    FIRST + STREAM + CHUNKED + b"\r\n5\r\nhello\r\n",
    FIRST + STREAM + CHUNKED + b"\r\n\r\n\r\n",
    FIRST + b"Content-Length: 5\r\n\r\nhello",
    FIRST + b"content-length:0\r\n\r\n",
    FIRST + STREAM + b"Connection: close\r\n\r\ndata: 1\n\n",
    FIRST + b"X-Empty:\r\nX-Empty-too: \r\nx-colons: a: b:c\r\n\r\n",
    FIRST + b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n",
    FIRST + b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200\r\n" + STREAM + b"\r\n",
    b"HTTP/1.1 200 \r\n" + STREAM + b"\r\n",
    b"HTTP/1.1 200 All is well\r\n" + STREAM + b"\r\n",
]

UNUSUAL_ANSWERS = [
    b"",
    b"\r\n" + FIRST + b"\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + FIRST + b"\r\n",
    b"HTTP/1.1 201 Created\r\n\r\n",
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\n" + STREAM + b"\r\n",
    FIRST + b"A: b\n\r\n",
    FIRST + b"A: b\r\n\n",
    FIRST + b"A: b\r\n c\r\n\r\n",
    FIRST + b"A : b\r\n\r\n",
    FIRST + b": b\r\n\r\n",
    FIRST + b"A\r\n\r\n",
    FIRST + b"A:  b\r\n\r\n",
    FIRST + b"A:\tb\r\n\r\n",
    FIRST + b"A: b \r\n\r\n",
    FIRST + b"A: b\x00c\r\n\r\n",
    FIRST + b"A: b\rc\r\n\r\n",
    FIRST + b"A: \xe9\r\n\r\n",
    FIRST + b"Content-Encoding: gzip\r\n\r\n",
    FIRST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    FIRST + b"Content-Length: 5, 5\r\n\r\nhello",
    FIRST + b"Content-Length: +5\r\n\r\nhello",
    FIRST + b"Content-Length:\r\n\r\n",
    FIRST + b"Content-Length: " + b"1" * 21 + b"\r\n\r\n",
    FIRST + CHUNKED + b"Content-Length: 5\r\n\r\n",
    FIRST + CHUNKED + CHUNKED + b"\r\n",
    FIRST + b"Transfer-Encoding: Chunked\r\n\r\n",
    FIRST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
]


@pytest.mark.parametrize(("method", "fields", "body"), PLAIN_REQUESTS)
def test_a_plain_request_is_written_as_h11_writes_it(
    method: bytes, fields: list[tuple[bytes, bytes]], body: bytes
) -> None:
    asked = h11.Request(method=method, target=b"/v1/x?y=%20", headers=fields)
    connection = h11.Connection(h11.CLIENT)
    parts = [connection.send(event) for event in (asked, h11.Data(body), h11.EndOfMessage())]
    head = heads.written(method, b"/v1/x?y=%20", fields, body)
    assert head is not None
    assert head + body == b"".join(part for part in parts if part)


@pytest.mark.parametrize(("method", "fields", "body"), UNUSUAL_REQUESTS)
def test_an_unusual_request_is_left_to_h11(method: bytes, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    assert heads.written(method, b"/", fields, body) is None


@pytest.mark.parametrize("target", [b"", b"/a b", b"/\r\n", b"/\xe9"])
def test_so_is_an_unusual_target(target: bytes) -> None:
    assert heads.written(b"GET", target, [HOST], b"") is None


def asked() -> h11.Connection:
    """Waits for an answer."""
    connection = h11.Connection(h11.CLIENT)
    for event in (
        h11.Request(method=b"POST", target=b"/", headers=[HOST, LENGTH]),
        h11.Data(b"{}"),
        h11.EndOfMessage(),
    ):
        connection.send(event)
    return connection


@pytest.mark.parametrize("data", PLAIN_ANSWERS)
def test_a_plain_answer_is_read_as_h11_reads_it(data: bytes) -> None:
    connection = asked()
    connection.receive_data(data)
    response = connection.next_event()
    assert isinstance(response, h11.Response)
    plain = heads.read(data)
    assert plain is not None
    assert (plain.reason, plain.fields) == (response.reason, response.headers.raw_items())
    assert data[plain.end :] == connection.trailing_data[0]
    assert not any(heads.read(data[:end]) for end in range(plain.end))


@pytest.mark.parametrize("data", UNUSUAL_ANSWERS)
def test_an_unusual_answer_is_left_to_h11(data: bytes) -> None:
    assert heads.read(data) is None

"""The gateway's HTTP: heads at every split, floods, wrong protocols, origins and hosts, replayed bytes."""

from __future__ import annotations

import socket
import struct

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from actors.http import BadRequest, Head, Replay, host_allowed, origin_allowed, read_head, response

UPGRADE = (
    b"GET /ws/chat?conversation=abc%20d&x=&conversation=last HTTP/1.1\r\n"
    b"Host: localhost:8000\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: \xff\xfe\r\n\r\n"
)


async def read(
    *chunks: bytes, end: bool = True, within: float = 5, max_bytes: int = 32768, max_headers: int = 100
) -> Head | None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def send() -> None:
        for chunk in chunks:
            await theirs.send_all(chunk)
            await trio.testing.wait_all_tasks_blocked()  # each chunk is a read of its own
        if end:
            await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            return await read_head(ours, within=within, max_bytes=max_bytes, max_headers=max_headers)
        except BadRequest as error:
            refused = error
        finally:
            nursery.cancel_scope.cancel()
    raise refused


async def status_of(*chunks: bytes, end: bool = True, max_bytes: int = 32768) -> tuple[int, str]:
    with pytest.raises(BadRequest) as caught:
        await read(*chunks, end=end, max_bytes=max_bytes)
    return caught.value.status, caught.value.text


async def test_a_head_says_what_was_asked() -> None:
    head = await read(UPGRADE)
    assert head is not None
    assert (head.method, head.path) == ("GET", "/ws/chat")
    assert head.target == "/ws/chat?conversation=abc%20d&x=&conversation=last"
    assert head.query == {"conversation": "last", "x": ""}
    assert head.header("HOST") == "localhost:8000"
    assert head.header("sec-websocket-protocol") == "\xff\xfe"
    assert head.header("absent") is None
    assert head.wants_websocket
    assert head.raw == UPGRADE


async def test_a_brief_head_says_the_same_but_for_other_headers() -> None:
    whole = await read(UPGRADE + b"early")
    assert whole is not None
    brief = whole.brief({"host", "upgrade", "sec-websocket-protocol", "absent"})
    assert len(brief) < len(UPGRADE)
    head = await read(brief)
    assert head is not None
    assert (head.method, head.target, head.version) == (whole.method, whole.target, whole.version)
    assert [name for name, _ in head.headers] == ["host", "upgrade", "sec-websocket-protocol"]
    assert all(head.header(name) == whole.header(name) for name, _ in head.headers)


async def test_every_split_gives_the_same_head() -> None:
    for cut in range(1, len(UPGRADE)):
        head = await read(UPGRADE[:cut], UPGRADE[cut:])
        assert head is not None
        assert head.raw == UPGRADE
        assert head.path == "/ws/chat"
    assert await read(*(UPGRADE[i : i + 1] for i in range(len(UPGRADE)))) == await read(UPGRADE)


async def test_what_came_behind_the_head_is_kept() -> None:
    head = await read(UPGRADE + b"\x81\x85first frame")
    assert head is not None
    assert head.raw == UPGRADE + b"\x81\x85first frame"


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"GET / HTTP/1.1", "/"),
        (b"GET http://localhost/status?a=1 HTTP/1.1", "/status"),
        (b"GET http://localhost HTTP/1.1", "/"),
        (b"OPTIONS * HTTP/1.1", "*"),
        (b"GET /a%2Fb%FF HTTP/1.1", "/a/b\ufffd"),
        (b"GET //evil.example/x HTTP/1.1", "//evil.example/x"),
        (b"GET /?next=http://a/b HTTP/1.1", "/"),
    ],
)
async def test_forms_of_targets(line: bytes, path: str) -> None:
    head = await read(line + b"\r\nHost: localhost\r\n\r\n")
    assert head is not None
    assert head.path == path
    assert not head.wants_websocket


async def test_only_a_get_with_both_headers_wants_a_websocket() -> None:
    for wrong in (
        UPGRADE.replace(b"GET", b"POST"),
        UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
        UPGRADE.replace(b"WebSocket\r\nC", b"h2c\r\nC"),
    ):
        head = await read(wrong)
        assert head is not None
        assert not head.wants_websocket


async def test_nobody_to_answer_is_none() -> None:
    assert await read() is None


@pytest.mark.autojump
async def test_silence_is_none_and_slowness_is_408() -> None:
    assert await read(end=False, within=3) is None
    with pytest.raises(BadRequest) as caught:
        await read(b"GET / HT", end=False, within=3)
    assert caught.value.status == 408


@pytest.mark.autojump
async def test_a_trickle_does_not_extend_the_time() -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def trickle() -> None:
        for byte in UPGRADE:
            await trio.sleep(1)
            await theirs.send_all(bytes([byte]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        start = trio.current_time()
        refused = None
        try:
            await read_head(ours, within=10)
        except BadRequest as error:
            refused = error
        assert refused is not None
        assert refused.status == 408
        assert trio.current_time() - start == pytest.approx(10)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "plain HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400, "HTTP/2"),
        (b"\0\0\0\0", 400, "not an HTTP/1.1 request"),
        (b"hello there\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad name: b\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\nHost: a", 400, "ended within"),
        (b"GET /?" + b"&".join(b"a=1" for _ in range(200)) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400, "fields"),
    ],
)
async def test_what_is_no_request_is_400_at_every_split(sent: bytes, status: int, says: str) -> None:
    for cut in range(0, len(sent), max(1, len(sent) // 40)):
        got, text = await status_of(*filter(None, (sent[:cut], sent[cut:])))
        assert got == status
        assert says in text


async def test_floods_are_refused_and_not_read_to_the_end() -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\n"
    assert (await status_of(start + b"".join(b"X-%d: 1\r\n" % i for i in range(200)) + b"\r\n"))[0] == 431
    assert (await status_of(start + b"X: " + b"a" * 40_000, end=False))[0] == 431
    assert (await status_of(*[start, *[b"X: aaaaaaaaaaaaaa\r\n"] * 100], end=False, max_bytes=1000))[0] == 431
    assert (await status_of(b"GET /" + b"a" * 40_000, end=False))[0] == 414


async def test_the_limit_in_bytes_is_exact() -> None:
    head = await read(UPGRADE, max_bytes=len(UPGRADE))
    assert head is not None
    assert head.raw == UPGRADE
    assert (await status_of(UPGRADE, max_bytes=len(UPGRADE) - 1))[0] == 431
    cut = await read(UPGRADE + b"behind", max_bytes=len(UPGRADE))
    assert cut is not None
    assert cut.raw == UPGRADE  # the rest is still in the stream


async def test_a_get_followed_by_a_reset_is_none_or_a_head() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0] as listener:
        for sent in (b"", b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
            client = socket.create_connection(listener.socket.getsockname())
            stream = await listener.accept()
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            async with stream:
                head = await read_head(stream, within=5)
            assert head is None or head.raw == sent


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
def test_any_bytes_end_in_a_head_none_or_bad_request(chunks: list[bytes]) -> None:
    async def go() -> None:
        try:
            await read(*chunks)
        except BadRequest as error:
            assert error.status in (400, 431)  # noqa: PT017 - an exception is only one of the outcomes

    trio.run(go)


token = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-!#$%&'*+.^_`|~", min_size=1, max_size=10)
value = st.binary(max_size=20).map(lambda b: bytes(c for c in b if c > 0x20 and c != 0x7F))
reserved = {"host", "content-length", "transfer-encoding"}  # these have rules of their own


@given(
    st.lists(st.tuples(token.filter(lambda n: n.lower() not in reserved), value), max_size=10),
    st.integers(1, 7),
)
def test_any_headers_come_through_in_order(headers: list[tuple[str, bytes]], size: int) -> None:
    lines = b"".join(b"%s: %s\r\n" % (name.encode(), content) for name, content in headers)
    sent = b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"

    async def go() -> Head | None:
        return await read(*(sent[i : i + size] for i in range(0, len(sent), size)))

    head = trio.run(go)
    assert head is not None
    assert head.headers[1:] == [(name.lower(), content.decode("latin-1")) for name, content in headers]


def parsed(answer: bytes, method: bytes = b"GET") -> tuple[h11.Response, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return head, body


def test_a_response_is_whole_and_closes() -> None:
    head, body = parsed(response(200, b"<p>", "text/html; charset=utf-8", headers=[("Cache-Control", "max-age=5")]))
    fields = dict(head.headers)
    assert (head.status_code, head.reason, body) == (200, b"OK", b"<p>")
    assert fields[b"connection"] == b"close"
    assert fields[b"x-content-type-options"] == b"nosniff"
    assert [v for k, v in head.headers if k == b"cache-control"] == [b"max-age=5"]
    empty, nothing = parsed(response(404, b"gone", "text/plain", head_only=True), b"HEAD")
    assert (empty.status_code, nothing, dict(empty.headers)[b"content-length"]) == (404, b"", b"4")
    assert parsed(response(599, b"", "text/plain"))[0].status_code == 599


@pytest.mark.parametrize(("name", "value"), [("X", "a\r\nSet-Cookie: b"), ("X\n", "a"), ("X", "\u20ac")])
def test_a_response_header_cannot_smuggle(name: str, value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - UnicodeEncodeError is one too; that it is refused is the promise
        response(200, b"", "text/plain", headers=[(name, value)])


def asking(**headers: str) -> Head:
    return Head("GET", "/", "/", {}, list(headers.items()), b"")


@pytest.mark.parametrize(
    ("origin", "allow", "allowed"),
    [
        ("http://localhost", [], True),
        ("https://LOCALHOST:3000", [], True),
        ("http://127.0.0.1:8000", [], True),
        ("http://127.8.9.1", [], True),
        ("http://[::1]:8000", [], True),
        ("http://localhost.evil.example", [], False),
        ("http://127.0.0.1.evil.example", [], False),
        ("http://localhost@evil.example", [], False),
        ("http://evil.example#localhost", [], False),
        ("http://evil.example/localhost", [], False),
        ("file://localhost", [], False),
        ("http://192.168.0.2", [], False),
        ("http://[::1", [], False),
        ("http://localhost:port", [], False),
        ("null", [], False),
        ("", [], False),
        ("https://app.example", ["*"], True),
        ("null", ["*"], True),
        ("https://app.example", ["https://APP.example"], True),
        ("https://app.example", ["https://app.example:443/"], True),
        ("https://app.example", ["http://app.example"], False),
        ("https://app.example:8443", ["https://app.example"], False),
        ("https://xapp.example", ["https://app.example"], False),
        ("http://localhost", ["https://app.example"], False),
        ("null", ["not an origin"], False),
        ("https://a.example, https://b.example", ["https://a.example"], False),
    ],
)
def test_origins(origin: str, allow: list[str], allowed: bool) -> None:
    assert origin_allowed(asking(origin=origin), allow_origins=allow) is allowed


def test_a_request_without_origin_is_allowed() -> None:
    assert origin_allowed(asking(host="localhost"), allow_origins=[])


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("localhost@evil.example", False),
        ("192.168.0.2:8000", False),
        ("", False),
        ("[::1", False),
        ("localhost:x", False),
        ("\xff", False),
    ],
)
def test_hosts_when_bound_to_loopback(host: str, allowed: bool) -> None:
    assert host_allowed(asking(host=host), bound_to_loopback=True) is allowed
    assert host_allowed(asking(host=host), bound_to_loopback=False)


def test_a_request_without_host_is_allowed() -> None:
    assert host_allowed(asking(), bound_to_loopback=True)


async def test_replay_gives_the_bytes_again_and_then_goes_on() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    replay = Replay(b"abcdef", ours)
    await theirs.send_all(b"ghi")
    assert [bytes(await replay.receive_some(n)) for n in (1, 3, 10, 10)] == [b"a", b"bcd", b"ef", b"ghi"]
    await replay.send_all(b"back")
    assert bytes(await theirs.receive_some()) == b"back"


async def test_replay_loses_nothing_to_a_cancelled_read() -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    replay = Replay(b"abc", ours)
    with trio.CancelScope() as scope:
        scope.cancel()
        await replay.receive_some()
    assert scope.cancelled_caught
    assert bytes(await replay.receive_some()) == b"abc"


async def test_replay_is_a_stream_as_trio_means_it() -> None:
    async def pair() -> tuple[Replay, trio.abc.Stream]:
        left, right = trio.testing.lockstep_stream_pair()
        return Replay(b"", left), right

    await trio.testing.check_two_way_stream(pair, pair)
    left, _right = trio.testing.memory_stream_pair()
    replay = Replay(b"left over", left)
    with pytest.raises(ValueError, match="positive"):
        await replay.receive_some(0)
    await replay.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await replay.receive_some()

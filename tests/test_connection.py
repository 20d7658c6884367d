"""One TCP connection's edges: whatever a peer does ends its own connection, with a reason where one can be told.

A turn runs beside what a peer does, and completes; afterwards nothing is left (`nothing_left`), and nothing was
logged that an operator would have to look at.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from actors import connection
from actors.commands import Commands
from actors.log_lines import Text
from tests.fakes import Script, Stall, say
from tests.peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Headers,
    Peer,
    dial,
    frame,
    nothing_left,
    peer,
    upgrade,
)
from tests.service import Client, Service, front_of, service, text_of

SMALL = 4096  # bytes of a message, where a test sets the limit
BIG = "x" * 20_000  # of a delta: thousands of them fill any kernel's buffers


pytestmark = pytest.mark.usefixtures("quiet_gateway")


def websocket(**settings: Any) -> dict[str, Any]:
    return {"chat": {"websocket": settings}}


def held(gate: trio.Event) -> Script:
    """An answer that waits in its middle."""
    return Script(("a", Stall(gate))) + say("b").items


@asynccontextmanager
async def turn_beside(s: Service, gate: trio.Event) -> AsyncIterator[Client]:
    """Another socket's turn runs during the body, and completes after it."""
    async with s.client("?conversation=new") as beside:
        await beside.send("user_message", message="beside")
        await beside.until("assistant_delta")
        yield beside
        gate.set()
        frames = await beside.until("turn_finished")
        assert frames[-1]["outcome"] == "completed"


# What breaks the protocol.

VIOLATIONS = {
    "text that is not UTF-8": (frame(TEXT, b'{"type":"ping","x":"\xff"}'), 1007),
    "an opcode that does not exist": (frame(0x3, b"x"), 1002),
    "a control opcode that does not exist": (frame(0xB, b"x"), 1002),
    "a frame without a mask": (frame(TEXT, b'{"type":"ping"}', mask=False), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "a new message within another": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
    "a ping in fragments": (frame(PING, b"x", fin=False), 1002),
    "a ping that is too long": (frame(PING, bytes(126)), 1002),
    "a reserved bit": (bytes([0x80 | 0x40 | TEXT]) + frame(TEXT, b"{}")[1:], 1002),
    "a length in more bytes than it needs": (bytes([0x81, 0xFE, 0, 5]) + bytes(4) + b"12345", 1002),
    "a close frame of one byte": (frame(CLOSE, b"\x03"), 1002),
    "a close code that nobody may send": (frame(CLOSE, b"\x03\xee"), 1002),
    "a close reason that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "another protocol": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
}


async def test_what_breaks_the_protocol_is_closed_with_its_code(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, held(gate)) as s:
        async with nothing_left(s), turn_beside(s, gate):
            for what, (sent, code) in VIOLATIONS.items():
                async with peer(s) as p:
                    # what came before it is answered, and what comes behind it is not looked at
                    await p.send(frame(TEXT, b'{"type":"ping","request_id":"before"}'), sent, b"more " * 100)
                    assert (await p.until("pong"))["request_id"] == "before", what
                    assert (await p.closed())[0] == code, what


async def test_a_peer_that_goes_on_talking_after_its_violation_loses_the_connection_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSE_S", 0.1)
    async with service(tmp_path, say("x")) as s, nothing_left(s), peer(s) as p:
        await p.frame(0x3)
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await p.frame(PING, b"still here")


async def test_a_code_in_the_close_frame_of_the_peer_is_answered_alike(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        for sent in (b"", b"\x03\xe8", b"\x03\xe9going away", b"\x0f\xa0mine"):
            async with peer(s) as p:
                await p.until("welcome")
                await p.frame(CLOSE, sent)
                assert await p.receive() == (CLOSE, sent)
                assert await p.receive() is None


# What is too large.


async def test_what_a_peer_says_in_its_close_frame_stays_on_its_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "actors.gateway")
    reason = ("\r\n2026-01-01 00:00:00,000 - actors - CRITICAL - forged\x1b[2J" + "x" * 123)[:123].encode()
    async with service(tmp_path, say("x")) as s, nothing_left(s), peer(s) as p:
        await p.frame(CLOSE, struct.pack("!H", 4000) + reason)
        assert await p.closed(answer=False) == (4000, reason.decode())
    [closed] = [record for record in caplog.records if "closed with 4000" in record.getMessage()]
    line = Text("%(levelname)s %(message)s", str)(closed)
    assert line.startswith("INFO socket 1: closed with 4000 \\r\\n2026-01-01")
    assert len(line.splitlines()) == 1
    assert line.isprintable()


async def test_17_mb_are_closed_with_1009_that_a_foreign_client_sees_and_its_turn_goes_on(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, held(gate)) as s, nothing_left(s), s.client() as watcher:

        def foreign() -> int | None:
            with websockets.sync.client.connect(s.url, max_size=None) as client:
                client.send(json.dumps({"type": "hello", "conversation_id": watcher.conversation}))
                client.send(json.dumps({"type": "user_message", "message": "hi"}))
                while json.loads(client.recv())["type"] != "assistant_delta":
                    pass
                with contextlib.suppress(ConnectionClosed):
                    client.send("x" * 17_000_000)
                    while True:
                        client.recv()
                assert client.close_reason is not None
                assert "16777216 bytes" in client.close_reason
                return client.close_code

        # a conversation has a row from its first message on
        await watcher.send("clear_history")
        watcher.welcome = (await watcher.until("session_cleared"))[-1]
        assert await trio.to_thread.run_sync(foreign) == 1009
        gate.set()
        frames = await watcher.until("turn_finished")
        assert (frames[-1]["outcome"], text_of(frames)) == ("completed", "ab")


async def test_the_limit_is_in_bytes_and_exact(tmp_path: Path) -> None:
    def message(size: int, filler: str) -> bytes:
        start, end = b'{"type":"ping","request_id":"me","x":"', b'"}'
        count, rest = divmod(size - len(start) - len(end), len(filler.encode()))
        return start + filler.encode() * count + b"." * rest + end

    async with service(tmp_path, say("x"), settings=websocket(max_message_size=SMALL)) as s, nothing_left(s):
        for filler in ("x", "é", "€", "😀"):
            just = message(SMALL, filler)
            assert len(just) == SMALL
            async with peer(s) as p:
                await p.frame(TEXT, just)
                assert (await p.until("pong"))["request_id"] == "me"
                await p.send(
                    frame(TEXT, just[:5], fin=False),
                    frame(PING),
                    frame(CONTINUATION, just[5:2000], fin=False),
                    frame(CONTINUATION, just[2000:]),
                )
                assert (await p.until("pong"))["request_id"] == "me"
                await p.frame(TEXT, message(SMALL + 1, filler))
                assert await p.closed() == (1009, f"a message may have {SMALL} bytes")
            async with peer(s) as p:
                await p.send(frame(TEXT, just, fin=False), frame(CONTINUATION, b" "))
                assert (await p.closed())[0] == 1009
            async with peer(s) as p:
                await p.frame(BINARY, just + b" ")
                assert (await p.closed())[0] == 1009


async def test_a_frame_that_only_says_that_it_is_huge_is_refused_before_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSE_S", 0.1)  # its close frame would be a part of what it promised
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        for length in (2**24 + 1, 2**40, 2**63 - 1):
            async with peer(s) as p:
                await p.frame(TEXT, b"{", length=length)
                assert (await p.closed())[0] == 1009


# Frames in odd forms that are fine.


async def test_messages_in_any_form_are_handled_in_order(tmp_path: Path) -> None:
    def ping(number: int) -> bytes:
        return json.dumps({"type": "ping", "request_id": f"é{number}"}, ensure_ascii=False).encode()

    gate = trio.Event()
    async with service(tmp_path, held(gate)) as s, nothing_left(s), turn_beside(s, gate), peer(s) as p:
        data = frame(TEXT, ping(1))
        for at in range(len(data)):  # a byte at a time
            await p.send(data[at : at + 1])
        # a byte a fragment (characters are cut too), with pings and pongs between
        parts = [frame(CONTINUATION if at else TEXT, ping(2)[at : at + 1], fin=False) for at in range(len(ping(2)))]
        await p.send(*(part + frame(PING, b"p") + frame(PONG, b"unasked") for part in parts), frame(CONTINUATION))
        await p.send(*(frame(TEXT, ping(number)) for number in range(3, 60)))  # many at once
        answers = [(await p.until("pong"))["request_id"] for _ in range(1, 60)]
        assert answers == [f"é{number}" for number in range(1, 60)]


ASKED = (
    '{"type":"ping","request_id":"%s"}',
    '{"type":"stop","request_id":"%s"}',  # nothing runs: refused at once, as the next one
    '{"type":"user_message","message":"hi","mode":"?","request_id":"%s"}',
    '{"type":"get_history","limit":1,"request_id":"%s"}',  # the store is asked
    '{"type":"unheard_of","request_id":"%s"}',
    '{"type":"stop","turn":"?","request_id":"%s"}',
    '{"type":"user_message","message":[],"request_id":"%s"}',
)
"""Each is answered with one frame that names it; some need no waiting, and no task."""


async def test_what_needs_no_waiting_overtakes_nothing_and_is_not_overtaken(tmp_path: Path) -> None:
    rng = random.Random(1)
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        for _ in range(12):
            async with peer(s, "?conversation=new") as p:
                if rng.randrange(2):
                    await p.until("welcome")
                for number in range(40):
                    data = (rng.choice(ASKED) % number).encode()
                    cut = rng.choice([0, 0, 0, rng.randrange(len(data))])
                    parts = (frame(TEXT, data[:cut], fin=False), frame(CONTINUATION, data[cut:]))
                    await p.send(rng.choice([b"", b"", frame(PING)]), *(parts if cut else [frame(TEXT, data)]))
                    match rng.randrange(4):
                        case 0:
                            await trio.testing.wait_all_tasks_blocked()
                        case 1:
                            await trio.lowlevel.checkpoint()
                await p.frame(CLOSE, b"\x03\xe8")  # behind them: they are answered all the same
                answers: list[str] = []
                while (found := await p.receive()) is not None:
                    if found[0] == TEXT and (named := json.loads(found[1]).get("request_id")) is not None:
                        answers.append(named)
                assert answers == [str(number) for number in range(len(answers))]
                assert len(answers) >= 30, "the last ones may still have waited when the close frame came"


async def test_what_comes_with_the_handshake_is_not_lost(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        for cut in (0, 3):
            async with dial(s) as p:
                data = upgrade(s.port) + frame(TEXT, b'{"type":"ping","request_id":"early"}')
                await p.send(data[: len(data) - cut])
                assert (await p.head()).startswith("HTTP/1.1 101 ")
                await p.send(data[len(data) - cut :])
                assert (await p.until("pong"))["request_id"] == "early"


async def test_a_flood_of_pings_is_answered_and_delays_nobody_for_ever(tmp_path: Path) -> None:
    gate = trio.Event()
    async with (
        service(tmp_path, held(gate)) as s,
        nothing_left(s),
        turn_beside(s, gate) as beside,
        peer(s, "?conversation=new") as p,
    ):
        await p.until("welcome")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(p.send, *(frame(PING, b"%d" % number) for number in range(3000)))
            await beside.alive()
            for number in range(3000):
                assert await p.receive() == (PONG, b"%d" % number)


# Ends.


async def test_a_close_or_a_reset_in_mid_turn_ends_the_socket_only(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, held(gate)) as s, nothing_left(s), turn_beside(s, gate) as beside:
        for end in ("close", "reset", "eof"):
            async with peer(s, f"?conversation={beside.conversation}") as p:
                assert (await p.until("welcome"))["running_turn"] == 1
                if end == "close":
                    await p.frame(CLOSE, b"\x03\xe8")
                    await p.closed(answer=False)
                elif end == "reset":
                    p.reset()
                else:
                    await p.stream.send_eof()
                    await p.over()


async def test_a_hundred_sockets_that_open_and_reset(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, held(gate)) as s, nothing_left(s), turn_beside(s, gate) as beside:

        async def open_and_reset(number: int) -> None:
            async with dial(s) as p:
                await p.send(upgrade(s.port))
                if number % 3:
                    await p.head()
                if number % 3 == 2:
                    await p.say("user_message", message="never mind", request_id=str(number))
                p.reset()

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(open_and_reset, number)
        await beside.alive()


async def test_a_silent_peer_is_pinged_and_then_dropped(tmp_path: Path) -> None:
    settings = websocket(ping_interval=0.1, ping_timeout=0.2)
    async with service(tmp_path, say("x"), settings=settings) as s, nothing_left(s), s.client() as talking:
        async with peer(s) as p:  # its pongs never come: as if its machine had lost the network
            await p.until("welcome")
            assert await p.receive() == (PING, b"")
            while (found := await p.receive()) is not None:
                assert found == (PING, b"")
        await talking.alive()  # the library of this one answers pings


async def test_without_an_interval_nobody_is_pinged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SWEEP_S", 0.005)
    async with service(tmp_path, say("x"), settings=websocket(ping_interval=0, ping_timeout=0.01)) as s, peer(s) as p:
        await p.until("welcome")
        with trio.move_on_after(0.2) as waited:
            await p.receive()
        assert waited.cancelled_caught


async def test_a_peer_whose_frames_wait_for_the_store_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = websocket(ping_interval=0.02, ping_timeout=0.02)
    async with service(tmp_path, say("x"), settings=settings) as s, s.client() as client:
        gate = trio.Event()
        handle = Commands.handle

        async def slow(self: Commands, text: str) -> None:
            await gate.wait()
            await handle(self, text)

        monkeypatch.setattr(Commands, "handle", slow)
        for number in range(connection.INBOX + 4):
            await client.send("ping", request_id=str(number))
        with trio.move_on_after(0.3):
            await client.next()
        gate.set()
        assert (await client.until("pong", request_id=str(connection.INBOX + 3)))[-1]


@asynccontextmanager
async def deaf_peer(s: Service, monkeypatch: pytest.MonkeyPatch, close_s: float) -> AsyncIterator[Peer]:
    """A peer with small buffers that reads nothing of a long answer."""
    monkeypatch.setattr(connection, "CLOSE_S", close_s)
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", s.port))
    async with trio.SocketStream(sock) as stream:
        p = Peer(stream)
        await p.send(upgrade(s.port), frame(TEXT, b'{"type":"user_message","message":"go on"}'))
        yield p


async def test_a_client_that_never_reads_is_closed_with_1013_and_can_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SWEEP_S", 0.02)
    async with service(tmp_path, say("x"), say(*[BIG] * 500)) as s, nothing_left(s), s.client() as watcher:
        await watcher.say("make it real")
        async with deaf_peer(s, monkeypatch, close_s=10) as p:
            await watcher.until("turn_started")
            [deaf] = [found for number, found in front_of(s).sockets.items() if number != 1]
            frames = await watcher.until("turn_finished")
            assert text_of(frames) == BIG * 500  # the other one was not delayed
            monkeypatch.setattr(connection, "STALLED_S", 0.2)  # from now on: on a busy machine it stalls so long too
            while not deaf.outbox.sealed:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert deaf.outbox.waiting < 2**20
            # now it reads: what was sent before, whole frames, then why
            await p.head()
            code, reason = await p.closed()
            assert code == 1013
            assert "resume" in reason
        async with peer(s) as p:
            await p.say("resume", turn=2, seq=0)
            assert (await p.until("turn_finished"))["outcome"] == "completed"


async def test_a_client_that_never_reads_is_dropped_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SWEEP_S", 0.02)
    async with service(tmp_path, say("x"), say(*[BIG] * 500)) as s, nothing_left(s), s.client() as watcher:
        await watcher.say("make it real")
        async with deaf_peer(s, monkeypatch, close_s=0.05):
            await watcher.until("turn_finished")
            monkeypatch.setattr(connection, "STALLED_S", 0.2)  # as above
            while len(front_of(s).sockets) > 1:
                await trio.testing.wait_all_tasks_blocked(0.01)


async def test_the_stop_of_the_service_closes_with_1001(tmp_path: Path) -> None:
    codes: list[int | None] = []

    def foreign(url: str, task_status: trio.Event) -> None:
        with websockets.sync.client.connect(url) as client:
            client.recv()
            trio.from_thread.run_sync(task_status.set)
            with contextlib.suppress(ConnectionClosed):
                client.recv()
            codes.append(client.close_code)

    async with trio.open_nursery() as nursery:
        async with service(tmp_path, say("x")) as s:
            ready = trio.Event()
            nursery.start_soon(trio.to_thread.run_sync, foreign, s.url, ready)
            await ready.wait()
            p = Peer(await trio.open_tcp_stream("127.0.0.1", s.port))
            await p.send(upgrade(s.port))
            await p.head()
            await p.until("welcome")
            plain = await trio.open_tcp_stream("127.0.0.1", s.port)  # says nothing at all
    # the service has ended although one peer never answered its close frame
    assert codes == [1001]
    async with p.stream, plain:
        assert await p.closed(answer=False) == (1001, "the service stops")
        assert not await plain.receive_some()


# Handshakes and heads.

REFUSED: dict[str, tuple[int, Headers]] = {
    "another version": (426, {"Sec-WebSocket-Version": "8"}),
    "no version": (400, {"Sec-WebSocket-Version": None}),
    "two versions": (426, {"Sec-WebSocket-Version": "13, 8"}),
    "no key": (400, {"Sec-WebSocket-Key": None}),
    "a key that is no base64": (400, {"Sec-WebSocket-Key": "!" * 24}),
    "a key that is not ASCII": (400, {"Sec-WebSocket-Key": b"\xff" * 24}),
    "a key that is too short": (400, {"Sec-WebSocket-Key": "AAAA"}),
    "no Upgrade": (426, {"Upgrade": None}),
    "an Upgrade to something else": (426, {"Upgrade": "h2c"}),
    "no Connection": (426, {"Connection": None}),
    "no Host": (400, {"Host": None}),
    "a Host that is not ours": (403, {"Host": "evil.example"}),
    "a Host that is no name": (403, {"Host": b"\xff\xfe"}),
    "a Host that is long": (403, {"Host": "a" * 300 + ".localhost:1"}),
    "an Origin that is not ours": (403, {"Origin": "https://evil.example"}),
    "an Origin that is null": (403, {"Origin": "null"}),
    "an Origin that is bytes": (403, {"Origin": b"\xff\xfe"}),
}
TAKEN: dict[str, Headers] = {
    "a subprotocol that is not UTF-8": {"Sec-WebSocket-Protocol": b"\xff\xfe, chat"},
    "several subprotocols": {"Sec-WebSocket-Protocol": "chat, superchat, x"},
    "extensions": {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x"},
    "extensions that are bytes": {"Sec-WebSocket-Extensions": b"\xff;\xfe"},
    "Connection with bytes in it": {"Connection": b"Upgrade, \xff"},
    "Upgrade in capitals": {"Upgrade": "WebSocket", "Connection": "keep-alive, UPGRADE"},
    "an Origin of this machine": {"Origin": "http://localhost:3000"},
    "a Host by name": {"Host": "LOCALHOST:1"},
    "a Host of IPv6": {"Host": "[::1]:80"},
    "a header with bytes": {"X-Odd": b"\x80\xff"},
    "many headers": {f"X-{number}": "y" for number in range(90)},
}


async def test_handshakes(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        for what, (status, headers) in REFUSED.items():
            async with dial(s) as p:
                await p.send(upgrade(s.port, headers))
                head = await p.head()
                assert head.startswith(f"HTTP/1.1 {status} "), (what, head)
                if "version" in what and status == 426:
                    assert "sec-websocket-version: 13" in head.lower()
                await p.over()
        for what, headers in TAKEN.items():
            async with dial(s) as p:
                await p.send(upgrade(s.port, headers))
                head = await p.head()
                assert head.startswith("HTTP/1.1 101 "), (what, head)
                assert "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head.lower().replace(
                    "s3pplm", "s3pPLM"
                ) or ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head)
                assert "protocol" not in head.lower().partition("switching protocols")[2]
                await p.until("welcome")


async def test_origins_that_are_configured(tmp_path: Path) -> None:
    settings = websocket(allow_origins=["https://chat.example"])
    async with service(tmp_path, say("x"), settings=settings) as s:
        async with peer(s, headers={"Origin": "https://chat.example"}) as p:
            await p.until("welcome")
        for origin in ("http://localhost", "https://chat.example:444", "https://chat.example.evil"):
            assert (await s.get("/healthz", Origin=origin))[0] == 403
            assert (await s.raw(upgrade(s.port, {"Origin": origin})))[0] == 403
        assert (await s.get("/healthz", Origin="https://chat.example"))[0] == 200
        assert (await s.raw(b"GET /healthz HTTP/1.1\r\nHost: chat.example\r\n\r\n"))[0] == 403


HEADS: dict[str, tuple[bytes, int]] = {
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100), 400),
    "TLS": (bytes.fromhex("160301020001") + bytes(600), 400),
    "garbage": (b"\x00\x01\x02\xff" * 200 + b"\r\n\r\n", 400),
    "a text": (b"hello?\r\n\r\n", 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400),
    "a header flood in bytes": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 60_000 + b"\r\n\r\n", 431),
    "a header flood in number": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 500 + b"\r\n", 431),
    "a long URL": (b"GET /" + b"y" * 60_000 + b" HTTP/1.1\r\n\r\n", 414),
    "a long URL that is just short enough": (b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a URL with odd bytes": (b"GET /%00%ff%0d%0a/../etc HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "many fields": (b"GET /?" + b"a=b&" * 200 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "pipelined": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20, 200),
    "two lengths": (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "an upgrade in HTTP/1.0": (upgrade(1).replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
    "an upgrade of another path": (upgrade(1, path="/ws/chat/other"), 404),
    "an upgrade by another method": (upgrade(1).replace(b"GET", b"PUT"), 405),
    "an upgrade with long headers": (upgrade(1, {f"X-{n}": "y" * 1000 for n in range(40)}), 431),
    "an upgrade with many headers": (upgrade(1, {f"X-{n}": "y" for n in range(100)}), 431),
    "a POST with a body": (b"POST /ws/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nno matter", 405),
}


async def test_heads_that_are_answered_once_and_closed(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, held(gate)) as s, nothing_left(s), turn_beside(s, gate):
        for what, (sent, status) in HEADS.items():
            found, _, body = await s.raw(sent)
            assert found == status, (what, body)
            assert body, what
            assert body.count(b"HTTP/1.1") == 0 or status == 400, what


async def test_a_head_that_never_ends_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.2)
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        async with dial(s) as slow, dial(s) as silent:
            await slow.send(b"GET / HTT")
            assert (await slow.head()).startswith("HTTP/1.1 408 ")
            await slow.over()
            await silent.over()
            assert silent.data == b""


async def test_a_plain_get_with_a_reset_two_hundred_times(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, held(gate)) as s, nothing_left(s), turn_beside(s, gate) as beside:

        async def get_and_reset(number: int) -> None:
            async with dial(s) as p:
                await p.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[: 10 + number])
                if number % 2:
                    await p.stream.receive_some(100) if number > 40 else None
                p.reset()

        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(get_and_reset, number)
        await beside.alive()


# Where a socket enters.


async def test_conversations_that_are_asked_for(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        async with s.client() as client:
            await client.say("make it real")
        latest = client.conversation
        for asked in (
            "nope",
            "x" * 201,
            "x" * 20_000,
            "%00",
            "%ff%fe",
            "%F0%9F%98%80",
            "../../etc",
            "'; drop table event",
            "%20",
        ):
            async with s.client(f"?conversation={asked.replace(' ', '+')}") as client:
                assert (client.welcome["type"], client.welcome["error_code"]) == ("error", "NOT_FOUND"), asked
                assert (await client.next())["conversation_id"] == latest
        for asked in (
            "",
            "?conversation=",
            f"?conversation={latest}",
            f"?conversation=nope&conversation={latest}",
            "?other=1",
        ):
            async with s.client(asked) as client:
                assert (client.welcome["type"], client.conversation) == ("welcome", latest), asked
        async with s.client("?conversation=new") as one, s.client("?conversation=new") as other:
            assert len({one.conversation, other.conversation, latest}) == 3
            # nothing was said in them: there is no row, and the latest is what it was
            async with s.client() as client:
                assert client.conversation == latest

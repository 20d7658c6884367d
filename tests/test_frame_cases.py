"""Frames as in Autobahn's suite against the real service: each case of the table, its bytes cut in several ways."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from actors import connection
from tests.fakes import Script, Stall, say
from tests.frame_cases import CASES, LIMIT, NO_CODE, Case
from tests.peer import CLOSE, PONG, TEXT, Peer, dial, frame, nothing_left, peer, upgrade
from tests.service import Service, service, text_of

SINGLE = 400  # bytes that are sent one by one: all of small cases, of large ones all heads at their beginning
END = b'{"type":"ping","request_id":"the end"}'
AT_ONCE = 10  # connections
WAYS = ("behind the handshake", "at once", "byte by byte")


def cut(data: bytes) -> Iterator[bytes]:
    """Each byte by itself, and what is left."""
    for at in range(min(len(data), SINGLE)):
        yield data[at : at + 1]
    if data[SINGLE:]:
        yield data[SINGLE:]


async def send(p: Peer, pieces: Iterable[bytes]) -> None:
    """Each piece is read before the next is sent, or at least may be."""
    for piece in pieces:
        await p.send(piece)
        for _ in range(3):
            await trio.lowlevel.checkpoint()


async def outcome(s: Service, case: Case, way: str) -> Case:
    """What the service answers, as the case that would expect it."""
    said, pongs, code = list[tuple[str, str]](), list[bytes](), 0
    data = case.sent if case.code else case.sent + frame(TEXT, END)
    async with dial(s) as p:
        handshake = upgrade(s.port, path="/ws/chat?conversation=new")
        together = way == "behind the handshake"
        await p.send(handshake + data if together else handshake)
        assert (await p.head()).startswith("HTTP/1.1 101 ")
        if not together:
            await send(p, cut(data) if way == "byte by byte" else [data])
        while not code and (found := await p.receive()) is not None:
            opcode, payload = found
            if opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else NO_CODE
                await p.frame(CLOSE, payload[:2])  # to one that it has begun itself too: the end of all is the same
                await p.stream.send_eof()
                assert await p.receive() is None, "something came behind the close frame"
            elif opcode == PONG:
                pongs.append(payload)
            else:
                assert opcode == TEXT
                said += told(json.loads(payload))
                if said[-1:] == [("pong", "the end")]:
                    said.pop()
                    break
    return Case(case.sent, tuple(said), tuple(pongs), code)


def told(message: dict[str, Any]) -> list[tuple[str, str]]:
    """As the table has it; the welcome is taken for granted, and what a turn says."""
    if message["type"] not in ("pong", "error"):
        return []
    return [(message["type"], message.get("error_code") or message["request_id"])]


@pytest.mark.usefixtures("quiet_gateway")
async def test_each_case_is_answered_however_its_bytes_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLOSE_S", 60.0)  # on a busy machine: bytes behind the close frame may take a while
    wrong: dict[tuple[str, str], Case] = {}
    async with service(tmp_path, say("x"), settings={"chat": {"websocket": {"max_message_size": LIMIT}}}) as s:
        limit = trio.CapacityLimiter(AT_ONCE)

        async def check(name: str, way: str) -> None:
            async with limit:
                found = await outcome(s, CASES[name], way)
                if found != CASES[name]:
                    wrong[name, way] = found

        async with nothing_left(s), trio.open_nursery() as nursery:
            for name in CASES:
                for way in WAYS:
                    nursery.start_soon(check, name, way)
    assert not wrong


@pytest.mark.usefixtures("quiet_gateway")
async def test_what_is_said_before_a_close_frame_is_done_although_nobody_hears_the_answer(tmp_path: Path) -> None:
    said = frame(TEXT, b'{"type":"user_message","message":"and now something"}') + frame(CLOSE, b"\x03\xe8")
    async with service(tmp_path, say("completely different")) as s, nothing_left(s):
        for number, way in enumerate(WAYS, start=1):
            assert (await outcome(s, Case(said, code=1000), way)).code == 1000
            asked = await s.provider.request(number)
            assert asked.json["messages"][-1] == {"role": "user", "content": "and now something"}
            async with s.client() as client:  # of the latest conversation, in which a turn may run or have ended
                await client.send("resume", turn=1, seq=0)
                frames = await client.until("turn_finished")
                assert (frames[-1]["turn"], frames[-1]["outcome"]) == (1, "completed")


async def test_a_close_in_mid_answer_is_answered_alike_and_the_answer_goes_on(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items) as s, nothing_left(s):
        async with s.client("?conversation=new") as client:
            await client.send("user_message", message="hi")
            await client.until("assistant_delta")
            for code in (0, 1000, 1001, 4999):
                async with peer(s, f"?conversation={client.conversation}") as p:
                    await p.say("resume", turn=1, seq=0)
                    assert (await p.until("assistant_delta"))["text"] == "a"
                    payload = code.to_bytes(2, "big") if code else b""
                    await p.send(frame(CLOSE, payload), frame(TEXT, b'{"type":"stop"}'))
                    assert await p.receive() == (CLOSE, payload)
                    assert await p.receive() is None
            gate.set()
            frames = await client.until("turn_finished")
            assert (text_of(frames), frames[-1]["outcome"]) == ("b", "completed")

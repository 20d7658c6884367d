"""One peer's side of a WebSocket: frames' heads and messages at any split, refusals, pings, close frames."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from actors.outbox import Outbox
from actors.timer import Timer
from actors.wire import AT_ONCE, MAX_FRAGMENTS, MAX_PARTS, Wire, close_frame, frame_head, plain_text
from tests.peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

LIMIT = 70_000
NO_SOCKET: trio.socket.SocketType = None  # type: ignore[assignment]  # following frames touches no connection


def wire(limit: int = LIMIT) -> Wire:
    unused: Outbox = None  # type: ignore[assignment]  # following frames touches no connection
    return Wire(unused, NO_SOCKET, lambda: limit)


def follow(data: bytes, *cuts: int, limit: int = LIMIT) -> tuple[Wire, int]:
    """The wire after those bytes in those pieces, and how many of them the library would have got."""
    followed, kept = wire(limit), 0
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        if followed.refused:
            break
        kept += followed.follow(data[start:end])
    return followed, kept


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 2**40])
@pytest.mark.parametrize("mask", [True, False])
def test_heads_are_whole_or_none(size: int, mask: bool) -> None:
    data = frame(TEXT, b"payload", length=size, mask=mask)
    head = data[: -len(b"payload")]
    assert frame_head(data) == frame_head(head) == (TEXT, len(head), size)
    assert all(frame_head(head[:cut]) is None for cut in range(len(head)))


@pytest.mark.parametrize("text", ["", "a", "ä" * 62, "x" * 125, "x" * 126, "{" * 65_535, "\N{GRINNING FACE}"])
def test_a_text_that_comes_by_itself_needs_no_library(text: str) -> None:
    data = frame(TEXT, text.encode())
    assert plain_text(data) == text
    assert not any(plain_text(data[:cut]) for cut in range(1, len(data)))


@pytest.mark.parametrize(
    "data",
    [
        frame(BINARY, b"a"),
        frame(PING, b"a"),
        frame(CLOSE),
        frame(TEXT, b"a", fin=False),
        frame(CONTINUATION, b"a"),
        frame(TEXT, b"a") + frame(TEXT, b"b"),
        frame(TEXT, b"a", mask=False),
        frame(TEXT, b"\xff"),
        frame(TEXT, "\N{GRINNING FACE}".encode()[:3]),
        frame(TEXT, b"a" * 65_536),
        b"\xc1" + frame(TEXT, b"a")[1:],
        b"\x81\xfe\x00\x01" + b"mask" + b"a",
    ],
    ids=[
        *("binary", "ping", "close", "first fragment", "last fragment", "two", "not masked", "no UTF-8", "cut UTF-8"),
        *("long", "reserved bit", "a length that is not minimal"),
    ],
)
def test_what_is_not_plain_is_for_the_library(data: bytes) -> None:
    assert plain_text(data) is None


def test_a_message_too_large_is_refused_at_its_head_and_what_came_before_is_kept() -> None:
    good = frame(TEXT, b"good") + frame(PING, b"x")
    data = good + frame(TEXT, b"the beginning", length=LIMIT + 1)
    for cut in range(1, len(data)):
        followed, kept = follow(data, cut)
        assert followed.refused == f"a message may have {LIMIT} bytes"
        # of a head that came in two pieces the first has gone to the library, which can do nothing with it
        assert len(good) <= kept < len(data) - len(b"the beginning")


def test_the_limit_is_exact_and_counts_all_fragments_of_one_message() -> None:
    def message(*sizes: int) -> bytes:
        last = len(sizes) - 1
        parts = [frame(BINARY if i == 0 else CONTINUATION, bytes(n), fin=i == last) for i, n in enumerate(sizes)]
        return frame(PONG).join(parts)

    assert not follow(message(LIMIT))[0].refused
    assert follow(message(LIMIT + 1))[0].refused
    assert not follow(message(LIMIT - 9, 4, 5))[0].refused
    assert follow(message(LIMIT - 9, 4, 6))[0].refused
    assert not follow(message(LIMIT - 9, 9) + message(LIMIT))[0].refused


def test_endless_empty_fragments_are_refused() -> None:
    data = frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * (MAX_FRAGMENTS - 1)
    followed, _ = follow(data)
    assert not followed.refused
    followed.follow(frame(CONTINUATION, fin=False))
    assert "fragments" in followed.refused


def test_the_close_frame_of_the_peer_is_noticed_behind_what_was_refused() -> None:
    data = frame(TEXT, bytes(100)) + frame(CLOSE, b"\x03\xe8")
    for cut in range(1, len(data)):
        followed = wire(limit=10)
        followed.follow(data[:cut])
        followed.follow(data[cut:])
        assert followed.refused
        assert followed.peer_closing


FRAMES = st.lists(
    st.builds(
        frame,
        st.sampled_from([TEXT, BINARY, CONTINUATION, PING, PONG]),
        st.binary(max_size=300),
        fin=st.booleans(),
        mask=st.booleans(),
    ),
    max_size=12,
).map(b"".join)


@given(data=FRAMES, cuts=st.lists(st.integers(0, 4000), max_size=12))
def test_any_split_gives_the_same(data: bytes, cuts: list[int]) -> None:
    whole, kept = follow(data, limit=700)
    pieces, kept_too = follow(data, *sorted(min(cut, len(data)) for cut in cuts), limit=700)
    assert pieces.refused == whole.refused
    assert kept <= kept_too < kept + 14


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_any_bytes_are_followed_without_an_error(data: bytes, cuts: list[int]) -> None:
    _, kept = follow(data, *sorted(min(cut, len(data)) for cut in cuts))
    assert 0 <= kept <= len(data)


def test_close_frames_are_short_and_readable() -> None:
    assert close_frame(1001, "gone") == b"\x88\x06\x03\xe9gone"
    long = close_frame(1009, "é" * 100)
    assert len(long) <= 2 + 125
    assert long[4:].decode() == "é" * 61
    assert close_frame(1002, "\ud800") == b"\x88\x03\x03\xea?"


# With the library, and past it.


class Written:
    """An outbox that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""
        self.sealed = False

    def write(self, data: bytes) -> None:
        self.data += data


TEXTS = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.sampled_from([b"", b"x" * 125, b"x" * 126, b"x" * 300, b"x" * 301, b"\xff", "\N{EURO SIGN}".encode()[:2]]),
)
READS = st.lists(
    st.lists(
        st.one_of(
            st.builds(frame, st.just(TEXT), TEXTS, key=st.sampled_from([bytes(4), b"mask"])),
            st.builds(frame, st.sampled_from([TEXT, CONTINUATION, BINARY]), TEXTS, fin=st.booleans()),
            st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=3), fin=st.just(True)),
            st.sampled_from(
                [frame(CLOSE, b"\x03\xe8"), frame(TEXT, b"a", mask=False), b"\x81\xfe\x00\x01mask1", b"\x81"]
            ),
        ),
        max_size=2,
    ).map(b"".join),
    max_size=8,
)


def told(reads: list[bytes]) -> tuple[object, ...]:
    """All that a wire says and answers to what it reads, each message handled as soon as it is there."""
    outbox = Written()
    read = Wire(outbox, NO_SOCKET, lambda: 300, keeps=True)  # type: ignore[arg-type]  # the part of one that is used
    found: list[str | bytes] = []
    for data in reads:
        if read._done or not (data and read._take_in(data)):
            continue
        while not read.drained:
            if (message := read.next()) is not None:
                found.append(message)
                read.taken()
    left = read.untaken if read.closed is None and not read.refused else b""
    return found, outbox.data, outbox.sealed, read.closed, read.refused, read.peer_closing, left


@given(READS)
def test_what_is_read_without_the_library_is_read_as_by_it(reads: list[bytes]) -> None:
    quick = told(reads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.wire.plain_text", lambda _: None)
        assert told(reads) == quick


# Moving to another front.


messages = st.lists(
    st.one_of(
        st.tuples(st.just("message"), st.lists(st.sampled_from([0, 5, 125, 200]), min_size=1, max_size=2)),
        st.tuples(st.sampled_from(["ping", "pong"]), st.just([0])),
    ),
    max_size=5,
)


def bytes_of(kind: str, sizes: list[int]) -> list[bytes]:
    if kind != "message":
        return [frame(PING if kind == "ping" else PONG, b"x" * sizes[0])]
    last = len(sizes) - 1
    parts = [[frame(TEXT if i == 0 else CONTINUATION, b"t" * n, fin=i == last)] for i, n in enumerate(sizes)]
    return [one for part in parts for one in (*part, frame(PING, b"between"))][:-1]


@given(messages, st.data())
def test_what_was_not_taken_is_what_came_of_messages_behind_the_last_that_was(
    sequence: list[tuple[str, list[int]]], data: st.DataObject
) -> None:
    stream, ends = b"", []
    answered: list[tuple[int, int]] = []  # where frames of no message are
    for kind, sizes in sequence:
        for part in bytes_of(kind, sizes):
            stream += part
            if part[0] & CLOSE:
                answered.append((len(stream) - len(part), len(stream)))
        if kind == "message":
            ends.append(len(stream))
    unused: Outbox = None  # type: ignore[assignment]  # following frames touches no connection
    followed = Wire(unused, NO_SOCKET, lambda: LIMIT, keeps=True)
    at = taken = 0
    while at < len(stream):
        size = data.draw(st.sampled_from([1, 2, 7, 60, 130, 500]))
        followed.follow(stream[at : at + size])
        at += size
        for _ in range(data.draw(st.integers(0, sum(end <= at for end in ends) - taken))):
            followed.taken()
            taken += 1
        rest = range(ends[taken - 1] if taken else 0, min(at, len(stream)))
        done = [(start, end) for start, end in answered if end <= at]
        assert followed.untaken == bytes(stream[n] for n in rest if not any(start <= n < end for start, end in done))


# Through a real connection.


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[Wire, trio.SocketStream]]:
    """A wire, and its peer's end."""
    ours, theirs = socket.socketpair()
    peer = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with peer, trio.open_nursery() as tasks:
        with trio.socket.from_stdlib_socket(ours) as sock:
            yield Wire(Outbox(sock, tasks, Timer()), sock, lambda: LIMIT, **options), peer
            tasks.cancel_scope.cancel()


async def messages_of(wire: Wire) -> list[str | bytes]:
    """All, until it is over."""
    found: list[str | bytes] = []
    while (message := wire.next()) is not None or await wire.receive():
        if message is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_messages_are_whole_whatever_came_when_and_pings_are_answered_between_them(cut: int) -> None:
    data = frame(TEXT, "grüße".encode()) + frame(TEXT, b"tw", fin=False) + frame(PING, b"p")
    data += frame(CONTINUATION, b"o") + frame(BINARY, b"\xff\x00") + frame(TEXT) + frame(CLOSE, b"\x03\xe8bye")
    async with connected(early=data[:cut]) as (wire, peer):
        await peer.send_all(data[cut:])
        assert await messages_of(wire) == ["grüße", "two", b"\xff\x00", ""]
        assert wire.closed == (1000, "bye")
        assert bytes(await peer.receive_some()) == b"\x8a\x01p\x88\x05\x03\xe8bye"


async def test_between_messages_no_parser_is_kept_and_within_one_it_is() -> None:
    async with connected() as (wire, peer):
        for data, kept in (
            (frame(TEXT, b"a"), False),
            (frame(TEXT, b"a", fin=False), True),
            (frame(PING), True),
            (frame(CONTINUATION, b"b"), False),
            (frame(PONG), False),
            (frame(TEXT, b"long")[:4], True),
        ):
            await peer.send_all(data)
            assert await wire.receive()
            while wire.next() is not None:
                pass
            assert (wire._protocol is not None) == kept


async def test_an_end_without_a_close_frame_and_a_refusal_say_why() -> None:
    async with connected() as (wire, peer):
        await peer.send_all(frame(TEXT, b"a") + frame(TEXT, b"", length=LIMIT + 1))
        assert await messages_of(wire) == ["a"]
        assert "a message may have" in wire.refused
    async with connected() as (wire, peer):
        await peer.send_all(frame(TEXT, b"a"))
        await peer.send_eof()
        assert await messages_of(wire) == ["a"]
        assert wire.ended
        assert wire.closed == (1006, "")


async def test_one_that_is_halted_has_answered_what_it_got_and_leaves_the_rest_to_others() -> None:
    async with connected(keeps=True) as (wire, peer):
        rest = frame(TEXT, b"c") + frame(PING, b"half")[:-2]
        await peer.send_all(frame(TEXT, b"a") + frame(TEXT, b"b") + frame(PING, b"p") + rest)
        assert await wire.receive()
        assert [wire.next(), wire.next()] == ["a", "b"]
        wire.taken()
        wire.taken()
        wire.halt()
        assert bytes(await peer.receive_some()) == b"\x8a\x01p"
        assert wire.untaken == rest
        await peer.send_all(b"more")
        assert not await wire.receive()
        assert os.read(wire._sock.fileno(), 100) == b"more", "who comes next reads on"


async def test_who_reads_when_it_is_halted_takes_nothing_more() -> None:
    for _ in range(20):  # whichever of the two is woken first
        async with connected(keeps=True) as (wire, peer):

            async def halt(wire: Wire = wire) -> None:
                with os.fdopen(os.dup(wire._sock.fileno()), "rb", buffering=0) as same:
                    await trio.lowlevel.wait_readable(same)  # in one round of the loop with the reader
                wire.halt()

            async with trio.open_nursery() as both:
                both.start_soon(wire.receive)
                both.start_soon(halt)
                await trio.testing.wait_all_tasks_blocked()
                await peer.send_all(frame(TEXT, b"a"))
                both.start_soon(reader_is_done, both)
            left = b""
            with suppress(BlockingIOError):
                left = os.read(wire._sock.fileno(), 100)
            assert wire.untaken + left == frame(TEXT, b"a")


async def reader_is_done(nursery: trio.Nursery) -> None:
    """One that was not woken waits for what never comes."""
    await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("within", [b"", frame(TEXT, b"begun", fin=False)])
async def test_a_flood_of_pings_is_answered_in_pieces_and_nothing_of_it_is_kept(within: bytes) -> None:
    pings = 2000
    async with connected(keeps=True, early=within + frame(PING) * pings) as (wire, _):
        assert await wire.receive()
        turns = 1
        while wire.next() is None and wire._frames is not None:
            assert await wire.receive()
            turns += 1
        assert turns >= pings / AT_ONCE
        assert wire.untaken == within


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_a_message_that_comes_byte_by_byte_costs_little_more_than_its_bytes(opcode: int) -> None:
    text = "é" * (MAX_PARTS + 100)
    data = frame(opcode, text.encode())
    async with connected() as (wire, _):
        most = 0
        for at in range(len(data)):
            wire._take_in(data[at : at + 1])
            message = wire.next()
            most = max(most, len(wire._parts or ()))
        assert most <= MAX_PARTS + 2
        assert message == (text if opcode == TEXT else text.encode())

"""Promises of frames: what was packed comes out, at any split; what is no frame is refused; credit is never lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Code, Fault
from protocol.frames import (
    MOST,
    Answered,
    Asked,
    Boot,
    Cast,
    Credit,
    Drain,
    Dropped,
    Failed,
    Faulted,
    Full,
    Hello,
    Item,
    Leaving,
    Left,
    Missed,
    Part,
    Ping,
    Pong,
    Quit,
    Ready,
    Report,
    Reported,
    Restart,
    Restarted,
    Room,
    Told,
)
from protocol.packing import FRAME, FRAME_MOST, PART, WHOLE, WINDOW, BadFrame, Flow, Packer, TooLarge, Unpacker
from protocol.reporter import PartState
from protocol.spec import Down, Up

BODY = memoryview(msgspec.msgpack.encode({"n": 1}))
ITEMS: list[Item] = [
    Cast("front/gateway", True, BODY),
    Asked(1, "store/writer", BODY),
    Answered(1, BODY),
    Faulted(2, Fault(Code.STORAGE_FULL).body),
    Missed(3, "gone", "mcp/demo"),
    Dropped(4),
    Credit(64),
    Full("llm/streamer"),
    Room("llm/streamer"),
    Hello("llm", 2, [Up("llm/streamer", 3)]),
    Told(Down("llm/streamer", 3, "ValueError: no", 50, parked=False)),
    Told(Up("llm/streamer", 4)),
    Boot("llm", 2, {"fds": {"tcp": 7}, "list": [1, None, 1.5, "é"]}),
    Ready(),
    Ping(1),
    Pong(1, 0.5, 40_000_000, 1.25),
    Report(9),
    Reported(9, msgspec.Raw(BODY)),
    Restart(10, "mcp/demo"),
    Restarted(10, PartState("mcp/demo", "parked", "it exits")),
    Restarted(11, None),
    Drain(),
    Quit(),
    Leaving(),
    Left(),
    Failed("it cannot"),
]
"""One of each; a part is made by the packer only."""


def plain(items: list[Item]) -> bytes:
    return msgspec.msgpack.encode(items)


def taken(packer: Packer) -> Iterator[bytes]:
    while (frames := packer.take()) is not None:
        yield bytes(frames)


def through(data: bytes, cuts: list[int]) -> list[Item]:
    """What comes out when the bytes come in pieces."""
    unpacker = Unpacker()
    ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found, at = list[Item](), 0
    for end in ends:
        if end > at:
            for items in unpacker.feed(data[at:end]):
                found += [copied(item) for item in items]
            at = end
    assert not unpacker.torn
    return found


def copied(item: Item) -> Item:
    # Bodies are views of what was received, which is let go of here.
    if isinstance(item, Cast | Asked | Answered):
        return msgspec.structs.replace(item, body=memoryview(bytes(item.body)))
    return item


def test_there_is_one_of_each() -> None:
    assert {type(item) for item in ITEMS} == set(get_args(Item)) - {Part}


def test_every_item_comes_out_as_it_went_in_at_every_split() -> None:
    packer = Packer()
    for item in ITEMS:
        packer.add(item)
    [data] = taken(packer)
    for cut in range(len(data) + 1):
        found = through(data, [cut])
        assert [type(item) for item in found] == [type(item) for item in ITEMS]
        assert plain(found) == plain(ITEMS)
    assert plain(through(data, list(range(len(data))))) == plain(ITEMS)


PACKED = st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([0, 1, 300, WHOLE, WHOLE + 1, WHOLE + PART]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(PACKED, st.just("take")), max_size=24), st.lists(st.integers(0, 10**8), max_size=6))
def test_nothing_is_lost_or_doubled_and_order_is_kept_for_each_address(
    steps: list[tuple[str, int] | str], cuts: list[int]
) -> None:
    packer, frames = Packer(), list[bytes]()
    sent: dict[str, list[int]] = {}
    for number, step in enumerate(steps):
        if isinstance(step, str):
            frames.append(bytes(packer.take() or b""))
        else:
            to, size = step
            body = number.to_bytes(4, "big") + bytes(size)
            packer.add(Cast(to, False, memoryview(body)), to, len(body))
            sent.setdefault(to, []).append(number)
    frames.extend(taken(packer))
    assert not packer
    came: dict[str, list[int]] = {}
    for item in through(b"".join(frames), cuts):
        assert isinstance(item, Cast)
        came.setdefault(item.to, []).append(int.from_bytes(item.body[:4], "big"))
    assert came == sent


def test_small_items_go_between_the_parts_of_a_large_one_but_not_past_it_to_the_same_address() -> None:
    packer, unpacker = Packer(), Unpacker()
    large = memoryview(bytes(4 * WHOLE))
    packer.add(Cast("a", True, large), "a", len(large))
    came: list[tuple[str, int]] = []
    rounds = 0
    packer.add(Cast("a", False, memoryview(b"1")), "a", 1)
    while packer:
        rounds += 1
        packer.add(Cast("b", False, memoryview(b"1")), "b", 1)
        data = packer.take()
        assert data is not None
        assert len(data) < PART + 1000
        for items in unpacker.feed(data):
            came += [(item.to, len(item.body)) for item in items if isinstance(item, Cast)]
    assert rounds > 16
    assert came == [*[("b", 1)] * rounds, ("a", 4 * WHOLE), ("a", 1)]


def test_what_is_too_large_or_no_data_is_not_queued() -> None:
    packer = Packer()
    with pytest.raises(TooLarge, match="67108865 bytes, 67108864 are allowed"):
        packer.add(Cast("a", False, memoryview(b"")), "a", MOST + 1)
    packer.add(Ping(1))
    with pytest.raises(TypeError):
        packer.add(Boot("a", 1, {"x": bytes(100), "y": object()}))
    packer.add(Ping(2))
    [data] = taken(packer)
    assert through(data, []) == [Ping(1), Ping(2)]


def test_a_long_queue_becomes_several_frames_that_a_receiver_takes() -> None:
    packer = Packer()
    body = memoryview(bytes(WHOLE - 100))
    for _ in range(12):
        packer.add(Cast("a", False, body), "a", len(body))
    [data] = taken(packer)
    lengths, at = [], 0
    while at < len(data):
        lengths.append(int.from_bytes(data[at : at + 4], "big"))
        at += 4 + lengths[-1]
    assert len(lengths) == 3
    assert FRAME <= max(lengths) <= FRAME_MOST
    assert len(through(data, [])) == 12


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xff\xff\xff", "4294967295 bytes"),
        ((FRAME_MOST + 1).to_bytes(4, "big"), f"{FRAME_MOST} are allowed"),
        (b"\0\0\0\0", "cannot be read"),
        (b"\0\0\0\x01\xc1", "cannot be read"),
        (b"\0\0\0\x05\xdd\xff\xff\xff\xff", "truncated"),
        (b"\0\0\0\x02\x91\x90", "cannot be read"),
        (b"\0\0\0\x04\x91\x92\x63\x01", "Invalid value"),
        (b"\0\0\0\x04\x91\x92\x06\xa0", "Expected `int`"),
        (b"\0\0\0\x05\x91\x92\x08\xa1\xff", "cannot be read"),
        (b"GET / HTTP/1.1\r\n\r\n", "are allowed"),
        (b"\0\0\x07\xd0" + b"\x91" * 2000, "cannot be read"),
        (b"\0\0\0\x05\x91\x93\x0a\xc4\x00\xc3", "cannot be read"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadFrame, match=why):
        list(Unpacker().feed(data))


def parts(*items: Item) -> bytes:
    packer = Packer()
    for item in items:
        packer.add(item)
    [data] = taken(packer)
    return data


@pytest.mark.parametrize(
    "whole",
    [b"", b"\xc1", msgspec.msgpack.encode(Part(BODY, True)), msgspec.msgpack.encode([Ping(1)])],
    ids=["nothing", "no msgpack", "a part", "no item"],
)
def test_a_large_item_that_is_none_is_refused(whole: bytes) -> None:
    with pytest.raises(BadFrame):
        list(Unpacker().feed(parts(Part(memoryview(whole), True))))


def test_a_large_item_is_not_put_together_past_the_limit() -> None:
    unpacker, data = Unpacker(), parts(Part(memoryview(bytes(WHOLE - 100)), False))
    for _ in range(MOST // WHOLE + 1):
        list(unpacker.feed(data))
    with pytest.raises(BadFrame, match="more than"):
        list(unpacker.feed(data))


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=80), st.integers(0, 10**6), st.integers(0, 255))
def test_damage_is_a_bad_frame_or_other_items_and_nothing_else(noise: bytes, at: int, byte: int) -> None:
    good = parts(*ITEMS)
    broken = bytearray(good)
    broken[at % len(good)] = byte
    for data in (noise, len(noise).to_bytes(4, "big") + noise, bytes(broken)):
        unpacker = Unpacker()
        try:
            for items in unpacker.feed(data):
                assert all(isinstance(item, Item) for item in items)
        except BadFrame:
            pass  # what a port closes for


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["send", "carry", "frame", "return"]), max_size=200), st.integers(1, WINDOW))
def test_credit_bounds_what_is_under_way_and_comes_back(steps: list[str], burst: int) -> None:
    sender, receiver = Flow(), Flow()
    wire: list[str] = []
    back: list[Credit] = []

    def give(*, alone: bool) -> None:
        if (credit := receiver.due(alone=alone)) is not None:
            back.append(credit)

    for step in steps:
        match step:
            case "send":
                for _ in range(min(burst, sender.left)):
                    sender.sent()
                    wire.append("message")
            case "carry":
                while wire:
                    wire.pop()
                    if receiver.arrived():
                        give(alone=True)
            case "frame":
                give(alone=False)
            case "return":
                while back:
                    sender.credited(back.pop())
        assert 0 <= sender.left <= WINDOW
        assert len(wire) <= sender.under_way
    while wire:
        wire.pop()
        receiver.arrived()
    give(alone=True)
    for credit in back:
        sender.credited(credit)
    # What is kept back is less than a quarter: who waits for credit always gets some.
    assert sender.under_way < WINDOW // 4


def test_credit_that_nobody_took_and_messages_beyond_credit_are_refused() -> None:
    flow = Flow()
    with pytest.raises(BadFrame, match="a credit of 1, 0 are under way"):
        flow.credited(Credit(1))
    flow.sent()
    for count in (0, -1, 2):
        with pytest.raises(BadFrame):
            flow.credited(Credit(count))
    for _ in range(WINDOW):
        flow.arrived()
    with pytest.raises(BadFrame, match="without credit"):
        flow.arrived()

"""The wire below the WebSocket library: frames' heads at any split, refusals, close frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.outbox import Outbox
from actors.wire import MAX_FRAGMENTS, Wire, close_frame, frame_head
from tests.peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

LIMIT = 70_000


def wire(limit: int = LIMIT) -> Wire:
    unused: Outbox = None  # type: ignore[assignment]  # following frames touches no connection
    return Wire(unused, 0, lambda: limit)


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

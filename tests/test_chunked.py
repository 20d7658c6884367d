"""Framings of bodies: any split gives the same body, and what is torn is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from actors.chunked import MAX_LINE, Chunked, Framing, Sized, Torn, Unsized

WIRE = b'5\r\nhello\r\n1;name="a"\r\n,\r\n00A \t\r\n\r\n\r\n5\r\n0\r\n\r\n0;last\r\nTrailer: x\r\nOther: y\r\n\r\n'
BODY = b"hello,\r\n\r\n5\r\n0\r\n"


def read(framing: Framing, *parts: bytes) -> bytes:
    return b"".join(framing.feed(part) for part in parts)


def test_chunks_at_every_split_of_the_bytes() -> None:
    for first in range(len(WIRE)):
        for second in range(first, len(WIRE)):
            framing = Chunked()
            assert read(framing, WIRE[:first], WIRE[first:second]) == BODY[: len(read(Chunked(), WIRE[:second]))]
            assert not framing.done
            framing.feed(WIRE[second:])
            assert framing.clean
    framing = Chunked()
    assert read(framing, *(WIRE[at : at + 1] for at in range(len(WIRE)))) == BODY
    assert framing.done
    assert framing.clean
    framing.close()


def test_what_follows_the_end_is_no_part_of_it_and_makes_the_connection_useless() -> None:
    for framing, data in ((Chunked(), b"1\r\na\r\n0\r\n\r\nmore"), (Sized(1), b"amore")):
        assert framing.feed(data) == b"a"
        assert framing.done
        assert not framing.clean


@pytest.mark.parametrize(
    "data",
    [
        *(b"x\r\n", b"\r\n", b"-1\r\na", b"0x5\r\nhello", b"1_0\r\n", b" 5\r\nhello", b"5\nhello\r\n"),
        *(b"1\r\nab\r\n", b"1\r\na\rb", b"f" * 16 + b"\r\n", b"5" * (MAX_LINE + 1), b"5;" + b"x" * MAX_LINE),
        b"0\r\n" + b"a: b\r\n" * MAX_LINE + b"a",
    ],
)
@pytest.mark.parametrize("size", [1, 1000_000])
def test_what_is_no_chunk_is_refused(data: bytes, size: int) -> None:
    framing, step = Chunked(), max(size, len(data) // 200)  # what is long comes in hundreds of parts, not thousands
    with pytest.raises(Torn):
        read(framing, *(data[at : at + step] for at in range(0, len(data), step)))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (Chunked, []),
        (Chunked, [b"5\r\nhel"]),
        (Chunked, [b"5\r\nhello\r\n"]),
        (Chunked, [b"5\r\nhello\r\n0\r\n"]),
        (lambda: Sized(3), [b"ab"]),
    ],
)
def test_an_early_end_is_told(make: Callable[[], Framing], parts: list[bytes]) -> None:
    framing = make()
    read(framing, *parts)
    assert not framing.done
    with pytest.raises(Torn):
        framing.close()


def test_bodies_that_are_not_chunked() -> None:
    assert Sized(0).clean
    sized = Sized(4)
    assert (read(sized, b"ab", b"cd"), sized.clean) == (b"abcd", True)
    sized.close()
    unsized = Unsized()
    assert (read(unsized, b"ab", b"cd"), unsized.done) == (b"abcd", False)
    unsized.close()
    assert unsized.done
    assert not unsized.clean

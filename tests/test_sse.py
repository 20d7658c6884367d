"""What the decoder promises: the same events at every split, the standard's line ends, a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.sse import Decoder, Event, EventTooLarge

SMALL = {
    "one": (b"data: a\n\n", [Event(b"a")]),
    "no space": (b"data:a\n\n", [Event(b"a")]),
    "one space only is dropped": (b"data:  a\n\n", [Event(b" a")]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", [Event(b"a"), Event(b"b")]),
    "cr": (b"data: a\r\rdata: b\r\r", [Event(b"a"), Event(b"b")]),
    "mixed": (b"data: a\r\n\ndata: b\n\r\n", [Event(b"a"), Event(b"b")]),
    "bom": (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
    "bom only once": (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"a")]),
    "comments": (b": hello\n\n:\ndata: a\n: between\n\n", [Event(b"a")]),
    "many lines": (b"data: a\ndata:\ndata\ndata: b\n\n", [Event(b"a\n\n\nb")]),
    "name": (b"event: error\ndata: a\n\ndata: b\n\n", [Event(b"a", b"error"), Event(b"b")]),
    "a name without data is no event": (b"event: ping\n\ndata: b\n\n", [Event(b"b")]),
    "name taken back": (b"event: x\nevent\ndata: b\n\n", [Event(b"b")]),
    "other fields": (b"id: 7\nretry: 10\nfoo: bar\nnonsense\n data: x\ndata: a\n\n", [Event(b"a")]),
    "no blank line at the end": (b"data: a\n\ndata: [DONE]", [Event(b"a"), Event(b"[DONE]")]),
    "line end but no blank line": (b"data: a\r\n", [Event(b"a")]),
    "empty data is an event": (b"data:\n\n", [Event(b"")]),
    "utf-8": ("data: é\U0001f600\n\n".encode(), [Event("é\U0001f600".encode())]),
    "no line ends that only text has": (
        "data: a\u2028b\u0085c\x0bd\n\n".encode(),
        [Event("a\u2028b\u0085c\x0bd".encode())],
    ),
    "nothing": (b"", []),
}


def decode(*chunks: bytes) -> list[Event]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.close()


@pytest.mark.parametrize("name", SMALL)
def test_every_two_splits(name: str) -> None:
    wire, expected = SMALL[name]
    assert decode(wire) == expected
    assert decode(*(wire[i : i + 1] for i in range(len(wire)))) == expected
    for first in range(len(wire) + 1):
        for second in range(first, len(wire) + 1):
            assert decode(wire[:first], wire[first:second], wire[second:]) == expected


LINE = st.sampled_from([b"data: x", b"data:", b"data: {}", b":c", b"event: error", b"event:", b"", b"id: 1", b"junk"])
END = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINE, END), max_size=20), st.data())
def test_any_stream_at_any_splits(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    wire = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    chunks = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert decode(*chunks) == decode(wire)


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b and b"\r" not in b), max_size=8))
def test_what_was_put_in_comes_out(payloads: list[bytes]) -> None:
    wire = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
    assert decode(wire) == [Event(payload) for payload in payloads]


@pytest.mark.parametrize("wire", [b"data: " + b"x" * 200, b"data: xxxxxxxxxx\n" * 20, b"data:" + b"x" * 200 + b"\n\n"])
def test_an_event_past_the_limit_is_refused_before_its_end(wire: bytes) -> None:
    decoder = Decoder(limit=100)
    with pytest.raises(EventTooLarge):
        [decoder.feed(wire[i : i + 7]) for i in range(0, len(wire), 7)]
    with pytest.raises(EventTooLarge):
        Decoder(limit=100).feed(wire)


def test_the_limit_is_for_one_event_not_for_the_stream() -> None:
    decoder = Decoder(limit=100)
    events = [event for _ in range(50) for event in decoder.feed(b"data: " + b"x" * 80 + b"\n\n")]
    assert len(events) == 50


def test_a_large_event_in_small_parts_is_whole() -> None:
    payload = b"y" * 3_000_000
    wire = b"data: " + payload + b"\n\n"
    assert decode(*(wire[i : i + 1000] for i in range(0, len(wire), 1000))) == [Event(payload)]

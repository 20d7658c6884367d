"""What a peer sends in frames, and what it gets: the promises of RFC 6455, section 5, and of the contract, as a table.

The kinds are those of the Autobahn test suite: sizes, pings, reserved bits and opcodes, fragments, UTF-8, the close
handshake, limits; but a message here is JSON, and what answers is the service. `tests/test_frame_cases.py` walks the
table, with the bytes of each case cut in several ways.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

LIMIT = 70_000  # bytes of a message: more than the second form of a length tells
BAD = ("error", "INVALID_MESSAGE")
UNKNOWN = ("error", "UNKNOWN_TYPE")
NO_CODE = 1005  # of a close frame without one; RFC 6455, section 7.1.5


@dataclass(frozen=True)
class Case:
    """What is sent behind the handshake, and what comes: messages and pongs each in order."""

    sent: bytes
    said: tuple[tuple[str, str], ...] = ()
    """Of each text frame that comes: `pong` and its request_id, or `error` and its code."""
    pongs: tuple[bytes, ...] = ()
    code: int = 0
    """Of the close frame that comes; 0: the socket stays open and answers."""


def ask(id: str = "a", size: int = 0) -> bytes:
    """A message that is answered with a pong of that id, of so many bytes if it is told."""
    start = json.dumps({"type": "ping", "request_id": id, "x": ""}, ensure_ascii=False).encode()
    return start if not size else start[:-2] + b"x" * (size - len(start)) + start[-2:]


def parts(data: bytes, *sizes: int, opcode: int = TEXT, between: bytes = b"") -> bytes:
    """One message in fragments of those sizes and what is left; something may stand between them."""
    cuts = [0]
    for size in sizes:
        cuts.append(cuts[-1] + size)
    pieces = [data[start:end] for start, end in zip(cuts, [*cuts[1:], len(data)], strict=True)]
    last = len(pieces) - 1
    return between.join(frame(CONTINUATION if at else opcode, piece, fin=at == last) for at, piece in enumerate(pieces))


def told(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def reserved(bits: int, opcode: int, payload: bytes = b"") -> bytes:
    """A frame with those of its three reserved bits set."""
    whole = frame(opcode, payload)
    return bytes([whole[0] | bits << 4]) + whole[1:]


def text(value: bytes) -> bytes:
    """A message with that as a string in it."""
    return b'{"type":"ping","request_id":"u","x":"' + value + b'"}'


A, U = ("pong", "a"), ("pong", "u")
KEY = bytes.fromhex("37fa213d")  # the mask of the examples in RFC 6455, section 5.7
MIXED = "κόσμε \u00e9 \u20ac \U0001f600 \U0010ffff \ufeff \ufffe \x7f".encode()
NO_UTF8 = {
    "a byte that begins nothing": b"\xff",
    "a continuation of nothing": b"\x80",
    "a character that is not ended": b"\xe2\x82",
    "a character that another interrupts": b"\xe2\x82A",
    "a high surrogate": b"\xed\xa0\x80",
    "a low surrogate": b"\xed\xbf\xbf",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "an overlong slash of two bytes": b"\xc0\xaf",
    "an overlong slash of three": b"\xe0\x80\xaf",
    "an overlong slash of four": b"\xf0\x80\x80\xaf",
    "an overlong zero": b"\xc0\x80",
    "a character past the last one": b"\xf4\x90\x80\x80",
    "a form of five bytes": b"\xf8\x88\x80\x80\x80",
    "a form of six": b"\xfc\x84\x80\x80\x80\x80",
    "latin-1": b"caf\xe9",
}

SIZES = {
    "text of 0": Case(frame(TEXT), (BAD,)),
    "text of 1": Case(frame(TEXT, b"x"), (BAD,)),
    **{
        f"text of {size}": Case(frame(TEXT, ask(size=size)), (A,))
        for size in (124, 125, 126, 127, 128, 65535, 65536, LIMIT)
    },
    "text past the limit": Case(frame(TEXT, ask(size=LIMIT + 1)), code=1009),
    "text past the limit in fragments": Case(parts(ask(size=LIMIT + 1), 20, LIMIT - 20), code=1009),
    "text of the limit in fragments, with pings between": Case(
        parts(ask(size=LIMIT), 1, 125, 126, 60_000, between=frame(PING, bytes(125))), (A,), (bytes(125),) * 4
    ),
    "text past any limit": Case(frame(TEXT, b"", length=2**62), code=1009),
    **{
        f"binary of {size}": Case(frame(BINARY, bytes(size)), (BAD,))
        for size in (0, 1, 125, 126, 127, 65535, 65536, LIMIT)
    },
    "binary past the limit": Case(frame(BINARY, bytes(LIMIT + 1)), code=1009),
    "JSON in a binary frame": Case(frame(BINARY, ask()), (BAD,)),
    "binary in fragments": Case(parts(bytes(300), 1, 150, opcode=BINARY), (BAD,)),
    "binary that is no UTF-8": Case(parts(b"\xff\xfe\xed\xa0\x80", 1, 3, opcode=BINARY), (BAD,)),
    "a length of two bytes for what one tells": Case(b"\x81\xfe\x00\x05" + bytes(9), code=1002),
    "a length of eight bytes for what two tell": Case(b"\x81\xff" + bytes(6) + b"\xff\xff" + bytes(9), code=1002),
    "JSON that is no object": Case(frame(TEXT, b"[1]"), (BAD,)),
    "a type that does not exist": Case(frame(TEXT, b'{"type":"x"}'), (UNKNOWN,)),
}

PINGS = {
    **{f"a ping of {size}": Case(frame(PING, b"p" * size), pongs=(b"p" * size,)) for size in (0, 1, 124, 125)},
    "a ping of bytes": Case(frame(PING, bytes(range(0x83, 0x100))), pongs=(bytes(range(0x83, 0x100)),)),
    "a ping that is masked": Case(frame(PING, b"masked", key=KEY), pongs=(b"masked",)),
    "a ping of 126": Case(frame(PING, bytes(126)), code=1002),
    "a ping that says that it is huge": Case(frame(PING, length=2**40), code=1002),
    "ten pings": Case(b"".join(frame(PING, b"%d" % n) for n in range(10)), pongs=tuple(b"%d" % n for n in range(10))),
    "a pong that nobody asked for": Case(frame(PONG)),
    "pongs that nobody asked for": Case(frame(PONG, bytes(125)) * 10),
    "a pong, a ping, a message": Case(frame(PONG, b"x") + frame(PING, b"y") + frame(TEXT, ask()), (A,), (b"y",)),
    "a pong of 126": Case(frame(PONG, bytes(126)), code=1002),
    "a ping in fragments": Case(frame(PING, b"x", fin=False) + frame(CONTINUATION, b"y"), code=1002),
    "a pong in fragments": Case(frame(PONG, b"x", fin=False) + frame(CONTINUATION, b"y"), code=1002),
    "a close frame in fragments": Case(frame(CLOSE, b"\x03\xe8", fin=False) + frame(CONTINUATION), code=1002),
}

RESERVED = {
    **{f"reserved bits {bits:03b}": Case(reserved(bits, TEXT, ask()), code=1002) for bits in range(1, 8)},
    **{
        f"a reserved bit in opcode {opcode}": Case(reserved(4, opcode), code=1002)
        for opcode in (CONTINUATION, BINARY, CLOSE, PING, PONG)
    },
    "a reserved bit behind a message": Case(frame(TEXT, ask()) + reserved(2, PING), (A,), code=1002),
    "a reserved bit in the second fragment": Case(
        frame(TEXT, ask()[:9], fin=False) + reserved(1, CONTINUATION, ask()[9:]), code=1002
    ),
    **{f"opcode {opcode}": Case(frame(opcode), code=1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{
        f"opcode {opcode} with text, behind a message": Case(frame(TEXT, ask()) + frame(opcode, ask()), (A,), code=1002)
        for opcode in (3, 7, 11, 15)
    },
    "opcode 5 that says that it is as long as may be": Case(frame(5, length=LIMIT), code=1002),
}

MASKS = {
    "no mask": Case(frame(TEXT, ask(), mask=False), code=1002),
    "no mask, and nothing in it": Case(frame(TEXT, mask=False), code=1002),
    "a ping without a mask": Case(frame(PING, mask=False), code=1002),
    "a close frame without a mask": Case(frame(CLOSE, b"\x03\xe8", mask=False), code=1002),
    "no mask behind a message": Case(frame(TEXT, ask()) + frame(TEXT, ask(), mask=False), (A,), code=1002),
    "no mask in the second fragment": Case(
        frame(TEXT, ask()[:9], fin=False) + frame(CONTINUATION, ask()[9:], mask=False), code=1002
    ),
    **{
        f"mask {key.hex()}": Case(frame(TEXT, ask(), key=key), (A,))
        for key in (KEY, b"\xff" * 4, b"\0\0\0\1", b"\1\0\0\0", b"\x81\x89\x88\x80")
    },
    "another mask in each fragment": Case(
        frame(TEXT, text(MIXED)[:41], fin=False, key=KEY)
        + frame(CONTINUATION, text(MIXED)[41:43], fin=False)
        + frame(CONTINUATION, text(MIXED)[43:], key=b"\xff\0\xff\1"),
        (U,),
    ),
}

FRAGMENTS = {
    "two fragments": Case(parts(ask(), 9), (A,)),
    "two fragments, the first empty": Case(parts(ask(), 0), (A,)),
    "two fragments, the last empty": Case(parts(ask(), len(ask())), (A,)),
    "many fragments": Case(parts(ask(), *[1] * (len(ask()) - 1)), (A,)),
    "empty fragments between": Case(parts(ask(), 0, 5, 0, 0, 9, 0), (A,)),
    "empty fragments only": Case(parts(b"", 0, 0, 0), (BAD,)),
    "empty binary fragments only": Case(parts(b"", 0, 0, opcode=BINARY), (BAD,)),
    "fragments with a ping between": Case(parts(ask(), 9, between=frame(PING, b"here")), (A,), (b"here",)),
    "many fragments with pings and pongs between": Case(
        parts(ask(), *[3] * 8, between=frame(PING, b"p") + frame(PONG, b"q")), (A,), (b"p",) * 8
    ),
    "a message behind one in fragments": Case(parts(ask("b"), 9) + frame(TEXT, ask()), (("pong", "b"), A)),
    "fragments behind fragments": Case(parts(ask("b"), 9, 1) + parts(ask(), 2), (("pong", "b"), A)),
    "a continuation of nothing": Case(frame(CONTINUATION, ask()), code=1002),
    "a continuation of nothing, not the last": Case(frame(CONTINUATION, ask(), fin=False), code=1002),
    "an empty continuation of nothing": Case(frame(CONTINUATION), code=1002),
    "a continuation behind a message": Case(frame(TEXT, ask()) + frame(CONTINUATION, ask()), (A,), code=1002),
    "a continuation behind the last fragment": Case(parts(ask(), 9) + frame(CONTINUATION), (A,), code=1002),
    "a message within another": Case(frame(TEXT, ask()[:9], fin=False) + frame(TEXT, ask()), code=1002),
    "a binary message within a text": Case(frame(TEXT, b"{", fin=False) + frame(BINARY, b"}"), code=1002),
    "a first fragment within another message": Case(frame(TEXT, b"{", fin=False) * 2, code=1002),
    "a close frame between fragments": Case(frame(TEXT, b"{", fin=False) + told(1000), code=1000),
}

UTF8 = {
    "all lengths of characters": Case(frame(TEXT, text(MIXED)), (U,)),
    "characters cut by fragments": Case(parts(text(MIXED), *[1] * (len(text(MIXED)) - 1)), (U,)),
    "characters cut by fragments and pings": Case(
        parts(text(MIXED), *[2] * (len(text(MIXED)) // 2), between=frame(PING, b"\xff")),
        (U,),
        (b"\xff",) * (len(text(MIXED)) // 2),
    ),
    "an id beyond ASCII": Case(frame(TEXT, ask("\u00e9\U0001f600")), (("pong", "\u00e9\U0001f600"),)),
    "a zero in it": Case(frame(TEXT, text(b"\0")), (BAD,)),
    "surrogates that JSON has escaped": Case(frame(TEXT, text(rb"\ud83d\ude00")), (U,)),
    **{f"no UTF-8: {what}": Case(frame(TEXT, text(value)), code=1007) for what, value in NO_UTF8.items()},
    **{
        f"no UTF-8: {what}, in fragments": Case(parts(text(value), 37, *[1] * len(value)), code=1007)
        for what, value in NO_UTF8.items()
    },
    "a character cut by the end of a message": Case(frame(TEXT, text(b"") + b"\xe2\x82"), code=1007),
    "a character begun in one message and ended in another": Case(
        frame(TEXT, text(b"") + b"\xe2") + frame(TEXT, b"\x82\xac" + text(b"")), code=1007
    ),
    "no UTF-8 in a message that does not end": Case(frame(TEXT, text(b"\xff"), fin=False), code=1007),
    "no UTF-8 in a frame that does not end": Case(frame(TEXT, text(b"\xff"), length=LIMIT), code=1007),
    "no UTF-8 behind a message": Case(frame(TEXT, ask()) + frame(TEXT, b"\xc0\xaf"), (A,), code=1007),
    "no UTF-8 in a ping": Case(frame(PING, b"\xc0\xaf\xff"), pongs=(b"\xc0\xaf\xff",)),
}

CLOSES = {
    "a close frame with nothing": Case(frame(CLOSE), code=NO_CODE),
    "a close frame of one byte": Case(frame(CLOSE, b"\x03"), code=1002),
    **{
        f"close {code}": Case(told(code), code=code)
        for code in (*range(1000, 1004), *range(1007, 1014), 3000, 3999, 4000, 4999)
    },
    # 1014 is younger than the library, which takes it for one that is still free
    **{
        f"close {code}": Case(told(code), code=1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1014, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "close with a reason": Case(told(1000, "auf Wiedersehen \u20ac".encode()), code=1000),
    "close with the longest reason": Case(told(1000, b"r" * 123), code=1000),
    "close with a reason that is too long": Case(told(1000, b"r" * 124), code=1002),
    "close with a reason that is no UTF-8": Case(told(1000, b"\xc0\xaf"), code=1007),
    "close with half a character": Case(told(1000, b"\xe2\x82"), code=1007),
    "close twice": Case(told(1000) + told(1001), code=1000),
    "close, then a ping": Case(told(1000) + frame(PING, b"late"), code=1000),
    "close, then a message": Case(told(4000) + frame(TEXT, ask()), code=4000),
    "close, then what breaks the protocol": Case(told(1000) + frame(3) + b"\xff" * 50, code=1000),
    "a ping, then close": Case(frame(PING, b"x") + told(1001), pongs=(b"x",), code=1001),
}

CASES = {**SIZES, **PINGS, **RESERVED, **MASKS, **FRAGMENTS, **UTF8, **CLOSES}
assert len(CASES) == sum(map(len, (SIZES, PINGS, RESERVED, MASKS, FRAGMENTS, UTF8, CLOSES))), "each has its own name"

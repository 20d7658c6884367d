"""Heads of HTTP/1.1 exchanges that are as plain as nearly all are: written and read at a tenth of a parser's cost.

Free of I/O. What is done here is a part of what h11 does, and done as h11 does it: `written` and `read` give None
for whatever is unusual in any way, and h11 then has the word. tests/test_heads.py holds both against each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

LENGTH_MOST = 20  # digits of a Content-Length, as h11 takes them

_NAME = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"
_VALUE = rb"(?:[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?"
_name = re.compile(_NAME).fullmatch
_value = re.compile(_VALUE).fullmatch
_target = re.compile(rb"[\x21-\x7e]+").fullmatch
_success = re.compile(rb"HTTP/1\.1 200(?: ([\x20-\x7e]*))?\r\n((?:" + _NAME + rb": ?" + _VALUE + rb"\r\n)*)\r\n").match
_fields = re.compile(rb"(" + _NAME + rb"): ?(" + _VALUE + rb")\r\n").findall
_ASKS_FOR_MORE = {b"expect", b"transfer-encoding", b"upgrade"}

Fields = Sequence[tuple[bytes, bytes]]


class Success(NamedTuple):
    """The head of a plain answer."""

    reason: bytes
    fields: list[tuple[bytes, bytes]]
    """Names as they came."""
    said: dict[bytes, bytes]
    """The same by their names in small letters."""
    end: int
    """Where the body begins in what was read."""


def written(method: bytes, target: bytes, fields: Fields, body: bytes) -> bytes | None:
    """The head of a request with that body; None: there is something in it that h11 must see."""
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    if lengths != [b"%d" % len(body)] and (lengths or body):
        return None
    head = opening(method, target, fields)
    return None if head is None else head + b"\r\n"


def opening(method: bytes, target: bytes, fields: Fields) -> bytes | None:
    """As `written`, whatever its body, and without the empty line: more fields may follow."""
    if method not in {b"GET", b"POST"} or not fields or fields[0][0].lower() != b"host" or not _target(target):
        return None
    lines = [b"%s %s HTTP/1.1\r\n" % (method, target)]
    for number, (name, value) in enumerate(fields):
        if not _name(name) or not _value(value):
            return None
        lowered = name.lower()
        if lowered in _ASKS_FOR_MORE or (number and lowered == b"host"):
            return None
        lines.append(b"%s: %s\r\n" % (name, value))
    return b"".join(lines)


def read(data: bytes) -> Success | None:
    """A whole head with status 200 at the beginning of what came; None: it is not all there, or not plain."""
    found = _success(data)
    if found is None:
        return None
    fields = _fields(found[2])
    said = said_in(fields)
    if b"content-encoding" in said:
        return None
    coding, length = said.get(b"transfer-encoding"), said.get(b"content-length")  # with a comma if there are two
    if coding is not None and (coding != b"chunked" or length is not None):
        return None
    if length is not None and not (length.isdigit() and len(length) <= LENGTH_MOST):
        return None
    return Success(found[1] or b"", fields, said, found.end())


def said_in(fields: Fields) -> dict[bytes, bytes]:
    """Fields by their names in small letters; one that comes again is joined to the first, as lists are."""
    said: dict[bytes, bytes] = {}
    for name, value in fields:
        lowered = name.lower()
        said[lowered] = value if lowered not in said else b"%b, %b" % (said[lowered], value)
    return said

"""All that actors say to each other, as one union: how the body of a message becomes bytes, and a message again.

Used where mail crosses processes. A message is decoded by the union of all mailboxes' vocabularies, an answer by
the type that its `Request` promises. What comes out is of the same types as what went in; `Nudge` never crosses.

What can fail: `encoded` raises `Unspeakable` for what msgpack cannot hold, `decode` and `answer` raise it for
bytes that are none of ours (another version of the product, at most). Text with lone surrogates and numbers of
more than 64 bits, which strangers may put into JSON, are mended rather than refused.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec

from protocol.gateway import GatewayMessage
from protocol.local_model import LocalModelMessage
from protocol.logs import LogsMessage
from protocol.mail import Nudge
from protocol.mcp_server import McpServerMessage
from protocol.reply import Request
from protocol.reporter import ReporterMessage
from protocol.roster import RosterMessage
from protocol.session import SessionMessage
from protocol.streamer import StreamerMessage
from protocol.watcher import WatcherMessage
from protocol.writer import WriterMessage

Message = (
    GatewayMessage
    | LocalModelMessage
    | LogsMessage
    | McpServerMessage
    | ReporterMessage
    | RosterMessage
    | SessionMessage
    | StreamerMessage
    | WatcherMessage
    | WriterMessage
)
"""The vocabulary of every mailbox of the product."""

_AS_THEY_ARE = (bytes, bytearray, memoryview, datetime)  # msgpack has them; as builtins they would be text
_encoder = msgspec.msgpack.Encoder()
_TROUBLE = (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError)


class Unspeakable(Exception):
    """What cannot be said in msgpack, or was not understood."""


class Vocabulary:
    """Reads messages and answers.

    Args:
        messages: union of the types that are understood, each a Struct with a tag of its own.
    """

    def __init__(self, messages: object = Message) -> None:
        types = tuple(one for one in get_args(messages) or (messages,) if one is not Nudge)
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Union[types])  # noqa: UP007 - made at run time
        self._decode: Callable[[memoryview], object] = decoder.decode
        self._answers: dict[type, msgspec.msgpack.Decoder[Any]] = {}

    def decode(self, body: memoryview) -> object:
        """The message. Raises Unspeakable."""
        try:
            return self._decode(body)
        except _TROUBLE as error:
            raise Unspeakable(f"a message that is not understood: {error}") from None

    def answer(self, kind: type, body: memoryview) -> object:
        """The answer to a request of that type. Raises Unspeakable."""
        decoder = self._answers.get(kind)
        if decoder is None:
            decoder = self._answers[kind] = msgspec.msgpack.Decoder(answer_of(kind))
        try:
            return decoder.decode(body)
        except _TROUBLE as error:
            raise Unspeakable(f"an answer to {kind.__name__} that is not understood: {error}") from None


def answer_of(kind: type) -> Any:
    """The type of the answer that a request's class promises: `int` for a `Request[int]`; Any where it does not say."""
    for one in kind.__mro__:
        for base in one.__dict__.get("__orig_bases__", ()):
            if get_origin(base) is Request:
                (promised,) = get_args(base)
                return Any if isinstance(promised, TypeVar) else promised
    return Any


def encoded(value: object) -> bytes:
    """A message or an answer. Raises Unspeakable where it is nested too deeply, TypeError where it is no data."""
    try:
        try:
            return _encoder.encode(value)
        except (OverflowError, UnicodeError):
            return _encoder.encode(_mended(msgspec.to_builtins(value, builtin_types=_AS_THEY_ARE)))
    except RecursionError:
        raise Unspeakable("nested too deeply") from None


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value) if abs(value) < 2**1023 else str(value)
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mended(item) for item in value]
    return value

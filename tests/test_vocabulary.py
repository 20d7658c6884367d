"""Promises of the vocabulary: it is all that mailboxes take, and all of it survives the way between processes."""

from __future__ import annotations

import datetime
import importlib
import pkgutil
from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

import protocol
from protocol.mail import Nudge, Request
from protocol.mcp_server import CallTool, ToolOutcome
from protocol.reply import R_co
from protocol.streamer import Finished, Pieces, Text, ToolCall
from protocol.vocabulary import Message, Unspeakable, Vocabulary, answer_of, encoded
from protocol.writer import Entered, ListSaved, Saved

MODULES = [importlib.import_module(f"protocol.{found.name}") for found in pkgutil.iter_modules(protocol.__path__)]
MESSAGES = [one for one in get_args(Message) if one is not Nudge]


def structs() -> Iterator[type[msgspec.Struct]]:
    for module in MODULES:
        for found in vars(module).values():
            mine = isinstance(found, type) and found.__module__ == module.__name__
            if mine and issubclass(found, msgspec.Struct) and found is not Request:  # that is a base, never sent
                yield found


STRUCTS = sorted(set(structs()), key=lambda kind: (kind.__module__, kind.__name__))
REQUESTS = [kind for kind in STRUCTS if issubclass(kind, Request)]


def samples(kind: inspect.Type) -> Iterator[Any]:
    """Values of a type: every alternative, empty and not."""
    match kind:
        case inspect.AnyType():
            yield from ("text", None, {"a": [1, -(2**63), 2**64 - 1, 1.5, True, {"é": None}]})
        case inspect.NoneType():
            yield None
        case inspect.BoolType():
            yield from (True, False)
        case inspect.IntType():
            yield 7
        case inspect.FloatType():
            yield 0.1
        case inspect.StrType():
            yield from ("é\u2028😀", "")
        case inspect.BytesType():
            yield b"\x00\xff"
        case inspect.MemoryViewType():
            yield memoryview(b"\x00\xff")
        case inspect.DateTimeType():
            yield datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)
        case inspect.RawType():
            yield msgspec.Raw(b"\x93\x01\x02\x03")
        case inspect.EnumType(cls=cls):
            yield from cls
        case inspect.LiteralType(values=values):
            yield from values
        case inspect.ListType(item_type=item):
            yield [*samples(item)]
            yield []
        case inspect.DictType(key_type=key, value_type=value):
            names = [*samples(key)]
            yield {f"{names[0]}{n}": sample for n, sample in enumerate(samples(value))}
        case inspect.UnionType(types=types):
            for one in types:
                yield from samples(one)
        case inspect.StructType(cls=cls, fields=fields):
            # Each field once in all its forms, the others in their first; a message in itself ends there.
            forms = {field.name: [*samples(field.type)] for field in fields if not _nested(field.type, cls)}
            first = {name: some[0] for name, some in forms.items()}
            yield cls(**first)
            for name, some in forms.items():
                for other in some[1:]:
                    yield cls(**{**first, name: other})
        case _:
            raise AssertionError(f"no sample of {kind}: msgpack may not hold it")


def _nested(kind: inspect.Type, cls: type) -> bool:
    return (
        isinstance(kind, inspect.ListType)
        and isinstance(kind.item_type, inspect.StructType)
        and (kind.item_type.cls is cls)
    )


@pytest.mark.parametrize("module", sorted({kind.__module__ for kind in STRUCTS}))
def test_every_struct_is_the_same_after_the_way_between_processes(module: str) -> None:
    for kind in STRUCTS:
        for sample in samples(inspect.type_info(kind)) if kind.__module__ == module else ():
            assert msgspec.msgpack.decode(encoded(sample), type=kind) == sample


def test_every_message_is_read_by_its_tag() -> None:
    vocabulary = Vocabulary()
    for kind in MESSAGES:
        sample = next(samples(inspect.type_info(kind)))
        read = vocabulary.decode(memoryview(encoded(sample)))
        assert type(read) is kind
        assert read == sample


def test_every_mailbox_is_in_it() -> None:
    mailboxes: dict[str, object] = {}
    for module in MODULES:
        for name, value in vars(module).items():
            if name.endswith("Message") and isinstance(value, UnionType) and name != "Message":
                mailboxes[f"{module.__name__}.{name}"] = value
    assert len(mailboxes) >= 10
    for name, union in mailboxes.items():
        assert set(get_args(union)) <= set(get_args(Message)), f"{name} is not in protocol.vocabulary.Message"
    for kind in REQUESTS:
        assert kind in MESSAGES, f"{kind.__name__} is asked of nobody"
    tags = [kind.__struct_config__.tag for kind in MESSAGES]
    assert None not in tags
    assert len(set(tags)) == len(tags)


def test_every_answer_is_the_same_after_the_way_between_processes() -> None:
    vocabulary = Vocabulary()
    for kind in REQUESTS:
        promised = answer_of(kind)
        assert promised is not Any, kind
        for sample in samples(inspect.type_info(promised)):
            assert vocabulary.answer(kind, memoryview(encoded(sample))) == sample


def test_the_type_of_an_answer_is_the_one_that_the_request_promises() -> None:
    class Plain(Request[R_co], frozen=True):
        """Says nothing of its answer."""

    class Late(ListSaved, frozen=True):
        """Says it by its base."""

    assert answer_of(ListSaved) == list[Saved]
    assert answer_of(Late) == list[Saved]
    assert answer_of(Plain) is Any
    assert answer_of(Entered) is Any


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "truncated"),
        (b"\xc1", "invalid opcode"),
        (encoded({"type": "Nudge"}), "Invalid value"),
        (encoded({"n": 1}), "missing required field `type`"),
        (encoded({"type": "Pieces", "pieces": [[1, "x", "text"]]}), "Expected `int`"),
        (b"\x82\xa4type\xa6Pieces\xa6pieces\x91\x93\x01\x01\xa1\xff", "utf-8"),
        (b"\x82\xa4type\xa6Pieces\xa1x" + b"\x91" * 5000, "recursion"),
    ],
)
def test_what_is_not_understood_is_said_so(body: bytes, why: str) -> None:
    with pytest.raises(Unspeakable, match=why):
        Vocabulary().decode(memoryview(body))


def test_an_answer_of_another_type_is_not_understood() -> None:
    with pytest.raises(Unspeakable, match="an answer to ListSaved that is not understood"):
        Vocabulary().answer(ListSaved, memoryview(encoded([1])))


def test_what_strangers_put_into_json_is_mended() -> None:
    call = CallTool(call="1", tool="t\ud800", arguments={"n": 10**30, "m": [-(10**400)], "b": b"\x00"}, to="front")
    read = Vocabulary().decode(memoryview(encoded(call)))
    assert read == CallTool(
        call="1", tool="t?", arguments={"n": 1e30, "m": [str(-(10**400))], "b": b"\x00"}, to="front"
    )
    outcome = ToolOutcome(ok=True, text="\ud800", structured={"\udfff": 2**64})
    assert Vocabulary().answer(CallTool, memoryview(encoded(outcome))) == ToolOutcome(
        ok=True, text="?", structured={"?": float(2**64)}
    )
    pieces = Pieces([Text(1, "\ud83d"), Finished(1, "stop", "m", [ToolCall("1", "t", "{}")], None, {"n": 2**70})])
    assert Vocabulary().decode(memoryview(encoded(pieces))) == Pieces(
        [Text(1, "?"), Finished(1, "stop", "m", [ToolCall("1", "t", "{}")], None, {"n": float(2**70)})]
    )


def test_what_is_nested_too_deeply_or_no_data_cannot_be_said() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(Unspeakable, match="nested too deeply"):
        encoded(ToolOutcome(ok=True, text="t", structured=deep))
    with pytest.raises(Unspeakable, match="nested too deeply"):
        encoded(ToolOutcome(ok=True, text="\ud800", structured=deep))
    with pytest.raises(TypeError, match="unsupported"):
        encoded(ToolOutcome(ok=True, text="t", structured=object()))

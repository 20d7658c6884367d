"""A store for tests, and short words for what is written into it and asked of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar, cast

import pytest

from actors.retention import Limits, Removed
from actors.schema import Database
from actors.store import Store
from protocol.errors import Fault
from protocol.mail import Request
from protocol.streamer import ToolCall
from protocol.writer import (
    Append,
    AppendDeltas,
    BeginTurn,
    Closed,
    Delta,
    Event,
    History,
    HopEvent,
    LoadHistory,
    Operation,
    Query,
    UserEvent,
)

R = TypeVar("R")


@contextmanager
def opened(path: Path | str, watch: Callable[[Database], None] = lambda _: None) -> Iterator[Store]:
    with closing(Store(str(path), watch)) as opening:
        opening.open()
        yield opening


def do(into: Store, operation: Request[R]) -> R:
    """Commit one; its answer, a fault raised."""
    (answer,) = into.commit([cast(Operation, operation)])
    if isinstance(answer, Fault):
        raise answer
    return cast(R, answer)


def ask(of: Store, query: Request[R]) -> R:
    return cast(R, of.query(cast(Query, query)))


def begin(
    turn: int = 1, *, conversation: str = "c", owner: str = "ann", content: object = "hi", queued: bool = False
) -> BeginTurn:
    return BeginTurn(owner, conversation, turn, UserEvent(content, f"r{turn}", streaming=True), queued)


def hop(number: int, content: str, thinking: str = "", tools: Sequence[str] = ()) -> HopEvent:
    calls = [ToolCall(name, name, "{}") for name in tools]
    return HopEvent(number, content, thinking, calls, {"x": [1]}, "p", "m", {"total_tokens": number, "id": "u"}, "stop")


def closed(outcome: str = "completed", seq: int = 9) -> Closed:
    return Closed(outcome, seq, "text", "", {"total_tokens": 3}, "m", "stop", None)


def append(*events: Event, turn: int = 1, key: str = "k", conversation: str = "c") -> Append:
    return Append(conversation, turn, key, list(events))


def tick(*deltas: Delta) -> AppendDeltas:
    return AppendDeltas(list(deltas))


def delta(seq: int, text: str, *, hop: int = 1, thinking: str = "", turn: int = 1, conversation: str = "c") -> Delta:
    return Delta(conversation, turn, hop, seq, text, thinking)


def history(
    of: Store, conversation: str = "c", owner: str = "ann", *, before: int = 0, after: int = 0, limit: int = 50
) -> History:
    return ask(of, LoadHistory(owner, conversation, before, after, limit))


def events(of: Store, turn: int = 1) -> list[Event]:
    return [stored.event for stored in history(of).events if stored.turn == turn]


def whole(into: Store, turn: int, text: str = "answer", *, conversation: str = "c", owner: str = "ann") -> None:
    """A turn from its beginning to its end; without text it has no answer."""
    do(into, begin(turn, conversation=conversation, owner=owner, content=f"question {turn}"))
    end = Closed("completed" if text else "stopped", 9, text, "", None, "m", "stop", None)
    hops = [hop(1, text)] if text else []
    do(into, append(*hops, end, turn=turn, key="end", conversation=conversation))


MINUTES = itertools.count(60, 60)


def sweep(of: Store, limits: Limits, live: Container[str] = ()) -> Removed:
    """A whole sweep, at a time when what was entered before is not new any more; what it removed."""
    removed = Removed()
    now = time.time() + next(MINUTES)
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr("actors.store.time.time", lambda: now)
        for _ in of.sweep(limits, live, removed):
            pass
    return removed

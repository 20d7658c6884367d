"""What a turn's log promises: every reader gets the same text, exactly, however fast it reads; so does the store."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors import turnlog
from actors.front import Conversation, Front
from actors.gateway import Gateway, grown
from actors.server_asks import ServerAsks
from actors.store import MEMORY
from actors.turnlog import Lost, Thought, TurnLog, frame_of
from protocol.client import ErrorFrame, ToolExecution, TurnFinished
from protocol.errors import Code, Fault
from protocol.mail import Gone, TooSlow
from protocol.spec import Context
from protocol.writer import Append, AppendDeltas, BeginTurn, Closed, HopEvent, LoadHistory, UserEvent
from tests.stores import ask, do, opened
from tests.wsframes import decoded

Entry = tuple[str, str]
"""(kind, text): `text`, `thinking`, or `frame`, whose text is its call_id."""

ENTRIES = st.lists(st.tuples(st.sampled_from(["text", "text", "thinking", "frame"]), st.text(max_size=12)), max_size=40)


@contextmanager
def merging(chars: int, joined: int = turnlog.JOINED) -> Iterator[None]:
    """With so many characters in one merged frame, and so many pieces kept as one text."""
    with patch.object(turnlog, "MERGE_CHARS", chars), patch.object(turnlog, "JOINED", joined):
        yield


def add(log: TurnLog, entry: Entry) -> None:
    kind, text = entry
    if kind == "frame":
        log.add_frame(lambda seq: ToolExecution(log.turn, seq, text, "tool", "server", "executing"))
    else:
        log.add(text, thinking=kind == "thinking")


class Reader:
    """A socket's place in a log, and the frames that it has got."""

    def __init__(self, log: TurnLog, index: int = 0, *, text: bool = True) -> None:
        self.log, self.start, self.index, self.text = log, index, index, text
        self.frames: list[dict[str, Any]] = []

    def read(self) -> None:
        data, self.index = self.log.frames(self.index, text=self.text)
        self.frames += decoded(data)

    def finish(self) -> None:
        while self.index < len(self.log.entries):
            before = self.index
            self.read()
            assert self.index > before

    def check(self, entries: list[Entry]) -> None:
        """Every frame is exactly the entries between the seq of the one before and its own."""
        streamed = self.text and self.log.streaming
        place = self.start
        for frame in self.frames:
            assert frame["turn"] == self.log.turn
            seq = frame["seq"]
            assert seq > place
            if frame["type"] == "tool_execution":
                between, (kind, text) = entries[place : seq - 1], entries[seq - 1]
                assert (kind, frame["call_id"]) == ("frame", text)
            else:
                assert streamed
                kind = frame["type"].removesuffix("_delta").replace("assistant", "text")
                between = []
                assert {found for found, part in entries[place:seq] if part} == {kind}
                assert frame["text"] == "".join(text for _, text in entries[place:seq])
            # nothing lies between but text that is not shown, and places that are held by none
            assert all(found != "frame" and not (streamed and part) for found, part in between)
            place = seq
        assert all(kind != "frame" and not (streamed and part) for kind, part in entries[place : self.index])


@given(
    entries=ENTRIES,
    speeds=st.lists(st.integers(0, 4), min_size=2, max_size=4),
    streaming=st.booleans(),
    chars=st.integers(1, 30),
    stored=st.integers(0, 5),
    joined=st.integers(1, 4),
    late_at=st.integers(0, 40),
)
def test_readers_at_any_speed_get_everything_once(
    entries: list[Entry], speeds: list[int], streaming: bool, chars: int, stored: int, joined: int, late_at: int
) -> None:
    log = TurnLog("c", 7, streaming=streaming)
    readers = [Reader(log) for _ in speeds] + [Reader(log, text=False)]
    with merging(chars, joined):
        for step, entry in enumerate(entries):
            add(log, entry)
            if stored and step % stored == 0:
                log.was_stored(log.seq, 0)
            for reader, speed in zip(readers, [*speeds, 2], strict=True):
                if speed and step % speed == 0:
                    reader.read()
        late = [Reader(log, start) for start in {0, min(late_at, len(entries)), len(entries)}]
        for reader in [*readers, *late]:
            reader.finish()
            reader.check(entries)
    assert log.seq == len(entries)
    if streaming:
        for kind, name in (("text", "assistant_delta"), ("thinking", "thinking_delta")):
            whole = "".join(text for found, text in entries if found == kind)
            assert all("".join(f["text"] for f in r.frames if f["type"] == name) == whole for r in readers[:-1])
    assert log.text() == "".join(text for kind, text in entries if kind == "text")
    assert log.thinking() == "".join(text for kind, text in entries if kind == "thinking")
    assert log.text(late_at) == "".join(text for kind, text in entries[late_at:] if kind == "text")
    assert log.thinking(late_at) == "".join(text for kind, text in entries[late_at:] if kind == "thinking")


@pytest.mark.parametrize("thinking", [False, True])
def test_what_is_stored_of_a_long_answer_takes_little_more_than_its_letters(thinking: bool) -> None:
    log, index = TurnLog("c", 1), 0
    tracemalloc.start()
    try:
        for number in range(6000):
            log.add(f"word {number:5} ", thinking=thinking)
            _, index = log.frames(index)
            if number % 10 == 0:
                log.was_stored(log.seq, 0)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 2.5 * 6000 * len("word 12345 ")  # as strings they would be three times as much
    assert len((log.thinking() if thinking else log.text()).split()) == 12_000


def test_large_pieces_are_kept_by_themselves() -> None:
    """A reader that is far behind gets frames that are no larger for it."""
    log = TurnLog("c", 1)
    for _ in range(2 * turnlog.JOINED):
        log.add("x" * turnlog.LARGE)
    log.was_stored(log.seq, 0)
    with merging(1):
        assert log.frames(0)[1] == 1


def test_a_shared_encoding_is_used_for_its_range_only() -> None:
    log = TurnLog("c", 1)
    log.add("a")
    first = log.frames(0)
    assert log.frames(0)[0] is first[0]
    log.add("b")
    assert [f["text"] for f in decoded(log.frames(0)[0])] == ["ab"]
    assert [f["text"] for f in decoded(log.frames(1)[0])] == ["b"]
    assert log.frames(0, text=False) == (b"", 2)
    assert [f["text"] for f in decoded(log.frames(1)[0])] == ["b"]
    assert log.frames(2) == (b"", 2)


def test_merged_frames_stay_small_and_one_call_ends() -> None:
    log = TurnLog("c", 1)
    for _ in range(100):
        log.add("x" * 1000)
    data, index = log.frames(0)
    assert index < 100
    assert len(data) < 2 * turnlog.MERGE_CHARS
    reader = Reader(log)
    reader.finish()
    assert sum(len(f["text"]) for f in reader.frames) == 100_000
    assert len(reader.frames) == 4


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70_000])
def test_frames_of_every_length_form(size: int) -> None:
    payload = b'"' + b"x" * max(0, size - 2) + b'"'
    assert frame_of(payload)[-len(payload) :] == payload
    assert decoded(frame_of(b'{"a":' + payload + b"}")) == [{"a": "x" * max(0, size - 2)}]


def test_a_frame_takes_along_what_belongs_before_it() -> None:
    log = TurnLog("c", 1)
    fault = Fault(Code.INTERNAL).body
    error = ErrorFrame(fault.code, fault.text, fault.retryable)
    assert log.add_frame(lambda seq: TurnFinished(1, seq, "failed"), error) == 1
    data, index = log.frames(0)
    assert [f["type"] for f in decoded(data)] == ["error", "turn_finished"]
    assert index == 1


# Hops.


def test_a_new_hop_begins_behind_what_earlier_ones_added() -> None:
    log = TurnLog("c", 1)
    log.begin_hop(1, request=5)
    log.add("one")
    log.decisions.append(Lost(5, "gone"))
    log.begin_hop(1, request=6)  # asked again: the same hop, another request
    assert (log.hop_start, log.asked, log.request, len(log.decisions)) == (0, 2, 6, 0)
    log.begin_hop(2, request=7)
    assert (log.hop_start, log.stored, log.sending, log.unstored_chars, log.asked) == (1, 1, 1, 0, 1)
    log.add("two", thinking=True)
    assert (log.text(log.hop_start), log.thinking(log.hop_start)) == ("", "two")
    log.decisions.append(Lost(7, "gone"))
    log.stop_filling()
    assert (log.request, len(log.decisions)) == (0, 0)


def test_shown_is_an_entry_or_a_tool() -> None:
    nothing, tool, text = TurnLog("c", 1), TurnLog("c", 1), TurnLog("c", 1)
    tool.tools_ran = True
    text.add("")
    assert [log.shown for log in (nothing, tool, text)] == [False, True, True]


def test_nothing_grows_before_the_turn_is_on_disk() -> None:
    log = TurnLog("c", 1)
    log.begin_hop(1, 1)
    log.add("early")
    assert grown(log) is None
    log.attached = True
    delta = grown(log)
    assert delta is not None
    assert (delta.seq, delta.hop, delta.text) == (1, 1, "early")


def test_an_unacknowledged_range_is_sent_again_unchanged() -> None:
    log = TurnLog("c", 1)
    log.begin_hop(1, 1)
    log.attached = True
    log.add("a")
    first = grown(log)
    log.add("b")
    assert grown(log) == first
    log.stored = 1
    second = grown(log)
    assert second is not None
    assert (second.seq, second.text) == (2, "b")


# What the store gets, with any fate of the ticks: the real tick, the real store.


class Postman:
    """Stands for the writer's address: some ticks are lost before they are stored, some after, some come twice."""

    def __init__(self, into: Any, rng: random.Random) -> None:
        self.into, self.rng = into, rng
        self.reliable = False
        self.earlier: list[AppendDeltas] = []

    async def ask(self, message: AppendDeltas, *, within: float) -> object:
        fate = 9 if self.reliable else self.rng.randrange(10)
        if fate < 2:
            raise Gone("store/writer")
        self.earlier.append(message)
        do(self.into, message)
        if fate < 4:
            raise TooSlow("stored, but nobody knows")
        if fate < 6:
            do(self.into, self.rng.choice(self.earlier))  # one that was sent again, long ago, arrives
        return None


def front_with(log: TurnLog, postman: Postman) -> Front:
    conversation = Conversation("c", "ann")
    conversation.attach(log)
    kept = {"id": "", "running": lambda: iter([log]), "conversations": {"c": conversation}, "grew": lambda _: None}
    return cast(Front, SimpleNamespace(**kept, writer=postman, streamer=None))


@given(rng=st.randoms(use_true_random=False), steps=st.integers(1, 40), streaming=st.booleans())
def test_whatever_happens_to_the_ticks_the_store_has_the_text(rng: random.Random, steps: int, streaming: bool) -> None:
    async def play() -> None:
        with opened(MEMORY) as store:
            do(store, BeginTurn("ann", "c", 1, UserEvent("hi", "r1", streaming), queued=False))
            postman = Postman(store, rng)
            log = TurnLog("c", 1, streaming=streaming)
            gateway = Gateway(cast(Context, None), front_with(log, postman), cast(ServerAsks, None))
            log.begin_hop(1, 1)
            number = 0
            for _ in range(steps):
                choice = rng.random()
                if choice < 0.6:
                    number += 1
                    add(log, (rng.choice(["text", "thinking", "frame"]), f"<{number}>"))
                elif choice < 0.9:
                    await gateway._tick()
                else:
                    start = log.hop_start
                    event = HopEvent(log.hop, log.text(start), log.thinking(start), [], {}, "p", "m", None, "")
                    do(store, Append("c", 1, f"hop-{log.hop}", [event]))
                    log.begin_hop(log.hop + 1, log.hop + 1)
            stored = log.stored
            if rng.random() < 0.5:
                postman.reliable = True
                await gateway._tick()  # what was on its way
                await gateway._tick()  # what came after that
                assert log.stored == log.seq
                stored = log.seq
            store.recover()
            (closed,) = [s.event for s in ask(store, LoadHistory("ann", "c")).events if isinstance(s.event, Closed)]
            for kept, whole, least in (
                (closed.message, log.text(), _upto(log, stored, thinking=False)),
                (closed.thinking, log.thinking(), _upto(log, stored, thinking=True)),
            ):
                assert whole.startswith(kept), "stored text is the turn's, from its beginning, without gap or repeat"
                assert kept.startswith(least), "what was acknowledged is there"
                assert not postman.reliable or kept == whole

    trio.run(play)


def _upto(log: TurnLog, index: int, *, thinking: bool) -> str:
    if thinking:
        return "".join(entry.text for entry in log.entries[:index] if isinstance(entry, Thought))
    return "".join(entry for entry in log.entries[:index] if isinstance(entry, str))


def test_what_streams_is_nothing_to_the_garbage_collector() -> None:
    """It would stop everybody for milliseconds, many times a minute, to find that there is no garbage."""
    log, index = TurnLog("c", 1), 0
    pieces = [str(number) for number in range(3000)]
    gc.collect()
    gc.disable()
    try:
        before = gc.get_count()[0]
        for number, piece in enumerate(pieces):
            log.add(piece, thinking=number < 1000)
            _, index = log.frames(index)
        assert gc.get_count()[0] - before < 300
    finally:
        gc.enable()
    assert index == 3000

"""What the readings of stored events promise: messages that providers accept, pages, and frames as they were live."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import transcript
from actors.catalogue import merge
from actors.running_turn import RunningTurn
from actors.turnlog import TurnLog
from protocol.client import ToolExecution, TurnFinished, encode, error_frame
from protocol.errors import Code, Fault
from protocol.streamer import Finished, ToolCall
from protocol.watcher import Snapshot, ToolNotifications
from protocol.writer import Closed, Event, HopEvent, StoredEvent, ToolEnded, ToolStarted, UserEvent
from tests.streaming import provider, snapshot
from tests.wsframes import decoded

NOTICES = ToolNotifications(enabled=True, show_args=True, icon="*", format="{icon} {tool_name} of {server}: {args}")
BROKEN = Fault(Code.LLM_STREAM_BROKEN).body


def configured(notices: ToolNotifications = NOTICES) -> Snapshot:
    base = snapshot(provider("http://127.0.0.1:1/v1", "p"))
    return msgspec.structs.replace(base, service=msgspec.structs.replace(base.service, tool_notifications=notices))


def user(turn: int = 1, content: Any = "hi") -> UserEvent:
    return UserEvent(content, f"r{turn}", streaming=True)


def hop(number: int, content: str = "", calls: list[ToolCall] | None = None, **changes: Any) -> HopEvent:
    base = HopEvent(number, content, "", calls or [], {}, "p", "m", None, "stop")
    return msgspec.structs.replace(base, **changes)


def started(call: str, seq: int = 1, model_call: str = "") -> ToolStarted:
    return ToolStarted(call, model_call or call, seq, "add", "demo", '{"a": 1}')


def ended(call: str, seq: int = 2, model_call: str = "", status: str = "completed", result: str = "2") -> ToolEnded:
    return ToolEnded(call, model_call or call, seq, status, result, 5)


def closed(outcome: str = "completed", seq: int = 9, message: str = "text", **changes: Any) -> Closed:
    return msgspec.structs.replace(Closed(outcome, seq, message, "", None, "m", "stop", None), **changes)


# For the model.


def refused(messages: list[dict[str, Any]]) -> str:
    """Why a strict provider would refuse them; empty if it would not."""
    waiting: set[str] = set()
    for place, said in enumerate(messages):
        role = said["role"]
        if role == "tool":
            if said["tool_call_id"] not in waiting:
                return f"{place}: a tool message without its call, or the second one"
            waiting.discard(said["tool_call_id"])
            if not isinstance(said["content"], str):
                return f"{place}: a tool message without text"
            continue
        if waiting:
            return f"{place}: calls without a tool message: {waiting}"
        if role == "system" and place:
            return f"{place}: the system prompt is not the first"
        if role == "assistant":
            calls = said.get("tool_calls")
            if calls is None and not said["content"]:
                return f"{place}: an empty answer"
            if calls is not None and (not calls or any(c["type"] != "function" for c in calls)):
                return f"{place}: no calls in tool_calls"
            waiting = {call["id"] for call in calls or []}
            if len(waiting) != len(calls or []):
                return f"{place}: two calls of one id"
        elif role not in ("user", "system"):
            return f"{place}: role {role}"
    return f"the end: calls without a tool message: {waiting}" if waiting else ""


def any_turn(rng: random.Random, turn: int) -> list[Event]:
    """A turn as a crash, a stop or a full disk may have left it: cut anywhere, outcomes in any order, or missing."""
    events: list[Event] = []
    for number in range(1, rng.randint(1, 4)):
        # providers that number their calls per answer give the same ids again and again
        calls = [ToolCall(f"call_{n}", "add", "{}") for n in range(rng.randint(0, 3))]
        thinking = rng.choice(["", "hm"])
        events.append(hop(number, rng.choice(["", f"t{turn}.{number}"]), calls, thinking=thinking))
        begun = [started(f"{turn}-{number}-{n}", 1, call.id) for n, call in enumerate(calls)]
        outcomes = [ended(event.call_id, 2, event.model_call_id) for event in begun]
        rng.shuffle(outcomes)
        events += begun
        events += outcomes[: rng.randint(0, len(outcomes))]
        if rng.random() < 0.2 and outcomes:
            events.append(outcomes[0])  # its append was repeated
    events = events[: rng.randint(0, len(events))]
    if rng.random() < 0.2:
        events = [e for e in events if not isinstance(e, HopEvent)]  # the journal could not be stored
    return [user(turn), *events, *([closed()] if rng.random() < 0.7 else [])]


@given(rng=st.randoms(use_true_random=False), turns=st.integers(1, 4), prompt=st.sampled_from(["", "You are."]))
def test_a_provider_accepts_what_the_model_is_told_of_any_history(rng: random.Random, turns: int, prompt: str) -> None:
    history = [any_turn(rng, turn) for turn in range(1, turns + 1)]
    messages = transcript.for_model(prompt, [event for turn in history for event in turn], "p")
    assert refused(messages) == ""
    assert [m["content"] for m in messages if m["role"] == "system"] == [prompt] * bool(prompt)
    assert [m["role"] for m in messages].count("user") == turns
    hops = [event for turn in history for event in turn if isinstance(event, HopEvent)]
    assert [m["content"] for m in messages if m["role"] == "assistant"] == [
        event.content for event in hops if event.content or event.tool_calls
    ]


def test_calls_without_an_outcome_are_told_as_unknown() -> None:
    calls = [ToolCall("c1", "add", "{}"), ToolCall("c2", "add", "{}")]
    events: list[Event] = [user(), hop(1, "", calls), started("a", 1, "c1"), started("b", 2, "c2"), ended("b", 3, "c2")]
    messages = transcript.for_model("", events, "p")
    assert [(m["role"], m.get("tool_call_id"), m["content"]) for m in messages[2:]] == [
        ("tool", "c2", "2"),
        ("tool", "c1", transcript.UNKNOWN_OUTCOME),
    ]


def test_raw_fields_go_back_to_the_provider_that_sent_them_and_to_no_other() -> None:
    call = ToolCall("c1", "add", "{}", {"extra_content": {"thought_signature": "s"}})
    raw = {"reasoning_content": "hm", "content": [{"type": "text", "text": "t"}]}
    events: list[Event] = [user(), hop(1, "t", [call], raw=raw), ended("x", 2, "c1")]
    [_, own, _] = transcript.for_model("", events, "p")
    assert own["reasoning_content"] == "hm"
    assert own["content"] == raw["content"]
    assert own["tool_calls"][0]["extra_content"] == {"thought_signature": "s"}
    assert own["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    [_, other, _] = transcript.for_model("", events, "q")
    assert other == {
        "role": "assistant",
        "content": "t",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
    }


# Pages.


def stored(turn: int, *events: Event) -> list[StoredEvent]:
    return [StoredEvent(turn, 1000.0 * turn + place, event) for place, event in enumerate(events)]


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ([user(), closed()], [("user", "hi", "complete"), ("assistant", "text", "complete")]),
        ([user(), closed("stopped")], [("user", "hi", "stopped"), ("assistant", "text", "stopped")]),
        ([user(), closed("failed", message="")], [("user", "hi", "failed")]),
        ([user()], [("user", "hi", "running")]),
        ([user(), hop(1, "part")], [("user", "hi", "running")]),
        (
            [user(), hop(1), started("a"), ended("a"), closed("interrupted", message="")],
            [("user", "hi", "interrupted"), ("assistant", "", "interrupted")],
        ),
    ],
)
def test_a_page_shows_each_turn_as_far_as_it_came(events: list[Event], shown: list[tuple[str, str, str]]) -> None:
    assert [(m.role, m.content, m.status) for m in transcript.page(stored(1, *events))] == shown


def test_a_page_is_ordered_dated_and_tells_of_tools_and_of_what_waits() -> None:
    first = stored(1, user(), hop(1), started("a"), started("b"), ended("a"), closed(thinking="hm"))
    messages = transcript.page([*first, *stored(2, user(2)), *stored(3, user(3))], queued=[3])
    assert [(m.turn, m.role, m.status) for m in messages] == [
        (1, "user", "complete"),
        (1, "assistant", "complete"),
        (2, "user", "running"),
        (3, "user", "queued"),
    ]
    answer = messages[1]
    assert answer.thinking == "hm"
    assert [(t.call_id, t.status, t.result, t.arguments) for t in answer.tools] == [
        ("a", "completed", "2", '{"a": 1}'),
        ("b", "unknown", None, '{"a": 1}'),
    ]
    assert json.loads(encode_page(messages))[0]["at"] == "1970-01-01T00:16:40Z"


def encode_page(messages: list[Any]) -> bytes:
    return msgspec.json.encode(messages)


# Replay.


def publish(log: TurnLog, end: Closed) -> None:
    """As a session shows the end of a turn."""
    if end.message:
        log.add_frame(lambda seq: transcript.assistant_message(log.turn, msgspec.structs.replace(end, seq=seq + 1)))
    before = [error_frame(end.error, turn=log.turn)] if end.error is not None and end.outcome == "failed" else []
    log.add_frame(lambda seq: TurnFinished(log.turn, seq, end.outcome, error=end.error), *before)


def play(rng: random.Random) -> tuple[TurnLog, list[Event], set[int]]:
    """Any turn, through the real room of running turns: its log, its stored events, and the seqs of progress."""
    log = TurnLog("c", 4)
    turn = RunningTurn(log, user(4), [user(4)], configured(), merge({}))
    progress: set[int] = set()
    for number in range(1, rng.randint(2, 5)):
        log.begin_hop(number, number)
        turn.asking()
        for _ in range(rng.randint(0, 3)):
            log.add(rng.choice(["a", "ü", '"\n']), thinking=rng.random() < 0.3)
        if rng.random() < 0.3:
            break  # cut off in this answer
        calls = [ToolCall(f"call_{n}", "add", rng.choice(['{"a": 1}', "not json"])) for n in range(rng.randint(0, 2))]
        turn.answered(Finished(number, "stop", "m", calls, {"total_tokens": 2}, {}))
        if not calls:
            break
        turn.begin_calls()
        for call in tuple(log.calls.values()):
            if rng.random() < 0.3:
                progress.add(log.add_frame(lambda seq: ToolExecution(4, seq, "x", "add", "", "progress")))
            if rng.random() < 0.8:
                turn.end_call(call, rng.choice(["completed", "failed"]), "r" * rng.choice([1, 20_000]), 3)
        if log.calls:
            break  # stopped, with calls running
    outcome = rng.choice(["completed", "stopped", "failed", "interrupted"])
    _, end = turn.close(outcome, BROKEN if outcome in ("failed", "interrupted") else None)
    publish(log, end)
    assert end.seq == log.seq, "the stored end has the place of the shown one"
    return log, turn.events, progress


@given(rng=st.randoms(use_true_random=False))
def test_a_replay_gives_the_live_frames_after_any_position_without_text(rng: random.Random) -> None:
    log, events, progress = play(rng)
    for after in range(-1, log.seq + 2):
        live, index = b"", max(after, 0)
        while index < log.seq:
            data, index = log.frames(index, text=False)
            live += data
        expected = [frame for frame in decoded(live) if frame.get("seq") not in progress]
        frames = transcript.replay(4, events, after, NOTICES)
        assert [json.loads(encode(frame)) for frame in frames] == expected
    first, *rest = transcript.replay(4, events, None, NOTICES)
    assert json.loads(encode(first))["type"] == "turn_started"
    assert json.loads(encode(first))["request_id"] == "r4"
    assert rest == transcript.replay(4, events, 0, NOTICES)


def test_an_outcome_that_was_stored_twice_is_told_once() -> None:
    events: list[Event] = [user(), hop(1), started("a", 1), ended("a", 2), ended("a", 2), closed(seq=4)]
    assert [getattr(f, "seq", None) for f in transcript.replay(1, events, 0)] == [1, 2, 3, 4]


def test_a_turn_that_is_not_closed_is_not_replayed() -> None:
    assert transcript.replay(1, [user(), hop(1, "part")], None) == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ("not json", "not json"),
        ('{"a": "\\ud83d"}', '{"a": "\\ud83d"}'),
        ("[" * 100_000, "[" * 100_000),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
    ],
)
def test_arguments_are_shown_as_a_value_or_as_the_model_wrote_them(arguments: str, shown: object) -> None:
    assert transcript.shown_arguments(arguments) == shown
    call = ToolStarted("c", "m", 1, "add", "demo", arguments)
    frame = transcript.tool_execution(1, call, 1, "executing", NOTICES)
    assert json.loads(encode(frame))["arguments"] == shown


def test_notices_can_be_off() -> None:
    off = ToolNotifications(enabled=False, show_args=False, icon="", format="")
    frame = transcript.tool_execution(1, started("a"), 1, "executing", off)
    assert (frame.message, frame.arguments) == ("", None)

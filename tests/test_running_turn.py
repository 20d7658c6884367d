"""What a running turn promises: log, stored events and messages that agree, whatever the model and tools say."""

from __future__ import annotations

from typing import Any

import pytest

from actors import transcript
from actors.catalogue import Merged, merge
from actors.running_turn import CANCELLED, RunningTurn
from actors.turnlog import TurnLog
from protocol.contents import SHOWN_CHARS
from protocol.errors import Code, Fault
from protocol.mcp_server import Catalogue, Tool
from protocol.streamer import Finished, ToolCall
from protocol.writer import Closed, Event, HopEvent, ToolEnded, ToolStarted, UserEvent
from tests.test_transcript import configured, refused
from tests.wsframes import decoded

ADD = Tool("add", "Adds.", {"type": "object", "properties": {}}, {})


def offered() -> Merged:
    return merge({"demo": Catalogue("demo", [ADD], [], [], "")})


def turn_of(*events: Event, streaming: bool = True, log: TurnLog | None = None) -> RunningTurn:
    user = UserEvent("hi", "r1", streaming)
    log = log or TurnLog("c", 3, streaming=streaming)
    return RunningTurn(log, user, [user, *events], configured(), offered())


def asked(turn: RunningTurn, hop: int = 1) -> None:
    turn.log.begin_hop(hop, request=hop)
    turn.asking()


def answer(*calls: ToolCall, usage: dict[str, Any] | None = None, **raw: Any) -> Finished:
    return Finished(1, "tool_calls" if calls else "stop", "m-2", list(calls), usage, raw)


def frames(log: TurnLog) -> list[dict[str, Any]]:
    out, index = b"", 0
    while index < log.seq:
        data, index = log.frames(index)
        out += data
    return decoded(out)


def test_it_begins_with_what_was_asked_and_whose_request_it_was() -> None:
    frame = turn_of().started()
    assert (frame.turn, frame.message, frame.model, frame.provider, frame.request_id) == (3, "hi", "m1", "p", "r1")


def test_an_answer_with_calls_is_stored_with_their_intents_before_they_are_made() -> None:
    turn = turn_of()
    asked(turn)
    turn.log.add("hm", thinking=True)
    turn.log.add("let me see")
    ids = turn.answered(answer(ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "nope", "{"), reasoning="hm"))
    hop, first, second = turn.begin_calls()
    assert isinstance(hop, HopEvent)
    assert (hop.hop, hop.content, hop.thinking, hop.raw, hop.provider) == (
        1,
        "let me see",
        "hm",
        {"reasoning": "hm"},
        "p",
    )
    assert [call.id for call in hop.tool_calls] == ["c1", "c2"]
    assert isinstance(first, ToolStarted)
    assert isinstance(second, ToolStarted)
    assert [(e.call_id, e.model_call_id, e.server, e.seq) for e in (first, second)] == [
        (ids[0], "c1", "demo", 3),
        (ids[1], "c2", "", 4),
    ]
    assert turn.log.calls == {ids[0]: first, ids[1]: second}
    shown = frames(turn.log)[-2:]
    assert [(f["seq"], f["status"], f["arguments"]) for f in shown] == [
        (3, "executing", {"a": 1}),
        (4, "executing", "{"),
    ]
    ended = turn.end_call(first, "completed", "2", 7)
    assert (ended.seq, ended.status, ended.result, ended.elapsed_ms) == (5, "completed", "2", 7)
    assert ids[0] not in turn.log.calls
    assert turn.events[-1] is ended


def test_a_call_has_one_outcome_the_first() -> None:
    turn = turn_of()
    asked(turn)
    turn.answered(answer(ToolCall("c1", "add", "{}")))
    _, call = turn.begin_calls()
    assert isinstance(call, ToolStarted)
    events, closed = turn.close("stopped", None)
    [cancelled] = [e for e in events if isinstance(e, ToolEnded)]
    assert (cancelled.status, cancelled.result) == ("cancelled", CANCELLED)
    # its answer was on the way already when the turn was stopped
    assert turn.end_call(call, "completed", "2", 7) == cancelled
    assert turn.log.seq == cancelled.seq == closed.seq - 1


@pytest.mark.parametrize(
    ("outcome", "status"), [("stopped", "cancelled"), ("interrupted", "unknown"), ("failed", "unknown")]
)
def test_closing_ends_what_runs_and_tells_where_the_end_will_be(outcome: str, status: str) -> None:
    fault = None if outcome == "stopped" else Fault(Code.INTERNAL).body
    turn = turn_of()
    asked(turn)
    turn.log.add("one ")
    turn.answered(answer(ToolCall("c1", "add", "{}"), ToolCall("c2", "add", "{}"), usage={"total_tokens": 2}))
    _, first, _ = turn.begin_calls()
    assert isinstance(first, ToolStarted)
    turn.end_call(first, "completed", "2", 7)
    events, closed = turn.close(outcome, fault)
    [left] = [e for e in events if isinstance(e, ToolEnded)]
    assert (left.model_call_id, left.status) == ("c2", status)
    assert events[-1] is closed is turn.events[-1]
    assert (closed.outcome, closed.message, closed.error) == (outcome, "one ", fault)
    assert closed.seq == turn.log.seq + 2  # assistant_message, then the end
    assert closed.usage == {"total_tokens": 2}
    assert not turn.log.calls
    assert refused(transcript.for_model("", turn.events, "p")) == ""


def test_a_cut_off_answer_is_stored_as_far_as_it_came() -> None:
    turn = turn_of()
    asked(turn)
    turn.log.add("half an answ")
    events, closed = turn.close("stopped", None)
    assert [type(e) for e in events] == [HopEvent, Closed]
    assert transcript.for_model("", turn.events, "p")[-1] == {"role": "assistant", "content": "half an answ"}
    assert closed.message == "half an answ"


def test_nothing_said_is_nothing_stored_but_the_end() -> None:
    turn = turn_of()
    asked(turn)
    events, closed = turn.close("completed", None)
    assert events == [closed]
    assert closed.seq == 1  # no assistant_message comes before


def test_calls_past_the_limit_are_not_stored_as_asked_for() -> None:
    turn = turn_of()
    asked(turn)
    turn.log.add("again")
    turn.answered(answer(ToolCall("c1", "add", "{}")))
    events, _ = turn.close("failed", Fault(Code.TOOL_HOPS_EXCEEDED).body)
    [hop] = [e for e in events if isinstance(e, HopEvent)]
    assert hop.tool_calls == []
    assert refused(transcript.for_model("", turn.events, "p")) == ""


def test_usage_is_summed_where_it_is_numbers() -> None:
    turn = turn_of()
    asked(turn)
    turn.log.add("a")
    turn.answered(answer(ToolCall("c1", "add", "{}"), usage={"total_tokens": 2, "cost": 0.5, "id": "a", "d": {"x": 1}}))
    turn.begin_calls()
    asked(turn, 2)
    turn.log.add("b")
    turn.answered(answer(usage={"total_tokens": 3, "cost": 0.25, "id": "b"}))
    _, closed = turn.close("completed", None)
    assert closed.usage == {"total_tokens": 5, "cost": 0.75, "id": "b", "d": {"x": 1}}
    assert (closed.message, closed.model, closed.finish_reason) == ("ab", "m-2", "stop")


def test_a_session_that_takes_over_goes_on_where_the_log_and_the_store_are() -> None:
    log = TurnLog("c", 3)
    log.begin_hop(1, 1)
    log.add("one ")
    log.begin_hop(2, 2)
    log.add("two")
    first = HopEvent(1, "one ", "", [], {}, "p", "m-1", {"total_tokens": 2}, "stop")
    turn = turn_of(first, log=log)
    events, closed = turn.close("interrupted", None)
    assert [(e.hop, e.content) for e in events if isinstance(e, HopEvent)] == [(2, "two")]
    assert (closed.message, closed.usage, closed.model) == ("one two", {"total_tokens": 2}, "m-1")
    # and where the hop's answer was stored, it is not stored twice
    turn = turn_of(first, HopEvent(2, "two", "", [], {}, "p", "m-1", None, "stop"), log=log)
    assert [type(e) for e in turn.close("interrupted", None)[0]] == [Closed]


def test_a_result_is_shown_in_part_and_told_whole() -> None:
    turn = turn_of()
    asked(turn)
    turn.answered(answer(ToolCall("c1", "add", "{}")))
    _, call = turn.begin_calls()
    assert isinstance(call, ToolStarted)
    result = "r" * (SHOWN_CHARS + 1)
    assert turn.end_call(call, "completed", result, 1).result == result
    assert frames(turn.log)[-1]["result"] == result[:-1]
    assert turn.messages([])[-1]["content"] == result


@pytest.mark.parametrize("arguments", ['{"a": "\\ud83d"}', "[" * 100_000, "", "nul", '{"a": NaN}'])
def test_whatever_a_model_writes_as_arguments_can_be_shown_and_stored(arguments: str) -> None:
    turn = turn_of()
    asked(turn)
    turn.answered(answer(ToolCall("c1", "add", arguments)))
    _, call = turn.begin_calls()
    assert isinstance(call, ToolStarted)
    assert call.arguments == arguments
    assert frames(turn.log)[-1]["status"] == "executing"

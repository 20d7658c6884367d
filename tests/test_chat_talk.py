"""The client's state: frames in, what it knows and sends. The service is a model of a few lines here."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisors.chat_talk import Entered, Note, OutOfStep, Talk
from supervisors.chat_turn import Aside, Call, Frame, Text, Turn, read, text_of

Frames = list[dict[str, Any]]
WELCOME = {"type": "welcome", "protocol": 1, "server": {"name": "s", "version": "1"}, "limits": {}}


def new_talk() -> Talk:
    numbers = itertools.count(1)
    return Talk(lambda: f"id{next(numbers)}")


def hear(talk: Talk, *frames: dict[str, Any]) -> None:
    for frame in frames:
        talk.receive(json.dumps(frame))


def sent(talk: Talk) -> Frames:
    frames = list(talk.outgoing)
    talk.outgoing.clear()
    return frames


def into_step(talk: Talk, conversation: str = "c", messages: Frames | None = None) -> None:
    """As a service does it for a client that has seen nothing."""
    hear(talk, {**WELCOME, "conversation_id": conversation})
    [hello] = sent(talk)
    assert hello["type"] == "hello"
    hear(talk, {**WELCOME, "conversation_id": hello["conversation_id"], "request_id": hello["request_id"]})
    if "resume" not in hello:
        [resume] = sent(talk)
        page = {"conversation_id": hello["conversation_id"], "messages": messages or [], "more": False}
        hear(talk, {"type": "history", "request_id": resume["request_id"], **page})
    assert talk.in_step


def started(turn: int, **fields: Any) -> dict[str, Any]:
    return {"type": "turn_started", "turn": turn, "message": "hi", "model": "m", "provider": "p", **fields}


def delta(turn: int, seq: int, text: str) -> dict[str, Any]:
    return {"type": "assistant_delta", "turn": turn, "seq": seq, "text": text}


def finished(turn: int, seq: int, outcome: str = "completed", **fields: Any) -> dict[str, Any]:
    return {"type": "turn_finished", "turn": turn, "seq": seq, "outcome": outcome, **fields}


def test_a_turn_is_what_its_frames_say() -> None:
    talk = new_talk()
    into_step(talk)
    request_id = talk.say("hi")
    assert sent(talk) == [{"type": "user_message", "message": "hi", "request_id": request_id}]
    call = {"type": "tool_execution", "turn": 1, "call_id": "a", "tool_name": "add", "server": "demo"}
    hear(
        talk,
        started(1, request_id=request_id),
        {"type": "thinking_delta", "turn": 1, "seq": 1, "text": "hm"},
        delta(1, 2, "Let me "),
        delta(1, 3, "see."),
        {**call, "seq": 4, "status": "executing", "arguments": {"a": 1}},
        {**call, "seq": 5, "status": "progress", "progress": 1, "total": 2},
        {**call, "seq": 6, "status": "completed", "result": "3", "elapsed_ms": 12},
        delta(1, 7, "It is 3."),
        {
            "type": "assistant_message",
            "turn": 1,
            "seq": 8,
            "message": "Let me see.It is 3.",
            "thinking": "hm",
            "usage": {"total_tokens": 18},
            "model": "m",
            "finish_reason": "stop",
            "status": "complete",
        },
        finished(1, 9),
    )
    turn = talk.to_show()
    assert turn is not None
    assert turn.mine
    assert turn.over
    assert turn.items == [
        Text("hm", thinking=True),
        Text("Let me see."),
        Call("a", "add", "demo", "completed", arguments={"a": 1}, result="3", elapsed_ms=12),
        Text("It is 3."),
    ]
    assert (turn.outcome, turn.model, turn.usage) == ("completed", "m", {"total_tokens": 18})
    assert talk.position == (1, 9)
    turn.forget()
    assert talk.to_show() is None
    assert not talk.busy


def test_what_was_lost_is_told_and_what_was_kept_is_not_said_again() -> None:
    turn = Turn(1)
    turn.say("abcdef")
    turn.complete("", "abcd")
    assert turn.items[1:] == [Aside("of this the service has not kept the last 2 characters")]
    other = Turn(2)
    other.say("abc")
    other.complete("", "xyz")
    assert [type(item) for item in other.items] == [Text, Aside, Text]
    rest = Turn(3)
    rest.say("abc")
    rest.complete("", "abcdef")
    assert rest.items == [Text("abcdef")]


def test_a_message_without_acknowledgement_is_sent_again_with_its_id() -> None:
    talk = new_talk()
    into_step(talk)
    request_id = talk.say("hi")
    sent(talk)
    talk.closed(1012)
    into_step(talk)
    assert sent(talk) == [{"type": "user_message", "message": "hi", "request_id": request_id}]
    hear(talk, {"type": "message_queued", "turn": 4, "position": 1, "request_id": request_id})
    talk.closed(1012)
    into_step(talk)
    assert sent(talk) == []
    waiting = talk.queued
    assert waiting is not None
    hear(talk, started(4))
    assert waiting.started
    shown = talk.to_show(mine=True)
    assert shown is not None
    assert shown.number == 4


def test_a_connection_goes_on_where_the_last_one_was() -> None:
    talk = new_talk()
    into_step(talk)
    hear(talk, started(3), delta(3, 5, "abc"))
    talk.closed()
    hear(talk, {**WELCOME, "conversation_id": "another"})
    [hello] = sent(talk)
    assert hello["conversation_id"] == "c"
    assert hello["resume"] == {"turn": 3, "seq": 5}
    hear(talk, delta(3, 9, "behind a gap"))
    hear(talk, {**WELCOME, "conversation_id": "c", "request_id": hello["request_id"]}, delta(3, 9, "defghi"))
    hear(talk, delta(3, 9, "defghi"), delta(3, 8, "hi"))
    assert talk.turns[3].text == "abcdefghi"


def test_a_wanted_stop_is_sent_when_it_can_be() -> None:
    talk = new_talk()
    into_step(talk)
    request_id = talk.say("hi")
    talk.stop()
    sent(talk)
    hear(talk, started(1, request_id=request_id))
    [stop] = sent(talk)
    assert (stop["type"], stop["turn"]) == ("stop", 1)
    talk.closed()
    into_step(talk)
    [stop] = sent(talk)
    assert (stop["type"], stop["turn"]) == ("stop", 1)
    hear(talk, finished(1, 1, "stopped"))
    talk.closed()
    into_step(talk)
    assert sent(talk) == []


def test_mine_never_stops_what_others_began() -> None:
    talk = new_talk()
    into_step(talk)
    hear(talk, started(1))
    talk.say("hi")
    sent(talk)
    talk.stop(mine=True)
    assert sent(talk) == []


@pytest.mark.parametrize(
    ("code", "kept"), [("LLM_NOT_CONFIGURED", False), ("OVERLOADED", False), ("SHUTTING_DOWN", True)]
)
def test_a_refused_message_is_the_persons_again(code: str, kept: bool) -> None:
    talk = new_talk()
    into_step(talk)
    request_id = talk.say("hi")
    error = {"type": "error", "error_code": code, "error_message": "no", "hint": "do", "retryable": kept}
    talk.notes.clear()
    hear(talk, {**error, "request_id": request_id})
    assert (request_id in talk.unacknowledged) is kept
    assert talk.refused == ([] if kept else ["hi"])
    assert talk.notes == ([] if kept else [Note("no", "do", error=True)])


def test_what_is_too_large_is_not_sent_again_and_again() -> None:
    talk = new_talk()
    into_step(talk)
    talk.say("hi")
    talk.closed(1009)
    assert talk.refused == ["hi"]
    assert not talk.unacknowledged
    talk.limits = {"max_message_size": 100}
    talk.say("x" * 100)
    assert talk.refused == ["hi", "x" * 100]


def test_requests_get_their_answers_or_learn_that_they_will_not() -> None:
    talk = new_talk()
    assert talk.answers[talk.ask("list_sessions")].error_code == "CONNECTION_LOST"
    into_step(talk)
    wanted, lost = talk.ask("list_sessions"), talk.ask("get_config", path="llm")
    assert sent(talk)[1] == {"type": "get_config", "path": "llm", "request_id": lost}
    save = {"saved_id": "s1", "name": "n", "conversation_id": "c", "at": "2026-01-01T00:00:00Z"}
    hear(talk, {"type": "sessions", "sessions": [save], "request_id": wanted})
    assert talk.answers[wanted].sessions[0].saved_id == "s1"
    talk.closed()
    assert talk.answers[lost].error_code == "CONNECTION_LOST"


@pytest.mark.parametrize("answer", ["session_cleared", "welcome"])
def test_another_conversation_begins_anew(answer: str) -> None:
    talk = new_talk()
    into_step(talk)
    hear(talk, started(1), delta(1, 1, "abc"))
    request_id = talk.ask("clear_history")
    sent(talk)
    hear(talk, {"type": answer, "conversation_id": "d", "request_id": request_id, "server": {}})
    [resume] = sent(talk)
    said = {"turn": 1, "role": "user", "content": "old", "status": "complete", "at": "x"}
    answered = {"turn": 1, "role": "assistant", "content": "answer", "status": "complete", "at": "x"}
    page = {"type": "history", "conversation_id": "d", "messages": [said, answered], "more": False}
    hear(talk, {**page, "request_id": request_id})  # a service may send one of its own accord
    assert talk.syncing
    hear(talk, {**page, "request_id": resume["request_id"]})
    assert (talk.conversation, talk.position, talk.to_show(), talk.in_step) == ("d", None, None, True)
    [entered] = [note for note in talk.notes[1:] if isinstance(note, Entered)]
    assert [text_of(message.content) for message in entered.last] == ["old", "answer"]


def test_a_conversation_that_is_gone() -> None:
    talk = new_talk()
    into_step(talk)
    hear(talk, started(1), finished(1, 1))
    talk.say("meant for the old one")
    talk.closed()
    hear(talk, {**WELCOME, "conversation_id": "other"})
    [hello] = sent(talk)
    hear(talk, {"type": "error", "error_code": "NOT_FOUND", "error_message": "?", "request_id": hello["request_id"]})
    hear(talk, {**WELCOME, "conversation_id": "other", "request_id": hello["request_id"]})
    [clear] = sent(talk)
    assert clear["type"] == "clear_history"
    hear(talk, {"type": "session_cleared", "conversation_id": "e", "request_id": clear["request_id"]})
    [resume] = sent(talk)
    page = {"type": "history", "conversation_id": "e", "messages": [], "more": False}
    hear(talk, {**page, "request_id": resume["request_id"]})
    assert talk.in_step
    assert talk.conversation == "e"
    assert talk.refused == ["meant for the old one"]


def test_a_store_that_does_not_answer_ends_this_connection_only() -> None:
    talk = new_talk()
    hear(talk, {**WELCOME, "conversation_id": "c"})
    [hello] = sent(talk)
    error = {"type": "error", "error_code": "STORAGE_UNAVAILABLE", "error_message": "down"}
    with pytest.raises(OutOfStep, match="down"):
        hear(talk, {**error, "request_id": hello["request_id"]})


def test_a_wanted_conversation_that_is_not_there_is_fatal() -> None:
    talk = new_talk()
    hear(talk, {"type": "error", "error_code": "NOT_FOUND", "error_message": "none"})
    assert talk.fatal is not None
    assert talk.fatal.error_message == "none"


def test_unknown_types_and_fields_are_passed_over_and_nonsense_is_told() -> None:
    talk = new_talk()
    into_step(talk)
    talk.notes.clear()
    hear(talk, {"type": "fireworks", "turn": 1, "colour": "red"}, {"type": "tools_changed"})
    assert talk.notes == []
    assert talk.to_show() is None
    for nonsense in ("", "[]", "{}", '{"type": 1}', '{"type":"history","messages":3}', b"\xff"):
        assert read(nonsense) is None
    talk.receive("[]")
    assert talk.notes == [Note("a frame of the service could not be read", error=True)]
    assert read('{"type":"x","hint":null}') == Frame("x")


def test_who_is_asked_decides_once_and_a_lost_connection_is_told_again() -> None:
    talk = new_talk()
    into_step(talk)
    asked = {"type": "approval_request", "tool_name": "add", "server": "demo", "arguments": {"a": 1}}
    hear(talk, *({**asked, "approval_id": name, "turn": 1} for name in ("a", "b")), {**asked, "approval_id": "pin"})
    talk.decide("a", "once")
    talk.decide("a", "deny")
    assert sent(talk) == [{"type": "approve", "approval_id": "a", "decision": "once"}]
    hear(talk, {"type": "approval_settled", "approval_id": "b", "outcome": "denied"})
    assert list(talk.asked) == ["pin"]
    talk.closed()
    assert not talk.asked
    hear(talk, {**WELCOME, "conversation_id": "c"}, {**asked, "approval_id": "pin"})
    assert list(talk.asked) == ["pin"], "before it is in step, too"


def test_a_question_is_answered_once_and_asked_again_where_the_answer_does_not_fit() -> None:
    talk = new_talk()
    into_step(talk)
    talk.notes.clear()
    asked = {"type": "question", "question_id": "q", "server": "ask", "message": "Who?", "schema": {}, "turn": 1}
    hear(talk, asked)
    talk.answer("q", "accept", {"name": 5})
    talk.answer("q", "decline", {})
    [answer] = sent(talk)
    assert (answer["type"], answer["question_id"], answer["content"]) == ("answer", "q", {"name": 5})
    wrong = {"type": "error", "error_code": "INVALID_MESSAGE", "error_message": "no", "hint": "again"}
    hear(talk, {**wrong, "request_id": answer["request_id"]})
    assert talk.notes == [Note("no", "again", error=True)]
    assert list(talk.asked) == ["q"]
    talk.answer("q", "decline", {})
    [answer] = sent(talk)
    assert "content" not in answer
    hear(talk, {"type": "question_settled", "question_id": "q", "outcome": "declined", "request_id": "another"}, asked)
    hear(talk, {"type": "question_settled", "question_id": "q", "outcome": "declined"})
    assert not talk.asked


def test_notices_are_told() -> None:
    talk = new_talk()
    into_step(talk)
    talk.notes.clear()
    hear(
        talk,
        {"type": "degraded", "what": "mcp/demo", "reason": "it died", "retry_in_ms": 5},
        {"type": "recovered", "what": "mcp/demo"},
    )
    assert talk.notes == [Note("mcp/demo is not available: it died"), Note("mcp/demo is back")]


# Whatever happens to the connections, everything comes once.

Entry = tuple[str, str]
ENTRIES = st.lists(
    st.tuples(st.sampled_from(["text", "thinking", "call"]), st.text("abc ", min_size=1, max_size=3)), max_size=12
)
WEIGHTS = {"produce": 5, "deliver": 4, "connect": 3, "cut": 1, "finish": 1}
STEPS = st.lists(st.sampled_from([step for step, weight in WEIGHTS.items() for _ in range(weight)]), max_size=40)


class Service:
    """A model: one conversation, one message, a log, and one socket that reads it, coalescing as it likes."""

    def __init__(self, entries: list[Entry], talk: Talk) -> None:
        self.entries = entries
        self.talk = talk
        self.produced = 0
        self.request: str | None = None
        self.over = False
        self.open = False
        self.position: int | None = None
        """How far the socket has read; None: not placed."""

    def joined(self, kind: str, end: int | None = None) -> str:
        return "".join(text for k, text in self.entries[:end] if k == kind)

    def log(self, after: int) -> Frames:
        """Frames after that position, text coalesced."""
        frames: Frames = []
        for seq, (kind, text) in enumerate(self.entries[: self.produced], 1):
            if seq <= after:
                continue
            type_ = {"text": "assistant_delta", "thinking": "thinking_delta"}.get(kind, "tool_execution")
            if kind == "call":
                name = f"call{seq}"
                frames.append(
                    {"type": type_, "turn": 1, "seq": seq, "call_id": name, "tool_name": name, "status": "completed"}
                )
            elif frames and frames[-1]["type"] == type_:
                frames[-1]["text"] += text
                frames[-1]["seq"] = seq
            else:
                frames.append({"type": type_, "turn": 1, "seq": seq, "text": text})
        return frames + [frame for frame in self.closing() if frame["seq"] > after]

    def closing(self) -> Frames:
        if not self.over:
            return []
        end = len(self.entries)
        message = {"type": "assistant_message", "turn": 1, "seq": end + 1, "message": self.joined("text")}
        return [{**message, "thinking": self.joined("thinking") or None}, finished(1, end + 2)]

    def cut(self) -> None:
        if self.open:
            self.open, self.position = False, None
            self.talk.closed(1012)

    def connect(self) -> None:
        self.cut()
        self.open = True
        hear(self.talk, {**WELCOME, "conversation_id": "c"})

    def deliver(self) -> None:
        """What the client sent is handled, and the socket gets what there is."""
        if not self.open:
            return
        for frame in sent(self.talk):
            self.handle(frame)
        if self.request is not None and self.position is not None:
            frames = self.log(self.position)
            self.position = frames[-1]["seq"] if frames else self.position
            hear(self.talk, *frames)

    def handle(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "hello":
                if self.request is not None and not self.over:
                    hear(self.talk, *self.log(max(self.produced - 1, 0)))  # live, before it is placed
                hear(self.talk, {**WELCOME, "conversation_id": "c", "request_id": frame["request_id"]})
                if "resume" in frame:
                    self.position = frame["resume"]["seq"]
                    if self.over:  # a finished turn's text is told as a whole
                        calls = [f for f in self.log(self.position) if f["type"] == "tool_execution"]
                        closing = [f for f in self.closing() if f["seq"] > self.position]
                        hear(self.talk, *calls, *closing)
                        self.position = len(self.entries) + 2
            case "resume":
                messages: Frames = []
                if self.over:
                    tools = [
                        {"call_id": f"call{n}", "tool_name": f"call{n}", "status": "completed"}
                        for n, (kind, _) in enumerate(self.entries, 1)
                        if kind == "call"
                    ]
                    answer = {"content": self.joined("text"), "thinking": self.joined("thinking"), "tools": tools}
                    user = {"turn": 1, "role": "user", "content": "hi", "status": "complete"}
                    messages = [user, {**user, "role": "assistant", **answer}]
                page = {"conversation_id": "c", "messages": messages, "more": False}
                hear(self.talk, {"type": "history", "request_id": frame["request_id"], **page})
                if self.request is not None and not self.over:
                    hear(self.talk, started(1))
                self.position = len(self.entries) + 2 if self.over else 0
            case "user_message":
                if self.request is None:
                    self.request = frame["request_id"]
                    self.position = 0
                hear(self.talk, started(1, request_id=self.request), *self.closing())
            case other:
                raise AssertionError(other)


@given(ENTRIES, STEPS)
def test_nothing_is_lost_and_nothing_comes_twice(entries: list[Entry], steps: list[str]) -> None:
    talk = new_talk()
    service = Service(entries, talk)
    service.connect()
    while not talk.in_step:
        service.deliver()
    talk.say("hi")
    shown = ""

    def look() -> None:
        nonlocal shown
        turn = talk.to_show(mine=True)
        if turn is not None:
            assert turn.text.startswith(shown), "what was printed is never taken back"
            shown = turn.text

    for step in steps:
        match step:
            case "produce" if service.request is not None and service.produced < len(entries):
                service.produced += 1
            case "finish" if service.request is not None:
                service.produced, service.over = len(entries), True
            case "deliver":
                service.deliver()
            case "cut":
                service.cut()
            case "connect":
                service.connect()
        look()
    service.connect()
    for _ in range(4):
        service.deliver()
    service.produced, service.over = len(entries), True
    service.deliver()
    look()
    turn = talk.to_show(mine=True)
    assert turn is not None
    assert turn.over
    assert shown == turn.text == service.joined("text")
    thinking = "".join(item.text for item in turn.items if isinstance(item, Text) and item.thinking)
    assert thinking == service.joined("thinking")
    calls = [item.call_id for item in turn.items if isinstance(item, Call)]
    assert calls == [f"call{n}" for n, (kind, _) in enumerate(entries, 1) if kind == "call"]
    assert not [item for item in turn.items if isinstance(item, Aside)]
    assert not talk.unacknowledged

"""Scripts for `FakeProvider` (tests/fakes.py): what a chat/completions upstream answers, and how.

A script is a tuple of items, each one step: a delta, a chunk, raw bytes, silence, a cut. The builders make
whole answers of them; `written` and `whole` turn them into what goes over the wire. Free of I/O.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import trio

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True)
class Thought:
    """A delta of reasoning; `field` is the key that it comes under."""

    text: str
    field: str = "reasoning_content"


@dataclass(frozen=True)
class ToolDelta:
    """A delta of tool calls, as it stands in `delta.tool_calls`."""

    calls: list[dict[str, Any]]


@dataclass(frozen=True)
class Finish:
    """The finish reason, in a delta of its own."""

    reason: str


@dataclass(frozen=True)
class Usage:
    """A chunk with usage and no choices."""

    usage: dict[str, Any]


@dataclass(frozen=True)
class Stall:
    """Nothing is sent until the event is set; for ever by default. The client may close meanwhile."""

    until: trio.Event | None = None


@dataclass(frozen=True)
class Pause:
    """Seconds of waiting; for processes, and for tests with the autojump clock only."""

    seconds: float


@dataclass(frozen=True)
class Cut:
    """The connection is closed here, in the middle of a chunk; `reset` sends RST instead of FIN."""

    reset: bool = False


Item = str | bytes | dict[str, Any] | Thought | ToolDelta | Finish | Usage | Stall | Pause | Cut
"""One step of a script: a str is a delta of content, a dict is sent as an event's JSON as it is, bytes are
written as they are (comments, garbage, a split event)."""


@dataclass(frozen=True)
class Script:
    """One response."""

    items: tuple[Item, ...] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"
    framing: str = "chunked"
    """`chunked` (the connection is kept), or `close`: the body ends with the connection."""
    done: bool = True
    """Ends with `data: [DONE]` if it is an event stream."""
    line_end: str = "\n"
    before_head: Stall | Pause | Cut | None = None
    """Happens before anything is answered."""

    def but(self, **changes: Any) -> Script:
        """The same with other fields, e.g. `say("x").but(framing="close", done=False)`."""
        return replace(self, **changes)

    def __add__(self, more: Sequence[Item]) -> Script:
        return replace(self, items=(*self.items, *more))


def say(*texts: str, finish: str = "stop", usage: dict[str, Any] | None = USAGE) -> Script:
    """An answer of those deltas, complete with finish reason, usage and end mark."""
    return Script((*texts, *_ending(finish, usage)))


def think(*thoughts: str, then: Sequence[str] = (), field: str = "reasoning_content") -> Script:
    """Reasoning in those deltas, then the text deltas `then`."""
    return Script((*(Thought(thought, field) for thought in thoughts), *then, *_ending("stop", USAGE)))


def ask_tool(
    name: str, arguments: dict[str, Any] | str | None = None, *, id: str = "call_1", text: Sequence[str] = ()
) -> Script:
    """One tool call, its arguments in two deltas, after the text deltas `text`."""
    return ask_tools((id, name, arguments or {}), text=text)


def ask_tools(*calls: tuple[str, str, dict[str, Any] | str], text: Sequence[str] = ()) -> Script:
    """Parallel tool calls, each `(id, name, arguments)`."""
    deltas: list[Item] = []
    for index, (id, name, arguments) in enumerate(calls):
        written = arguments if isinstance(arguments, str) else json.dumps(arguments)
        middle = len(written) // 2
        function = {"name": name, "arguments": written[:middle]}
        deltas.append(ToolDelta([{"index": index, "id": id, "type": "function", "function": function}]))
        deltas.append(ToolDelta([{"index": index, "function": {"arguments": written[middle:]}}]))
    return Script((*text, *deltas, *_ending("tool_calls", USAGE)))


def fail(status: int, message: str = "scripted failure", headers: dict[str, str] | None = None, **error: Any) -> Script:
    """An HTTP error with a JSON body `{"error": {"message": ..., **error}}`."""
    body = json.dumps({"error": {"message": message, **error}}).encode()
    return Script((body,), status, headers or {}, "application/json", done=False)


def page(markup: str, status: int = 200) -> Script:
    """A web page."""
    return Script((markup.encode(),), status, content_type="text/html; charset=utf-8", done=False)


def raw(
    *parts: bytes | Stall | Cut | Pause, content_type: str = "text/event-stream", framing: str = "chunked"
) -> Script:
    """Those bytes and nothing else."""
    return Script(parts, content_type=content_type, framing=framing, done=False)


def _ending(finish: str, usage: dict[str, Any] | None) -> tuple[Item, ...]:
    return (Finish(finish), Usage(usage)) if usage else (Finish(finish),)


def written(item: Item, line_end: str) -> bytes:
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": "fake-model"}
    match item:
        case str():
            chunk = {**head, "choices": [_choice({"content": item})]}
        case Thought(text, field):
            chunk = {**head, "choices": [_choice({field: text})]}
        case ToolDelta(calls):
            chunk = {**head, "choices": [_choice({"tool_calls": calls})]}
        case Finish(reason):
            chunk = {**head, "choices": [_choice({}, reason)]}
        case Usage(usage):
            chunk = {**head, "choices": [], "usage": usage}
        case dict():
            chunk = item
        case _:
            raise TypeError(f"no event can be made of {item!r}")
    return f"data: {json.dumps(chunk)}{line_end * 2}".encode()


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def whole(items: Sequence[Item]) -> bytes:
    """The script as the one JSON answer of a request with `stream: false`."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, dict[str, Any]] = {}
    finish, usage = "stop", None
    for item in items:
        match item:
            case str():
                message["content"] += item
            case Thought(text, field):
                message[field] = message.get(field, "") + text
            case ToolDelta(deltas):
                for delta in deltas:
                    if "id" in delta:
                        calls[delta["index"]] = {**delta, "function": dict(delta["function"])}
                    else:
                        calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
            case Finish(reason):
                finish = reason
            case Usage(last):
                usage = last
            case _:
                pass  # what only a stream can do
    if calls:
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls.values()]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    answer = {"id": "fake", "object": "chat.completion", "model": "fake-model", "choices": [choice], "usage": usage}
    return json.dumps(answer).encode()


def by_message(asked: Any) -> Script:
    """The process's answers, by the text of the last user message:

    - `say N words`: `w1 w2 ... wN`, a delta each;
    - `think N words`: reasoning of N deltas, then `done`;
    - `tool NAME {json}`: asks for that tool once, then says `NAME said: RESULT`;
    - `loop NAME {json}`: asks for that tool again and again;
    - `fail STATUS`: that HTTP error;
    - `cut after N`: N words, then the connection is cut; `stall after N`: then silence;
    - anything else is said back, word by word.
    """
    messages = asked["messages"]
    users = [message["content"] for message in messages if message["role"] == "user"]
    said = users[-1] if users else ""
    if not isinstance(said, str):
        said = " ".join(part.get("text", "") for part in said)
    match said.split(maxsplit=2):
        case ["say", count, "words"] if count.isdecimal():
            return say(*_numbered(int(count)))
        case ["think", count, "words"] if count.isdecimal():
            return think(*_numbered(int(count)), then=["done"])
        case ["tool" | "loop" as kind, name, *arguments]:
            if kind == "tool" and messages[-1]["role"] == "tool":
                return say(f"{name} said: ", str(messages[-1]["content"]))
            hop = sum(message["role"] == "tool" for message in messages)
            return ask_tool(name, arguments[0] if arguments else {}, id=f"call_{hop + 1}")
        case ["fail", status] if status.isdecimal():
            return fail(int(status))
        case ["cut", "after", count] if count.isdecimal():
            return Script((*_numbered(int(count)), Cut()))
        case ["stall", "after", count] if count.isdecimal():
            return Script((*_numbered(int(count)), Stall()))
        case _:
            words = said.split(" ")
            return say(*(word + (" " if i < len(words) - 1 else "") for i, word in enumerate(words)))


def _numbered(count: int) -> list[str]:
    return [f"w{i} " for i in range(1, count)] + ([f"w{count}"] if count else [])

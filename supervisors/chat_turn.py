"""What the terminal client reads of the service's frames, and what it knows of one turn.

`Frame` names the fields that this client uses of any frame; everything else on the wire is passed over, so
a newer service breaks nothing. A `Turn` takes entries in the order of their `seq`, each once: an entry that
was seen is refused, and the whole text at the end adds only what the pieces did not bring. Its items only
grow, so whoever prints them is a reader with a position and never has to take anything back.

No I/O. Nothing fails here: a frame that does not have its form is refused by `read`.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Trouble(msgspec.Struct, frozen=True):
    """Why something did not work, in the service's words or ours."""

    error_code: str = ""
    error_message: str = ""
    hint: str | None = None


class Use(msgspec.Struct, frozen=True):
    """A tool call of a history page."""

    call_id: str = ""
    tool_name: str = ""
    server: str = ""
    arguments: Any = None
    status: str = ""
    result: str | None = None


class Said(msgspec.Struct, frozen=True):
    """A message of a history page."""

    turn: int = 0
    role: str = ""
    content: Any = ""
    status: str = ""
    thinking: str | None = None
    tools: list[Use] = []


class Save(msgspec.Struct, frozen=True):
    """A saved session of a list."""

    saved_id: str = ""
    name: str = ""
    conversation_id: str = ""
    at: str = ""


class Frame(msgspec.Struct, frozen=True):
    """The fields that this client reads, of whatever frame they are."""

    type: str
    request_id: str | None = None
    conversation_id: str = ""
    turn: int | None = None
    seq: int = 0
    text: str = ""
    message: Any = ""
    """Text; in turn_started also a list of parts."""
    model: str = ""
    provider: str = ""
    thinking: str | None = None
    usage: dict[str, Any] | None = None
    status: Any = ""
    outcome: str = ""
    error: Trouble | None = None
    call_id: str = ""
    tool_name: str = ""
    server: Any = None
    """Name of a tool's server; in welcome its own name and version."""
    arguments: Any = None
    result: Any = None
    progress: float | None = None
    total: float | None = None
    elapsed_ms: int | None = None
    position: int = 0
    what: str = ""
    reason: str = ""
    approval_id: str = ""
    question_id: str = ""
    schema: Any = None
    url: str = ""
    diff: str | None = None
    error_code: str = ""
    error_message: str = ""
    hint: str | None = None
    messages: list[Said] = []
    more: bool = False
    limits: dict[str, Any] = {}
    capabilities: list[str] = []
    saved_id: str = ""
    name: str = ""
    sessions: list[Save] = []
    version: Any = None
    config: Any = None

    @property
    def trouble(self) -> Trouble:
        """Of an error frame."""
        return Trouble(self.error_code, self.error_message, self.hint)


_decoder = msgspec.json.Decoder(Frame)


def read(text: str | bytes) -> Frame | None:
    """One frame; None for what does not have the contract's form."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return None


def text_of(content: object) -> str:
    """A message as text: what it is, or its text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part for part in content if isinstance(part, dict))
    return "\n".join(str(part.get("text", "")) if part.get("type") == "text" else "[image]" for part in parts)


class Text(msgspec.Struct):
    """A stretch of the answer, or of the reasoning."""

    text: str
    thinking: bool = False


class Call(msgspec.Struct):
    """A tool call and how far it is."""

    call_id: str
    tool_name: str
    server: str
    status: str
    message: str = ""
    arguments: Any = None
    result: str | None = None
    progress: float | None = None
    total: float | None = None
    elapsed_ms: int | None = None


class Aside(msgspec.Struct):
    """A remark of this client's within a turn."""

    text: str


Item = Text | Call | Aside


class Turn:
    """One user message and what answers it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.items: list[Item] = []
        self.seq = 0
        """Of the last entry that was taken."""
        self.question = ""
        self.mine = False
        """It answers a message that was sent from here."""
        self.waiting = 0
        """Its place in the queue; 0: it has begun."""
        self.started = False
        self.over = False
        self.shown = False
        """Set by who shows it, when there is no more to show."""
        self.outcome = ""
        self.error: Trouble | None = None
        self.model = ""
        self.usage: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._joined(thinking=False)

    def _joined(self, *, thinking: bool) -> str:
        return "".join(item.text for item in self.items if isinstance(item, Text) and item.thinking is thinking)

    def start(self, frame: Frame) -> None:
        """`turn_started`, the first one or a repeat."""
        self.started, self.waiting = True, 0
        self.question = text_of(frame.message) or self.question
        self.model = frame.model or self.model

    def take(self, frame: Frame) -> bool:
        """An entry of the turn's log; False if it was seen already."""
        if self.over or frame.seq <= self.seq:
            return False
        self.seq = frame.seq
        match frame.type:
            case "assistant_delta":
                self.say(frame.text)
            case "thinking_delta":
                self.say(frame.text, thinking=True)
            case "tool_execution":
                self._call(frame)
            case "assistant_message":
                self.model, self.usage = frame.model or self.model, frame.usage
                self.complete(frame.thinking or "", text_of(frame.message))
            case "turn_finished":
                self.finish(frame.outcome, frame.error)
        return True

    def say(self, text: str, *, thinking: bool = False) -> None:
        """A piece of text."""
        last = self.items[-1] if self.items else None
        if isinstance(last, Text) and last.thinking is thinking:
            last.text += text
        elif text:
            self.items.append(Text(text, thinking))

    def complete(self, thinking: str, text: str) -> None:
        """The whole of both is known: add what the pieces did not bring."""
        for whole, kind in ((thinking, True), (text, False)):
            had = self._joined(thinking=kind)
            if whole.startswith(had):
                self.say(whole[len(had) :], thinking=kind)
            elif not kind and had.startswith(whole):
                self.items.append(
                    Aside(f"of this the service has not kept the last {len(had) - len(whole)} characters")
                )
            elif not kind:
                self.items.append(Aside("the service kept another text than was shown; this is what it kept:"))
                self.items.append(Text(whole))

    def recall(self, said: Said) -> None:
        """The answer as a history page has it."""
        for use in said.tools:
            known = self._find(use.call_id)
            if known is None:
                self.items.append(
                    Call(use.call_id, use.tool_name, use.server, use.status, arguments=use.arguments, result=use.result)
                )
            else:
                known.status, known.result = use.status, use.result
        self.complete(said.thinking or "", text_of(said.content))

    def finish(self, outcome: str, error: Trouble | None = None) -> None:
        """Nothing more will come."""
        self.started = self.over = True
        self.outcome, self.error = outcome, error

    def forget(self) -> None:
        """It has been shown: keep only what refuses a second telling."""
        self.shown = True
        self.items.clear()

    def _find(self, call_id: str) -> Call | None:
        return next((item for item in self.items if isinstance(item, Call) and item.call_id == call_id), None)

    def _call(self, frame: Frame) -> None:
        call = self._find(frame.call_id)
        if call is None:
            call = Call(frame.call_id, frame.tool_name, str(frame.server or ""), "executing")
            self.items.append(call)
        call.status = str(frame.status)
        call.message = text_of(frame.message) or call.message
        call.progress, call.total = frame.progress, frame.total
        if frame.arguments is not None:
            call.arguments = frame.arguments
        if frame.result is not None:
            call.result = str(frame.result)
        if frame.elapsed_ms is not None:
            call.elapsed_ms = frame.elapsed_ms

"""The client contract's frames: one frozen Struct a type, the JSON field names are the attribute names.

Client to server: decoded with `decode`, which turns everything wrong into one typed Fault. Server to client:
encoded with `encode`. Unknown fields from a client are ignored, absent optional ones are None here and left
out on the wire. Dialects are codecs over these same types.
"""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from protocol.errors import Code, Fault, FaultBody

MAX_TEXT_CHARS = 1_000_000  # of one user message; past it no model we know of can read it
MAX_ID_CHARS = 200  # request and conversation ids; ours have 32
MAX_QUEUED = 16  # messages that may wait behind a running turn
HISTORY_PAGE = 50  # turns of one history page, and the most that one may ask for


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Replay what came after that position, then go on live; without one: the last page and the running turn."""

    turn: int | None = None
    seq: int | None = None
    request_id: str | None = None


class Position(msgspec.Struct, frozen=True):
    """An exact place in a conversation."""

    turn: int
    seq: int


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Optional; answered by another welcome."""

    conversation_id: str | None = None
    resume: Position | None = None
    client: Any = None
    """What the client says of itself; for logs."""
    token: str | None = None
    request_id: str | None = None


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Text of a message in parts."""

    text: str


class ImageUrl(msgspec.Struct, frozen=True):
    """Where an image is: https, or a data URI."""

    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, frozen=True, tag="image_url"):
    """An image of a message in parts."""

    image_url: ImageUrl


class UserMessage(msgspec.Struct, frozen=True, tag="user_message"):
    """Starts a turn, or waits behind the running one."""

    message: str | list[TextPart | ImagePart]
    streaming: bool | None = None
    mode: str | None = None
    request_id: str | None = None


class StopTurn(msgspec.Struct, frozen=True, tag="stop"):
    """Ends the running turn."""

    turn: int | None = None
    request_id: str | None = None


class ClearHistory(msgspec.Struct, frozen=True, tag="clear_history"):
    """This socket enters a fresh conversation."""

    request_id: str | None = None


class GetHistory(msgspec.Struct, frozen=True, tag="history"):
    """A page of messages."""

    before: int | None = None
    limit: int | None = None
    request_id: str | None = None


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Answered by pong."""

    request_id: str | None = None


ClientFrame = Hello | UserMessage | StopTurn | ClearHistory | GetHistory | Resume | Ping
CAPABILITIES = ["clear_history", "hello", "history", "ping", "resume", "stop", "user_message"]


class Welcome(msgspec.Struct, frozen=True, tag="welcome", omit_defaults=True):
    """After the handshake, and again per hello."""

    protocol: int
    conversation_id: str
    capabilities: list[str]
    limits: dict[str, int]
    server: dict[str, str]
    running_turn: int | None = None
    request_id: str | None = None


class MessageQueued(msgspec.Struct, frozen=True, tag="message_queued", omit_defaults=True):
    """The message is on disk and waits behind `position` - 1 others and the running turn."""

    turn: int
    position: int
    request_id: str | None = None


class TurnStarted(msgspec.Struct, frozen=True, tag="turn_started", omit_defaults=True):
    """The message is on disk and its turn runs."""

    turn: int
    message: Any
    model: str
    provider: str
    request_id: str | None = None


class AssistantDelta(msgspec.Struct, frozen=True, tag="assistant_delta"):
    """Text of the answer since the last one; `seq` is that of its last piece."""

    turn: int
    seq: int
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    """Reasoning since the last one."""

    turn: int
    seq: int
    text: str


class ToolExecution(msgspec.Struct, frozen=True, tag="tool_execution", omit_defaults=True):
    """A tool call began, moved on, or ended."""

    turn: int
    seq: int
    call_id: str
    tool_name: str
    server: str
    status: str
    """executing, progress, completed, failed, denied, cancelled or unknown."""
    message: str = ""
    """The configured notification text."""
    arguments: Any = None
    result: str | None = None
    progress: float | None = None
    total: float | None = None
    elapsed_ms: int | None = None


class AssistantMessage(msgspec.Struct, frozen=True, tag="assistant_message", omit_defaults=True):
    """The whole text of the turn, authoritative over the deltas."""

    turn: int
    seq: int
    message: str
    model: str
    finish_reason: str
    status: str
    """complete, stopped, interrupted or failed."""
    thinking: str | None = None
    usage: dict[str, Any] | None = None


class TurnFinished(msgspec.Struct, frozen=True, tag="turn_finished", omit_defaults=True):
    """Exactly once per turn, always last."""

    turn: int
    seq: int
    outcome: str
    """completed, stopped, interrupted or failed."""
    error: FaultBody | None = None


class SessionCleared(msgspec.Struct, frozen=True, tag="session_cleared", omit_defaults=True):
    """This socket is in a fresh conversation now."""

    conversation_id: str
    previous_conversation_id: str
    request_id: str | None = None


class ToolUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool call in a history page."""

    call_id: str
    tool_name: str
    server: str
    arguments: str
    status: str
    result: str | None = None


class HistoryMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a history page."""

    turn: int
    role: str
    """user or assistant."""
    content: Any
    status: str
    """complete, stopped, interrupted or failed; for a user message also running or queued."""
    at: datetime.datetime
    thinking: str | None = None
    tools: list[ToolUse] = []


class HistoryPage(msgspec.Struct, frozen=True, tag="history", omit_defaults=True):
    """Messages ordered by turn."""

    conversation_id: str
    messages: list[HistoryMessage]
    more: bool
    """There are earlier ones."""
    request_id: str | None = None


class Degraded(msgspec.Struct, frozen=True, tag="degraded", omit_defaults=True):
    """A part failed and is being restarted."""

    what: str
    """Path of the actor."""
    reason: str
    retry_in_ms: int | None = None


class Recovered(msgspec.Struct, frozen=True, tag="recovered"):
    """A part that failed came back."""

    what: str


class ErrorFrame(msgspec.Struct, frozen=True, tag="error", omit_defaults=True):
    """Something could not be done."""

    error_code: Code
    error_message: str
    retryable: bool
    hint: str = ""
    request_id: str | None = None
    turn: int | None = None


class Pong(msgspec.Struct, frozen=True, tag="pong", omit_defaults=True):
    """Answer to ping."""

    request_id: str | None = None


ServerFrame = (
    Welcome
    | MessageQueued
    | TurnStarted
    | AssistantDelta
    | ThinkingDelta
    | ToolExecution
    | AssistantMessage
    | TurnFinished
    | SessionCleared
    | HistoryPage
    | Degraded
    | Recovered
    | ErrorFrame
    | Pong
)

_decoder = msgspec.json.Decoder(ClientFrame)
_encoder = msgspec.json.Encoder()


class _Peek(msgspec.Struct):
    type: Any = None
    request_id: Any = None


_peek = msgspec.json.Decoder(_Peek)


class BadFrame(Exception):
    """A client's frame that could not be decoded: what to answer, and the request_id where one could be read."""

    def __init__(self, fault: Fault, request_id: str | None) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.request_id = request_id


def decode(frame: str) -> ClientFrame:
    """One text frame of a client. Raises BadFrame: INVALID_MESSAGE naming the field, or UNKNOWN_TYPE."""
    try:
        message: ClientFrame = _decoder.decode(frame)
    except msgspec.ValidationError as error:
        raise _blame(frame, str(error)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        # lone surrogates cannot come over a WebSocket, but a str could hold them
        raise BadFrame(Fault(Code.INVALID_MESSAGE, f"The frame is not JSON: {error}."), None) from None
    if message.request_id is not None and len(message.request_id) > MAX_ID_CHARS:
        raise BadFrame(Fault(Code.MESSAGE_TOO_LARGE, f"request_id is longer than {MAX_ID_CHARS} characters."), None)
    return message


def _blame(frame: str, reason: str) -> BadFrame:
    try:
        peek = _peek.decode(frame)
    except msgspec.ValidationError:
        return BadFrame(Fault(Code.INVALID_MESSAGE, "The frame is not a JSON object."), None)
    request_id = peek.request_id if isinstance(peek.request_id, str) else None
    if peek.type is None:
        return BadFrame(Fault(Code.INVALID_MESSAGE, "The field `type` is missing."), request_id)
    if isinstance(peek.type, str) and peek.type not in CAPABILITIES:
        shown = peek.type[:60]
        return BadFrame(Fault(Code.UNKNOWN_TYPE, f"The type {shown!r} is not known here."), request_id)
    return BadFrame(Fault(Code.INVALID_MESSAGE, f"{reason}."), request_id)


def encode(frame: ServerFrame) -> bytes:
    """UTF-8 JSON of one frame."""
    return _encoder.encode(frame)


def error_frame(fault: FaultBody, *, request_id: str | None = None, turn: int | None = None) -> ErrorFrame:
    """The error frame that tells of a fault."""
    return ErrorFrame(
        error_code=fault.code,
        error_message=fault.text,
        retryable=fault.retryable,
        hint=fault.hint,
        request_id=request_id,
        turn=turn,
    )


def schema() -> dict[str, Any]:
    """JSON Schema of all frames: `client` (what may be sent to the service) and `server`."""
    (client, server), components = msgspec.json.schema_components(
        [ClientFrame, ServerFrame], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mcp-actors client protocol 1",
        "properties": {"client": client, "server": server},
        "$defs": components,
    }

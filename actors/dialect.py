"""The older dialect: what the original backend's own desktop client speaks, as one codec over the same events.

A socket whose first frame has `action` instead of `type`, or whose address says `?dialect=action`, is spoken
to in it from then on. In: `chat` and `clear_session`. Out: `{request_id, status, chunk}`. What the dialect has
no words for (welcome, thinking, queue, notices) is left out. Pure; it remembers only which request began which
turn, and whether that turn's text was sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.message_content import in_words
from protocol.client import (
    AssistantMessage,
    BadFrame,
    ClearHistory,
    ClientFrame,
    ErrorFrame,
    HistoryPage,
    ServerFrame,
    SessionCleared,
    ToolExecution,
    TurnFinished,
    TurnStarted,
    UserMessage,
    check_id,
    too_deep,
)
from protocol.errors import Code, Fault

_encode = msgspec.json.Encoder().encode


class Payload(msgspec.Struct, frozen=True):
    """What is said."""

    text: str
    streaming: bool | None = None
    metadata: Any = None


class Chat(msgspec.Struct, frozen=True, tag_field="action", tag="chat"):
    """A user's message."""

    payload: Payload
    request_id: str | None = None


class ClearSession(msgspec.Struct, frozen=True, tag_field="action", tag="clear_session"):
    """Begin a fresh conversation."""

    request_id: str | None = None


class _Peek(msgspec.Struct):
    action: Any = msgspec.UNSET
    type: Any = msgspec.UNSET
    request_id: Any = None


_decoder = msgspec.json.Decoder(Chat | ClearSession)
_peek = msgspec.json.Decoder(_Peek)


def is_spoken_in(frame: str) -> bool:
    """Whether a first frame is of this dialect."""
    try:
        peek = _peek.decode(frame)
    except (msgspec.DecodeError, RecursionError):  # no JSON object: no dialect at all
        return False
    return peek.action is not msgspec.UNSET and peek.type is msgspec.UNSET


def decode(frame: str) -> ClientFrame:
    """One text frame of a client. Raises BadFrame."""
    try:
        message = _decoder.decode(frame)
    except msgspec.ValidationError as error:
        raise _blame(frame, str(error)) from None
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadFrame(Fault(Code.INVALID_MESSAGE, f"The frame is not JSON: {error}."), None) from None
    check_id(message.request_id)
    if isinstance(message, Chat):
        payload = message.payload
        return UserMessage(payload.text, streaming=payload.streaming, request_id=message.request_id)
    return ClearHistory(request_id=message.request_id)


def _blame(frame: str, reason: str) -> BadFrame:
    try:
        peek = _peek.decode(frame)
    except msgspec.ValidationError:
        return BadFrame(Fault(Code.INVALID_MESSAGE, "The frame is not a JSON object."), None)
    except RecursionError:
        return too_deep()
    request_id = peek.request_id if isinstance(peek.request_id, str) else None
    if isinstance(peek.action, str) and peek.action not in ("chat", "clear_session"):
        return BadFrame(Fault(Code.UNKNOWN_TYPE, f"The action {peek.action[:60]!r} is not known here."), request_id)
    return BadFrame(Fault(Code.INVALID_MESSAGE, f"{reason}."), request_id)


class Speaker:
    """Says events in the dialect, to one socket."""

    def __init__(self) -> None:
        self._requests: dict[int, str] = {}
        self._told: set[int] = set()
        """Turns of which text, or an error, was sent."""

    def text(self, turn: int, text: str, *, thinking: bool) -> list[bytes]:
        """Text of the answer; thinking has no words here."""
        if thinking:
            return []
        self._told.add(turn)
        return [self._say(turn, "chunk", {"type": "text", "data": text, "metadata": {}})]

    def frame(self, frame: ServerFrame) -> list[bytes]:
        """The JSON payloads that say a frame; none where there are no words for it."""
        match frame:
            case TurnStarted():
                self._requests[frame.turn] = frame.request_id or ""
                return [
                    self._say(
                        frame.turn, "processing", {"metadata": {"user_message": in_words(frame.message, "[image]")}}
                    )
                ]
            case ToolExecution() if frame.status not in ("progress", "completed"):
                return [self._tool(frame)]
            case AssistantMessage() if frame.turn not in self._told:
                return self.text(frame.turn, frame.message, thinking=False)
            case TurnFinished():
                return self._finished(frame)
            case ErrorFrame():
                if frame.turn is not None:
                    self._told.add(-frame.turn)
                    return [self._error(self._requests.get(frame.turn, ""), frame.error_message, frame.error_code)]
                return [self._error(frame.request_id or "", frame.error_message, frame.error_code)]
            case SessionCleared():
                metadata = {
                    "new_conversation_id": frame.conversation_id,
                    "old_conversation_id": frame.previous_conversation_id,
                    "full_wipe_occurred": False,
                }
                chunk = {"type": "session_cleared", "metadata": metadata}
                return [_encode({"request_id": frame.request_id or "", "status": "completed", "chunk": chunk})]
            case HistoryPage():
                return self._history(frame)
            case _:
                return []

    def _say(self, turn: int, status: str, chunk: dict[str, Any]) -> bytes:
        return _encode({"request_id": self._requests.get(turn, ""), "status": status, "chunk": chunk})

    def _tool(self, frame: ToolExecution) -> bytes:
        metadata = {"tool_name": frame.tool_name, "server": frame.server, "status": frame.status}
        # the notification once, when the call begins; after that only what went wrong
        began = frame.status == "executing" and frame.message
        data = frame.message if began else f"{frame.tool_name}: {frame.status}"
        return self._say(frame.turn, "processing", {"type": "tool_execution", "data": data, "metadata": metadata})

    def _finished(self, frame: TurnFinished) -> list[bytes]:
        told_error = -frame.turn in self._told
        self._told -= {frame.turn, -frame.turn}
        request = self._requests.pop(frame.turn, "")
        if frame.outcome in ("completed", "stopped"):
            return [_encode({"request_id": request, "status": "completed", "chunk": {}})]
        if told_error:
            return []
        code = frame.error.code if frame.error is not None else Code.INTERNAL
        text = frame.error.text if frame.error is not None else "The answer was interrupted."
        return [self._error(request, text, code)]

    def _error(self, request: str, text: str, code: Code) -> bytes:
        chunk = {"error": text, "metadata": {"error_code": code}}
        return _encode({"request_id": request, "status": "error", "chunk": chunk})

    def _history(self, frame: HistoryPage) -> list[bytes]:
        if not frame.messages:
            return []
        data = [{"role": m.role, "content": in_words(m.content, "[image]"), "timestamp": m.at} for m in frame.messages]
        metadata = {"conversation_id": frame.conversation_id, "message_count": len(data)}
        chunk = {"type": "conversation_history", "data": data, "metadata": metadata}
        return [_encode({"request_id": frame.request_id or "", "status": "init", "chunk": chunk})]

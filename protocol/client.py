"""The client contract on the wire: limits, and how frames become text and back.

Client to server: `decode` turns everything wrong into one typed Fault. Server to client: `encode`. The
frames themselves are `protocol/contract.py`, handed on from here.
"""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from protocol.contract import (
    CAPABILITIES,
    AskModels,
    AssistantDelta,
    AssistantMessage,
    ChangeConfig,
    ClearHistory,
    ClientFrame,
    Config,
    ConfigChanged,
    Degraded,
    DeleteSession,
    ErrorFrame,
    GetHistory,
    Hello,
    HistoryMessage,
    HistoryPage,
    ImagePart,
    ImageUrl,
    LeftOut,
    ListSessions,
    LoadSession,
    MessageQueued,
    Models,
    Ping,
    Pong,
    Position,
    ReadConfig,
    Recovered,
    Resume,
    SavedSession,
    SaveThis,
    ServerFrame,
    SessionCleared,
    Sessions,
    SessionSaved,
    StopTurn,
    TextPart,
    ThinkingDelta,
    ToolExecution,
    ToolUse,
    TurnFinished,
    TurnStarted,
    UserMessage,
    Welcome,
)
from protocol.contract_asks import (
    Answer,
    ApprovalRequest,
    ApprovalSettled,
    Approve,
    AskedFrame,
    Question,
    QuestionSettled,
)
from protocol.contract_tools import ResourceChanged, ToolFrame, ToolsChanged
from protocol.errors import Code, Fault, FaultBody

MAX_TEXT_CHARS = 1_000_000  # of one user message; past it no model we know of can read it
MAX_PARTS = 64  # of one user message
MAX_IMAGE_BYTES = 8 * 2**20  # of the data URIs of one user message; no provider takes more than 5 MB an image
MAX_URL_CHARS = 8192  # of an image's address
MAX_ID_CHARS = 200  # request and conversation ids; ours have 32
MAX_QUEUED = 16  # messages that may wait behind a running turn
LOCAL_OWNER = "local"  # whose conversations they are while authentication is off
HISTORY_PAGE = 50  # turns of one history page, and the most that one may ask for

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
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeError) as error:
        # lone surrogates cannot come over a WebSocket, but a str could hold them
        raise BadFrame(Fault(Code.INVALID_MESSAGE, f"The frame is not JSON: {error}."), None) from None
    check_id(message.request_id)
    return message


def check_id(request_id: str | None) -> None:
    """Raises BadFrame for an id that is too long to be kept."""
    if request_id is not None and len(request_id) > MAX_ID_CHARS:
        raise BadFrame(Fault(Code.MESSAGE_TOO_LARGE, f"request_id is longer than {MAX_ID_CHARS} characters."), None)


def too_deep() -> BadFrame:
    """The error for what no decoder can follow."""
    return BadFrame(Fault(Code.INVALID_MESSAGE, "The frame is nested too deeply."), None)


def _blame(frame: str, reason: str) -> BadFrame:
    try:
        peek = _peek.decode(frame)
    except msgspec.ValidationError:
        return BadFrame(Fault(Code.INVALID_MESSAGE, "The frame is not a JSON object."), None)
    except RecursionError:
        return too_deep()
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


def time_of(at: float) -> datetime.datetime:
    """Unix time as the contract's."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC)


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


__all__ = [
    "CAPABILITIES",
    "HISTORY_PAGE",
    "LOCAL_OWNER",
    "MAX_ID_CHARS",
    "MAX_IMAGE_BYTES",
    "MAX_PARTS",
    "MAX_QUEUED",
    "MAX_TEXT_CHARS",
    "MAX_URL_CHARS",
    "Answer",
    "ApprovalRequest",
    "ApprovalSettled",
    "Approve",
    "AskModels",
    "AskedFrame",
    "AssistantDelta",
    "AssistantMessage",
    "BadFrame",
    "ChangeConfig",
    "ClearHistory",
    "ClientFrame",
    "Config",
    "ConfigChanged",
    "Degraded",
    "DeleteSession",
    "ErrorFrame",
    "GetHistory",
    "Hello",
    "HistoryMessage",
    "HistoryPage",
    "ImagePart",
    "ImageUrl",
    "LeftOut",
    "ListSessions",
    "LoadSession",
    "MessageQueued",
    "Models",
    "Ping",
    "Pong",
    "Position",
    "Question",
    "QuestionSettled",
    "ReadConfig",
    "Recovered",
    "ResourceChanged",
    "Resume",
    "SaveThis",
    "SavedSession",
    "ServerFrame",
    "SessionCleared",
    "SessionSaved",
    "Sessions",
    "StopTurn",
    "TextPart",
    "ThinkingDelta",
    "ToolExecution",
    "ToolFrame",
    "ToolUse",
    "ToolsChanged",
    "TurnFinished",
    "TurnStarted",
    "UserMessage",
    "Welcome",
    "check_id",
    "decode",
    "encode",
    "error_frame",
    "schema",
    "time_of",
    "too_deep",
]

"""The client contract's frames: one frozen Struct a type, the JSON field names are the attribute names.

Unknown fields from a client are ignored, absent optional ones are None here and left out on the wire. How
frames become text and back is `protocol/client.py`; dialects are codecs over these same types.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import msgspec

from protocol.contents import Content
from protocol.contract_asks import AskedFrame, AskFrame
from protocol.contract_tools import TOOL_CAPABILITIES, ToolAnswer, ToolFrame
from protocol.errors import Code, FaultBody
from protocol.models import OfferedModel


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
    frame_ms: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    """Text and thinking come in frames at most this often, each with all that came meanwhile; 0: as it comes."""
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


class SaveThis(msgspec.Struct, frozen=True, tag="save_session"):
    """Pins the conversation up to its last finished turn under a name."""

    name: str
    conversation_id: str | None = None
    request_id: str | None = None


class ListSessions(msgspec.Struct, frozen=True, tag="list_sessions"):
    """The saved sessions."""

    request_id: str | None = None


class LoadSession(msgspec.Struct, frozen=True, tag="load_session"):
    """Continues in a new conversation that begins with the saved events."""

    saved_id: str
    request_id: str | None = None


class DeleteSession(msgspec.Struct, frozen=True, tag="delete_session"):
    """Deletes a saved session, not the conversation."""

    saved_id: str
    request_id: str | None = None


class ReadConfig(msgspec.Struct, frozen=True, tag="get_config"):
    """The runtime configuration, or the part of it at a dotted path."""

    path: str | None = None
    request_id: str | None = None


class ChangeConfig(msgspec.Struct, frozen=True, tag="set_config"):
    """Changes the runtime configuration."""

    changes: dict[str, Any]
    base_version: int | None = None
    request_id: str | None = None


class AskModels(msgspec.Struct, frozen=True, tag="list_models"):
    """The models that a provider offers."""

    provider: str | None = None
    """Name under `llm.providers`; absent: the active one."""
    refresh: bool = False
    """Ask the provider anew, whatever is known."""
    request_id: str | None = None


ClientFrame = (
    Hello
    | UserMessage
    | StopTurn
    | ClearHistory
    | GetHistory
    | Resume
    | Ping
    | SaveThis
    | ListSessions
    | LoadSession
    | DeleteSession
    | ReadConfig
    | ChangeConfig
    | AskModels
    | AskFrame
    | ToolFrame
)
CAPABILITIES = sorted(
    [
        *TOOL_CAPABILITIES,
        "answer",
        "approve",
        "clear_history",
        "delete_session",
        "get_config",
        "hello",
        "history",
        "list_models",
        "list_grants",
        "list_sessions",
        "load_session",
        "ping",
        "resume",
        "revoke_grant",
        "save_session",
        "set_config",
        "stop",
        "user_message",
    ]
)
"""Types that are understood, by name."""


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


class LeftOut(msgspec.Struct, frozen=True):
    """What the model is not told of the conversation, since its context window has no room for it."""

    turns: int
    """Whole turns, the oldest."""
    messages: int
    """Messages, those of the turns included."""


class TurnStarted(msgspec.Struct, frozen=True, tag="turn_started", omit_defaults=True):
    """The message is on disk and its turn runs."""

    turn: int
    message: Any
    model: str
    provider: str
    fallbacks: list[str] = []
    """Providers that are asked in this order when that one fails before it has said anything."""
    left_out: LeftOut | None = None
    """Absent: nothing."""
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
    """Text; the beginning of it where it is long."""
    progress: float | None = None
    total: float | None = None
    elapsed_ms: int | None = None
    contents: list[Content] = []
    """All parts of the result where there are others than plain text; here and below in `history` and `tool_result`."""
    structured: Any = None
    """Structured content; where it is large it is one of `contents`."""
    result_id: str = ""
    """The whole text is kept: `get_result`."""
    result_size: int = 0
    """Bytes of the whole text, where it is kept."""


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
    """Tokens as the provider counts them, of all its answers in this turn; `cost` where prices are configured."""
    provider: str = ""
    """Who gave the last answer: the asked one, or a fallback."""
    annotations: list[dict[str, Any]] = []
    """What the text refers to, in the provider's form; indexes are characters of `message`."""


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
    contents: list[Content] = []
    structured: Any = None
    result_id: str = ""
    result_size: int = 0


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
    usage: dict[str, Any] | None = None
    """Of an answer, as the three below; see `assistant_message`."""
    model: str = ""
    provider: str = ""
    annotations: list[dict[str, Any]] = []


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


class SessionSaved(msgspec.Struct, frozen=True, tag="session_saved", omit_defaults=True):
    """The conversation is saved."""

    saved_id: str
    name: str
    conversation_id: str
    at: datetime.datetime
    request_id: str | None = None


class SavedSession(msgspec.Struct, frozen=True):
    """One of `sessions`."""

    saved_id: str
    name: str
    conversation_id: str
    at: datetime.datetime
    messages: int


class Sessions(msgspec.Struct, frozen=True, tag="sessions", omit_defaults=True):
    """The saved sessions, newest first."""

    sessions: list[SavedSession]
    request_id: str | None = None


class Config(msgspec.Struct, frozen=True, tag="config", omit_defaults=True):
    """The runtime configuration in force, without secrets."""

    version: int
    config: Any
    request_id: str | None = None


class ConfigChanged(msgspec.Struct, frozen=True, tag="config_changed"):
    """Another version of the configuration is in force."""

    version: int


class Models(msgspec.Struct, frozen=True, tag="models", omit_defaults=True):
    """The models that a provider offers, by id."""

    provider: str
    models: list[OfferedModel]
    at: datetime.datetime
    """When the provider was asked."""
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
    | SessionSaved
    | Sessions
    | Config
    | ConfigChanged
    | Models
    | AskedFrame
    | ToolAnswer
)

"""Stored events read three ways: as messages for the model, as a history page, as frames to replay.

Pure. Assumes events ordered by turn and position, as the writer gives them. A turn that broke off is told
to the model as far as it came; a tool call without an outcome gets a tool message that says so, since
providers refuse a call without its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec

from actors.message_content import in_words
from protocol.client import (
    AssistantMessage,
    HistoryMessage,
    LeftOut,
    ServerFrame,
    ToolExecution,
    ToolUse,
    TurnFinished,
    TurnStarted,
    error_frame,
    time_of,
)
from protocol.contents import SHOWN_CHARS
from protocol.session import echo_of
from protocol.watcher import ToolNotifications
from protocol.writer import (
    Closed,
    Event,
    HopEvent,
    StoredEvent,
    ToolApproved,
    ToolEnded,
    ToolStarted,
    UserEvent,
)

UNKNOWN_OUTCOME = "The outcome of this call is not known: the service was interrupted while it ran."
STATUS_OF = {"completed": "complete"}  # outcome of a turn -> status of its message, where they differ


def for_model(
    system_prompt: str, events: Sequence[Event], provider: str, *, vision: bool = True
) -> list[dict[str, Any]]:
    """`chat/completions` messages: the system prompt, then every event in order.

    Args:
        events: of whole turns; `Closed` is passed over.
        provider: its own raw fields of earlier answers go back to it, other providers' do not.
        vision: false: it reads text only, so images are told as words.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    waiting: dict[str, None] = {}
    for event in events:  # of hundreds of turns, each time: what most of them are is looked at first
        if type(event) is Closed:
            continue
        if isinstance(event, UserEvent):
            if waiting:
                _settle(messages, waiting)
            messages.append({"role": "user", "content": event.content if vision else in_words(event.content)})
        elif isinstance(event, HopEvent):
            if waiting:
                _settle(messages, waiting)
            if event.tool_calls or event.raw:
                if event.content or event.tool_calls:
                    messages.append(_assistant(event, provider))
                    waiting = {call.id: None for call in event.tool_calls}
            elif event.content:
                messages.append({"role": "assistant", "content": event.content})
        elif isinstance(event, ToolEnded) and event.model_call_id in waiting:
            del waiting[event.model_call_id]
            messages.append({"role": "tool", "tool_call_id": event.model_call_id, "content": event.result})
    _settle(messages, waiting)
    return messages


def _settle(messages: list[dict[str, Any]], waiting: dict[str, None]) -> None:
    for call_id in waiting:
        messages.append({"role": "tool", "tool_call_id": call_id, "content": UNKNOWN_OUTCOME})
    waiting.clear()


def _assistant(event: HopEvent, provider: str) -> dict[str, Any]:
    raw = event.raw if event.provider == provider else {}
    # the provider's own form of the content, where that was no plain text
    message: dict[str, Any] = {"content": event.content, **raw, "role": "assistant"}
    if event.tool_calls:
        message["tool_calls"] = [
            {
                **(call.raw if event.provider == provider else {}),
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in event.tool_calls
        ]
    return message


def page(events: Iterable[StoredEvent], queued: Sequence[int] = ()) -> list[HistoryMessage]:
    """A history page: per turn the user's message and, if there is one, the answer."""
    messages: list[HistoryMessage] = []
    for turn, group in groupby(events, key=lambda stored: stored.turn):
        messages.extend(_turn_messages(turn, list(group), queued))
    return messages


def _turn_messages(turn: int, stored: list[StoredEvent], queued: Sequence[int]) -> list[HistoryMessage]:
    closed = next((s for s in stored if isinstance(s.event, Closed)), None)
    ended = closed.event if closed is not None and isinstance(closed.event, Closed) else None
    status = STATUS_OF.get(ended.outcome, ended.outcome) if ended else ("queued" if turn in queued else "running")
    messages: list[HistoryMessage] = []
    for item in stored:
        if isinstance(item.event, UserEvent):
            messages.append(
                HistoryMessage(turn=turn, role="user", content=item.event.content, status=status, at=time_of(item.at))
            )
    tools = _tools(s.event for s in stored)
    if ended is not None and closed is not None and (ended.message or tools):
        messages.append(
            HistoryMessage(
                turn=turn,
                role="assistant",
                content=ended.message,
                status=status,
                at=time_of(closed.at),
                thinking=ended.thinking or None,
                tools=tools,
                usage=ended.usage,
                model=ended.model,
                provider=ended.provider,
                annotations=ended.annotations,
            )
        )
    return messages


def _tools(events: Iterable[Event]) -> list[ToolUse]:
    uses: dict[str, ToolUse] = {}
    for event in events:
        if isinstance(event, ToolStarted):
            uses[event.call_id] = ToolUse(
                call_id=event.call_id,
                tool_name=event.tool_name,
                server=event.server,
                arguments=event.arguments,
                status="unknown",
            )
        elif isinstance(event, ToolApproved) and event.call_id in uses:
            uses[event.call_id] = msgspec.structs.replace(uses[event.call_id], arguments=event.arguments)
        elif isinstance(event, ToolEnded) and event.call_id in uses:
            uses[event.call_id] = msgspec.structs.replace(
                uses[event.call_id],
                status=event.status,
                result=event.result[:SHOWN_CHARS] if event.result_id else event.result,
                contents=event.contents,
                structured=event.structured,
                result_id=event.result_id,
                result_size=event.size,
            )
    return list(uses.values())


def replay(
    turn: int, events: Sequence[Event], after: int | None, notices: ToolNotifications | None = None
) -> list[ServerFrame]:
    """What a client gets of a finished turn on resume: the frames that it would have seen, without text and progress.

    Args:
        after: the last seq that it saw of this turn; None: it saw nothing, so `turn_started` comes first.
        notices: how tool calls are told.
    Returns: `tool_execution`s after that position and the closing frames; nothing if the turn is not closed.
    """
    closed = next((e for e in events if isinstance(e, Closed)), None)
    if closed is None:
        return []
    frames: list[ServerFrame] = []
    if after is None:
        frames.extend(started(turn, events))
    seen = -1 if after is None else after
    frames.extend(frame for frame in _tool_frames(turn, events, notices) if frame.seq > seen)
    if closed.message and closed.seq - 1 > seen:
        frames.append(assistant_message(turn, closed))
    if closed.seq > seen:
        if closed.error is not None and closed.outcome == "failed":
            frames.append(error_frame(closed.error, turn=turn))
        frames.append(TurnFinished(turn=turn, seq=closed.seq, outcome=closed.outcome, error=closed.error))
    return frames


def started(turn: int, events: Sequence[Event]) -> list[ServerFrame]:
    """`turn_started` of a stored turn."""
    user = next((e for e in events if isinstance(e, UserEvent)), None)
    hop = next((e for e in events if isinstance(e, HopEvent)), None)
    if user is None:
        return []
    return [
        TurnStarted(
            turn=turn,
            message=user.content,
            model=hop.model if hop else "",
            provider=hop.provider if hop else "",
            left_out=LeftOut(**hop.left_out) if hop and hop.left_out else None,
            request_id=echo_of(user.request_id),
        )
    ]


def _tool_frames(turn: int, events: Sequence[Event], notices: ToolNotifications | None) -> list[ToolExecution]:
    begun = {e.call_id: e for e in events if isinstance(e, ToolStarted)}
    frames = {call.seq: tool_execution(turn, call, call.seq, "executing", notices) for call in begun.values()}
    for event in events:
        if isinstance(event, ToolEnded) and event.call_id in begun:
            # an outcome that was on its way when the turn was closed may be stored twice: it has one place
            frames[event.seq] = tool_ended(turn, begun[event.call_id], event, notices)
    return [frames[seq] for seq in sorted(frames)]


def tool_ended(turn: int, call: ToolStarted, ended: ToolEnded, notices: ToolNotifications | None) -> ToolExecution:
    """The frame that tells of a call's outcome."""
    result = ended.result[:SHOWN_CHARS]
    frame = tool_execution(turn, call, ended.seq, ended.status, notices)
    return msgspec.structs.replace(
        frame,
        result=result,
        elapsed_ms=ended.elapsed_ms,
        contents=ended.contents,
        structured=ended.structured,
        result_id=ended.result_id,
        result_size=ended.size,
    )


def tool_execution(
    turn: int, call: ToolStarted, seq: int, status: str, notices: ToolNotifications | None
) -> ToolExecution:
    """The frame that tells of a call, in the configured words; live and replayed ones are equal."""
    message, arguments = "", None
    if notices is not None and notices.enabled:
        message = notices.format.format(
            icon=notices.icon, tool_name=call.tool_name, server=call.server, args=call.arguments
        )
    if notices is not None and notices.show_args and status == "executing":
        arguments = shown_arguments(call.arguments)
    return ToolExecution(
        turn=turn,
        seq=seq,
        call_id=call.call_id,
        tool_name=call.tool_name,
        server=call.server,
        status=status,
        message=message,
        arguments=arguments,
    )


def shown_arguments(arguments: str) -> Any:
    """The arguments as a JSON value, or the text where it is none that can be sent (a lone surrogate, too deep)."""
    try:
        return msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def assistant_message(turn: int, closed: Closed) -> AssistantMessage:
    """The authoritative text of a closed turn; its seq is one before that of `turn_finished`."""
    return AssistantMessage(
        turn=turn,
        seq=closed.seq - 1,
        message=closed.message,
        model=closed.model,
        finish_reason=closed.finish_reason,
        status=STATUS_OF.get(closed.outcome, closed.outcome),
        thinking=closed.thinking or None,
        usage=closed.usage,
        provider=closed.provider,
        annotations=closed.annotations,
    )

"""The log of a running turn, made again from its journal by whoever takes it up after the front that had it died.

Positions stay what they were: an entry whose seq is stored stands there again, and the text of a hop where its first
piece stood, with empty pieces after it. So a client that comes back with its position gets what it has not seen. In the
middle of a text it may miss the rest of that, which `assistant_message` then says: what was cut where is not stored.

Pure. The turn has run tools, and waits for the outcome of some: no request fills its log.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors import transcript
from actors.turnlog import Thought, TurnLog
from protocol.client import ToolExecution
from protocol.watcher import ToolNotifications
from protocol.writer import Event, HopEvent, ToolEnded, ToolStarted

NOTHING = ""  # an entry that holds a place


def rebuilt(
    conversation: str, turn: int, events: Sequence[Event], notices: ToolNotifications, *, streaming: bool
) -> TurnLog:
    """The log as it stood when the last of these events was stored.

    Args:
        events: of the turn, as stored.
        notices: how tool calls are told.
        streaming: as the turn began.
    """
    log = TurnLog(conversation, turn, streaming=streaming)
    shown: list[ToolExecution] = []
    started: dict[str, ToolStarted] = {}
    for event in events:
        match event:
            case HopEvent():
                _show(log, shown)
                log.hop, log.hop_start = event.hop, log.seq
                if event.thinking:
                    log.entries.append(Thought(event.thinking))
                if event.content:
                    log.entries.append(event.content)
            case ToolStarted():
                started[event.call_id] = log.calls[event.call_id] = event
                shown.append(transcript.tool_execution(turn, event, event.seq, "executing", notices))
            case ToolEnded() if event.call_id in log.calls:
                del log.calls[event.call_id]
                shown.append(transcript.tool_ended(turn, started[event.call_id], event, notices))
            case _:
                pass
    _show(log, shown)
    log.stored = log.sending = log.seq
    log.tools_ran = log.marked = True
    return log


def _show(log: TurnLog, shown: list[ToolExecution]) -> None:
    """Put frames where they stood, in order."""
    for frame in sorted(shown, key=lambda frame: frame.seq):
        log.entries += [NOTHING] * (frame.seq - 1 - log.seq)
        log.add_frame(lambda _, frame=frame: frame)  # type: ignore[misc]  # a default argument binds it here
    shown.clear()

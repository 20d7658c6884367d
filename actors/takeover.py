"""What a session finds when it starts, sorted: pure, from a page of history and the log that front kept.

At its first start that is the conversation so far and messages that wait. After a crash it may be a turn
that ran: one whose end is on disk and was not shown, one that sockets see, one that was never shown, or one that
waits for a person, whoever ran it before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.rebuilding import rebuilt
from actors.turnlog import TurnLog
from protocol.watcher import ToolNotifications
from protocol.writer import Closed, Event, History, ToolStarted, UserEvent


@dataclass
class Found:
    """What there is to take over."""

    last_turn: int
    """Greatest turn id ever used."""
    ended: list[Event] = field(default_factory=list)
    """Events of the turns that have ended, in order."""
    known: dict[str, int] = field(default_factory=dict)
    """Turns by request_id."""
    users: dict[int, UserEvent] = field(default_factory=dict)
    """User events of turns that have not ended."""
    queued: list[int] = field(default_factory=list)
    """Turns that wait."""
    unshown: tuple[TurnLog, Closed] | None = None
    """A log that sockets see, and its turn's end that they have not seen."""
    running: tuple[TurnLog, list[Event]] | None = None
    """A turn that ran, and its events so far."""
    waiting: list[str] = field(default_factory=list)
    """Calls of that turn for which a person is asked, where it waits for nothing else."""


def find(
    conversation: str, history: History, live: TurnLog | None, tail_turn: int, notices: ToolNotifications
) -> Found:
    """Sort it.

    Args:
        history: the last page of the conversation.
        live: the log that sockets see, of a turn that has not shown its end.
        tail_turn: the turn of the last log that sockets have seen.
        notices: how tool calls are told, where a log must be made again.
    """
    found = Found(max(history.last_turn, tail_turn), queued=list(history.queued))
    unended = {*history.running, *history.queued}
    by_turn: dict[int, list[Event]] = {}
    for stored in history.events:
        by_turn.setdefault(stored.turn, []).append(stored.event)
        if isinstance(stored.event, UserEvent):
            found.known[stored.event.request_id] = stored.turn
            if stored.turn in unended:
                found.users[stored.turn] = stored.event
    found.ended = [event for turn, events in by_turn.items() if turn not in unended for event in events]
    if live is not None and live.turn not in unended:
        closed = next(event for event in by_turn[live.turn] if isinstance(event, Closed))
        found.unshown = (live, closed)
    elif live is not None:
        found.running = (live, by_turn[live.turn])
        found.waiting = list(history.waiting)
        for event in by_turn[live.turn]:
            # one whose outcome was shown and not stored gets it again
            if isinstance(event, ToolStarted) and event.call_id in found.waiting:
                live.calls.setdefault(event.call_id, event)
    elif history.running:
        turn = history.running[0]
        found.waiting = list(history.waiting)
        streaming = found.users[turn].streaming
        if found.waiting:
            log = rebuilt(conversation, turn, by_turn[turn], notices, streaming=streaming)
        else:
            log = TurnLog(conversation, turn, streaming=streaming)
        found.running = (log, by_turn[turn])
    return found

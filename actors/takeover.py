"""What a session finds when it starts, sorted: pure, from a page of history and the log that front kept.

At its first start that is the conversation so far and messages that wait. After a crash it may be a turn
that ran: one whose end is on disk and was not shown, one that sockets see, or one that was never shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.turnlog import TurnLog
from protocol.writer import Closed, Event, History, UserEvent


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


def find(conversation: str, history: History, live: TurnLog | None, tail_turn: int) -> Found:
    """Sort it.

    Args:
        history: the last page of the conversation.
        live: the log that sockets see, of a turn that has not shown its end.
        tail_turn: the turn of the last log that sockets have seen.
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
    elif history.running:
        turn = history.running[0]
        log = TurnLog(conversation, turn, streaming=found.users[turn].streaming)
        found.running = (log, by_turn[turn])
    return found

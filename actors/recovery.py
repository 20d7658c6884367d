"""What becomes of the turns that ran when the service died: each ends as `interrupted`, with what is stored.

Runs once, when a service opens its store and before anything else is written; a restart of the writer
inside a running service recovers nothing, since the turns are alive then. Turns that waited go on waiting.

A running turn is closed even where nothing of it is stored: what was shown in the last moments before the
crash is not known, so asking the model again under the same id could contradict what a client saw.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from actors.annotations import annotations_of
from actors.rows import ALL_OPEN, DELTAS, Row, add_events, events_between, find_end, rows
from actors.schema import Database
from actors.usage import added
from protocol.writer import Closed, Event, HopEvent, ToolEnded, ToolStarted

SEQ_GAP = 1_000_000  # past anything that a client can have seen of a log whose end was not stored
UNKNOWN = "The outcome of this call is unknown: the service stopped while it ran. It was not repeated."


def recover(db: Database, now: float) -> int:
    """Close every running turn, within the caller's transaction; answers how many there were."""
    running = [row for row in rows(db, ALL_OPEN) if row[2] == "running"]
    for conversation, turn, _, seq, _, name in running:
        stored = [row.event for row in events_between(db, conversation, turn, turn)]
        deltas = rows(db, DELTAS, conversation, turn)
        end = find_end(db, name, turn)
        if end is not None:
            add_events(db, end, ending(stored, deltas, seq + SEQ_GAP), now)
    return len(running)


def ending(stored: list[Event], deltas: list[Row], seq: int) -> list[Event]:
    """The events that close an interrupted turn; pure.

    Args:
        stored: its events so far.
        deltas: (hop, text, thinking) of the hop that has no event yet, in order.
        seq: position of the first closing event.
    """
    hops = [event for event in stored if isinstance(event, HopEvent)]
    ended = {event.call_id for event in stored if isinstance(event, ToolEnded)}
    events: list[Event] = []
    for event in stored:
        if isinstance(event, ToolStarted) and event.call_id not in ended:
            at = seq + len(events)
            events.append(ToolEnded(event.call_id, event.model_call_id, at, "unknown", UNKNOWN, elapsed_ms=0))
    seq += len(events)
    text, thinking = "".join(row[1] for row in deltas), "".join(row[2] for row in deltas)
    if text or thinking:
        # The next turn's model must see what the user saw of this one, so the part is a hop like any other.
        hop = HopEvent(
            hop=deltas[-1][0],
            content=text,
            thinking=thinking,
            tool_calls=[],
            raw={},
            provider=hops[-1].provider if hops else "",
            model=hops[-1].model if hops else "",
            usage=None,
            finish_reason="",
        )
        hops.append(hop)
        events.append(hop)
    message = "".join(hop.content for hop in hops)
    used: dict[str, Any] = reduce(added, (hop.usage for hop in hops), {})
    closed = Closed(
        outcome="interrupted",
        seq=seq + 1 if message else seq,  # `assistant_message` has the one before
        message=message,
        thinking="".join(hop.thinking for hop in hops),
        usage=used or None,
        model=hops[-1].model if hops else "",
        finish_reason="",
        error=None,
        provider=hops[-1].provider if hops else "",
        annotations=annotations_of(hops),
    )
    return [*events, closed]


__all__ = ["SEQ_GAP", "UNKNOWN", "ending", "recover"]

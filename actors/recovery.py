"""What becomes of the turns that ran when the service, or one of its fronts, died.

When a service opens its store, before anything else is written, each that ran ends as `interrupted`, with what is
stored; a restart of the writer inside a running service recovers nothing, since the turns are alive then, and a
store that is opened again beside living fronts only what is of dead ones. Turns that waited go on waiting.

At a start a running turn is closed even where nothing of it is stored: what was shown in the last moments before
the crash is not known, so asking the model again under the same id could contradict what a client saw. A front
that is not alone says the moment it shows something, so a turn that it died with before that is asked again, but
not for ever: it may be what killed it.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from actors import ticks
from actors.annotations import annotations_of
from actors.claims import held, holders
from actors.fence import Fence
from actors.pending import orphaned
from actors.rows import (
    ALL_OPEN,
    OPEN_TURNS,
    SET_FRONT,
    add_events,
    events_between,
    find_end,
    one,
    rows,
)
from actors.schema import Database
from actors.usage import added
from actors.waiting import calls_of
from protocol.claim import parsed
from protocol.writer import Closed, Done, Event, FrontGone, HopEvent, ToolEnded, ToolStarted

SEQ_GAP = 1_000_000  # past anything that a client can have seen of a log whose end was not stored
ASKS = 3  # how often a turn that has shown nothing is asked, where the front that asks dies each time
UNKNOWN = "The outcome of this call is unknown: the service stopped while it ran. It was not repeated."


LOST = "SELECT lost FROM turn WHERE conversation = ? AND turn = ?"
SET_LOST = "UPDATE turn SET state = 'queued', lost = lost + 1 WHERE conversation = ? AND turn = ?"


def recover(db: Database, now: float, fence: Fence) -> int:
    """Close every turn that nobody runs any more, within the caller's transaction; answers how many there were."""
    closed = 0
    for front in holders(db):
        if fence.was_left(front):
            closed += _let_go(db, front, now, again=not fence.is_gone(front))
    running = [
        (turn, name)
        for conversation, turn, state, _, _, name, front in rows(db, ALL_OPEN)
        if state == "running" and not front and not calls_of(db, conversation, name, turn)
    ]
    closed += _close(db, running, now)
    orphaned(db, now, fence.is_gone, operators=True)
    return closed


def front_gone(db: Database, message: FrontGone, now: float, fence: Fence) -> Done:
    """`FrontGone`."""
    fence.shut(message.front)
    _let_go(db, message.front, now, again=True)
    orphaned(db, now, fence.is_gone, operators=False)
    return Done()


def _let_go(db: Database, front: str, now: float, *, again: bool) -> int:
    """What that front and its earlier lives have becomes nobody's; answers how many turns were closed.

    Args:
        again: a turn that had shown nothing waits to be asked again.
    """
    gone = parsed(front)
    if gone is None:
        return 0
    running: list[tuple[int, str]] = []
    for conversation, name, holder in held(db, gone):
        life = parsed(holder)
        if life is None or life.life > gone.life:
            continue
        for turn, state in rows(db, OPEN_TURNS, conversation):
            if state != "running" or calls_of(db, conversation, name, turn):
                continue  # it waits to be run, or for a person
            if not (again and _ask_again(db, conversation, turn, name)):
                running.append((turn, name))
        db.execute(SET_FRONT, ("", conversation))
    return _close(db, running, now)


def _ask_again(db: Database, conversation: int, turn: int, name: str) -> bool:
    end = find_end(db, name, turn)
    if end is None or end.last > 1 or end.seq or end.tick:
        return False  # something of it was shown, or a tool was called
    (lost,) = one(db, LOST, conversation, turn) or (0,)
    if lost + 1 >= ASKS:
        return False
    db.execute(SET_LOST, (conversation, turn))
    return True


def _close(db: Database, running: list[tuple[int, str]], now: float) -> int:
    """End those turns (turn, id of its conversation) as interrupted; answers how many they are."""
    ends = [end for turn, name in running if (end := find_end(db, name, turn)) is not None]
    texts = ticks.texts(db, {(end.conversation, end.turn): end.tick for end in ends if end.tick})
    for end in ends:
        stored = [row.event for row in events_between(db, end.conversation, end.turn, end.turn)]
        parts = texts.get((end.conversation, end.turn), [])
        seq = max([end.seq, *(part.seq for part in parts)])
        deltas = [(part.hop, part.text, part.thinking) for part in parts if part.hop > end.hop]
        add_events(db, end, ending(stored, deltas, seq + SEQ_GAP), now)
    return len(running)


def ending(stored: list[Event], deltas: list[tuple[int, str, str]], seq: int) -> list[Event]:
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


__all__ = ["SEQ_GAP", "UNKNOWN", "ending", "front_gone", "recover"]

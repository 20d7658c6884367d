"""Turns that wait for nothing but a person: who runs them may die, and another goes on from the journal.

A call that waits for approval has been journaled as meant, and not been made: that is journaled once more before it
is. So as long as all other calls of the turn have their outcomes there, nothing is unknown, and whoever has the
conversation next takes the turn up where it stands. What an approval was decided meanwhile counts as well.

The rule is pure; the rest looks for such turns within a transaction of the store.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from actors.pending import of_turn
from actors.rows import FIND_CONVERSATION, OPEN_TURNS, events_between, one, rows
from actors.schema import Database
from protocol.pending import APPROVAL
from protocol.writer import Closed, Entered, Event, History, ToolApproved, ToolEnded, ToolStarted


def waited_for(events: Sequence[Event], asked: Collection[str]) -> list[str]:
    """Ids of the calls that a turn waits for, in order, where all of them wait for a person; else none.

    Args:
        events: of the turn, as stored.
        asked: calls for which a person was asked, whatever the answer.
    """
    calls: dict[str, None] = {}
    for event in events:
        match event:
            case ToolStarted():
                calls[event.call_id] = None
            case ToolEnded():
                calls.pop(event.call_id, None)
            case Closed():
                return []
            case _:
                pass
    made = {event.call_id for event in events if isinstance(event, ToolApproved)}
    return list(calls) if all(call in asked and call not in made for call in calls) else []


def calls_of(db: Database, conversation: int, name: str, turn: int) -> list[str]:
    """What `waited_for` says of a stored turn."""
    asked = {pending.call for pending in of_turn(db, name, turn) if pending.kind == APPROVAL}
    if not asked:
        return []
    return waited_for([stored.event for stored in events_between(db, conversation, turn, turn)], asked)


def noted(db: Database, name: str, history: History) -> History:
    """A page of history that says what its running turn waits for."""
    found = one(db, FIND_CONVERSATION, name) if history.running else None
    if found is None:
        return history
    waiting = [call for turn in history.running for call in calls_of(db, found[0], name, turn)]
    return msgspec.structs.replace(history, waiting=waiting)


def entered(db: Database, front: str, answer: Entered) -> Entered:
    """Who enters a conversation with such a turn, and has it, is told to see to it."""
    if answer.waiting or answer.new or not front or answer.front != front:
        return answer
    found = one(db, FIND_CONVERSATION, answer.conversation)
    turns = rows(db, OPEN_TURNS, found[0]) if found is not None else []
    waits = any(
        state == "running" and calls_of(db, found[0], answer.conversation, turn)
        for turn, state in turns
        if found is not None
    )
    return msgspec.structs.replace(answer, waiting=True) if waits else answer

"""Claims in the rows: which front has which conversation, taken up and let go of.

A claim is a column of the conversation: taking it costs a commit nothing that was not to be written anyway, and what
is fenced by it is looked up with the same statement. `Enter` takes most of them (`actors.rows`); how they end with
their front is in `actors.recovery`. As there, all of it runs inside a transaction of the store, and may come twice.
"""

from __future__ import annotations

from actors.fence import Fence
from actors.rows import ALL_OPEN, FIND_CONVERSATION, OPEN_TURNS, SET_FRONT, one, rows
from actors.schema import Database
from actors.waiting import calls_of
from protocol.claim import FrontId
from protocol.errors import Fault
from protocol.writer import Done, Release, TakeUnfinished, Unfinished

HELD = "SELECT n, id, front FROM conversation WHERE front >= ? AND front < ? AND front <> '' ORDER BY front"
HOLDERS = "SELECT DISTINCT front FROM conversation WHERE front <> ''"


def held(db: Database, front: FrontId) -> list[tuple[int, str, str]]:
    """Number, id and front of each conversation that is of that role in that run, whichever of its lives it was."""
    role = f"{front.run}:{front.role}"
    return [(n, name, holder) for n, name, holder in rows(db, HELD, f"{role}#", f"{role}$")]  # $ is next to #


def holders(db: Database) -> list[str]:
    """All fronts that have a conversation."""
    return [row[0] for row in rows(db, HOLDERS)]


def take_unfinished(db: Database, message: TakeUnfinished, fence: Fence) -> list[Unfinished] | Fault:
    """`TakeUnfinished`."""
    if (fault := fence.refuses(message.front, "")) is not None:
        return fault
    taken: dict[int, Unfinished] = {}
    for conversation, turn, state, _, owner, name, holder in rows(db, ALL_OPEN):
        if conversation in taken or holder not in ("", message.front):
            continue
        if state != "queued" and not calls_of(db, conversation, name, turn):
            continue
        taken[conversation] = Unfinished(owner, name)
        if message.front and not holder:
            db.execute(SET_FRONT, (message.front, conversation))
    return list(taken.values())


def release(db: Database, message: Release) -> Done:
    """`Release`."""
    for name in message.conversations:
        found = one(db, FIND_CONVERSATION, name)
        if found is None or not message.front or found[3] != message.front:
            continue
        running = [turn for turn, state in rows(db, OPEN_TURNS, found[0]) if state == "running"]
        if all(calls_of(db, found[0], name, turn) for turn in running):
            db.execute(SET_FRONT, ("", found[0]))
    return Done()

"""The text of answers that are not finished: one row for each message of it, which is all that grew in a tick.

A tick of a hundred streams is one insert at the end of one table. With a row for each stream every stream had a
page of its own to be written at each tick; and rows in the order of writing cost the same when a turn ended, since
each of its rows was on another page. So nobody's text is taken out of a row: `turn.tick` is the first row that a
running turn needs, and rows before the least of these are dropped, a few pages at a time. That of a turn that has
ended is kept with it for as long as an older answer runs, and is read by nobody.

Rows are read when turns are recovered, all at once. All of it runs inside a transaction of the store's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from actors.fence import Fence
from actors.schema import Database
from protocol.errors import Fault
from protocol.writer import AppendDeltas, Done

FIND_OPEN = (
    "SELECT conversation.id, turn.turn, turn.conversation, turn.n, hop, tick, front FROM conversation "
    "JOIN turn INDEXED BY turn_open ON turn.conversation = conversation.n "  # of few pages, unlike that of all turns
    "WHERE conversation.id = ? AND turn.turn = ? AND state IN ('queued', 'running')"
)
ADD_TICK = "INSERT INTO tick (body) VALUES (?)"
SET_TICK = "UPDATE turn SET tick = ? WHERE n = ?"
TICKS = "SELECT n, body FROM tick WHERE n >= ? ORDER BY n"
DROP_TICKS = "DELETE FROM tick WHERE n < coalesce((SELECT min(tick) FROM turn WHERE tick > 0), 1 << 62)"

Place = tuple[int, int]
"""Conversation, turn."""


class Part(NamedTuple):
    """What one turn has in one row."""

    conversation: int
    turn: int
    seq: int
    hop: int
    text: str
    thinking: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Part]).decode


def append_deltas(db: Database, message: AppendDeltas, fence: Fence) -> Done | Fault:
    """`AppendDeltas`."""
    if (fault := fence.refuses(message.front, "")) is not None:
        return fault
    wanted = [(delta.conversation, delta.turn) for delta in message.deltas]
    found = {row[:2]: row for row in db.executemany(FIND_OPEN, wanted)}
    parts: list[Part] = []
    begun: set[int] = set()
    for delta, key in zip(message.deltas, wanted, strict=True):
        row = found.get(key)
        if row is None:
            continue  # the turn is over
        _, turn, conversation, number, hop, tick, front = row
        if delta.hop <= hop or (message.front and front != message.front):
            continue  # the hop's whole text is stored: a late tick has nothing to add; or it is another front's
        parts.append(Part(conversation, turn, delta.seq, delta.hop, delta.text, delta.thinking))
        if not tick:
            begun.add(number)
    if parts:
        db.execute(ADD_TICK, (_encode(parts).decode(),))
        first = db.last_insert_rowid()
        db.executemany(SET_TICK, [(first, number) for number in sorted(begun)])
    return Done()


def texts(db: Database, turns: Mapping[Place, int]) -> dict[Place, list[Part]]:
    """What is stored of these turns, in order of `seq`, some of it perhaps of hops that are whole elsewhere.

    Args:
        turns: the first row that each needs. An earlier one may tell of a conversation that is gone and had its number.
    """
    found: dict[Place, dict[int, Part]] = {turn: {} for turn in turns}
    for n, body in db.execute(TICKS, (min(turns.values(), default=0),)):
        for part in _decode(body):
            turn = part.conversation, part.turn
            if turn not in turns or n < turns[turn]:
                continue
            known = found[turn].get(part.seq)
            if known is None or not (known.text or known.thinking):  # where a turn is may be told ahead of its text
                found[turn][part.seq] = part
    return {turn: [parts[seq] for seq in sorted(parts)] for turn, parts in found.items()}


def left(db: Database, turn: Place, hop: int, since: int) -> tuple[int, int]:
    """Once the whole of that hop is stored: the greatest `seq` of the turn, and the first row that it still needs."""
    reached = first = 0
    for n, body in db.execute(TICKS, (since,)):
        for part in _decode(body):
            if (part.conversation, part.turn) == turn:
                reached = max(reached, part.seq)
                if part.hop > hop:
                    first = first or n
    return reached, first


def drop(db: Database) -> None:
    """Drop the rows that no turn needs any more."""
    db.execute(DROP_TICKS)

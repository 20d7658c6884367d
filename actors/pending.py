"""What waits for a person, in the rows: opened once, settled once, by whoever is first.

A row is settled by one compare-and-set on its state, so that of two decisions one wins and the other learns how it
was decided. Open rows of a turn end with it, in the same transaction (`actors.rows`). Settled rows stay for a while,
for who was away when it happened, and what an owner has allowed for always stays until it is dropped.

As `actors.rows`, all of it runs inside a transaction of the store, and may come twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from actors.fence import Fence
from actors.rows import FIND_CONVERSATION, FIND_TURN, Row, one, rows
from actors.schema import Database
from protocol.errors import Code, Fault
from protocol.pending import (
    OPERATORS,
    SAMPLING,
    CancelPending,
    Decided,
    DecidePending,
    DropGrant,
    Expired,
    ExpirePending,
    Grant,
    ListGrants,
    ListPending,
    OpenPending,
    Pending,
    ReadPending,
)

OPEN_MAX = 200  # open ones of one owner: nobody decides more, and each of them is told at every welcome
KEPT_S = 7 * 86400.0  # how long a settled one is kept
DROP_MAX = 200  # settled ones that are removed at a time

FIND_PENDING = "SELECT * FROM pending WHERE id = ?"
FIND_KEY = "SELECT key FROM pending WHERE id = ?"
COUNT_OPEN = "SELECT count(*) FROM pending WHERE state = 'open' AND owner = ?"
ADD_PENDING = "INSERT INTO pending VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', NULL, '', 0)"
SETTLE = "UPDATE pending SET state = ?, answer = ?, key = ?, settled_at = ? WHERE id = ? AND state = 'open'"
OPEN_OF_OWNER = "SELECT * FROM pending WHERE state = 'open' AND owner = ? ORDER BY made_at"
OPEN_OF_TURN = "SELECT * FROM pending WHERE conversation = ? AND turn = ? AND state = 'open'"
OPEN_OF_CONVERSATION = "SELECT * FROM pending WHERE conversation = ? AND state = 'open'"
OPEN_OF_SERVER = "SELECT * FROM pending WHERE state = 'open' AND server = ?"
ALL_OF_TURN = "SELECT * FROM pending WHERE conversation = ? AND turn = ? ORDER BY made_at"
OVERDUE = "SELECT * FROM pending WHERE state = 'open' AND expires_at <= ? ORDER BY expires_at"
ASKED_BY_SERVERS = (
    "SELECT id, front, owner FROM pending WHERE state = 'open' AND turn = 0 AND (kind = 'question' OR tool = ?)"
)
NEXT_DUE = "SELECT expires_at FROM pending WHERE state = 'open' ORDER BY expires_at LIMIT 1"
SETTLED_BEFORE = "SELECT id FROM pending WHERE state <> 'open' AND settled_at < ? ORDER BY settled_at LIMIT ?"
DROP_PENDING = "DELETE FROM pending WHERE id = ?"
FIND_GRANT = "SELECT at FROM granted WHERE owner = ? AND server = ? AND tool = ?"
ADD_GRANT = "INSERT OR IGNORE INTO granted (owner, server, tool, at) VALUES (?, ?, ?, ?)"
DROP_GRANT = "DELETE FROM granted WHERE owner = ? AND server = ? AND tool = ?"
LIST_GRANTS = "SELECT server, tool, at FROM granted WHERE owner = ? ORDER BY server, tool LIMIT 1000"

NOTHING = "There is nothing of that id to decide."


def from_row(row: Row) -> Pending:
    """A row of the table."""
    id_, kind, owner, server, body, conversation, turn, call, tool, asker, front, *rest = row
    made_at, expires_at, state, answer, _, settled_at = rest
    return Pending(
        id=id_,
        kind=kind,
        owner=owner,
        server=server,
        body=msgspec.json.decode(body),
        conversation=conversation,
        turn=turn,
        call=call,
        tool=tool,
        asker=asker,
        front=front,
        made_at=made_at,
        expires_at=expires_at,
        state=state,
        answer=None if answer is None else msgspec.json.decode(answer),
        settled_at=settled_at,
    )


def told(pending: Pending) -> Pending:
    """As others are told of it: without what is kept for the store itself, which may be large."""
    if not (isinstance(pending.body, dict) and "definition" in pending.body):
        return pending
    return msgspec.structs.replace(pending, body={**pending.body, "definition": ""})


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def find(db: Database, pending_id: str) -> Pending | None:
    """The row of that id."""
    found = one(db, FIND_PENDING, pending_id)
    return None if found is None else from_row(found)


def open_pending(db: Database, message: OpenPending, now: float, fence: Fence) -> Pending | Fault:
    """`OpenPending`."""
    wanted = message.pending
    if (earlier := find(db, wanted.id)) is not None:
        return earlier
    conversation = one(db, FIND_CONVERSATION, wanted.conversation) if wanted.conversation else None
    if (fault := fence.refuses(wanted.front, conversation[3] if conversation else "")) is not None:
        return fault
    if wanted.turn:
        turn = one(db, FIND_TURN, wanted.conversation, wanted.turn)
        if turn is None or turn[1] != "running":
            return Fault(Code.TURN_NOT_RUNNING)
    if message.unless_granted and is_granted(db, wanted.owner, wanted.server, wanted.tool):
        answer = {"decision": "always"}
        return msgspec.structs.replace(wanted, made_at=now, state="answered", answer=answer, settled_at=now)
    (count,) = one(db, COUNT_OPEN, wanted.owner) or (0,)
    if count >= OPEN_MAX:
        return Fault(Code.OVERLOADED, f"{OPEN_MAX} approvals and questions wait already.")
    opened = msgspec.structs.replace(wanted, made_at=now, expires_at=now + message.lasts_s, state="open")
    row = (
        *(opened.id, opened.kind, opened.owner, opened.server, _text(opened.body), opened.conversation, opened.turn),
        *(opened.call, opened.tool, opened.asker, opened.front, opened.made_at, opened.expires_at),
    )
    db.execute(ADD_PENDING, row)
    return opened


def settle(db: Database, pending: Pending, state: Any, now: float, answer: Any = None, key: str = "") -> Pending:
    """Settle one that is open; as it stands then."""
    db.execute(SETTLE, (state, None if answer is None else _text(answer), key, now, pending.id))
    return msgspec.structs.replace(pending, state=state, answer=answer, settled_at=now)


def decide(db: Database, message: DecidePending, now: float) -> Decided | Fault:
    """`DecidePending`."""
    found = find(db, message.id)
    if found is None or found.owner not in message.owners or found.kind != message.kind:
        return Fault(Code.NOT_FOUND, NOTHING)
    if found.state != "open":
        (key,) = one(db, FIND_KEY, message.id) or ("",)
        return Decided(found, won=key == message.key)
    if found.expires_at <= now and message.state != "expired":
        return Decided(settle(db, found, "expired", now), won=False)
    settled = settle(db, found, message.state, now, message.answer, message.key)
    if message.grant and found.tool and found.turn:
        db.execute(ADD_GRANT, (message.grant, found.server, found.tool, now))
    return Decided(settled, won=True)


def cancel(db: Database, message: CancelPending, now: float) -> list[Pending]:
    """`CancelPending`."""
    if message.conversation and message.turn:
        found = rows(db, OPEN_OF_TURN, message.conversation, message.turn)
    elif message.conversation:
        found = rows(db, OPEN_OF_CONVERSATION, message.conversation)
    else:
        found = rows(db, OPEN_OF_SERVER, message.server) if message.server else []
    wanted = [
        pending
        for pending in map(from_row, found)
        if message.kind in (None, pending.kind)
        and message.call in ("", pending.call)
        and message.server in ("", pending.server)
    ]
    return [told(settle(db, pending, "cancelled", now)) for pending in wanted]


def expire(db: Database, _: ExpirePending, now: float) -> Expired:
    """`ExpirePending`; also forgets what was settled long ago."""
    for row in rows(db, SETTLED_BEFORE, now - KEPT_S, DROP_MAX):
        db.execute(DROP_PENDING, row)
    expired = [told(settle(db, from_row(row), "expired", now)) for row in rows(db, OVERDUE, now)]
    due = one(db, NEXT_DUE)
    return Expired(expired, math.inf if due is None else due[0])


def orphaned(db: Database, now: float, gone: Callable[[str], bool], *, operators: bool) -> None:
    """End what servers asked outside of turns through fronts that are gone: nobody waits for the answer any more.

    Args:
        operators: also what was asked of operators, which is asked through every front.
    """
    for pending_id, front, owner in rows(db, ASKED_BY_SERVERS, SAMPLING):
        if gone(front) and (operators or owner != OPERATORS):
            db.execute(SETTLE, ("cancelled", None, "", now, pending_id))


def of_turn(db: Database, conversation: str, turn: int) -> list[Pending]:
    """All of a turn, whatever their state."""
    return [from_row(row) for row in rows(db, ALL_OF_TURN, conversation, turn)]


def read(db: Database, query: ReadPending) -> Pending:
    """`ReadPending`. Raises: Fault NOT_FOUND."""
    found = find(db, query.id)
    if found is None:
        raise Fault(Code.NOT_FOUND, NOTHING)
    return found


def list_open(db: Database, query: ListPending) -> list[Pending]:
    """`ListPending`."""
    found = [told(from_row(row)) for owner in dict.fromkeys(query.owners) for row in rows(db, OPEN_OF_OWNER, owner)]
    if query.conversation is not None:
        found = [pending for pending in found if pending.conversation in ("", query.conversation)]
    return sorted(found, key=lambda pending: pending.made_at)


def is_granted(db: Database, owner: str, server: str, tool: str) -> bool:
    """That owner has allowed that tool for always."""
    return one(db, FIND_GRANT, owner, server, tool) is not None


def drop_grant(db: Database, message: DropGrant) -> bool:
    """`DropGrant`."""
    db.execute(DROP_GRANT, (message.owner, message.server, message.tool))
    return db.changes() > 0


def list_grants(db: Database, query: ListGrants) -> list[Grant]:
    """`ListGrants`."""
    return [Grant(*row) for row in rows(db, LIST_GRANTS, query.owner)]

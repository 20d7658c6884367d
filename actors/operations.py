"""Which function does which message of the writer's vocabulary, within a transaction that the store opened."""

from __future__ import annotations

import msgspec

from actors import claims, pending, pins, recovery, rows, saved, ticks, waiting
from actors.fence import Fence
from actors.schema import Database
from protocol.pending import (
    CancelPending,
    Decided,
    DecidePending,
    DropGrant,
    ExpirePending,
    ListGrants,
    ListPending,
    OpenPending,
    ReadPending,
)
from protocol.pins import CheckTools, OnlyServers
from protocol.writer import (
    Append,
    AppendDeltas,
    BeginTurn,
    DeleteSaved,
    Enter,
    Entered,
    FrontGone,
    ListConversations,
    ListSaved,
    ListUnfinished,
    LoadHistory,
    LoadSaved,
    Operation,
    Query,
    ReadSaved,
    Release,
    SaveSession,
    StartTurn,
    TakeUnfinished,
)


def apply(db: Database, operation: Operation, now: float, fence: Fence) -> object:
    """Do one operation; answers what its asker gets, a `Fault` included.

    Args:
        fence: which fronts may write; who is gone is noted in it.
    Raises: what the driver and the encoder raise; the caller then undoes what was begun.
    """
    match operation:
        case BeginTurn():
            return rows.begin(db, operation, now, fence)
        case Append():
            return rows.append(db, operation, now, fence)
        case AppendDeltas():
            return ticks.append_deltas(db, operation, fence)
        case Enter():
            entered = rows.enter(db, operation, now, fence)
            return waiting.entered(db, operation.front, entered) if isinstance(entered, Entered) else entered
        case StartTurn():
            return rows.start(db, operation, fence)
        case SaveSession():
            return saved.save(db, operation, now)
        case LoadSaved():
            return saved.load(db, operation, now, fence)
        case DeleteSaved():
            return saved.delete(db, operation)
        case TakeUnfinished():
            return claims.take_unfinished(db, operation, fence)
        case Release():
            return claims.release(db, operation)
        case FrontGone():
            return recovery.front_gone(db, operation, now, fence)
        case OpenPending():
            return pending.open_pending(db, operation, now, fence)
        case DecidePending():
            decided = pending.decide(db, operation, now)
            if isinstance(decided, Decided):
                pins.accept(db, decided, now)
                return msgspec.structs.replace(decided, pending=pending.told(decided.pending))
            return decided
        case CheckTools():
            return pins.check(db, operation, now)
        case OnlyServers():
            return pins.only(db, operation, now)
        case CancelPending():
            return pending.cancel(db, operation, now)
        case ExpirePending():
            return pending.expire(db, operation, now)
        case DropGrant():
            return pending.drop_grant(db, operation)


def ask(db: Database, query: Query) -> object:
    """Answer one query. Raises: Fault NOT_FOUND or SESSION_NOT_FOUND, and what the driver raises."""
    match query:
        case LoadHistory():
            return waiting.noted(db, query.conversation, rows.history(db, query))
        case ListUnfinished():
            return rows.unfinished(db)
        case ListConversations():
            return rows.list_conversations(db, query)
        case ListSaved():
            return saved.list_saved(db, query)
        case ReadSaved():
            return saved.read(db, query)
        case ReadPending():
            return pending.read(db, query)
        case ListPending():
            return pending.list_open(db, query)
        case ListGrants():
            return pending.list_grants(db, query)

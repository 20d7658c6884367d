"""Which function does which message of the writer's vocabulary, within a transaction that the store opened."""

from __future__ import annotations

from actors import rows, saved
from actors.schema import Database
from protocol.writer import (
    Append,
    AppendDeltas,
    BeginTurn,
    DeleteSaved,
    Done,
    Enter,
    ListConversations,
    ListSaved,
    ListUnfinished,
    LoadHistory,
    LoadSaved,
    Operation,
    Query,
    ReadSaved,
    SaveSession,
    StartTurn,
)


def apply(db: Database, operation: Operation, now: float) -> object:
    """Do one operation; answers what its asker gets, a `Fault` included.

    Raises: what the driver and the encoder raise; the caller then undoes what was begun.
    """
    match operation:
        case BeginTurn():
            return rows.begin(db, operation, now)
        case Append():
            return rows.append(db, operation, now)
        case AppendDeltas():
            for delta in operation.deltas:
                rows.add_delta(db, delta)
            return Done()
        case Enter():
            return rows.enter(db, operation, now)
        case StartTurn():
            return rows.start(db, operation)
        case SaveSession():
            return saved.save(db, operation, now)
        case LoadSaved():
            return saved.load(db, operation, now)
        case DeleteSaved():
            return saved.delete(db, operation)


def ask(db: Database, query: Query) -> object:
    """Answer one query. Raises: Fault NOT_FOUND or SESSION_NOT_FOUND, and what the driver raises."""
    match query:
        case LoadHistory():
            return rows.history(db, query)
        case ListUnfinished():
            return rows.unfinished(db)
        case ListConversations():
            return rows.list_conversations(db, query)
        case ListSaved():
            return saved.list_saved(db, query)
        case ReadSaved():
            return saved.read(db, query)

"""The conversation store: SQLite behind six plain calls, and the threads on which they run.

`Store` is synchronous: `commit`, `query`, `recover`, `sweep`, `checkpoint`, `close`. No SQL and no type of the
driver crosses it, so a server database can take its place. `Storage` is the same for trio: one thread
writes, one reads, and both are gone when it is closed. One owner per file, by a lock on `<file>.lock`.

What can fail is said in `actors.store_errors`. Whatever fails, nothing of that batch was written. A commit that has
begun is never cancelled.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Self

import apsw
import trio

from actors import operations, recovery, retention, rows
from actors.database_file import has_room, lock, make, size
from actors.fence import Fence
from actors.retention import Limits, Removed
from actors.schema import Database, inspect, migrate
from actors.store_errors import Errors, Fatal, Unavailable, translated
from actors.store_thread import Thread
from protocol.errors import Code, Fault
from protocol.writer import Append, AppendDeltas, BeginTurn, Operation, Query, StartTurn

MEMORY = ":memory:"  # as a path: a private database that is gone when it is closed
BUSY_MS = 1000  # how long one call waits for another program's lock
CACHE_KB = 16_000  # the last pages of some thousand live conversations
CHECKPOINT_PAGES = 4000  # 16 MB of log, where hot pages are rewritten many times: move it, but wait for no reader
TRUNCATE_PAGES = 16_000  # 64 MB: readers have kept it from shrinking; wait for them, at most BUSY_MS
TICK_S = 1e-6  # two events never have the same time; a double holds this much in this century
QUICK = BeginTurn | StartTurn | Append | AppendDeltas  # what turns need: a few rows, found by their keys
AT_ONCE = 16  # of them in memory take less than a millisecond
END = object()  # of an iterator

log = logging.getLogger(__name__)


class _Transaction:
    """A block that is done as a whole, or not at all."""

    # For each commit: made of a generator it takes as long as a statement.
    __slots__ = ("_begin", "_db")

    def __init__(self, db: Database, begin: str) -> None:
        self._db = db
        self._begin = begin

    def __enter__(self) -> None:
        self._db.execute(self._begin)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None:
                self._db.execute("COMMIT")
        finally:
            # Some failures (a full disk) have rolled back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


class Sizes(NamedTuple):
    """What a store takes on disk, in bytes."""

    file: int
    log: int


class Store:
    """One database. Not for two threads at a time, except that `query` may run beside the others.

    Args:
        path: absolute, or `MEMORY`.
        watch: called with each connection as it is made, before anything is done with it.
        fence: which fronts may write; it outlives the store where that is opened again.
    """

    def __init__(
        self, path: str, watch: Callable[[Database], None] = lambda _: None, fence: Fence | None = None
    ) -> None:
        self.path = path
        self._errors = Errors(path)
        self._watch = watch
        self._fence = fence if fence is not None else Fence()
        self._lock: int | None = None
        self._writer: Database | None = None
        self._reader: Database | None = None
        self._now = 0.0
        self._pages = 0
        self.wrote = False
        """The last commit wrote something."""
        self._next_checkpoint = CHECKPOINT_PAGES

    def open(self) -> None:
        """Lock, check and migrate the file, or make it. Raises: StoreError; `close` it then, too."""
        with self._errors:
            unclean = self.path != MEMORY and self._claim()
            db = self._writer = self._connect(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
            inspect(db)  # before anything is written to a file that may not be ours
            if unclean and (verdict := db.pragma("quick_check", 1)) != "ok":
                raise apsw.CorruptError(str(verdict))
            if self.path != MEMORY:
                self._prepare(db)
            db.pragma("foreign_keys", True)
            migrate(db)
            (latest,) = rows.one(db, rows.LAST_ENTERED) or (None,)
            self._now = latest or 0.0
            if self.path != MEMORY:
                self._reader = self._connect(apsw.SQLITE_OPEN_READONLY)

    def _claim(self) -> bool:
        """Become the file's one owner; answers whether the last one left it without closing it."""
        self._lock = lock(self.path)
        log_size = size(f"{self.path}-wal")
        if log_size and not size(self.path):
            raise Fatal(
                f"{self.path} is missing or empty, but its log {self.path}-wal is there and holds messages. "
                "Nothing was changed. Put the file back, or move the log away to start with an empty one."
            )
        make(self.path)
        return log_size > 0  # a store that was closed leaves no log behind

    def _connect(self, flags: int) -> Database:
        db = apsw.Connection(self.path, flags)
        self._watch(db)
        # Plans must not depend on what is bound: without this, many statements are prepared anew for every
        # binding (7 us instead of 2).
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        db.set_busy_timeout(BUSY_MS)
        return db

    def _prepare(self, db: Database) -> None:
        if db.readonly("main"):
            raise apsw.ReadOnlyError
        if (mode := db.pragma("journal_mode", "wal")) != "wal":
            raise Fatal(f"{self.path}: write-ahead logging is not possible there ({mode}). Use a local file system.")
        db.pragma("synchronous", "full")
        db.pragma("cache_size", -CACHE_KB)
        db.pragma("wal_autocheckpoint", 0)  # it would run inside a commit, and stall that
        db.set_wal_hook(self._grown)

    def _grown(self, _: Database, __: str, pages: int) -> int:
        if pages < self._pages:  # all of it was moved into the file: it began anew
            self._next_checkpoint = CHECKPOINT_PAGES
        self._pages = pages
        return apsw.SQLITE_OK

    @property
    def db(self) -> Database:
        """The connection that writes. Raises: Unavailable."""
        if self._writer is None:
            raise Unavailable(f"{self.path} is closed")
        return self._writer

    def _clock(self) -> float:
        """The time; always later than at the last call and than what is stored, also when the clock goes back.

        Which conversation its owner entered last is decided by it.
        """
        self._now = max(time.time(), self._now + TICK_S)
        return self._now

    # The interface.

    def commit(self, batch: Sequence[Operation]) -> list[object]:
        """Do all in one durable transaction; answers one value each, in order, a `Fault` where one cannot be done.

        Raises: StoreError: none of it was done.
        """
        db = self.db
        before = db.total_changes()
        with self._errors:
            try:
                with _Transaction(db, "BEGIN IMMEDIATE"):
                    answers = [operations.apply(db, operation, self._clock(), self._fence) for operation in batch]
            except Exception as error:
                if isinstance(error, apsw.Error) and translated(error, self.path) is not None:
                    raise
                # One of them cannot be stored: find out which, so that the others are.
                with _Transaction(db, "BEGIN IMMEDIATE"):
                    answers = [self._apply_alone(db, operation) for operation in batch]
        self.wrote = db.total_changes() > before
        return answers

    def _apply_alone(self, db: Database, operation: Operation) -> object:
        db.execute("SAVEPOINT one")
        try:
            answer = operations.apply(db, operation, self._clock(), self._fence)
        except Exception as error:  # the boundary between one asker's data and everybody else's
            if isinstance(error, apsw.Error) and translated(error, self.path) is not None:
                raise
            db.execute("ROLLBACK TO one")
            log.exception("one %s cannot be stored", type(operation).__name__)
            detail = f"This cannot be stored ({type(error).__name__})."
            answer = Fault(Code.INVALID_MESSAGE, detail, hint="It holds text or numbers that have no stored form.")
        db.execute("RELEASE one")
        return answer

    def query(self, query: Query) -> object:
        """Answer one query from what is committed. Raises: Fault NOT_FOUND, StoreError."""
        with self._errors:
            db = self._reader or self.db
            with _Transaction(db, "BEGIN"):
                return operations.ask(db, query)

    def answers(self, queries: Sequence[Query]) -> list[object]:
        """What each query is answered, or the error that it met."""
        answers: list[object] = []
        for query in queries:
            try:
                answers.append(self.query(query))
            except trio.TooSlowError:
                raise  # the time is over, for all of them
            except Exception as error:  # noqa: BLE001  # the boundary: each is its own asker's
                answers.append(error)
        return answers

    def absent(self, conversations: Sequence[str]) -> list[str]:
        """Those ids that no conversation has. Raises: StoreError."""
        with self._errors:
            db = self._reader or self.db
            with _Transaction(db, "BEGIN"):
                return [name for name in conversations if rows.one(db, rows.FIND_CONVERSATION, name) is None]

    def recover(self) -> int:
        """Close the turns that ran when the last service, or a front of this one, died; answers how many."""
        with self._errors, _Transaction(self.db, "BEGIN IMMEDIATE"):
            return recovery.recover(self.db, self._clock(), self._fence)

    def sweep(self, limits: Limits, live: Container[str], removed: Removed) -> Iterator[None]:
        """Retention in slices: each `next` is one short durable transaction, and commits go between them.

        Args:
            live: ids of conversations that are left alone; looked at in every slice.
            removed: counts what is gone.
        Raises (from `next`): StoreError: nothing of that slice was done, and the sweep is over.
        """
        slices = retention.sweep(self.db, limits, live, self._clock, removed)
        more = True
        while more:
            with self._errors, _Transaction(self.db, "BEGIN IMMEDIATE"):
                more = next(slices, END) is not END
            if more:
                yield

    @property
    def checkpoint_due(self) -> bool:
        """The log has grown past the next limit."""
        return self._pages >= self._next_checkpoint

    def checkpoint(self) -> None:
        """Move the log into the file; never fails: what could not be moved is moved later."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if self._pages >= TRUNCATE_PAGES else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            self.db.wal_checkpoint("main", mode)
        except apsw.Error as error:
            log.warning("%s: the log could not be moved into the file yet: %s", self.path, error)
        self._next_checkpoint = self._pages + CHECKPOINT_PAGES  # until `_grown` sees that the log began anew

    def probe(self) -> bool:
        """Write a page, and change nothing by it; False: there is no room for it. Raises: StoreError."""
        if self.path != MEMORY and not has_room(self.path):
            return False
        with self._errors, _Transaction(self.db, "BEGIN IMMEDIATE"):
            self.db.pragma("user_version", self.db.pragma("user_version"))
        return True

    def sizes(self) -> Sizes:
        """Bytes of the file and of its log."""
        if self.path == MEMORY:
            return Sizes(0, 0)
        return Sizes(size(self.path), size(f"{self.path}-wal"))

    def close(self) -> None:
        """Give up connections and lock; the log goes into the file. May be called twice."""
        # The writer last: only it can move the log into the file and remove it.
        reader, writer, held = self._reader, self._writer, self._lock
        self._reader = self._writer = self._lock = None
        try:
            for db in (reader, writer):
                if db is not None:
                    db.close()
        except apsw.Error as error:
            log.warning("%s: closing it: %s", self.path, error)
        finally:
            if held is not None:
                os.close(held)


class Storage:
    """A `Store` for trio: calls wait for their turn on its threads.

    Whoever opened it must `aclose` it, or its threads keep the process from ending.
    """

    def __init__(self, path: str, fence: Fence | None = None) -> None:
        self._writing = Thread("store writer")
        self._reading = self._writing if path == MEMORY else Thread("store reader")
        self.store = Store(path, self._writing.adopt, fence)

    @classmethod
    async def open(cls, path: str, fence: Fence | None = None) -> Self:
        """Open the store of that path. Raises: StoreError."""
        storage = cls(path, fence)
        try:
            await storage._writing.run(storage.store.open)
        except BaseException:
            await storage.aclose()
            raise
        return storage

    async def commit(self, batch: Sequence[Operation]) -> list[object]:
        """`Store.commit`; runs to its end whatever happens to the caller."""
        call, done = partial(self.store.commit, batch), None
        if self.store.path == MEMORY and len(batch) <= AT_ONCE and all(isinstance(one, QUICK) for one in batch):
            # It waits for no disk: the way to the thread and back takes ten times as long, and is a wait for the GIL.
            done = self._writing.here(self.store.db, call)
        return await self._writing.finish(call) if done is None else done

    async def checkpoint(self) -> None:
        """`Store.checkpoint` if one is due."""
        if self.store.checkpoint_due:
            await self._writing.finish(self.store.checkpoint)

    async def probe(self) -> bool:
        """`Store.probe`."""
        return await self._writing.finish(self.store.probe)

    async def recover(self) -> int:
        """`Store.recover`."""
        return await self._writing.finish(self.store.recover)

    async def advance(self, sweep: Iterator[None]) -> bool:
        """Do the next slice of a `Store.sweep`; answers whether there may be more."""
        return await self._writing.finish(partial(next, sweep, END)) is not END

    async def query(self, query: Query, within: float) -> object:
        """`Store.query`; after `within` seconds its statement is ended and `Unavailable` raised."""
        with trio.move_on_after(within), suppress(trio.TooSlowError):  # the thread may see the deadline first
            return await self._reading.run(partial(self.store.query, query))
        raise Unavailable(f"{self.store.path}: {type(query).__name__} took longer than {within:g} s")

    async def answers(self, queries: Sequence[Query], within: float) -> list[object]:
        """`Store.answers`; the time is for all of them, and past it `Unavailable` is raised."""
        with trio.move_on_after(within), suppress(trio.TooSlowError):  # likewise
            return await self._reading.run(partial(self.store.answers, queries))
        raise Unavailable(f"{self.store.path}: {len(queries)} queries took longer than {within:g} s")

    async def absent(self, conversations: Sequence[str]) -> list[str]:
        """`Store.absent`."""
        return await self._reading.run(partial(self.store.absent, conversations))

    async def aclose(self) -> None:
        """Close the store and end its threads, after the calls that were made before."""
        try:
            if self._reading is not self._writing:
                await self._reading.aclose()
            await self._writing.finish(self.store.close)
        finally:
            await self._writing.aclose()

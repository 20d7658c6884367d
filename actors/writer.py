"""The persistence writer: the only one that writes the conversation store.

Natural group commit: it waits for a message, takes what else is queued, and commits all operations of that
batch in one durable transaction; the next batch gathers meanwhile. An answer means: it is on disk. Queries
run on a read-only connection beside it, one after the other, and never hold a commit up; those of a batch
begin after its commit, so that a query sees whatever was sent before it, even by an asker that has died.

Beside them a sweep now and then removes what is over the limits (`actors.sweeper`), as the watcher says them, and
what waits for a person expires at its time. How such things stand is told to all who watch, after the commit.

Args: `path` (absolute) of the database file; `type`: `memory` for none. It assumes to be the only process on
that file, and that its slot keeps `keep` across incarnations: with it turns are recovered once per service
start, not per restart of this actor, and a store in memory outlives a crash. Where several fronts run, also
`run`, the id of this start of the service, and `living`, the ids of the fronts that live now (None: unknown, all
of this run do): their turns are not recovered. Who dies later it hears from the root and from other fronts.

What can fail: see `actors.store_errors`. A full disk and what passes by itself is answered with a fault, and tried
again with every batch; what only an operator can help parks the actor with a text that says how.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import cast, get_args

import msgspec
import trio

from actors import kept_results
from actors.fence import Fence
from actors.store import MEMORY, Storage
from actors.store_errors import Busy, Fatal, Full, StoreError, Unavailable
from actors.sweeper import Known, Sweeper
from protocol.claim import gone
from protocol.errors import Code, Fault
from protocol.mail import Mailbox, Reply
from protocol.pending import Decided, Expired, ExpirePending, Pending, PendingOpened, PendingSettled, WatchPending
from protocol.pins import Checked, CheckTools, OnlyServers, PinningChanged
from protocol.spec import Context, Down, KeepContext, Parked, Up
from protocol.watcher import Configured, Subscribe
from protocol.writer import Entered, FrontGone, InUse, Loaded, Operation, Query, WriterMessage

BATCH_MAX = 256  # operations of one transaction: more does not make one cheaper, but all wait longer
QUERIES_MAX = 4096  # queries that may wait for the reader; more are refused as OVERLOADED
QUERY_BATCH = 32  # of them for one visit to the reader's thread, which costs more than most queries
QUERY_S = 5.0  # one query; all are bound by an index, so only a sick disk takes this long
DUE_S = 5.0  # how often is looked whether something has run out of time: people are not that exact
BUSY_TRIES = 5  # each waits for the other program's lock as long as the store does

OPERATIONS = get_args(Operation)
QUERIES = get_args(Query)

Waiting = tuple[Query, Reply]

log = logging.getLogger(__name__)


class Kept:
    """What the writer's slot keeps while its incarnations come and go."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        """Which fronts may write."""
        self.owed: list[FrontGone] = []
        """Deaths that could not be written down yet."""
        self.recovered = False
        """The turns of the service's last run are closed; those that run now are alive."""
        self.memory: Storage | None = None
        """The store in memory, which would be lost with its connection."""
        self.known = Known()
        """Which conversations retention must leave alone, and when it was last at work."""
        self.watchers: set[str] = set()
        """Who is told of what waits for a person; those that are there no more do no harm."""
        self.pinning: set[str] = set()
        """Who asks which tools may be offered; likewise."""
        self.pinning_mode = "ask"
        """As configured; the strictest until that is known."""
        self.servers: set[str] | None = None
        """Those that are enabled; None: not known yet."""


@asynccontextmanager
async def keep(ctx: KeepContext) -> AsyncIterator[Kept]:
    """The `keep` of the writer's slot."""
    kept = Kept(Fence(ctx.args.get("run", ""), ctx.args.get("living")))
    try:
        yield kept
    finally:
        if kept.memory is not None:
            await kept.memory.aclose()


async def run(box: Mailbox[WriterMessage], ctx: Context) -> None:
    """The actor. Raises: Parked."""
    async with AsyncExitStack() as stack:
        kept: Kept | None = ctx.kept
        if kept is None:
            kept = await stack.enter_async_context(keep(ctx))
            kept.recovered = ctx.incarnation > 1
        try:
            storage = await stack.enter_async_context(_opened(kept, ctx))
            await Writer(box, ctx, storage, kept).run()
        except Fatal as error:
            raise Parked(str(error)) from error
        except StoreError as error:  # while opening; trying again soon would only find the same
            raise Parked(f"{error} The store cannot be opened.") from error
        except ExceptionGroup as group:
            fatal = group.subgroup(Fatal)
            while fatal is not None and isinstance(inner := fatal.exceptions[0], ExceptionGroup):
                fatal = inner
            if fatal is None:
                raise
            raise Parked(str(fatal.exceptions[0])) from group


@asynccontextmanager
async def _opened(kept: Kept, ctx: Context) -> AsyncIterator[Storage]:
    if ctx.args.get("type") == "memory":
        if kept.memory is None:
            kept.memory = await Storage.open(MEMORY, kept.fence)
        yield kept.memory
        return
    storage = await Storage.open(ctx.args["path"], kept.fence)
    try:
        yield storage
    finally:
        await storage.aclose()


class Writer:
    """One incarnation: its loop, and the reader beside it."""

    def __init__(self, box: Mailbox[WriterMessage], ctx: Context, storage: Storage, kept: Kept) -> None:
        self._box = box
        self._ctx = ctx
        self._storage = storage
        self._kept = kept
        self._sweeper = Sweeper(storage, kept.known, ctx)
        self._commits = 0
        self._done = 0
        self._last_s = 0.0  # the last commit
        self._trouble = ""
        self._due = 0.0  # when something runs out of time, in Unix time; 0: not known yet

    async def run(self) -> None:
        """Until the mailbox is closed and empty. Raises: Fatal, perhaps in a group."""
        send, receive = trio.open_memory_channel[Waiting](QUERIES_MAX)
        async with trio.open_nursery() as answering, trio.open_nursery() as sweeping:
            answering.start_soon(self._answer_queries, receive)
            async with send:
                # Before anything else is written: a turn that begins now must not look like one that was cut off.
                await self._commit([])
                self._ctx.report(file=self._storage.store.path)
                self._ctx.report_live(self._facts)
                self._ctx.ready()
                self._ctx.ref("watcher").offer(Subscribe(to=self._ctx.path))
                if self._kept.fence.run:
                    self._ctx.watch("front")
                sweeping.start_soon(self._sweeper.run)
                sweeping.start_soon(self._expire)
                async for first in self._box:
                    batch = [(first, self._box.reply_slot), *self._box.drain(BATCH_MAX - 1)]
                    await self._take(batch, send)
                sweeping.cancel_scope.cancel()

    async def _take(
        self, batch: list[tuple[WriterMessage, Reply | None]], send: trio.MemorySendChannel[Waiting]
    ) -> None:
        operations: list[Operation] = [*self._kept.owed]
        slots: list[Reply | None] = [None for _ in operations]
        queries: list[Waiting] = []
        for message, reply in batch:
            if isinstance(message, CheckTools):
                self._kept.pinning.add(message.to)
                operations.append(msgspec.structs.replace(message, mode=self._kept.pinning_mode))
                slots.append(reply)
            elif isinstance(message, OPERATIONS):
                operations.append(cast(Operation, message))
                slots.append(reply)
            elif isinstance(message, QUERIES) and reply is not None:
                queries.append((cast(Query, message), reply))
            elif isinstance(message, Down | Up):
                if front := gone(self._kept.fence.run, message):
                    operations.append(FrontGone(front))
                    slots.append(None)
            elif isinstance(message, InUse):
                self._kept.known.take(message)
            elif isinstance(message, WatchPending):
                self._kept.watchers.add(message.to)
            elif isinstance(message, Configured):
                self._sweeper.configure(message.snapshot.storage, message.snapshot.state_dir)
                self._pin(message.snapshot.tools.pinning)
                there = {name for name, server in message.snapshot.mcp.servers.items() if server.enabled}
                if there != self._kept.servers and self._ctx.ref(self._ctx.path).offer(OnlyServers(sorted(there))):
                    self._kept.servers = there
        if operations:
            try:
                answers = await self._commit(operations)
            except Fatal:
                for slot in slots:
                    self._box.settle(slot, Fault(Code.STORAGE_UNAVAILABLE))
                raise
            done = zip(operations, answers, strict=True)
            self._kept.owed = [op for op, answer in done if isinstance(op, FrontGone) and isinstance(answer, Fault)]
            for slot, answer in zip(slots, answers, strict=True):
                if isinstance(answer, Loaded) and self._sweeper.state_dir:
                    copied = self._sweeper.state_dir, answer.source, answer.conversation
                    await trio.to_thread.run_sync(kept_results.link, *copied)
                self._box.settle(slot, answer)
                if isinstance(answer, Entered | Loaded):
                    self._kept.known.use(answer.conversation)
                self._tell(answer)
        for query in queries:
            try:
                send.send_nowait(query)
            except trio.WouldBlock:
                self._box.settle(query[1], Fault(Code.OVERLOADED))
        if operations:
            await self._storage.checkpoint()

    def _tell(self, answer: object) -> None:
        """Tell who watches, if the answer is about what waits for a person."""
        match answer:
            case Pending(state="open", expires_at=at):
                told: Sequence[Pending] = [answer]
                self._due = min(self._due, at)
            case Decided() if answer.won or answer.pending.state == "expired":
                told = [answer.pending]
            case Checked():
                told = answer.news
                self._due = min([self._due, *(pending.expires_at for pending in told)])
            case Expired():
                told = answer.pending
                self._due = answer.next_at
            case [Pending(), *_]:
                told = cast(list[Pending], answer)
            case _:
                return
        for pending in told:
            if pending.state == "open":
                event: PendingOpened | PendingSettled = PendingOpened(pending)
            else:
                event = PendingSettled(pending)
            for path in {*self._kept.watchers, pending.asker} - {""}:
                self._ctx.ref(path).offer(event)

    def _pin(self, mode: str) -> None:
        """`chat.tools.pinning` is that now."""
        before, self._kept.pinning_mode = self._kept.pinning_mode, mode
        if mode != before:
            for path in self._kept.pinning:
                self._ctx.ref(path).offer(PinningChanged())

    async def _expire(self) -> None:
        while True:
            await trio.sleep(DUE_S)
            if self._trouble:
                await self._probe()
            if time.time() >= self._due:
                self._ctx.ref(self._ctx.path).offer(ExpirePending())

    async def _probe(self) -> None:
        """See whether it works again: nobody may send anything more, as the service is not ready. Raises: Fatal."""
        try:
            works = await self._storage.probe()
        except Fatal:
            raise
        except StoreError as error:
            log.debug("still: %s", error)
        else:
            if works:
                self._note("")

    async def _commit(self, operations: Sequence[Operation]) -> Sequence[object]:
        """One answer each. Raises: Fatal."""
        began = trio.current_time()
        try:
            answers = await self._try(operations)
        except Full as error:
            self._note(str(error))
            return [Fault(Code.STORAGE_FULL) for _ in operations]
        except Fatal:
            raise
        except StoreError as error:
            self._note(str(error))
            return [Fault(Code.STORAGE_UNAVAILABLE) for _ in operations]
        if self._storage.store.wrote:  # nothing can be written to a full disk as well
            self._note("")
        if operations:
            self._commits += 1
            self._done += len(operations)
        self._last_s = trio.current_time() - began
        return answers

    def _facts(self) -> dict[str, float]:
        sizes = self._storage.store.sizes()
        return {
            "commits": self._commits,
            "operations": self._done,
            "last_commit_ms": round(self._last_s * 1000, 1),
            "file_bytes": sizes.file,
            "log_bytes": sizes.log,
        }

    async def _try(self, operations: Sequence[Operation]) -> Sequence[object]:
        for tries_left in reversed(range(BUSY_TRIES)):
            try:
                if not self._kept.recovered:
                    if cut_off := await self._storage.recover():
                        log.warning("%d running turns of the last run were closed as interrupted", cut_off)
                    self._kept.recovered = True
                return await self._storage.commit(operations) if operations else []
            except Busy:
                if not tries_left:
                    raise
                await trio.lowlevel.checkpoint_if_cancelled()
        return []

    def _note(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        if trouble:
            log.error("%s Messages are refused until it works again.", trouble)
        else:
            log.warning("%s can be written again", self._storage.store.path)
        self._trouble = trouble
        self._ctx.report(trouble=trouble or None)

    async def _answer_queries(self, waiting: trio.MemoryReceiveChannel[Waiting]) -> None:
        async for first in waiting:
            batch = [first]
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while len(batch) < QUERY_BATCH:
                    batch.append(waiting.receive_nowait())
            batch = [(query, reply) for query, reply in batch if reply.open]  # the asker of another has given up
            answers: list[object] = []
            if len(batch) > 1:
                with suppress(Unavailable):  # one of them takes long, and it is not known which
                    answers = await self._storage.answers([query for query, _ in batch], QUERY_S)
            for number, (query, reply) in enumerate(batch):
                self._settle_query(query, reply, answers[number] if answers else await self._answer(query))

    async def _answer(self, query: Query) -> object:
        try:
            return await self._storage.query(query, QUERY_S)
        except Exception as error:  # noqa: BLE001  # told or raised by `_settle_query`
            return error

    def _settle_query(self, query: Query, reply: Reply, answer: object) -> None:
        """Answer it; of what it met, the asker is told what concerns it. Raises: Fatal."""
        match answer:
            case Fatal():
                self._box.settle(reply, Fault(Code.STORAGE_UNAVAILABLE))
                raise answer
            case StoreError():
                log.warning("%s", answer)
                answer = Fault(Code.STORAGE_UNAVAILABLE)
            case Exception() if not isinstance(answer, Fault):  # a row that cannot be read concerns who asked for it
                log.error("%s failed", type(query).__name__, exc_info=answer)
                answer = Fault(Code.INTERNAL, "A stored message could not be read.")
        self._box.settle(reply, answer)

"""When the store is brought within its limits: every `cleanup_interval_minutes`, beside the writer's commits.

A sweep is cut into short transactions, and rests between them for several times as long as they took: it
never costs users more than a small share of the disk, and a commit waits for one slice at most. Limits come
with the configuration and hold from the next sweep on; without one nothing is removed. A sweep that the
disk refuses is given up until the next; what only an operator can help (`Fatal`) is raised.
"""

from __future__ import annotations

import logging

import trio

from actors import kept_results
from actors.retention import Limits, Removed
from actors.store import Storage
from actors.store_errors import Fatal, StoreError
from protocol import watcher
from protocol.spec import Context
from protocol.writer import InUse

IN_USE_S = 90.0  # how long a conversation is left alone after it was named: three times what its sender needs
REST = 4  # times as long as a slice took: sweeping has at most a fifth of the writer's time
REST_MIN_S = 0.001
MINUTE_S = 60.0

log = logging.getLogger("actors.writer")


class Known:
    """What is known of the conversations and of the sweeps, beyond one incarnation of the writer."""

    def __init__(self) -> None:
        self.in_use: dict[str, float] = {}
        """Until when each is left alone; in trio's time."""
        self.last: float | None = None
        """When the last sweep began, or the service."""
        self.tidied = False
        """What an earlier run of the service left has been looked at."""

    def use(self, conversation: str) -> None:
        """A client is in it."""
        self.in_use[conversation] = trio.current_time() + IN_USE_S

    def take(self, message: InUse) -> None:
        """What the front says."""
        for conversation in message.left:
            self.in_use.pop(conversation, None)
        for conversation in message.conversations:
            self.use(conversation)

    def expire(self) -> None:
        """Forget those that nobody has named for too long."""
        now = trio.current_time()
        for conversation in [name for name, until in self.in_use.items() if until <= now]:
            del self.in_use[conversation]


class Sweeper:
    """The task that sweeps; `configure` it, and `run` it beside the writer's loop."""

    def __init__(self, storage: Storage, known: Known, ctx: Context) -> None:
        self._storage = storage
        self._known = known
        self._ctx = ctx
        self._limits = Limits()
        self._interval_s: float | None = None
        self._changed = trio.Event()
        self._sweeps = 0
        self.state_dir = ""
        """Of the service; empty: not known yet."""

    def configure(self, configured: watcher.Storage, state_dir: str) -> None:
        """Limits and interval for the next sweep on; and where results are kept."""
        self.state_dir = state_dir
        retention, saved = configured.retention, configured.saved_sessions
        self._limits = Limits(
            max_age_hours=retention.max_age_hours,
            max_sessions=retention.max_sessions,
            max_messages=retention.max_messages,
            retention_days=saved.retention_days,
            max_saved=saved.max_saved,
        )
        self._interval_s = retention.cleanup_interval_minutes * MINUTE_S
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled. Raises: Fatal."""
        known = self._known
        if known.last is None:
            known.last = trio.current_time()
        while True:
            self._changed = trio.Event()
            due = known.last + (self._interval_s if self._interval_s is not None else float("inf"))
            with trio.move_on_at(due):
                await self._changed.wait()
                if self.state_dir and not known.tidied:
                    known.tidied = True
                    await self._drop_results()
                continue
            known.last = trio.current_time()
            await self._sweep()

    async def _sweep(self) -> None:
        removed = Removed()
        try:
            await self._slices(removed)
        except Fatal:
            raise
        except StoreError as error:
            log.warning("retention stopped until its next time: %s", error)
        except Exception:  # the boundary: a row that cannot be removed must not keep others from being written
            log.exception("retention failed")
        await self._drop_results()
        self._sweeps += 1
        self._ctx.report(sweeps=self._sweeps)
        if removed != Removed():
            log.info(
                "retention removed %d conversations, %d single turns, %d saved sessions",
                removed.conversations,
                removed.turns,
                removed.saved,
            )

    async def _drop_results(self) -> None:
        """Remove what is kept for conversations that are not there; those that clients are in may have no row yet."""
        if not self.state_dir:
            return
        try:
            found = await trio.to_thread.run_sync(kept_results.folders, self.state_dir)
            gone = await self._storage.absent([name for name in found if name not in self._known.in_use])
            await trio.to_thread.run_sync(kept_results.remove, self.state_dir, gone)
        except Fatal:
            raise
        except (StoreError, OSError) as error:
            log.warning("results of conversations that are gone were not removed: %s", error)

    async def _slices(self, removed: Removed) -> None:
        slices = self._storage.store.sweep(self._limits, self._known.in_use, removed)
        more = True
        while more:
            self._known.expire()
            began = trio.current_time()
            more = await self._storage.advance(slices)
            await self._storage.checkpoint()
            await trio.sleep(max(REST_MIN_S, REST * (trio.current_time() - began)))

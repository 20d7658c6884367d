"""A thread for the calls of one connection: they run one after the other there, in the order in which they came.

It is the driver's own, which is what lets a statement that runs be ended when its caller is cancelled. A call that
takes less than the way to the thread and back may run in the caller's instead, if nothing runs there. Whoever made
one must `aclose` it, or it keeps the process from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import apsw.aio
import trio

from actors.schema import Database

STOP_S = 5.0  # how long the end of a thread may take once its database is closed

T = TypeVar("T")


class Thread:
    """A thread that runs one call after the other; the driver's own, so that cancelling a call ends its statement."""

    def __init__(self, name: str) -> None:
        self._controller = apsw.aio.Trio(thread_name=name)
        self._alone = threading.Lock()
        self._bare: Database | None = None
        """Was used in another thread last: its statements cannot be cancelled."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run it there. Cancelled: a statement that runs is aborted, one that waits is never begun."""
        result: T = await self._controller.send(partial(self._run, call))
        return result

    def _run(self, call: Callable[[], T]) -> T:
        with self._alone:
            if (db := self._bare) is not None:
                self._bare = None
                self.adopt(db)
            return call()

    def here(self, db: Database, call: Callable[[], T]) -> T | None:
        """Run it on that connection in the caller's thread; None: not done, since this one is at work."""
        if not self._alone.acquire(blocking=False):
            return None
        try:
            if self._bare is None:
                self._bare = db
                db.set_progress_handler(None, id=self._controller)  # it asks which call of the thread that is
            return call()
        finally:
            self._alone.release()

    async def finish(self, call: Callable[[], T]) -> T:
        """Run it there to its end, whatever happens to the caller meanwhile."""
        with trio.CancelScope(shield=True):
            result = await self.run(call)
        return result

    def adopt(self, db: Database) -> None:
        """Make the statements of a connection that is used in this thread cancellable."""
        self._controller.configure(db)

    async def aclose(self) -> None:
        """End the thread, after what was given to it before; not cancellable, since it would stay for ever."""
        thread = await self.finish(threading.current_thread)
        self._controller.close()  # type: ignore[no-untyped-call]  # the driver's is not annotated
        thread.join(STOP_S)  # it has nothing left to do: microseconds, and then it is really gone

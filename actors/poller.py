"""The bodies of all running answers, read by one task that waits for one set of sockets.

A task per stream would be woken, and its wait registered anew, for each delta; here one wake serves every
stream that has something, and while many flow it looks once in a while only, since a wake costs more than all that
is done with a delta. What a stream's sink or its connection raises is carried to the task that follows
that stream, and ends it only. A stream whose sink wants no more is not read: its peer feels it, no other does.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

import trio

from actors.http1 import Body

MOST = 256  # sockets per wake
SLICE_S = 0.002  # after that much reading everybody else has a turn; what was read is on its way meanwhile
TICK_S = 0.001  # between two looks while many streams flow: a third less processor time per delta than at every delta
MANY = 16  # deltas in the last four ticks from which on that is done; whoever is alone is read at once

Sink = Callable[[bytes, float], bool]
"""Takes some of a body at once, at that time of trio's clock; False: no more for now."""


class _Flow:
    """One body that is being read."""

    __slots__ = ("_body", "_follower", "_sink", "_take", "ended", "error", "stopped")

    def __init__(self, body: Body, sink: Sink) -> None:
        self._body = body
        self._take = body.take
        self._sink = sink
        self._follower: trio.lowlevel.Task | None = None
        """Who waits for its end."""
        self.stopped = False
        """It is not read any more."""
        self.ended = False
        self.error: Exception | None = None

    def step(self, now: float) -> None:
        """Take what there is."""
        try:
            data = self._take()
            if data is None:
                return
            if not data:
                self.ended = True
            elif self._sink(data, now):
                if not self._body.done:
                    return
                self.ended = True  # its end came with the last of it: the socket says nothing more
        except Exception as error:  # noqa: BLE001  # its own task raises it, whatever it is
            self.error = error
        self.stopped = True
        if (follower := self._follower) is not None:
            self._follower = None
            trio.lowlevel.reschedule(follower)

    async def over(self) -> None:
        """Wait until it is stopped, which it is not yet."""
        self._follower = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._left)

    def _left(self, _: object) -> trio.lowlevel.Abort:
        self._follower = None
        return trio.lowlevel.Abort.SUCCEEDED


class Pace:
    """When to look again: at the next delta, or after a tick while many come.

    Args:
        now: seconds of any clock.
    """

    def __init__(self, now: float) -> None:
        self._at = now
        self._found = 0
        self._lately = 0.0
        """Deltas of the last four ticks, roughly: what came earlier counts the less the longer ago it was."""

    def looked(self, now: float, found: int) -> None:
        """So many sockets had something."""
        self._lately = self._lately / (1 + (now - self._at) / (4 * TICK_S)) + found
        self._at, self._found = now, found

    def rest_s(self, now: float) -> float:
        """For so long nobody need look; 0: wait for the next delta. After a look that found nothing that is so."""
        return max(0.0, self._at + TICK_S - now) if self._found and self._lately >= MANY else 0.0


class Poller:
    """The set; `run` must be running for `follow` to get anywhere. Close it at the end.

    Args:
        taken: called when sinks have taken something, once for all of them.
    """

    def __init__(self, taken: Callable[[], None]) -> None:
        self._taken = taken
        self._epoll = select.epoll()
        self._flows: dict[int, _Flow] = {}

    def __len__(self) -> int:
        return len(self._flows)

    async def run(self) -> None:
        """Read until cancelled."""
        epoll, flows, clock = self._epoll, self._flows, time.perf_counter
        pace = Pace(clock())
        while True:
            if (rest := pace.rest_s(clock())) > 0:
                await trio.sleep(rest)
            else:
                await trio.lowlevel.wait_readable(epoll.fileno())
            now = clock()
            ready = epoll.poll(0, MOST)
            pace.looked(now, len(ready))
            until, at = now + SLICE_S, trio.current_time()
            for number, _ in ready:
                flow = flows.get(number)
                if flow is None:
                    continue  # it left since the set was asked
                flow.step(at)
                if flow.stopped:
                    self._forget(number)  # at once: what it does not take must not wake us
                if clock() > until:
                    self._taken()
                    await trio.lowlevel.checkpoint()
                    until, at = clock() + SLICE_S, trio.current_time()
            flow = None  # it holds all of its request
            self._taken()

    async def follow(self, body: Body, sink: Sink) -> bool:
        """Hand a body to its sink as it comes, until that wants no more; True: until its end.

        Raises: what the sink raises, Torn, OSError.
        """
        flow = _Flow(body, sink)
        while body.waiting and not flow.stopped:
            flow.step(trio.current_time())
        self._taken()
        if flow.stopped:
            await trio.lowlevel.checkpoint()
        else:
            number = body.wire.fileno()
            self._epoll.register(number, select.EPOLLIN)
            self._flows[number] = flow
            try:
                await flow.over()
            finally:
                if self._flows.get(number) is flow:
                    self._forget(number)
        if (error := flow.error) is not None:
            flow.error = None
            try:
                raise error
            finally:
                del error  # no cycle through its traceback
        return flow.ended

    def close(self) -> None:
        """Nothing is followed any more."""
        self._epoll.close()

    def _forget(self, number: int) -> None:
        del self._flows[number]
        self._epoll.unregister(number)

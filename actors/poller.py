"""The bodies of all running answers, read by one task that waits for one set of sockets.

A task per stream would be woken, and its wait registered anew, for each delta; here one wake serves every
stream that has something, and while many flow it looks once in a while only, since a wake costs more than all that
is done with a delta. Nor need a task wait for its end, which would take more memory than all else that a stream has:
a `Follower` is told. What it or the connection raises is in the `Flow`, and ends that one only. A stream whose
follower wants no more is not read: its peer feels it, no other does.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

import trio

from actors.alarm import Alarm
from actors.http1 import Body

MOST = 256  # sockets per wake
SLICE_S = 0.001  # after that much reading everybody else has a turn; what was read is on its way meanwhile
TICK_S = 0.0007  # between two looks while many streams flow; if shorter, most of the work would be waking everybody
MANY = 10  # deltas in the last four ticks from which on that is done; whoever is alone is read at once
FEW = 64  # deadlines of flows that have left; what more there are than flows are forgotten

Sink = Callable[[bytes, float], bool]
"""Takes some of a body at once, at that time of trio's clock; False: no more for now."""


class Follower(Protocol):
    """Takes a body as it comes."""

    @property
    def deadline(self) -> float:
        """When the flow is stopped, in trio's time, if nothing moves it; it may become later by itself."""

    def take(self, data: bytes, now: float) -> bool:
        """As `Sink` says."""

    def stopped(self) -> None:
        """The flow has stopped: by itself, or at its deadline. Must not wait or raise."""


class Flow:
    """One body that is being read."""

    __slots__ = ("_body", "due", "ended", "error", "follower", "number", "stopped")

    def __init__(self, body: Body, follower: Follower) -> None:
        self._body = body
        self.follower = follower
        self.number = body.wire.fileno()
        self.due = math.inf
        """When its deadline is looked at."""
        self.stopped = False
        """It is not read any more."""
        self.ended = False
        """The body is whole."""
        self.error: Exception | None = None

    @property
    def waiting(self) -> bool:
        """There is something that the socket does not tell of."""
        return self._body.waiting and not self.stopped

    def step(self, now: float) -> None:
        """Take what there is."""
        try:
            data = self._body.take()
            if data is None:
                return
            if not data:
                self.ended = True
            elif self.follower.take(data, now):
                if not self._body.done:
                    return
                self.ended = True  # its end came with the last of it: the socket says nothing more
        except Exception as error:  # noqa: BLE001  # who follows it raises it, whatever it is
            self.error = error
        self.stopped = True

    def result(self) -> bool:
        """Whether it reached the body's end. Raises: what its follower raised, Torn, OSError."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # no cycle through its traceback
        return self.ended


class _Waiting:
    """A task that follows a body."""

    deadline = math.inf

    def __init__(self, sink: Sink) -> None:
        self.take = sink
        self._task: trio.lowlevel.Task | None = None

    def stopped(self) -> None:
        """As `Follower` says."""
        if (task := self._task) is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Until it has stopped, which it has not yet."""
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._left)

    def _left(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
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
    """The set; `run` must be running for flows to get anywhere. Close it at the end.

    Args:
        taken: called when followers have taken something, once for all of them.
    """

    def __init__(self, taken: Callable[[], None]) -> None:
        self._taken = taken
        self._epoll = select.epoll()
        self._alarm = Alarm()
        self._flows: dict[int, Flow] = {}
        self._dues: list[tuple[float, int]] = []
        """A heap: when the deadline of which socket's flow is looked at; of flows that have left, too."""
        self._resting = trio.CancelScope()
        """Until the first of these."""

    def __len__(self) -> int:
        return len(self._flows)

    async def run(self) -> None:
        """Read until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await self._read()

    async def _read(self) -> None:
        epoll, flows, clock = self._epoll, self._flows, time.perf_counter
        pace = Pace(clock())
        while True:
            if (rest := pace.rest_s(clock())) > 0:
                await self._alarm.sleep(rest)
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
                    self._stop(number)  # at once: what it does not take must not wake us
                if clock() > until:
                    self._taken()
                    await trio.lowlevel.checkpoint()
                    until, at = clock() + SLICE_S, trio.current_time()
            flow = None  # it holds all of its request
            self._taken()

    async def _watch(self) -> None:
        """Stop flows at their deadlines, which move with each delta: each is looked at when it was to be last."""
        dues = self._dues
        while True:
            with trio.CancelScope(deadline=dues[0][0] if dues else math.inf) as self._resting:
                await trio.sleep_forever()
            now = trio.current_time()
            while dues and dues[0][0] <= now:
                due, number = heappop(dues)
                flow = self._flows.get(number)
                if flow is None or flow.due != due:
                    continue  # of one that has left
                if flow.follower.deadline > now:
                    self._look_at(flow)
                else:
                    flow.stopped = True
                    self._stop(number)

    def _look_at(self, flow: Flow) -> None:
        flow.due = flow.follower.deadline
        if flow.due < math.inf:
            heappush(self._dues, (flow.due, flow.number))
            if len(self._dues) > 2 * len(self._flows) + FEW:
                # Mostly of flows that have left: with a deadline far away there would be more and more of them.
                self._dues[:] = [(one.due, one.number) for one in self._flows.values() if one.due < math.inf]
                heapify(self._dues)
            if flow.due < self._resting.deadline:
                self._resting.deadline = flow.due

    def begin(self, body: Body, follower: Follower) -> Flow:
        """Hand a body to its follower as it comes, until that wants no more, or its deadline, or the body's end.

        Where the flow is `stopped` already, the follower is not told.
        """
        flow = Flow(body, follower)
        while flow.waiting:
            flow.step(trio.current_time())
        self._taken()
        if not flow.stopped:
            self._epoll.register(flow.number, select.EPOLLIN)
            self._flows[flow.number] = flow
            self._look_at(flow)
        return flow

    def leave(self, flow: Flow) -> None:
        """It is not followed any more; nobody is told. Before its connection is closed, whose number another gets."""
        if self._flows.get(flow.number) is flow:
            self._forget(flow.number)

    async def follow(self, body: Body, sink: Sink) -> bool:
        """Hand a body to the sink as it comes, until that wants no more; True: until its end.

        Raises: what the sink raises, Torn, OSError.
        """
        waiting = _Waiting(sink)
        flow = self.begin(body, waiting)
        if flow.stopped:
            await trio.lowlevel.checkpoint()
        else:
            try:
                await waiting.wait()
            finally:
                self.leave(flow)
        return flow.result()

    def close(self) -> None:
        """Nothing is followed any more."""
        self._epoll.close()
        self._alarm.close()

    def _stop(self, number: int) -> None:
        follower = self._flows[number].follower
        self._forget(number)
        follower.stopped()

    def _forget(self, number: int) -> None:
        del self._flows[number]
        self._epoll.unregister(number)

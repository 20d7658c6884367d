"""The bodies of all running answers, read by one task that waits for one set of sockets.

A task per stream would be woken, and its wait registered anew, for each delta; here one wake serves every
stream that has something. What a stream's sink or its connection raises is carried to the task that follows
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

Sink = Callable[[bytes], bool]
"""Takes some of a body at once; False: no more for now."""


class _Flow:
    """One body that is being read."""

    def __init__(self, body: Body, sink: Sink) -> None:
        self.body = body
        self.sink = sink
        self.over = trio.Event()
        self.ended = False
        self.error: Exception | None = None

    def step(self) -> None:
        """Take what there is."""
        try:
            data = self.body.take()
            if data is None:
                return
            if not data:
                self.ended = True
            elif self.sink(data):
                if not self.body.done:
                    return
                self.ended = True  # its end came with the last of it: the socket says nothing more
        except Exception as error:  # noqa: BLE001  # its own task raises it, whatever it is
            self.error = error
        self.over.set()


class Poller:
    """The set; `run` must be running for `follow` to get anywhere. Close it at the end."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._flows: dict[int, _Flow] = {}

    def __len__(self) -> int:
        return len(self._flows)

    async def run(self) -> None:
        """Read until cancelled."""
        epoll, flows, clock = self._epoll, self._flows, time.perf_counter
        while True:
            await trio.lowlevel.wait_readable(epoll.fileno())
            until = clock() + SLICE_S
            for number, _ in epoll.poll(0, MOST):
                flow = flows.get(number)
                if flow is None or flow.over.is_set():
                    continue  # it left, or has enough, since the set was asked
                flow.step()
                if flow.over.is_set():
                    self._forget(number)  # at once: what it does not take must not wake us
                if clock() > until:
                    await trio.lowlevel.checkpoint()
                    until = clock() + SLICE_S

    async def follow(self, body: Body, sink: Sink) -> bool:
        """Hand a body to its sink as it comes, until that wants no more; True: until its end.

        Raises: what the sink raises, Torn, OSError.
        """
        flow = _Flow(body, sink)
        while body.waiting and not flow.over.is_set():
            flow.step()
        if flow.over.is_set():
            await trio.lowlevel.checkpoint()
        else:
            number = body.wire.fileno()
            self._epoll.register(number, select.EPOLLIN)
            self._flows[number] = flow
            try:
                await flow.over.wait()
            finally:
                if self._flows.get(number) is flow:
                    self._forget(number)
        if (error := flow.error) is not None:
            flow.error = None  # no cycle through its traceback
            raise error
        return flow.ended

    def close(self) -> None:
        """Nothing is followed any more."""
        self._epoll.close()

    def _forget(self, number: int) -> None:
        del self._flows[number]
        self._epoll.unregister(number)

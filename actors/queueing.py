"""Waiting at a gate (`actors.limits`) in trio's time: whoever is first watches the clock, the others are woken.

What can fail: `Full`, at once. However the wait ends, `leave` must follow: it lets the next one through.
"""

from __future__ import annotations

import trio

from actors.limits import NEVER, Gate, Pass


class Queuer(Pass):
    """One that wants through a gate. Raises Full when made: as many wait as may."""

    __slots__ = ("_gate", "_woken")

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._woken: trio.Event | None = None
        """While it waits."""
        gate.join(self, trio.current_time())

    async def wait(self) -> None:
        """Until it is through; bounded by the caller."""
        while not self.admitted:
            # Only the first watches the clock: the others are woken when they have become it.
            until = self._gate.due(trio.current_time()) if self._gate.is_first(self) else NEVER
            self._woken = trio.Event()
            with trio.move_on_at(until):
                await self._woken.wait()
            self._woken = None
            self._gate.opened(trio.current_time())

    def leave(self) -> None:
        """It is done, or waits no more."""
        self._gate.leave(self)
        self._gate.opened(trio.current_time())

    def wake(self) -> None:
        """It is admitted, or has become the first."""
        if self._woken is not None:
            self._woken.set()

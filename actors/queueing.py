"""Waiting at a gate (`actors.limits`) in trio's time: whoever is first watches the clock, the others are woken.

What can fail: `Full`, at once. However the wait ends, `leave` must follow: it lets the next one through.
"""

from __future__ import annotations

import trio

from actors.limits import NEVER, Gate, Pass


class Queuer:
    """One that wants through a gate. Raises Full when made: as many wait as may."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._wake: trio.Event | None = None
        """While it waits."""
        self._pass = Pass(self._woken)
        gate.join(self._pass, trio.current_time())

    @property
    def admitted(self) -> bool:
        """It is through."""
        return self._pass.admitted

    async def wait(self) -> None:
        """Until it is through; bounded by the caller."""
        while not self._pass.admitted:
            # Only the first watches the clock: the others are woken when they have become it.
            until = self._gate.due(trio.current_time()) if self._gate.is_first(self._pass) else NEVER
            self._wake = trio.Event()
            with trio.move_on_at(until):
                await self._wake.wait()
            self._wake = None
            self._gate.opened(trio.current_time())

    def leave(self) -> None:
        """It is done, or waits no more."""
        self._gate.leave(self._pass)
        self._gate.opened(trio.current_time())

    def _woken(self) -> None:
        if self._wake is not None:
            self._wake.set()

"""How one MCP server does, across its incarnations: who may call it now, how calls went, how long they took.

Each call is an `Attempt`: it waits at the gate of the server's limits (`actors.limits`), and says once how it
went to the breaker (`actors.breaker`), which leaves a server alone that timed out, died or answered nonsense
too often in a row. What a tool itself reports as failed is an answer. Knows nothing of processes or MCP.
What can fail: `Fault`, when a call may not be made now, or not within its timeout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from actors.breaker import Breaker, State
from actors.durations import Durations
from actors.limits import NEVER, Full, Gate
from actors.queueing import Queuer
from protocol.errors import Code, Fault
from protocol.watcher import McpServer

log = logging.getLogger("actors.mcp_server")


class Attempt:
    """One call. Made by `Health.begin`; `close` must follow."""

    def __init__(self, health: Health, *, probe: bool) -> None:
        self._health = health
        self._probe = probe
        self._told = False
        self._queuer = Queuer(health.gate)

    async def admitted(self) -> None:
        """Wait until it may run; bounded by the caller."""
        if not self._queuer.admitted:
            self._health.changed()
            await self._queuer.wait()

    @property
    def waits(self) -> bool:
        """It may not run yet."""
        return not self._queuer.admitted

    def answered(self, seconds: float) -> None:
        """The server did its part, in that time; what the tool said may still be that it failed."""
        self._health.durations.add(seconds)
        self._told = True
        self._health.worked(probe=self._probe)

    def failed(self, why: str) -> None:
        """It timed out, the server died, or what came was no answer."""
        self._told = True
        self._health.failed(why, probe=self._probe)

    def close(self) -> None:
        """It is over, once and for all; where nothing was said, nothing is known of the server."""
        self._queuer.leave()
        if not self._told:
            self._health.breaker.dropped(trio.current_time(), probe=self._probe)
        self._health.changed()


class Health:
    """One server's; it outlives incarnations of its actor.

    Args:
        server: its limits count for as long as this lives; a changed server gets another.
    """

    def __init__(self, server: McpServer) -> None:
        limits = server.limits
        self.gate = Gate(limits.concurrent, limits.per_minute, limits.queue)
        self.breaker = Breaker(server.breaker.failures, server.breaker.rest)
        self.durations = Durations()
        self.begun = 0
        """Calls so far."""
        self.failures = 0
        """Those that did not end well, for whatever reason."""
        self.reason = ""
        """Why the last one failed by the server's fault; empty: the last one was answered."""
        self.refused = 0
        """Calls that could not be begun: too many, too often, or it is left alone."""
        self.told: Callable[[], None] = _nobody
        """Called when `facts` may have changed; set by the incarnation."""
        self.rests: Callable[[str, float | None], None] = _nobody
        """Called with why and for how many seconds it is left alone, and with an empty text when it works again; set by
        the incarnation."""
        self._server = server

    def changed(self) -> None:
        """`facts` may have changed."""
        self.told()

    def begin(self) -> Attempt:
        """A call wants to be made. Raises Fault: it may not."""
        try:
            return self._begin()
        except Fault:
            self.refused += 1
            self.changed()
            raise

    def _begin(self) -> Attempt:
        now = trio.current_time()
        who, limits = f"MCP server {self._server.name!r}", self._server.limits
        if blocked := self.breaker.blocked_s(now):
            raise Fault(
                Code.MCP_SERVER_UNAVAILABLE,
                f"{who} failed {self.breaker.row} times in a row and is left alone; ask again in {blocked:.0f} s. "
                f"The last time: {self.reason}",
                hint=f"Ask again in {blocked:.0f} s, or `actors-main restart mcp/{self._server.name}`.",
            )
        if self._server.timeout < self.gate.due(now) - now < NEVER:
            raise self.too_often()
        probe = self.breaker.admit(now).probe
        try:
            attempt = Attempt(self, probe=probe)
        except Full:
            self.breaker.dropped(now, probe=probe)
            text = f"{who} has {self.gate.through} calls running and {limits.queue} waiting already."
            raise Fault(Code.MCP_SERVER_UNAVAILABLE, text) from None
        self.begun += 1
        return attempt

    def too_often(self) -> Fault:
        """What a call is told that the limit by the minute keeps waiting for too long."""
        wait = self.gate.due(trio.current_time()) - trio.current_time()
        most = self._server.limits.per_minute
        return Fault(
            Code.RATE_LIMITED,
            f"MCP server {self._server.name!r} takes {most} calls a minute; the next may begin in {wait:.0f} s.",
            hint="Call it later; `limits.per_minute` of the server says how often it may be called.",
        )

    def limited(self) -> bool:
        """Who waits now waits for the minute, not for another call to end."""
        now = trio.current_time()
        return now < self.gate.due(now) < NEVER

    def worked(self, *, probe: bool) -> None:
        """A call was answered."""
        before, self.reason = self.breaker.state, ""
        self.breaker.succeeded(probe=probe)
        if before is not State.CLOSED and self.breaker.state is State.CLOSED:
            self.rests("", None)

    def failed(self, why: str, *, probe: bool) -> None:
        """A call failed by the server's fault."""
        now, before = trio.current_time(), self.breaker.state
        self.reason = why
        self.breaker.failed(now, probe=probe)
        if self.breaker.state is State.OPEN and before is not State.OPEN:
            rest = self.breaker.blocked_s(now)
            log.warning("MCP server %r is left alone for %.0f s after its failures: %s", self._server.name, rest, why)
            self.rests(f"it failed {self.breaker.row} times in a row; the last time: {why}", rest)

    def fresh(self) -> None:
        """It is started anew: what failed before counts no more."""
        self.breaker = Breaker(self._server.breaker.failures, self._server.breaker.rest)

    def facts(self) -> dict[str, str | int | float | None]:
        """For status."""
        percentiles = self.durations.percentiles_ms()
        return {
            "calls": self.begun,
            "failures": self.failures,
            "refused": self.refused or None,
            "in_calls": self.gate.through,
            "queued": self.gate.waiting or None,
            "breaker": self.breaker.state.value,
            "last_failure": self.reason or None,
            "p50_ms": percentiles and percentiles[0],
            "p99_ms": percentiles and percentiles[1],
        }


def _nobody(*_: object) -> None:
    """Nobody wants to know yet."""

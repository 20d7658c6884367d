"""Whether one provider may be asked now: its limits and its breaker, kept for all requests together.

A try takes its `turn`: it waits at the gate for at most `limits.wait`, then asks the breaker, and says how it
went. What is refused is a `Complaint` without anything having been sent: `OVERLOADED` when the queue is full,
`LLM_RATE_LIMITED` when its turn did not come in time or the provider asked for peace, `LLM_UNAVAILABLE` while
it is left alone after too many failures. Limits are those of the newest configuration; they live as long as
the provider is in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from actors.breaker import Breaker, State
from actors.limits import NEVER, Full, Gate
from actors.queueing import Queuer
from actors.verdict import Complaint
from protocol.errors import Code
from protocol.watcher import ClientOptions, Provider

log = logging.getLogger(__name__)

BLAMED = frozenset({Code.LLM_UNAVAILABLE, Code.LLM_STREAM_BROKEN})
"""Failures of the provider itself; with any other it did answer, and nothing is known of the next request."""


class Turn:
    """One try that may begin; says once how it went, then leaves."""

    __slots__ = ("_breaker", "_place", "_probe", "_told", "_upstream")

    def __init__(self, upstream: Upstream, place: Queuer, *, probe: bool) -> None:
        self._upstream = upstream
        self._place = place
        self._breaker = upstream.breaker
        self._probe = probe
        self._told = False

    def answered(self) -> None:
        """The answer began to come."""
        self._breaker.answered(probe=self._probe)
        if self._probe:
            self._upstream.changed()

    def succeeded(self) -> None:
        """It was whole."""
        self._told = True
        self._breaker.succeeded(probe=self._probe)

    def failed(self, complaint: Complaint) -> None:
        """It was not."""
        upstream, now = self._upstream, trio.current_time()
        if complaint.code == Code.LLM_RATE_LIMITED and complaint.after_s is not None:
            upstream.gate.hold(now, complaint.after_s)
        if complaint.code not in BLAMED:
            return
        self._told = True
        before = self._breaker.state
        self._breaker.failed(now, probe=self._probe)
        upstream.reason = complaint.what
        if self._breaker.state is State.OPEN and before is not State.OPEN:
            rest = self._breaker.blocked_s(now)
            log.warning("%s is left alone for %.0f s after its failures: %s", upstream.name, rest, complaint.what)

    def leave(self) -> None:
        """It is over; where nothing was said, nothing is known."""
        if not self._told:
            self._breaker.dropped(trio.current_time(), probe=self._probe)
        others = self._upstream.gate.waiting
        self._place.leave()
        if others or self._probe or self._breaker.state is not State.CLOSED:
            self._upstream.changed()


class Upstream:
    """One provider, as seen by all requests to it.

    Args:
        changed: called when somebody begins or ends to wait, and when the breaker may have changed.
    """

    def __init__(self, provider: Provider, changed: Callable[[], None]) -> None:
        self.name = provider.name
        self.changed = changed
        options = provider.client
        self.gate = Gate(_concurrent(options), options.limits.per_minute, options.limits.queue)
        self.breaker = Breaker(options.breaker.failures, options.breaker.rest)
        self.reason = ""
        """Why its last try failed, in our words."""
        self._wait_s = options.limits.wait
        self._way = _way(provider)

    def change(self, provider: Provider) -> None:
        """Other limits from now on. What was known of it counts no more where it is asked in another way."""
        options = provider.client
        if self._way != _way(provider):
            self._way = _way(provider)
            self.breaker = Breaker(options.breaker.failures, options.breaker.rest)
            self.gate.release()
        self._wait_s = options.limits.wait
        self.gate.change(_concurrent(options), options.limits.per_minute, options.limits.queue)
        self.gate.opened(trio.current_time())
        self.breaker.change(options.breaker.failures, options.breaker.rest)

    async def turn(self) -> Turn:
        """One try, when it may begin; it must leave. Raises Complaint: it may not."""
        now = trio.current_time()
        self._refuse(self.breaker.blocked_s(now))
        mine = self._join(now)
        try:
            if not mine.admitted:
                self.changed()
                with trio.move_on_after(self._wait_s):
                    await mine.wait()
                now = trio.current_time()
            if not mine.admitted:
                raise self._late(f"let nothing through for {self._wait_s:g} s")
            admission = self.breaker.admit(now)
            self._refuse(admission.after_s)
        except BaseException:
            mine.leave()
            self.changed()
            raise
        if admission.probe:
            self.changed()
        return Turn(self, mine, probe=admission.probe)

    def _join(self, now: float) -> Queuer:
        held_s, due_s = self.gate.held_s(now), self.gate.due(now) - now
        if held_s > self._wait_s:
            raise Complaint(Code.LLM_RATE_LIMITED, f"it asked for no requests for another {held_s:.0f} s")
        if self._wait_s < due_s < NEVER:
            raise self._late(f"let nothing through for another {due_s:.0f} s")
        try:
            return Queuer(self.gate)
        except Full:
            raise Complaint(
                Code.OVERLOADED,
                f"{self.gate.waiting} requests wait for it already",
                hint="Send the message again in a moment; client.limits.queue says how many may wait.",
            ) from None

    def _late(self, what: str) -> Complaint:
        return Complaint(
            Code.LLM_RATE_LIMITED,
            f"its limits {what}",
            hint="Send the message again later; the provider's client.limits say how much it is asked.",
        )

    def _refuse(self, blocked_s: float) -> None:
        if blocked_s:
            raise Complaint(
                Code.LLM_UNAVAILABLE,
                f"it is not asked for another {blocked_s:.0f} s, since it failed {self.breaker.row} times in a row: "
                f"{self.reason}",
            )


class Upstreams:
    """All providers that were asked and are still configured.

    Args:
        changed: called when `waiting` or `resting` may have changed.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._upstreams: dict[str, Upstream] = {}

    def of(self, provider: Provider) -> Upstream:
        """Its upstream, made at its first request."""
        found = self._upstreams.get(provider.name)
        if found is None:
            found = self._upstreams[provider.name] = Upstream(provider, self._changed)
        return found

    def change(self, providers: Mapping[str, Provider]) -> None:
        """Other providers, or other limits."""
        for name, upstream in list(self._upstreams.items()):
            if name in providers:
                upstream.change(providers[name])
            else:
                del self._upstreams[name]

    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(upstream.gate.waiting for upstream in self._upstreams.values())

    def resting(self) -> str:
        """The breakers that are not closed, in words for status: `groq open, kimi half-open`."""
        states = ((name, upstream.breaker.state) for name, upstream in sorted(self._upstreams.items()))
        return ", ".join(f"{name} {state}" for name, state in states if state is not State.CLOSED)


def _way(provider: Provider) -> tuple[str, str | None, ClientOptions]:
    return provider.base_url, provider.api_key_env, provider.client


def _concurrent(options: ClientOptions) -> int | None:
    # Without HTTP/2 a request needs a connection to itself: what is more waits here, where the queue has a bound.
    connections = None if options.http2 else options.max_connections
    given = [most for most in (options.limits.concurrent, connections) if most is not None]
    return min(given, default=None)

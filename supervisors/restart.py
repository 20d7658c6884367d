"""What happens when a child ends: the supervisor's decisions, as pure functions.

Theory of operation. A child's life is judged from four facts: how it ended (`Outcome`), what its policy
says, its `Past`, and how long it had been ready. The answer is a `Decision`:

- RESTART after `delay_s`: the first restart of a streak is at once, the next ones back off with jitter; an
  incarnation that was ready for `healthy_s` ends the streak. Who is restarted with it is `together`.
- Past the intensity, `OnLimit` decides: ESCALATE (its group fails as a whole) or PARK (stays down, retried
  every `park_s`). A parked child is on probation when retried: one more failure before it was healthy parks
  it again. Failures before it was ever ready count apart from the period, so that a start that fails slowly
  ends at the limit too.
- STOP: it is done, by its restart type.

This file knows nothing of tasks, clocks or mailboxes; time comes in as numbers of seconds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum
from functools import cache

from protocol.spec import Backoff, Child, Group, Intensity, OnLimit, Restart, Strategy

FACTOR_CAP = 64  # exponents above this overflow nothing and change nothing: the cap was reached long before
GROUP_PARK_S = 300.0  # seconds between slow retries of a parked group


class Outcome(Enum):
    """How an incarnation ended."""

    DONE = "done"  # it returned
    FAILED = "failed"  # it raised
    HOPELESS = "hopeless"  # it raised Parked, or could not be imported
    REFUSED = "refused"  # it raised Parked, and is not to be tried again by itself
    BROKEN = "broken"  # what its slot keeps failed under it


class Verdict(Enum):
    """What becomes of it."""

    RESTART = "restart"
    PARK = "park"
    ESCALATE = "escalate"
    STOP = "stop"


@dataclass(frozen=True)
class Policy:
    """The part of a Child or Group that decides about restarts."""

    restart: Restart = Restart.PERMANENT
    backoff: Backoff = field(default_factory=Backoff)
    intensity: Intensity = field(default_factory=Intensity)
    on_limit: OnLimit = OnLimit.ESCALATE
    park_s: float = GROUP_PARK_S

    @classmethod
    def of(cls, spec: Child | Group) -> Policy:
        """The policy in a spec; a group is always permanent."""
        if isinstance(spec, Child):
            # One for all that have the same: there may be thousands of sessions.
            return _one(spec.restart, spec.backoff, spec.intensity, spec.on_limit, spec.park_s)
        return cls(Restart.PERMANENT, spec.backoff, spec.intensity, spec.on_limit)


_one = cache(Policy)


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered of a child's ends."""

    failures: tuple[float, ...] = ()
    """Times of the ends that counted, within the last period."""
    streak: int = 0
    """Ends since it was last healthy."""
    unready: int = 0
    """Ends since it was last ready."""
    probation: bool = False
    """It was parked, and not healthy since."""


BLANK = Past()
"""Of all that have never ended."""


@dataclass(frozen=True)
class Decision:
    """The verdict, when it takes effect, and what to remember."""

    verdict: Verdict
    delay_s: float = field(default=float("inf"))
    """Seconds until the next start, for RESTART and PARK; `inf`: never."""
    past: Past = BLANK


def decide(
    policy: Policy,
    past: Past,
    outcome: Outcome,
    *,
    now: float,
    ready_s: float | None,
    mail: bool = False,
    rng: random.Random,
) -> Decision:
    """Judge one end of one child.

    Args:
        ready_s: how long it had been ready; None if it never was.
        mail: messages wait for it; a transient child that returns is started again for them.
    """
    if policy.restart is Restart.TEMPORARY:
        return Decision(Verdict.STOP, past=past)
    if outcome is Outcome.DONE and policy.restart is Restart.TRANSIENT and not mail:
        return Decision(Verdict.STOP, past=past)
    if outcome is Outcome.BROKEN:
        return Decision(Verdict.ESCALATE, past=past)
    if outcome in (Outcome.HOPELESS, Outcome.REFUSED):
        again = policy.park_s if outcome is Outcome.HOPELESS else float("inf")
        return Decision(Verdict.PARK, again, Past(probation=True))
    healthy = ready_s is not None and ready_s >= policy.backoff.healthy_s
    if past.probation and not healthy:
        return Decision(Verdict.PARK, policy.park_s, Past(probation=True))
    recent = tuple(t for t in past.failures if now - t < policy.intensity.period_s)
    past = Past(
        failures=(*recent, now),
        streak=1 if healthy else past.streak + 1,
        unready=past.unready + 1 if ready_s is None and outcome is not Outcome.DONE else 0,
    )
    if max(len(past.failures), past.unready) <= policy.intensity.restarts:
        return Decision(Verdict.RESTART, delay(policy.backoff, past.streak, rng), past)
    if policy.on_limit is OnLimit.PARK:
        return Decision(Verdict.PARK, policy.park_s, Past(probation=True))
    return Decision(Verdict.ESCALATE, past=past)


def delay(backoff: Backoff, streak: int, rng: random.Random) -> float:
    """Seconds before the restart that follows the `streak`-th end (from 1) without a healthy time."""
    if streak <= 1:
        return 0.0
    grown = backoff.first_s * backoff.factor ** min(streak - 2, FACTOR_CAP)
    return min(grown, backoff.cap_s) * rng.uniform(1 - backoff.jitter, 1 + backoff.jitter)


def together(strategy: Strategy, index: int, count: int) -> range:
    """Positions of the children that are stopped and started with the child at `index`, itself included.

    They are stopped in reverse and started in this order.
    """
    if strategy is Strategy.ONE_FOR_ONE:
        return range(index, index + 1)
    if strategy is Strategy.ONE_FOR_ALL:
        return range(count)
    return range(index, count)

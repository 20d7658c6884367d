"""Promises of the restart decisions: tables for each rule, properties for the sums."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.spec import Backoff, Child, Group, Intensity, OnLimit, Parked, Restart, Strategy
from supervisors.member import outcome_of
from supervisors.restart import Decision, Outcome, Past, Policy, Verdict, decide, delay, together

INF = float("inf")


def judge(
    policy: Policy,
    outcome: Outcome = Outcome.FAILED,
    past: Past | None = None,
    *,
    now: float = 100.0,
    ready_s: float | None = 0.1,
    mail: bool = False,
) -> Decision:
    return decide(policy, past or Past(), outcome, now=now, ready_s=ready_s, mail=mail, rng=random.Random(1))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.DONE),
        (ValueError(), Outcome.FAILED),
        (Parked(), Outcome.HOPELESS),
        (Parked(retry=False), Outcome.REFUSED),
        (ExceptionGroup("", [ValueError(), Parked()]), Outcome.HOPELESS),
        (ExceptionGroup("", [ValueError(), ExceptionGroup("", [Parked(retry=False)])]), Outcome.REFUSED),
        (ExceptionGroup("", [ValueError(), OSError()]), Outcome.FAILED),
    ],
)
def test_how_an_incarnation_ended_is_what_it_raised(error: Exception | None, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


@pytest.mark.parametrize(
    ("restart", "outcome", "mail", "verdict"),
    [
        (Restart.PERMANENT, Outcome.DONE, False, Verdict.RESTART),
        (Restart.PERMANENT, Outcome.FAILED, False, Verdict.RESTART),
        (Restart.TRANSIENT, Outcome.DONE, False, Verdict.STOP),
        (Restart.TRANSIENT, Outcome.DONE, True, Verdict.RESTART),
        (Restart.TRANSIENT, Outcome.FAILED, False, Verdict.RESTART),
        (Restart.TEMPORARY, Outcome.DONE, True, Verdict.STOP),
        (Restart.TEMPORARY, Outcome.FAILED, True, Verdict.STOP),
        (Restart.TEMPORARY, Outcome.HOPELESS, True, Verdict.STOP),
        (Restart.PERMANENT, Outcome.HOPELESS, False, Verdict.PARK),
        (Restart.TRANSIENT, Outcome.HOPELESS, False, Verdict.PARK),
        (Restart.PERMANENT, Outcome.BROKEN, False, Verdict.ESCALATE),
    ],
)
def test_restart_types(restart: Restart, outcome: Outcome, mail: bool, verdict: Verdict) -> None:
    assert judge(Policy(restart=restart), outcome, mail=mail).verdict is verdict


@pytest.mark.parametrize(
    ("strategy", "index", "count", "expected"),
    [
        (Strategy.ONE_FOR_ONE, 1, 4, [1]),
        (Strategy.ONE_FOR_ALL, 1, 4, [0, 1, 2, 3]),
        (Strategy.REST_FOR_ONE, 0, 3, [0, 1, 2]),
        (Strategy.REST_FOR_ONE, 1, 4, [1, 2, 3]),
        (Strategy.REST_FOR_ONE, 3, 4, [3]),
    ],
)
def test_who_is_restarted_together(strategy: Strategy, index: int, count: int, expected: list[int]) -> None:
    assert list(together(strategy, index, count)) == expected


def test_first_restart_is_at_once_and_the_next_ones_back_off() -> None:
    backoff = Backoff(first_s=1.0, factor=2.0, cap_s=5.0, jitter=0.0)
    assert [delay(backoff, n, random.Random(0)) for n in range(1, 7)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


@given(st.integers(min_value=2, max_value=10_000), st.floats(0, 1), st.integers())
def test_jitter_stays_in_its_bounds(streak: int, jitter: float, seed: int) -> None:
    backoff = Backoff(first_s=0.05, cap_s=30.0, jitter=jitter)
    plain = delay(Backoff(first_s=0.05, cap_s=30.0, jitter=0.0), streak, random.Random(0))
    waited = delay(backoff, streak, random.Random(seed))
    assert plain * (1 - jitter) - 1e-9 <= waited <= plain * (1 + jitter) + 1e-9


def test_limit_escalates_or_parks() -> None:
    past = Past(failures=(99.0, 99.5), streak=2)
    few = Intensity(restarts=2, period_s=10.0)
    assert judge(Policy(intensity=few), past=past).verdict is Verdict.ESCALATE
    parked = judge(Policy(intensity=few, on_limit=OnLimit.PARK, park_s=7.0), past=past)
    assert (parked.verdict, parked.delay_s, parked.past) == (Verdict.PARK, 7.0, Past(probation=True))


def test_failures_older_than_the_period_do_not_count() -> None:
    past = Past(failures=(80.0, 89.9, 95.0), streak=3)
    decision = judge(Policy(intensity=Intensity(restarts=2, period_s=10.0)), past=past)
    assert decision.verdict is Verdict.RESTART
    assert decision.past.failures == (95.0, 100.0)


def test_slow_failures_before_ready_reach_the_limit_although_the_period_is_over() -> None:
    policy = Policy(intensity=Intensity(restarts=2, period_s=1.0))
    past, verdicts = Past(), []
    for now in (100.0, 200.0, 300.0):
        decision = judge(policy, past=past, now=now, ready_s=None)
        past = decision.past
        verdicts.append(decision.verdict)
    assert verdicts == [Verdict.RESTART, Verdict.RESTART, Verdict.ESCALATE]


def test_a_healthy_time_ends_the_streak() -> None:
    policy = Policy(backoff=Backoff(first_s=1.0, jitter=0.0, healthy_s=5.0))
    past = Past(failures=(1.0,), streak=4)
    assert judge(policy, past=past, ready_s=4.9).delay_s == 8.0
    healthy = judge(policy, past=past, ready_s=5.0)
    assert (healthy.delay_s, healthy.past.streak) == (0.0, 1)


def test_probation_parks_at_once_until_healthy() -> None:
    policy = Policy(park_s=INF, on_limit=OnLimit.PARK)
    again = judge(policy, past=Past(probation=True), ready_s=1.0)
    assert (again.verdict, again.delay_s) == (Verdict.PARK, INF)
    well = judge(policy, past=Past(probation=True), ready_s=5.0)
    assert (well.verdict, well.past.probation) == (Verdict.RESTART, False)


def test_policy_of_specs() -> None:
    child = Child("x", run="a:b", restart=Restart.TEMPORARY, on_limit=OnLimit.PARK, park_s=3.0)
    assert Policy.of(child) == Policy(Restart.TEMPORARY, Backoff(), Intensity(), OnLimit.PARK, 3.0)
    assert Policy.of(Group("g", on_limit=OnLimit.PARK)) == Policy(on_limit=OnLimit.PARK)


@given(
    st.lists(st.floats(min_value=0.001, max_value=30), min_size=1, max_size=60),
    st.integers(0, 6),
    st.floats(0.1, 20),
    st.sampled_from(OnLimit),
)
def test_never_more_restarts_in_a_period_than_allowed(
    gaps: list[float], restarts: int, period: float, on_limit: OnLimit
) -> None:
    policy = Policy(intensity=Intensity(restarts, period), on_limit=on_limit)
    now, past, rng = 0.0, Past(), random.Random(0)
    allowed: list[float] = []
    for gap in gaps:
        now += gap
        decision = decide(policy, past, Outcome.FAILED, now=now, ready_s=gap, rng=rng)
        past = decision.past
        if decision.verdict is not Verdict.RESTART:
            assert decision.verdict is (Verdict.PARK if on_limit is OnLimit.PARK else Verdict.ESCALATE)
            break
        assert decision.delay_s >= 0
        allowed.append(now)
        assert len([t for t in allowed if now - t < period]) <= restarts

"""The circuit breaker: its way round, who may report what, and that it never locks a provider out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.breaker import REST_CAP, Breaker, State


def opened(failures: int = 3, rest: float = 10.0) -> Breaker:
    breaker = Breaker(failures, rest)
    for _ in range(failures):
        assert breaker.admit(0.0).after_s == 0.0
        breaker.failed(0.0, probe=False)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(3, 10.0)
    for _ in range(5):
        breaker.failed(0.0, probe=False)
        breaker.failed(0.0, probe=False)
        breaker.succeeded(probe=False)
    assert (breaker.state, breaker.row) == (State.CLOSED, 0)
    assert opened().state is State.OPEN
    assert opened().admit(4.0).after_s == 6.0


def test_one_try_decides_after_the_rest() -> None:
    breaker = opened()
    probe = breaker.admit(10.0)
    assert (probe.after_s, probe.probe, breaker.state) == (0.0, True, State.HALF_OPEN)
    assert breaker.admit(10.0).after_s > 0  # the others wait for its outcome
    breaker.answered(probe=True)
    assert (breaker.state, breaker.admit(10.0).probe) == (State.CLOSED, False)
    breaker.failed(11.0, probe=True)  # it broke off after all: on probation one failure is enough
    assert (breaker.state, breaker.blocked_s(11.0)) == (State.OPEN, 10.0)
    breaker.admit(21.0)
    breaker.answered(probe=True)
    breaker.succeeded(probe=True)
    assert breaker.row == 0


def test_it_rests_longer_each_time_up_to_a_cap() -> None:
    breaker, now, rests = opened(), 0.0, []
    for _ in range(6):
        rest = breaker.blocked_s(now)
        rests.append(rest)
        now += rest
        assert breaker.admit(now).probe
        breaker.failed(now, probe=True)
    assert rests == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    assert rests[-1] == REST_CAP * 10.0


def test_tries_that_began_before_it_opened_change_nothing() -> None:
    breaker = opened()
    breaker.failed(1.0, probe=False)
    breaker.succeeded(probe=False)
    breaker.dropped(1.0, probe=False)
    breaker.answered(probe=False)
    assert (breaker.state, breaker.blocked_s(1.0)) == (State.OPEN, 9.0)
    assert breaker.admit(10.0).probe
    breaker.failed(10.0, probe=False)
    breaker.succeeded(probe=False)
    assert breaker.state is State.HALF_OPEN


def test_a_probe_of_which_nothing_is_known_leaves_its_place_to_the_next() -> None:
    breaker = opened()
    assert breaker.admit(12.0).probe
    breaker.dropped(13.0, probe=True)
    assert breaker.admit(13.0).probe


def test_without_a_limit_it_never_opens_and_closes_when_that_is_set() -> None:
    breaker = Breaker(0, 10.0)
    for _ in range(100):
        breaker.failed(0.0, probe=False)
    assert breaker.admit(0.0).after_s == 0.0
    breaker = opened()
    breaker.change(0, 10.0)
    assert breaker.admit(0.0) == (0.0, False)


STEPS = st.lists(
    st.tuples(st.floats(0, 30), st.sampled_from(["begin", "answered", "succeeded", "failed", "dropped"])), max_size=60
)


@given(st.integers(1, 4), STEPS)
def test_whatever_happens_one_probe_at_a_time_and_always_a_next_one(
    failures: int, steps: list[tuple[float, str]]
) -> None:
    breaker, now = Breaker(failures, 10.0), 0.0
    running: list[bool] = []
    for passed, what in steps:
        now += passed
        if what == "begin":
            blocked = breaker.blocked_s(now)
            admission = breaker.admit(now)
            assert admission.after_s == blocked
            if not blocked:
                running.append(admission.probe)
        elif running:
            probe = running[0]
            match what:
                case "answered":
                    breaker.answered(probe=probe)
                case "succeeded":
                    breaker.succeeded(probe=probe)
                case "failed":
                    breaker.failed(now, probe=probe)
                case "dropped":
                    breaker.dropped(now, probe=probe)
            if what != "answered":
                running.pop(0)
        if breaker.state is State.HALF_OPEN:
            assert running.count(True) >= 1
    for probe in running:
        breaker.dropped(now, probe=probe)
    # Nobody is on the way: within the longest rest somebody may ask.
    assert breaker.blocked_s(now) <= 10.0 * REST_CAP
    assert breaker.admit(now + 10.0 * REST_CAP).after_s == 0.0

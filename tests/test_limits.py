"""The gate: its order, its bounds, and that no minute has more than it may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.limits import HOLD_CAP_S, MINUTE_S, NEVER, Full, Gate, Pass


class Named(Pass):
    """Tells its name when it is woken."""

    def __init__(self, name: str, woken: list[str]) -> None:
        super().__init__()
        self.name, self.woken = name, woken

    def wake(self) -> None:
        self.woken.append(self.name)


class Crowd:
    """Passes by name, and who was woken."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.passes: dict[str, Pass] = {}
        self.woken: list[str] = []

    def join(self, name: str, now: float = 0.0) -> bool:
        one = Named(name, self.woken)
        self.gate.join(one, now)
        self.passes[name] = one
        return one.admitted

    def leave(self, name: str, now: float = 0.0) -> None:
        self.gate.leave(self.passes.pop(name))
        self.gate.opened(now)

    def admitted(self) -> str:
        return "".join(name for name, one in self.passes.items() if one.admitted)


def test_without_limits_everybody_is_through_at_once() -> None:
    crowd = Crowd(Gate(None, None, 0))
    assert all(crowd.join(str(i)) for i in range(1000))
    assert crowd.gate.waiting == 0


def test_so_many_at_a_time_then_in_order() -> None:
    crowd = Crowd(Gate(2, None, 10))
    for name in "abcde":
        crowd.join(name)
    assert (crowd.admitted(), crowd.gate.waiting, crowd.gate.due(5.0)) == ("ab", 3, NEVER)
    crowd.leave("b")
    assert (crowd.admitted(), crowd.woken) == ("ac", ["c", "d"])  # d is the first now, and is told
    crowd.leave("d")  # gives up waiting
    crowd.leave("a")
    assert crowd.admitted() == "ce"


def test_one_too_many_is_refused() -> None:
    crowd = Crowd(Gate(1, None, 2))
    for name in "abc":
        crowd.join(name)
    with pytest.raises(Full):
        crowd.join("d")
    crowd.leave("c")
    crowd.join("d")
    crowd.leave("a")
    assert crowd.admitted() == "b"


def test_so_many_a_minute() -> None:
    crowd = Crowd(Gate(None, 2, 10))
    assert crowd.join("a", 0.0)
    assert crowd.join("b", 50.0)
    assert not crowd.join("c", 55.0)
    assert crowd.gate.due(55.0) == MINUTE_S
    crowd.gate.opened(59.9)
    assert crowd.admitted() == "ab"
    crowd.gate.opened(60.0)
    assert crowd.admitted() == "abc"
    crowd.join("d", 61.0)
    assert crowd.gate.due(61.0) == 110.0


def test_nobody_overtakes() -> None:
    crowd = Crowd(Gate(1, None, 10))
    crowd.join("a")
    crowd.join("b")
    crowd.gate.leave(crowd.passes.pop("a"))
    assert not crowd.join("c")  # there is room, but b was first
    crowd.gate.opened(0.0)
    assert crowd.admitted() == "b"


def test_a_provider_that_asks_for_peace_has_it_within_bounds() -> None:
    crowd = Crowd(Gate(None, None, 10))
    crowd.gate.hold(0.0, 5.0)
    crowd.gate.hold(0.0, 2.0)
    assert not crowd.join("a", 1.0)
    assert (crowd.gate.due(1.0), crowd.gate.held_s(1.0)) == (5.0, 4.0)
    crowd.gate.opened(5.0)
    assert crowd.admitted() == "a"
    crowd.gate.hold(10.0, 10_000.0)
    assert crowd.gate.held_s(10.0) == HOLD_CAP_S


def test_other_limits_count_at_once() -> None:
    crowd = Crowd(Gate(1, None, 10))
    for name in "abc":
        crowd.join(name)
    crowd.gate.change(2, None, 0)
    crowd.gate.opened(0.0)
    assert crowd.admitted() == "ab"
    with pytest.raises(Full):
        crowd.join("d")
    crowd.gate.change(None, None, 0)
    crowd.gate.opened(0.0)
    assert crowd.admitted() == "abc"


DOINGS = st.lists(st.tuples(st.floats(0, 25), st.sampled_from("jjjlgo")), max_size=150)


@given(st.one_of(st.none(), st.integers(1, 4)), st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 5), DOINGS)
def test_whatever_happens_the_bounds_hold(
    concurrent: int | None, per_minute: int | None, queue: int, doings: list[tuple[float, str]]
) -> None:
    gate, now = Gate(concurrent, per_minute, queue), 0.0
    order: list[Pass] = []
    admitted_at: dict[Pass, float] = {}
    through: list[Pass] = []

    def note() -> None:
        for one in order:
            if one.admitted and one not in admitted_at:
                admitted_at[one] = now
                through.append(one)

    for passed, what in doings:
        now += passed
        match what:
            case "j":
                newcomer = Named("", [])
                try:
                    gate.join(newcomer, now)
                    order.append(newcomer)
                except Full:
                    assert gate.waiting == queue
            case "l" if through:
                gate.leave(through.pop(0))
                gate.opened(now)
            case "g":
                waiting = [one for one in order if not one.admitted]
                if waiting:
                    order.remove(waiting[-1])
                    gate.leave(waiting[-1])
            case _:
                gate.opened(now)
        note()
        assert concurrent is None or len(through) == gate.through <= concurrent
        assert gate.waiting <= queue
        waits = [one.admitted for one in order]
        assert waits == sorted(waits, reverse=True)  # in order: nobody behind one that waits is through
    if per_minute is not None:
        times = sorted(admitted_at.values())
        for first, last in zip(times, times[per_minute:], strict=False):
            assert last - first >= MINUTE_S * (1 - 1e-12)
    # With time and all others gone, everybody who waits gets through.
    for _ in range(len(order) + 1):
        for one in through:
            gate.leave(one)
        through.clear()
        now += MINUTE_S
        gate.opened(now)
        note()
    assert gate.waiting == 0

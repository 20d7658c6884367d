"""How long until the next try."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.retry import BACKOFF_CAP_S, BACKOFF_S, RETRY_AFTER_CAP_S, delay_s

LUCK = st.floats(0, 1, exclude_max=True)


def test_it_grows_is_scattered_and_has_a_cap() -> None:
    assert [delay_s(tried, None, 1.0) for tried in (1, 2, 3, 4, 5, 6, 10_000)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert [delay_s(tried, None, 0.0) for tried in (1, 2, 3)] == [0.25, 0.5, 1]
    assert len({delay_s(1, None, luck / 10) for luck in range(10)}) == 10


@given(st.integers(1, 100), LUCK, LUCK)
def test_the_next_delay_is_never_shorter(tried: int, luck: float, other: float) -> None:
    first, second = delay_s(tried, None, luck), delay_s(tried + 1, None, other)
    assert first is not None
    assert second is not None
    assert BACKOFF_S / 2 <= first <= BACKOFF_CAP_S
    assert second >= min(first, BACKOFF_CAP_S / 2)


@given(st.integers(1, 100), st.floats(0, 10_000), LUCK)
def test_what_the_provider_asks_for_is_the_least_or_nobody_asks(tried: int, after: float, luck: float) -> None:
    delay = delay_s(tried, after, luck)
    if after > RETRY_AFTER_CAP_S:
        assert delay is None
    else:
        assert delay is not None
        assert after <= delay <= max(after * 1.1, BACKOFF_CAP_S)

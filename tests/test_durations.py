"""The median and the 99th percentile of the latest durations."""

from __future__ import annotations

from actors.durations import Durations


def test_percentiles_are_of_the_latest_only() -> None:
    durations = Durations(kept=100)
    assert durations.percentiles_ms() is None
    durations.add(0.5)
    assert durations.percentiles_ms() == (500.0, 500.0)
    for number in range(1, 201):
        durations.add(number / 1000)
    assert durations.percentiles_ms() == (151.0, 199.0)

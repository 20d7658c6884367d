"""The time of a call: silence, its most, and that it stands still while somebody is asked. In virtual time."""

from __future__ import annotations

import pytest
import trio

from actors.call_clock import CallClock


@pytest.mark.autojump
async def test_silence_and_the_ceiling_end_it_and_neither_counts_while_it_stands_still() -> None:
    began = trio.current_time()
    with trio.CancelScope() as scope:
        clock = CallClock(scope, 10.0, 25.0)
        await trio.sleep(5)
        clock.begin()
        for _ in range(2):
            await trio.sleep(8)
            clock.heard()
        with clock.paused():
            await trio.sleep(100)
            with clock.paused():  # asked twice at a time
                await trio.sleep(100)
            clock.heard()
            await trio.sleep(100)
        assert clock.stood_s == pytest.approx(300)
        await trio.sleep(8)
        clock.heard()
        await trio.sleep_forever()
    assert clock.exhausted
    assert trio.current_time() - began == pytest.approx(5 + 25 + 300)
    began = trio.current_time()
    with trio.CancelScope() as scope:
        clock = CallClock(scope, 10.0, 1000.0)
        clock.begin()
        with clock.paused():
            await trio.sleep(50)
        await trio.sleep_forever()  # what was asked is a sign of life
    assert not clock.exhausted
    assert trio.current_time() - began == pytest.approx(60)

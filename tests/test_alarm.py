"""Promises of the alarm: a wait of less than trio's deadlines can do, that can be cancelled and leaves nothing."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from actors.alarm import Alarm

SHORT_S = 0.0002


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    made = Alarm()
    yield made
    made.close()


@pytest.fixture
def trios(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long trio itself was asked to sleep."""
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio, "sleep", sleep)
    return asked


async def test_it_never_wakes_before_its_time_and_needs_none_of_trios_deadlines(
    alarm: Alarm, trios: list[float]
) -> None:
    for seconds in (SHORT_S, 1e-12, 0.0011):  # the second is as short as there is: none at all would never end
        began = time.monotonic()
        await alarm.sleep(seconds)
        assert time.monotonic() - began >= seconds
    assert trios == []


async def test_a_wait_that_was_cancelled_leaves_the_next_one_its_whole_time(alarm: Alarm) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await alarm.sleep(3600)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.sleep, 3600)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    began = time.monotonic()
    await alarm.sleep(SHORT_S)
    assert time.monotonic() - began >= SHORT_S


async def test_where_the_system_has_no_such_timer_trio_waits(
    monkeypatch: pytest.MonkeyPatch, trios: list[float]
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    without = Alarm()
    await without.sleep(SHORT_S)
    without.close()
    assert trios == [SHORT_S]


def test_it_is_gone_when_it_is_closed() -> None:
    before = os.listdir("/proc/self/fd")
    made = Alarm()
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    made.close()
    made.close()
    assert os.listdir("/proc/self/fd") == before

"""Timed calls: in their order, by one task, and none harms another."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from actors.timer import Timer


@pytest.mark.autojump
async def test_calls_are_made_at_their_times_by_one_task() -> None:
    timer, made = Timer(), list[tuple[str, float]]()
    began = trio.current_time()

    def call(name: str) -> None:
        made.append((name, trio.current_time() - began))

    def once_more(name: str) -> None:
        call(name)
        timer.at(trio.current_time() + 5, call, "later still")

    async with trio.open_nursery() as nursery:
        timer.at(began + 3, call, "before it runs")
        nursery.start_soon(timer.run)
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        timer.at(began + 10, once_more, "late")
        timer.at(began + 1, call, "sooner than the first")
        timer.at(began + 10, call, "late, too")
        timer.at(began - 1, call, "at once")
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert made == [
        ("at once", 0),
        ("sooner than the first", 1),
        ("before it runs", 3),
        ("late", 10),
        ("late, too", 10),
        ("later still", 15),
    ]


@pytest.mark.autojump
async def test_a_call_that_fails_is_logged_and_the_others_are_made(caplog: pytest.LogCaptureFixture) -> None:
    timer, made = Timer(), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        timer.at(trio.current_time() + 1, [].pop, 0)
        timer.at(trio.current_time() + 1, made.append, 1)
        with caplog.at_level(logging.ERROR):
            await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert made == [1]
    assert [record.message for record in caplog.records] == ["a timed call failed"]

"""Promises of the supervisor: order, restarts, limits, stops, watches, children that come and go.

Time is virtual throughout; every actor is a function of the test.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from protocol.mail import Gone, Mailbox, Request
from protocol.spec import (
    Actor,
    Backoff,
    Child,
    Context,
    Down,
    Group,
    Intensity,
    KeepContext,
    OnLimit,
    Parked,
    Restart,
    Status,
    Strategy,
    Up,
)
from supervisors.slot import CANCEL_S
from supervisors.supervisor import Escalated, Tree, running

pytestmark = pytest.mark.autojump

STEADY = Backoff(first_s=1.0, factor=2.0, cap_s=60.0, jitter=0.0, healthy_s=1000.0)
NEVER_ENOUGH = Intensity(restarts=1000, period_s=1.0)
ONCE = Intensity(restarts=0, period_s=1.0)


class Ask(Request[Any], frozen=True):
    what: str = ""


class Boom(Exception):
    """What the tests' actors raise."""


class Journal:
    """What happened, in order; and actors that write it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def actor(self, *, on_start: Callable[[Context], Awaitable[None]] | None = None) -> Actor:
        async def run(box: Mailbox[Any], ctx: Context) -> None:
            self.lines.append(f"+{ctx.path}")
            try:
                if on_start is not None:
                    await on_start(ctx)
                await answer(box, ctx)
            finally:
                self.lines.append(f"-{ctx.path}")

        return run

    def take(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


async def answer(box: Mailbox[Any], ctx: Context) -> None:
    """Do as the message says."""
    async for message in box:
        match message:
            case Ask("boom") | "boom":
                raise Boom("boom")
            case Ask("incarnation"):
                box.reply(ctx.incarnation)
            case "return" | Ask("return"):
                return
            case _:
                box.reply("ok")


def child(name: str, run: Actor | str = answer, **more: Any) -> Child:
    return Child(name, run, **{"backoff": STEADY, "intensity": NEVER_ENOUGH, **more})


def group(*children: Child | Group, **more: Any) -> Group:
    return Group("root", children, **more)


async def crash(tree: Tree, path: str) -> None:
    """Make an actor raise, and wait until that is decided."""
    with pytest.raises(Gone):
        await tree.ref(path).ask(Ask("boom"), within=5)
    await trio.testing.wait_all_tasks_blocked()


# Start and stop.


async def test_children_start_in_order_and_stop_in_reverse_through_groups() -> None:
    journal = Journal()

    async def slow(ctx: Context) -> None:
        await trio.sleep(random.Random(ctx.path).random())

    spec = child("x", journal.actor(on_start=slow))

    def named(name: str) -> Child:
        return child(name, spec.run)

    async with running(group(named("a"), Group("g", (named("b"), named("c"))), named("d"))):
        assert journal.take() == ["+a", "+g/b", "+g/c", "+d"]
    assert journal.take() == ["-d", "-g/c", "-g/b", "-a"]


async def test_the_next_child_waits_for_ready_not_for_the_start() -> None:
    seen: list[str] = []

    async def first(box: Mailbox[Any], ctx: Context) -> None:
        await trio.sleep(3)
        seen.append("first is ready")
        ctx.ready()
        await trio.sleep_forever()

    async def second(box: Mailbox[Any], ctx: Context) -> None:
        seen.append("second begins")
        await answer(box, ctx)

    async with running(group(child("a", first, shutdown_s=1), child("b", second))):
        assert seen == ["first is ready", "second begins"]


async def test_a_normal_end_counts_as_started() -> None:
    async def migrate(box: Mailbox[Any], ctx: Context) -> None:
        await trio.sleep(1)

    async with running(group(child("a", migrate, restart=Restart.TRANSIENT), child("b"))) as tree:
        assert (tree.state("a"), tree.state("b")) == (Status.STOPPED, Status.RUNNING)
        with pytest.raises(Gone):
            await tree.ref("a").ask(Ask(), within=5)


async def test_an_actor_that_crashes_before_it_was_ready_is_restarted_and_the_start_waits() -> None:
    journal = Journal()

    async def fails_twice(ctx: Context) -> None:
        if ctx.incarnation <= 2:
            raise Boom

    async with running(group(child("a", journal.actor(on_start=fails_twice)), child("b", journal.actor()))):
        assert journal.take() == ["+a", "-a", "+a", "-a", "+a", "+b"]
        assert trio.current_time() == pytest.approx(1.0, abs=0.1)


async def test_a_start_that_fails_too_often_raises_and_stops_what_runs() -> None:
    journal = Journal()

    async def fails(ctx: Context) -> None:
        raise Boom("no luck")

    bad = child("b", journal.actor(on_start=fails), intensity=Intensity(1, 5))
    with pytest.raises(Escalated, match=r"b failed too often; last: Boom: no luck"):
        async with running(group(child("a", journal.actor()), bad, child("c", journal.actor()))):
            pytest.fail("the body must not begin")
    assert journal.take() == ["+a", "+b", "-b", "+b", "-b", "-a"]


async def test_a_start_that_hangs_counts_as_failed() -> None:
    async def hangs(box: Mailbox[Any], ctx: Context) -> None:
        await trio.sleep_forever()

    with pytest.raises(Escalated, match="not ready within 3 s"):
        async with running(group(child("a", hangs, start_s=3, intensity=ONCE))):
            pytest.fail("the body must not begin")


async def test_a_parked_child_does_not_keep_the_others_from_starting() -> None:
    async with running(group(child("a", "tests.test_supervisor:nothing"), child("b"))) as tree:
        assert tree.state("a") is Status.PARKED
        assert await tree.ref("b").ask(Ask(), within=1) == "ok"


def test_modules_are_imported_in_a_thread_and_one_that_is_missing_parks() -> None:
    async def main() -> None:  # real time: virtual time would jump over the import
        spec = group(child("a", "tests.nowhere:run"), child("b", "tests.test_supervisor:answer"))
        with trio.fail_after(20):
            async with running(spec) as tree:
                assert tree.state("a") is Status.PARKED
                assert "cannot import tests.nowhere:run: ModuleNotFoundError" in tree.slots["a"].last_error
                assert await tree.ref("b").ask(Ask(), within=5) == "ok"

    trio.run(main)


async def test_actors_are_found_by_dotted_name() -> None:
    async with running(group(child("a", "tests.test_supervisor:answer"))) as tree:
        assert await tree.ref("a").ask(Ask(), within=1) == "ok"


async def test_stop_drains_the_backlog() -> None:
    seen: list[object] = []

    async def slow(box: Mailbox[Any], ctx: Context) -> None:
        async for message in box:
            await trio.sleep(0.1)
            seen.append(message)

    async with running(group(child("a", slow))) as tree:
        for n in range(10):
            tree.ref("a").offer(n)
    assert seen == list(range(10))


async def test_stop_cancels_after_shutdown_and_the_backlogs_askers_get_gone() -> None:
    gone: list[str] = []

    async def stuck(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Gone):
                await tree.ref("a").ask(Ask(), within=100)
            gone.append("gone")

        async with running(group(child("a", stuck, shutdown_s=2))) as tree:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
        assert trio.current_time() - began == pytest.approx(2.0, abs=0.01)
    assert gone == ["gone", "gone"]


async def test_an_actor_that_ignores_its_cancellation_is_reported_and_the_others_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = Journal()
    release = trio.Event()

    async def deaf(box: Mailbox[Any], ctx: Context) -> None:
        ctx.ready()
        with trio.CancelScope(shield=True):
            await release.wait()

    async def let_go() -> None:
        await trio.sleep(100)
        release.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_go)
        async with running(group(child("a", journal.actor()), child("deaf", deaf, shutdown_s=1))):
            journal.take()
        assert journal.take() == ["-a"]
    assert f"still runs {CANCEL_S:g} s after it was cancelled" in caplog.text


async def test_nothing_starts_in_the_place_of_an_actor_that_does_not_end() -> None:
    release = trio.Event()
    alive = 0

    async def deaf(box: Mailbox[Any], ctx: Context) -> None:
        nonlocal alive
        alive += 1
        assert alive == 1
        ctx.ready()
        if ctx.incarnation == 1:
            with trio.CancelScope(shield=True):
                await release.wait()
        else:
            await answer(box, ctx)
        alive -= 1

    async with running(group(child("deaf", deaf, shutdown_s=1), child("b"))) as tree:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.restart, "deaf")
            await trio.sleep(60)
            assert tree.slots["deaf"].last_error == "ignores its cancellation"
            assert (tree.state("deaf"), tree.slots["deaf"].incarnation) == (Status.RESTARTING, 1)
            await crash(tree, "b")
            assert await tree.ref("b").ask(Ask("incarnation"), within=1) == 2
            release.set()
        assert await tree.ref("deaf").ask(Ask("incarnation"), within=1) == 2


async def test_a_crash_while_the_group_is_stopped_starts_nothing() -> None:
    journal = Journal()

    async def slow_end(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            pass
        await trio.sleep(3)

    async with running(group(child("a", journal.actor()), child("b", slow_end))) as tree:

        async def poison() -> None:
            await tree.until(lambda: tree.state("b") is Status.DRAINING)
            tree.ref("a").offer("boom")

        tree.nursery.start_soon(poison)
    assert journal.take() == ["+a", "-a"]


async def test_a_cancelled_body_still_stops_in_order() -> None:
    journal = Journal()
    seen: list[object] = []

    async def slow(box: Mailbox[Any], ctx: Context) -> None:
        async for message in box:
            await trio.sleep(1)
            seen.append(message)

    with trio.move_on_after(5) as scope:
        async with running(group(child("a", journal.actor()), child("b", slow), child("c", journal.actor()))) as tree:
            tree.ref("b").offer(1)
            tree.ref("b").offer(2)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert seen == [1, 2]
    assert journal.take() == ["+a", "+c", "-c", "-a"]


async def test_a_start_that_is_cancelled_stops_in_order() -> None:
    journal = Journal()

    async def hangs(box: Mailbox[Any], ctx: Context) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(5):
        async with running(group(child("a", journal.actor()), child("b", hangs, shutdown_s=1))):
            pytest.fail("the body must not begin")
    assert journal.take() == ["+a", "-a"]


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    journal = Journal()
    with pytest.raises(Boom, match="mine"):
        async with running(group(child("a", journal.actor()))):
            raise Boom("mine")
    assert journal.take() == ["+a", "-a"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_keyboard_interrupt_in_an_actor_stops_all_in_order_and_comes_out(kind: type[BaseException]) -> None:
    journal = Journal()

    async def interrupted(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            raise kind

    async def live() -> None:
        spec = group(child("a", journal.actor()), child("b", interrupted), child("c", journal.actor()))
        async with running(spec) as tree:
            tree.ref("b").offer(1)
            await trio.sleep_forever()

    with pytest.raises(kind):
        await live()
    assert journal.take() == ["+a", "+c", "-c", "-a"]


async def test_no_task_is_left() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with running(group(child("a"), Group("d", dynamic=True), child("k", keep=Keepsake().open))) as tree:
        await tree.start_child("d", child("x"))
        await crash(tree, "a")
    assert trio.lowlevel.current_statistics().tasks_living == before


# Restarts.


async def test_backlog_survives_a_crash_and_only_what_is_in_hand_is_lost() -> None:
    async with running(group(child("a"))) as tree:
        ref = tree.ref("a")
        results: list[object] = []

        async def ask(what: str) -> None:
            try:
                results.append(await ref.ask(Ask(what), within=50))
            except Gone:
                results.append("gone")

        async with trio.open_nursery() as nursery:
            for what in ("x", "boom", "incarnation", "boom", "incarnation"):
                nursery.start_soon(ask, what)
                await trio.lowlevel.checkpoint()
        assert sorted(map(str, results)) == ["2", "3", "gone", "gone", "ok"]
        assert tree.slots["a"].box.counters.lost == 2


async def test_again_sends_an_idempotent_ask_to_the_next_incarnation() -> None:
    async def fails_first(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            if ctx.incarnation == 1:
                raise Boom
            box.reply("done")

    async with running(group(child("a", fails_first))) as tree:
        assert await tree.ref("a").ask(Ask(), within=5, again=True) == "done"


async def test_mail_waits_while_an_actor_is_in_backoff() -> None:
    async with running(group(child("a"))) as tree:
        await crash(tree, "a")  # at once
        await crash(tree, "a")  # after a second
        assert tree.state("a") is Status.RESTARTING
        began = trio.current_time()
        assert await tree.ref("a").ask(Ask("incarnation"), within=5) == 3
        assert trio.current_time() - began == pytest.approx(1.0, abs=0.1)


async def test_backoff_times_and_the_healthy_reset() -> None:
    starts: list[float] = []

    async def run(box: Mailbox[Any], ctx: Context) -> None:
        starts.append(trio.current_time())
        ctx.ready()
        await trio.sleep(20 if len(starts) == 5 else 0)
        raise Boom

    backoff = Backoff(first_s=1.0, factor=2.0, cap_s=3.0, jitter=0.0, healthy_s=10.0)
    async with running(group(child("a", run, backoff=backoff))) as tree:
        await tree.reached("a", Status.RUNNING, incarnation=8)
    waits = [round(b - a, 3) for a, b in pairwise(starts)]
    assert waits[:7] == [0, 1, 2, 3, 20, 1, 2]


async def test_jitter_comes_from_the_seeded_generator() -> None:
    async def times() -> list[float]:
        starts: list[float] = []

        async def run(box: Mailbox[Any], ctx: Context) -> None:
            starts.append(trio.current_time())
            raise Boom

        began = trio.current_time()
        spec = child("a", run, backoff=Backoff(), intensity=Intensity(5, 100))
        with pytest.raises(Escalated):
            async with running(group(spec), rng=random.Random(7)):
                pytest.fail("the body must not begin")
        return [round(t - began, 6) for t in starts]

    assert await times() == await times()


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Strategy.ONE_FOR_ONE, ["-b", "+b"]),
        (Strategy.ONE_FOR_ALL, ["-b", "-c", "-a", "+a", "+b", "+c"]),
        (Strategy.REST_FOR_ONE, ["-b", "-c", "+b", "+c"]),
    ],
)
async def test_strategies(strategy: Strategy, expected: list[str]) -> None:
    journal = Journal()
    spec = group(*(child(name, journal.actor()) for name in "abc"), strategy=strategy)
    async with running(spec) as tree:
        journal.take()
        await crash(tree, "b")
        assert journal.take() == expected
        assert [await tree.ref(name).ask(Ask(), within=1) for name in "abc"] == ["ok"] * 3


async def test_siblings_restarted_with_a_failed_one_keep_their_mail() -> None:
    seen: list[tuple[int, int]] = []

    async def slow(box: Mailbox[int], ctx: Context) -> None:
        async for message in box:
            await trio.sleep(0.1)
            seen.append((ctx.incarnation, message))

    async with running(group(child("a", slow), child("b"), strategy=Strategy.ONE_FOR_ALL)) as tree:
        for n in range(3):
            tree.ref("a").offer(n)
        await crash(tree, "b")
        await tree.reached("a", Status.RUNNING, incarnation=2)
    assert [n for _, n in seen] == [0, 1, 2]
    assert {i for i, _ in seen} == {1, 2}


async def test_siblings_start_in_order_after_the_delay() -> None:
    journal = Journal()
    spec = group(*(child(name, journal.actor()) for name in "ab"), strategy=Strategy.ONE_FOR_ALL)
    async with running(spec) as tree:
        await crash(tree, "a")
        await crash(tree, "a")
        journal.take()
        assert (tree.state("a"), tree.state("b")) == (Status.RESTARTING, Status.RESTARTING)
        await tree.reached("b", Status.RUNNING, incarnation=3)
        assert journal.take() == ["+a", "+b"]


@pytest.mark.parametrize(
    ("restart", "message", "runs"),
    [
        (Restart.PERMANENT, "return", True),
        (Restart.PERMANENT, "boom", True),
        (Restart.TRANSIENT, "return", False),
        (Restart.TRANSIENT, "boom", True),
        (Restart.TEMPORARY, "return", False),
        (Restart.TEMPORARY, "boom", False),
    ],
)
async def test_restart_types(restart: Restart, message: str, runs: bool) -> None:
    async with running(group(child("a", restart=restart))) as tree:
        tree.ref("a").offer(message)
        await trio.testing.wait_all_tasks_blocked()
        assert tree.state("a") is (Status.RUNNING if runs else Status.STOPPED)
        assert tree.ref("a").offer("x") is runs


async def test_a_transient_child_that_returns_with_mail_waiting_goes_on() -> None:
    async with running(group(child("a", restart=Restart.TRANSIENT))) as tree:
        ref = tree.ref("a")
        ref.offer("return")
        assert await ref.ask(Ask("incarnation"), within=5) == 2


async def test_a_temporary_sibling_is_not_brought_back() -> None:
    journal = Journal()
    spec = group(
        child("a", journal.actor()),
        child("t", journal.actor(), restart=Restart.TEMPORARY),
        strategy=Strategy.ONE_FOR_ALL,
    )
    async with running(spec) as tree:
        await crash(tree, "a")
        assert journal.take() == ["+a", "+t", "-a", "-t", "+a"]
        assert tree.state("t") is Status.STOPPED


async def test_restart_by_hand_keeps_mail_and_counts() -> None:
    async with running(group(child("a"))) as tree:
        await tree.restart("a")
        assert await tree.ref("a").ask(Ask("incarnation"), within=1) == 2
        with pytest.raises(LookupError):
            await tree.restart("nobody")


# Limits.


async def test_a_child_past_its_limit_parks_answers_gone_and_is_retried_slowly() -> None:
    async with running(group(child("a", on_limit=OnLimit.PARK, park_s=60, intensity=Intensity(1, 100)))) as tree:
        await crash(tree, "a")
        ref = tree.ref("a")
        ref.offer("boom")
        ref.offer("waits in vain")
        await tree.reached("a", Status.PARKED)
        with pytest.raises(Gone):
            await ref.ask(Ask(), within=5)
        assert not ref.offer("x")
        assert tree.slots["a"].box.counters.dead == 3
        parked_at = trio.current_time()
        await tree.reached("a", Status.RUNNING)
        assert trio.current_time() - parked_at == pytest.approx(60, abs=0.1)
        assert await ref.ask(Ask("incarnation"), within=1) == 3
        await crash(tree, "a")  # on probation
        assert tree.state("a") is Status.PARKED


async def test_parked_raises_park_at_once_and_a_restart_by_hand_wakes_it() -> None:
    async def needs_a_file(box: Mailbox[Any], ctx: Context) -> None:
        if ctx.incarnation == 1:
            async with trio.open_nursery():
                raise Parked("the file is missing: put it there")
        await answer(box, ctx)

    async with running(group(child("a", needs_a_file, park_s=float("inf")), child("b"))) as tree:
        assert tree.state("a") is Status.PARKED
        assert tree.slots["a"].last_error == "the file is missing: put it there"
        await tree.restart("a")
        assert await tree.ref("a").ask(Ask("incarnation"), within=1) == 2


async def test_escalation_restarts_the_group_with_its_own_backoff_and_keeps_mail() -> None:
    journal = Journal()
    inner = Group("g", (child("a", journal.actor()), child("b", journal.actor(), intensity=ONCE)), backoff=STEADY)
    async with running(group(child("before", journal.actor()), inner)) as tree:
        journal.take()
        tree.ref("g/b").offer("boom")
        tree.ref("g/b").offer("stays")
        await tree.reached("g", Status.RUNNING, incarnation=2)
        assert journal.take() == ["-g/b", "-g/a", "+g/a", "+g/b"]
        assert await tree.ref("g/b").ask(Ask("incarnation"), within=1) == 2
        began = trio.current_time()
        tree.ref("g/b").offer("boom")
        await tree.reached("g", Status.RUNNING, incarnation=3)
        assert trio.current_time() - began == pytest.approx(1.0, abs=0.1)
        assert tree.slots["g/b"].box.counters.taken == 4


async def test_escalation_through_two_levels_ends_at_the_root() -> None:
    journal = Journal()
    fragile = child("x", journal.actor(), intensity=Intensity(1, 100))
    inner = Group("inner", (fragile,), intensity=Intensity(1, 100), backoff=STEADY)
    outer = Group("outer", (inner,), intensity=ONCE, backoff=STEADY)
    async with running(group(child("a", journal.actor()), outer)) as tree:
        for _ in range(4):
            assert not tree.failed.is_set()
            tree.ref("outer/inner/x").offer("boom")
            await trio.sleep(30)
        await tree.failed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert "outer failed too often" in str(tree.error)
        assert "x failed too often; last: Boom: boom" in str(tree.error)
        assert tree.slots["outer/inner/x"].incarnation == 4
        assert tree.state("a") is Status.STOPPED
        with pytest.raises(Gone):
            await tree.ref("outer/inner/x").ask(Ask(), within=5)
        with pytest.raises(LookupError):
            await tree.restart("a")


async def test_a_group_can_park() -> None:
    fragile = Group("g", (child("a"), child("b", intensity=ONCE)), on_limit=OnLimit.PARK, intensity=ONCE)
    async with running(group(fragile, child("c"))) as tree:
        tree.ref("g/b").offer("boom")
        await tree.reached("g", Status.PARKED)
        assert (tree.state("g/a"), tree.state("c")) == (Status.PARKED, Status.RUNNING)
        with pytest.raises(Gone):
            await tree.ref("g/a").ask(Ask(), within=5)
        await tree.restart("g/a")  # wakes the group
        assert await tree.ref("g/a").ask(Ask("incarnation"), within=5) == 2


async def test_errors_are_unwrapped_logged_with_traceback_and_say_what_comes_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nested(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails)

    async def fails() -> None:
        raise Boom("deep\nand long")

    async with running(group(Group("g", (child("a", nested),)))) as tree:
        tree.ref("g/a").offer(1)
        await trio.testing.wait_all_tasks_blocked()
        assert tree.slots["g/a"].last_error == "Boom: deep"
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.name == "actors.g.a"
    assert "g/a (incarnation 1," in record.getMessage()
    assert "failed: Boom: deep; started again at once" in record.getMessage()
    assert record.exc_info is not None


async def test_an_error_while_stopping_is_told_and_nothing_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    async def bad_end(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            pass
        raise Boom("at the end")

    async with running(group(child("a", bad_end))) as tree:
        slot = tree.slots["a"]
    assert (slot.incarnation, slot.status, slot.last_error) == (1, Status.STOPPED, "Boom: at the end")
    assert "failed while it was stopped: Boom: at the end" in caplog.text


# Watching.


async def test_watchers_see_down_and_up_of_their_prefix_but_not_of_themselves() -> None:
    seen: list[object] = []

    async def watcher(box: Mailbox[Any], ctx: Context) -> None:
        ctx.watch("g/")
        async for message in box:
            seen.append(message)

    parked = child("p", on_limit=OnLimit.PARK, park_s=60, intensity=ONCE)
    inner = Group("g", (child("watcher", watcher), child("a"), parked), strategy=Strategy.ONE_FOR_ONE)
    async with running(group(inner, child("other"))) as tree:
        assert seen == [Up("g/a", 1), Up("g/p", 1)]
        seen.clear()
        await crash(tree, "g/a")
        await crash(tree, "other")
        assert seen == [Down("g/a", 1, "Boom: boom", 0, parked=False), Up("g/a", 2)]
        seen.clear()
        await crash(tree, "g/a")
        await crash(tree, "g/p")
        assert seen == [
            Down("g/a", 2, "Boom: boom", 1000, parked=False),
            Down("g/p", 1, "Boom: boom", 60_000, parked=True),
        ]
        seen.clear()
        await tree.restart("g/p")
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [Up("g/p", 2)]
        seen.clear()
    assert [e for e in seen if isinstance(e, Down)] == []


async def test_a_watch_ends_with_its_incarnation() -> None:
    async def watcher(box: Mailbox[Any], ctx: Context) -> None:
        if ctx.incarnation == 1:
            ctx.watch()
        await answer(box, ctx)

    async with running(group(child("w", watcher), child("a"))) as tree:
        assert len(tree.watchers) == 1
        await crash(tree, "w")
        assert tree.watchers == {}


# Children that come and go.

DYNAMIC = group(Group("d", dynamic=True), child("a"))


async def test_mail_offered_right_after_start_child_is_taken() -> None:
    seen: list[object] = []

    async def note(box: Mailbox[Any], ctx: Context) -> None:
        async for message in box:
            seen.append((ctx.args["who"], message))

    async def parent(box: Mailbox[Any], ctx: Context) -> None:
        async for message in box:
            ctx.start_child("d", child("x", note, args={"who": "x"}))
            assert ctx.ref("d/x").offer(message)

    async with running(group(Group("d", dynamic=True), child("p", parent))) as tree:
        tree.ref("p").offer(1)
        tree.ref("p").offer(2)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [("x", 1), ("x", 2)]


async def test_stop_child_drains_frees_the_path_and_tells_nobody() -> None:
    seen: list[object] = []

    async def slow(box: Mailbox[Any], ctx: Context) -> None:
        async for message in box:
            await trio.sleep(1)
            seen.append(message)

    async def watcher(box: Mailbox[Any], ctx: Context) -> None:
        ctx.watch("d/")
        async for message in box:
            seen.append(message)

    async with running(group(Group("d", dynamic=True), child("w", watcher))) as tree:
        await tree.start_child("d", child("x", slow))
        ref = tree.ref("d/x")
        ref.offer(1)
        ref.offer(2)
        await tree.stop_child("d/x")
        assert not ref.there
        assert tree.dead_letters == 0, "to look is no letter"
        assert seen == [Up("d/x", 1), 1, 2]
        assert not ref.offer(3)
        assert tree.dead_letters == 1
        assert "d/x" not in tree.slots
        await tree.stop_child("d/x")


async def test_a_path_taken_again_while_the_old_slot_drains_gets_the_new_mail() -> None:
    seen: list[tuple[str, object]] = []

    def named(name: str) -> Actor:
        async def run(box: Mailbox[Any], ctx: Context) -> None:
            async for message in box:
                await trio.sleep(1)
                seen.append((name, message))

        return run

    async with running(DYNAMIC) as tree:
        await tree.start_child("d", child("x", named("old")))
        ref = tree.ref("d/x")
        ref.offer(1)
        ref.offer(2)
        tree.drop_child("d/x")
        assert not ref.offer("nobody")
        tree.add_child("d", child("x", named("new")))
        assert ref.offer(3)
        await tree.reached("d/x", Status.RUNNING)
        assert seen == [("old", 1), ("old", 2)]
        await tree.stop_child("d/x")
        assert seen[2:] == [("new", 3)]


async def test_children_that_come_and_go_leave_nothing_behind() -> None:
    async with running(DYNAMIC) as tree:
        for number in range(20):
            await tree.start_child("d", child(f"passing{number}"))
            await tree.stop_child(f"d/passing{number}")
        assert not [path for path in tree.slots if "passing" in path]
    assert not [name for name in logging.Logger.manager.loggerDict if "passing" in name], "a logger is kept for ever"


async def test_a_second_start_of_the_same_name_changes_nothing() -> None:
    async with running(DYNAMIC) as tree:
        first = tree.add_child("d", child("x"))
        assert tree.add_child("d", child("x")) is first
        await tree.reached("d/x", Status.RUNNING)
        assert tree.add_child("d", child("x")) is first


async def test_ended_children_of_a_dynamic_group_are_removed_and_their_path_is_free() -> None:
    async with running(DYNAMIC) as tree:
        for restart, message in ((Restart.TRANSIENT, "return"), (Restart.TEMPORARY, "boom")):
            await tree.start_child("d", child("x", restart=restart))
            tree.ref("d/x").offer(message)
            await trio.testing.wait_all_tasks_blocked()
            assert "d/x" not in tree.slots
        assert tree.branches["d"].members == []


async def test_dynamic_children_stop_side_by_side() -> None:
    async def slow(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            pass
        await trio.sleep(3)

    async with running(DYNAMIC) as tree:
        for n in range(20):
            tree.add_child("d", child(f"x{n}", slow))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(3, abs=0.1)


async def test_dynamic_children_survive_their_groups_restart_but_temporary_ones_do_not() -> None:
    async with running(DYNAMIC) as tree:
        await tree.start_child("d", child("x"))
        await tree.start_child("d", child("t", restart=Restart.TEMPORARY))
        await tree.restart("d")
        assert await tree.ref("d/x").ask(Ask("incarnation"), within=1) == 2
        assert "d/t" not in tree.slots


async def test_a_child_may_stop_itself() -> None:
    async def once(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            ctx.stop_child(ctx.path)

    async with running(DYNAMIC) as tree:
        await tree.start_child("d", child("x", once))
        tree.ref("d/x").offer(1)
        await trio.testing.wait_all_tasks_blocked()
        assert "d/x" not in tree.slots


async def test_misuse_of_groups_is_told() -> None:
    async with running(DYNAMIC) as tree:
        with pytest.raises(LookupError, match="no group 'nowhere'"):
            tree.add_child("nowhere", child("x"))
        with pytest.raises(ValueError, match="not dynamic"):
            tree.add_child("", child("x"))
        with pytest.raises(ValueError, match="fixed in the tree"):
            tree.drop_child("a")


# What a slot keeps.


class Keepsake:
    """A kept object whose life is written down, and which can be made to fail."""

    def __init__(self, *, fail_at_enter: int = 0) -> None:
        self.lines: list[str] = []
        self.fail_at_enter = fail_at_enter
        self.fail = trio.Event()

    @asynccontextmanager
    async def open(self, ctx: KeepContext) -> AsyncIterator[object]:
        if self.fail_at_enter:
            self.fail_at_enter -= 1
            raise Boom("cannot bind")
        self.lines.append(f"open for {ctx.path}")
        ctx.report(kept=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work)
            yield self
            nursery.cancel_scope.cancel()
        self.lines.append("closed")

    async def _work(self) -> None:
        await self.fail.wait()
        self.fail = trio.Event()
        raise Boom("background")


async def test_what_a_slot_keeps_survives_restarts_and_is_closed_after_the_final_stop() -> None:
    keepsake = Keepsake()

    async def run(box: Mailbox[Any], ctx: Context) -> None:
        keepsake.lines.append(f"run {ctx.incarnation} {ctx.kept is keepsake}")
        try:
            await answer(box, ctx)
        finally:
            keepsake.lines.append("end")

    async with running(group(child("a", run, keep=keepsake.open))) as tree:
        await crash(tree, "a")
        await tree.restart("a")
    run_lines = ["run 1 True", "end", "run 2 True", "end", "run 3 True", "end"]
    assert keepsake.lines == ["open for a", *run_lines, "closed"]


async def test_keep_that_cannot_be_entered_is_a_failed_start() -> None:
    keepsake = Keepsake(fail_at_enter=2)
    async with running(group(child("a", keep=keepsake.open))) as tree:
        assert await tree.ref("a").ask(Ask("incarnation"), within=1) == 3
        assert tree.slots["a"].last_error == "Boom: cannot bind"
    assert keepsake.lines == ["open for a", "closed"]


async def test_a_kept_object_that_fails_escalates_and_is_made_anew() -> None:
    keepsake = Keepsake()
    inner = Group("g", (child("a", keep=keepsake.open), child("b")))
    async with running(group(inner)) as tree:
        keepsake.fail.set()
        await tree.reached("g", Status.RUNNING, incarnation=2)
        assert await tree.ref("g/b").ask(Ask("incarnation"), within=1) == 2
        assert "what g/a keeps failed: Boom: background" in tree.branches["g"].last_error
    assert keepsake.lines == ["open for g/a", "open for g/a", "closed"]


async def test_keep_of_a_removed_child_is_closed() -> None:
    keepsake = Keepsake()
    async with running(DYNAMIC) as tree:
        await tree.start_child("d", child("x", keep=keepsake.open, restart=Restart.TRANSIENT))
        tree.ref("d/x").offer("return")
        await trio.testing.wait_all_tasks_blocked()
        assert keepsake.lines == ["open for d/x", "closed"]


# Faults from outside.


async def test_a_tap_raises_in_the_actor_and_reaches_slots_made_later() -> None:
    def fault(message: object) -> None:
        if message == Ask("poison"):
            raise Boom("tapped")

    async with running(DYNAMIC) as tree:
        tree.tap("d/*", fault)
        await tree.start_child("d", child("x"))
        with pytest.raises(Gone):
            await tree.ref("d/x").ask(Ask("poison"), within=5)
        assert await tree.ref("d/x").ask(Ask("incarnation"), within=5) == 2
        with pytest.raises(Gone):
            await tree.ref("d/x").ask(Ask("poison"), within=5)
        tree.tap("d/*", None)
        assert await tree.ref("d/x").ask(Ask("poison"), within=5) == "ok"


def test_crashes_lose_only_what_is_in_hand() -> None:
    @given(
        st.lists(st.booleans(), min_size=1, max_size=40),
        st.sampled_from(Strategy),
        st.sets(st.integers(0, 39), max_size=6),
    )
    def play(poison: list[bool], strategy: Strategy, neighbour_crashes: set[int]) -> None:
        seen: list[int] = []

        async def run(box: Mailbox[Any], ctx: Context) -> None:
            async for message in box:
                if isinstance(message, Ask):
                    box.reply("all before it are done")
                elif poison[message]:
                    raise Boom
                else:
                    seen.append(message)

        async def main() -> None:
            spec = group(child("n"), child("a", run), child("z"), strategy=strategy)
            async with running(spec, rng=random.Random(0)) as tree:
                for n in range(len(poison)):
                    await tree.ref("a").send(n)
                    if n in neighbour_crashes:
                        tree.ref("n").offer("boom")
                        await trio.lowlevel.checkpoint()
                await tree.ref("a").ask(Ask(), within=1e9, again=True)
                assert tree.slots["a"].box.counters.taken == len(poison) + 1

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        assert seen == [n for n, bad in enumerate(poison) if not bad]

    play()


def test_what_children_of_a_group_run_is_there_before_the_first_of_them() -> None:
    async def main() -> None:  # real time, as above
        sys.modules.pop("colorsys", None)
        # what cannot be imported is told by the first child, not by the group
        wanted = (
            Group("d", dynamic=True, runs="colorsys:rgb_to_hsv"),
            Group("e", dynamic=True, runs="tests.nowhere:run"),
        )
        with trio.fail_after(20):
            async with running(group(*wanted)) as tree:
                assert "colorsys" in sys.modules
                await tree.start_child("e", child("x", "tests.nowhere:run"))
                assert tree.state("e/x") is Status.PARKED

    trio.run(main)

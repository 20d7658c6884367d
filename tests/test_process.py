"""Promises of processes: start, orders, mail, signs of life, limits, ends of all kinds. Real processes, toy roles."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocol.mail import Gone, Mailbox
from protocol.spec import Child, Context, Down, Group, Intensity, OnLimit, Status, Up
from supervisors import life as lives
from supervisors.exchange import Exchange
from supervisors.leash import EXIT_LET_GO
from supervisors.life import Life
from supervisors.plan import Plan
from supervisors.process import Replace, Seat, child
from supervisors.supervisor import Tree, running
from tests.roles import VOCABULARY, Accompany, Block, Echo, Grow, Hold, Relay, Spin, Trouble, Write, plan, toy

ROOT = str(Path(__file__).resolve().parents[1])
PARK: dict[str, Any] = {"intensity": Intensity(restarts=0), "on_limit": OnLimit.PARK, "park_s": float("inf")}


@pytest.fixture(autouse=True)
def found_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new process finds the tests' modules too."""
    monkeypatch.setenv("PYTHONPATH", ROOT)


@asynccontextmanager
async def root(*plans: Plan, addresses: dict[str, str] | None = None, **more: Any) -> AsyncIterator[Tree]:
    """A tree with those processes, and a toy of its own."""
    exchange = Exchange("root", vocabulary=VOCABULARY, addresses=addresses)
    processes = Group("processes", tuple(child(plan, exchange, **more) for plan in plans))
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        async with running(
            Group("service", (Group("root", (Child("toy", toy),)), processes, Group("more", dynamic=True))),
            abroad=exchange,
        ) as tree:
            yield tree
        nursery.cancel_scope.cancel()


def seat(tree: Tree, role: str) -> Seat:
    """What a process's slot keeps."""
    kept = tree.slots[f"processes/{role}"].kept
    assert isinstance(kept, Seat)
    return kept


def life(tree: Tree, role: str) -> Life:
    """The process that runs."""
    found = seat(tree, role).life
    assert found is not None
    return found


def error(tree: Tree, role: str) -> str:
    """Its last error in status."""
    return tree.slots[f"processes/{role}"].last_error


async def gone(*pids: int) -> None:
    """Wait until these processes have ended."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)


def command_of(pid: int) -> list[str]:
    """As `ps` shows it."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def ended(tree: Tree, role: str, lives: int) -> None:
    """Wait until the process runs in a later incarnation than that."""
    await tree.reached(f"processes/{role}", Status.RUNNING, incarnation=lives + 1)


async def test_whoever_asks_a_process_that_ends_does_not_wait_for_it() -> None:
    async with root(plan("w")) as tree, trio.open_nursery() as nursery:
        there = life(tree, "w")
        os.kill(there.process.pid, signal.SIGSTOP)

        async def ask(question: Callable[[], Awaitable[object]]) -> None:
            assert await question() is None
            answered.append(True)

        answered: list[bool] = []
        nursery.start_soon(ask, lambda: there.report(math.inf))
        nursery.start_soon(ask, lambda: there.restart("w/toy", math.inf))
        await trio.testing.wait_all_tasks_blocked()
        assert not answered
        os.kill(there.process.pid, signal.SIGKILL)
    assert answered == [True, True]
    assert await there.report(math.inf) is None


async def test_it_answers_is_killed_is_back_and_stops_in_order(tmp_path: Path) -> None:
    seen, events = trio.open_memory_channel[Down | Up](10)

    async def watcher(box: Mailbox[Any], ctx: Context) -> None:
        ctx.watch("processes/w")
        async for message in box:
            await seen.send(message)

    listens = str(tmp_path / "w")
    other = Exchange("other", addresses={"w": listens}, vocabulary=VOCABULARY)
    async with root(plan("w", ping_s=0.05), addresses={"w": listens}) as tree, trio.open_nursery() as nursery:
        await nursery.start(other.run)
        tree.add_child("more", Child("watcher", watcher))
        async with running(Group("other"), abroad=other) as elsewhere:
            first = seat(tree, "w").pid
            assert first is not None
            words = command_of(first)
            assert words[words.index("-m") + 1 :][:2] == ["supervisors.worker", "w"]
            toy_there = tree.ref("w/toy")
            assert await toy_there.ask(Echo("hi"), within=5) == ["hi", first]
            assert await toy_there.ask(Relay("root/toy", "back"), within=5) == ["back", os.getpid()]
            assert await elsewhere.ref("w/toy").ask(Echo("from elsewhere"), within=5) == ["from elsewhere", first]
            node = await seat(tree, "w").report(5.0)
            assert node is not None
            assert (node.pid, node.children[0].children[0].path) == (first, "w/toy")
            assert node.rss_bytes is not None
            assert node.loop_lag_ms is not None
            while "rss_mb" not in tree.slots["processes/w"].facts:  # with the first sign of life
                assert await seat(tree, "w").report(5.0)
            facts = tree.slots["processes/w"].facts
            assert facts["pid"] == first
            assert 10 < float(facts["rss_mb"]) < 60
            assert {"cpu_s", "lag_ms"} <= facts.keys()

            async def hold() -> None:
                with pytest.raises(Gone):
                    await toy_there.ask(Hold(), within=10)
                held.set()

            held = trio.Event()
            nursery.start_soon(hold)
            assert await toy_there.ask(Echo("the hold is there"), within=5)
            os.kill(first, signal.SIGKILL)
            await held.wait()
            [_, second] = await elsewhere.ref("w/toy").ask(Echo(""), within=10, again=True)
            assert second != first
            assert error(tree, "w") == f"ProcessEnded: w (pid {first}) was killed by SIGKILL"
            await ended(tree, "w", 1)
            down = await events.receive()
            assert isinstance(down, Down)
            assert (down.incarnation, down.retry_in_ms) == (1, 0)
            assert await events.receive() == Up("processes/w", 2)

            troubles = await toy_there.ask(Trouble(), within=5)
            for _ in range(100):
                await toy_there.send(Write(str(tmp_path / "written"), "x"))
            last = life(tree, "w")
        nursery.cancel_scope.cancel()
    assert last.process.exit_code == 0
    assert (tmp_path / "written").read_text() == "x" * 100
    await gone(*troubles)
    assert "w" not in os.listdir(tmp_path)


async def test_what_cannot_be_built_is_parked_and_what_gives_up_says_why() -> None:
    plans = (
        Plan("lost", make="tests.no_such_module:part", vocabulary="tests.roles:VOCABULARY"),
        plan("wrong", args={"how": "wrong"}),
        plan("unready", args={"how": "unready"}, start_s=0.5),
        plan("failing", args={"how": "failing"}),
    )
    async with root(*plans, **PARK) as tree:
        assert tree.state("processes/lost") is Status.PARKED
        assert error(tree, "lost").endswith("cannot start: ModuleNotFoundError: No module named 'tests.no_such_module'")
        assert tree.state("processes/wrong") is Status.PARKED
        assert error(tree, "wrong").endswith("cannot start: ValueError: the key `how` says nonsense")
        assert tree.state("processes/unready") is Status.PARKED
        assert error(tree, "unready").endswith("was not ready within 0.5 s and was killed")
        with pytest.raises(Gone):
            await tree.ref("lost/toy").ask(Echo(""), within=5)
        tree.ref("failing/toy").offer(Echo(""))
        await tree.reached("processes/failing", Status.PARKED)
        assert "ended with exit code 70: " in error(tree, "failing")
        assert "this part is broken" in error(tree, "failing")


async def test_what_hangs_or_grows_is_replaced(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    more: dict[str, Any] = {"ping_s": 0.1, "ping_limit_s": 0.8}
    async with root(plan("stopped", **more), plan("busy", **more), plan("fat", rss_limit=90_000_000, **more)) as tree:
        pids = {role: life(tree, role).process.pid for role in ("stopped", "busy", "fat")}
        os.kill(pids["stopped"], signal.SIGSTOP)
        tree.ref("busy/toy").offer(Spin())
        tree.ref("fat/toy").offer(Grow(100))
        for role, pid in pids.items():
            await ended(tree, role, 1)
            [_, new] = await tree.ref(f"{role}/toy").ask(Echo(""), within=10, again=True)
            assert new != pid
        for role in ("stopped", "busy"):
            assert f"{role} (pid {pids[role]}) answered no ping for 0.8 s" in caplog.text
        assert f"fat (pid {pids['fat']}) used 1" in error(tree, "fat")
        assert "its limit is 90" in error(tree, "fat")
        assert f"fat (pid {pids['fat']}) uses" in caplog.text
    assert "in toy" in capfd.readouterr().err, "the stack of what was busy"


async def test_a_successor_takes_over_when_it_is_ready_and_only_then(tmp_path: Path) -> None:
    args = {"how": ""}
    listens = str(tmp_path / "w")
    other = Exchange("other", addresses={"w": listens}, vocabulary=VOCABULARY)
    async with (
        root(plan("w", args=args), addresses={"w": listens}) as tree,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(other.run)
        async with running(Group("other"), abroad=other) as elsewhere:
            there, from_elsewhere = tree.ref("w/toy"), elsewhere.ref("w/toy")
            [_, first] = await from_elsewhere.ask(Echo(""), within=5)
            args["how"] = "stillborn"
            why = await tree.ref("processes/w").ask(Replace(), within=10)
            assert "ended with exit code 70" in why
            assert "this part never works" in why
            assert [first, first] == [(await ref.ask(Echo(""), within=5))[1] for ref in (there, from_elsewhere)]
            args["how"] = ""
            troubles = await there.ask(Trouble(), within=5)
            old = life(tree, "w")
            assert await tree.ref("processes/w").ask(Replace(), within=10) == ""
            [_, second] = await there.ask(Echo(""), within=5)
            assert second == seat(tree, "w").pid != first
            await gone(first, *troubles)
            assert await from_elsewhere.ask(Echo(""), within=5, again=True) == ["", second]
            assert (tree.slots["processes/w"].incarnation, error(tree, "w")) == (1, "")
        nursery.cancel_scope.cancel()
    assert old.process.exit_code == 0


async def test_what_ignores_every_word_is_killed_with_its_group(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "TERM_S", 1.0)
    async with root(plan("deaf", grace_s=0.1), plan("slow", grace_s=0.1, args={"how": "lingering"})) as tree:
        companion = await tree.ref("deaf/toy").ask(Accompany(), within=5)
        troubles = await tree.ref("slow/toy").ask(Trouble(), within=5)
        tree.ref("deaf/toy").offer(Block(deaf=True))
        deaf, slow = life(tree, "deaf"), life(tree, "slow")
    assert deaf.process.exit_code == -signal.SIGKILL
    assert "ignores SIGTERM: killed" in caplog.text
    await gone(companion)
    assert slow.process.exit_code == EXIT_LET_GO, "it was told to hurry"
    await gone(*troubles)


async def test_a_stop_before_it_is_ready_does_not_wait_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "UNREADY_S", 0.1)
    async with root() as tree:
        exchange = tree.abroad
        assert isinstance(exchange, Exchange)
        spec = child(plan("unready", args={"how": "unready"}, start_s=1000.0), exchange)
        slot = tree.add_child("more", spec)
        assert slot is not None
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(slot.kept, Seat)
        pid = slot.kept.pid
        assert pid is not None
        await tree.stop_child("more/unready")
        await gone(pid)


async def test_nothing_outlives_a_killed_worker_or_a_killed_root() -> None:
    popen = started_root()
    assert popen.stdout is not None
    async with trio.lowlevel.FdStream(os.dup(popen.stdout.fileno())) as out:
        try:
            first = await said(out)
            os.kill(first["nest"], signal.SIGKILL)
            await gone(*first["trouble"])
            second = await said(out)
            assert second["nest"] != first["nest"]
            assert not {*first["trouble"], first["nest"]} & {*second["trouble"]}
        finally:
            popen.kill()
            popen.wait()
            popen.stdout.close()
        await gone(second["busy"], second["nest"], *second["trouble"])


def started_root() -> subprocess.Popen[bytes]:
    """A root to be killed."""
    program = "from tests.roles import parent; parent()"
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, bufsize=0)


async def said(out: trio.lowlevel.FdStream) -> dict[str, Any]:
    """The next line of the root's output."""
    line = b""
    while not line.endswith(b"\n"):
        part = await out.receive_some()
        assert part, "the root has ended"
        line += part
    found: dict[str, Any] = json.loads(line)
    return found

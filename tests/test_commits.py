"""What sessions ask the store: told by calls, without tasks, each in its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from actors.commits import Commits
from actors.durable import COMMIT_S
from actors.timer import Timer
from protocol.errors import Code, Fault
from protocol.mail import Gone, Mailbox, Overloaded, Ref, Reply, TooSlow
from protocol.writer import StartTurn
from tests.test_mail import Post


def start(turn: int) -> StartTurn:
    return StartTurn("a", turn, "")


def store(limit: int = 256) -> tuple[Mailbox[Any], Timer, Commits]:
    box: Mailbox[Any] = Mailbox("store", limit)
    timer = Timer()
    return box, timer, Commits(Ref(Post(box), "store"), timer)


async def test_what_came_of_each_is_told_without_a_task() -> None:
    box, _, commits = store()
    told: list[Reply] = []
    tasks = trio.lowlevel.current_statistics().tasks_living
    for turn in (1, 2, 3):
        commits.ask(start(turn), told.append)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert not told
    taken = box.drain(3)
    box.settle(taken[1][1], "second")
    box.settle(taken[0][1], Fault(Code.STORAGE_FULL))
    box.abandon_in_hand()
    assert [(reply.value, type(reply.error)) for reply in told] == [
        ("second", type(None)),
        (None, Fault),
        (None, Gone),
    ]


@pytest.mark.autojump
async def test_each_runs_out_in_its_time_by_one_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    box, timer, commits = store()
    late: list[tuple[str, float]] = []
    looks: list[float] = []
    began, at = trio.current_time(), timer.at

    def noted(due: float, call: Callable[[Any], None], about: object) -> None:
        looks.append(due - began)
        at(due, call, about)

    monkeypatch.setattr(timer, "at", noted)

    def told(name: str, reply: Reply) -> None:
        late.append((f"{name}: {type(reply.error).__name__}", trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        for name in ("first", "with it"):
            commits.ask(start(1), partial(told, name))
        await trio.sleep(1)
        commits.ask(start(2), partial(told, "answered"))
        await trio.sleep(1)
        commits.ask(start(3), partial(told, "last"))
        box.settle(box.drain(3)[2][1], "done")
        await trio.sleep(3 * COMMIT_S)
        box.settle(box.drain(1)[0][1], "too late")
        nursery.cancel_scope.cancel()
    assert late == [
        ("answered: NoneType", 2),
        ("first: TooSlow", COMMIT_S),
        ("with it: TooSlow", COMMIT_S),
        ("last: TooSlow", COMMIT_S + 2),
    ]
    assert looks == [COMMIT_S, COMMIT_S + 2]


@pytest.mark.autojump
async def test_a_store_that_is_not_there_is_told_at_once_and_asked_again_by_who_insists() -> None:
    box, _, commits = store(limit=1)
    told: list[Reply] = []
    box.set_down(True)
    commits.ask(start(1), told.append)
    box.set_down(False)
    box.put("in the way")
    commits.ask(start(1), told.append)
    assert [type(reply.error) for reply in told] == [Gone, Overloaded]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commits.insist, start(1), told.append)
        await trio.sleep(1)
        box.drain(1)
        await trio.sleep(1)
        box.settle(box.drain(1)[0][1], "stored")
    assert told[2].value == "stored"
    box.set_down(True)
    await commits.insist(start(2), told.append)
    assert isinstance(told[3].error, TooSlow)

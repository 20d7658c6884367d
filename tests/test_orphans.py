"""Promises about processes without a parent: found, ended, reaped, and never taken from those who wait for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import trio

from supervisors import orphans
from supervisors.orphans import LOOK_S
from supervisors.os_process import OsProcess, fate
from tests import forks


def ended_process() -> subprocess.Popen[bytes]:
    """A zombie."""
    popen = subprocess.Popen(["true"])
    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    return popen


@pytest.mark.autojump
async def test_a_zombie_that_nobody_waits_for_is_reaped_at_the_second_look() -> None:
    own = OsProcess([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - no clock that jumps may be waited by
    async with trio.open_nursery() as nursery:
        left = ended_process()
        nursery.start_soon(orphans.reap)
        await trio.sleep(1.5 * LOOK_S)
        assert left.pid in orphans.children(os.getpid())
        await trio.sleep(LOOK_S)
        assert left.pid not in orphans.children(os.getpid())
        assert own.pid in orphans.children(os.getpid()), "somebody waits for it"
        nursery.cancel_scope.cancel()
    assert left.wait() == 0
    await own.ended()
    await own.close()
    assert own.pid not in orphans.children(os.getpid())


async def test_processes_are_found_at_any_depth_but_not_below_the_spared() -> None:
    process = OsProcess(["sh", "-c", "sh -c 'sleep 1000; true'; true"])
    try:
        with trio.fail_after(10):
            while len(below := list(orphans.below(os.getpid(), spared=[forks.pid()]))) < 3:  # noqa: ASYNC110 - as said below
                await trio.sleep(0.01)  # nobody is told of a process's children
        assert below[0] == process.pid
        assert list(orphans.below(process.pid)) == below[1:]
        assert list(orphans.below(os.getpid(), spared=[process.pid, forks.pid()])) == []
    finally:
        await process.close()
    assert list(orphans.below(process.pid)) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with exit code 0"), (-11, "was killed by SIGSEGV"), (-40, "was killed by signal 40")],
)
def test_the_end_of_a_process_in_words(code: int, words: str) -> None:
    assert fate(code) == words


def test_a_process_that_cannot_be_started_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        OsProcess(["/no/such/program"])

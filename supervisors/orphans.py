"""Processes whose parent is gone: they come back to us, and never outlive the service.

A process that `adopt`s is the parent of all orphans below it (`PR_SET_CHILD_SUBREAPER`), however often they
forked and whatever session they made, so everything below can be found and killed: `end_all` in order,
`kill_all` at once and without a running loop. Where every child is one of `os_process.started` (root), whatever
else appears is an orphan and is ended as soon as the process that left it is gone: `end_strangers`.
Zombies of adopted processes are reaped by `reap`, those that somebody here waits for never.

Linux only. What can fail: nothing is raised; a process of another user cannot be killed and is left.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import trio

from supervisors.os_process import started

log = logging.getLogger("supervisors.orphans")

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
ROUNDS = 20  # of killing: each finds what forked during the one before; killed parents cannot fork, so few suffice
ROUND_S = 1.0  # for the killed to be gone; only a process that the kernel cannot kill runs this out
LOOK_S = 30.0  # a zombie that is there at two looks is waited for by nobody


class _Policy:
    workers_only = False  # every child is one of `started`


def adopt(*, workers_only: bool = False) -> None:
    """Be the parent of orphans from now on.

    Args:
        workers_only: nothing in this process starts children but `OsProcess`; `end_strangers` ends all others.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        reason = errno.errorcode.get(ctypes.get_errno(), "?")
        log.warning("orphaned processes will not come back (%s): some may outlive the service", reason)
        return
    _Policy.workers_only = workers_only


def kill_all() -> None:
    """Kill everything below this process, now, in any thread; bounded."""
    for _ in range(ROUNDS):
        killed = _kill(())
        if not killed:
            return
        deadline = time.monotonic() + ROUND_S
        for pidfd in killed:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            os.close(pidfd)


async def end_all() -> int:
    """Kill and reap everything below this process; bounded, not cancellable. Returns how many were killed."""
    return await _end(())


async def end_strangers() -> int:
    """Kill and reap all that was started by processes that are gone; bounded, not cancellable.

    Nothing happens in a process that has not adopted with `workers_only`. Returns how many were killed.
    """
    return await _end(started) if _Policy.workers_only else 0


async def reap() -> None:
    """Reap adopted processes that ended by themselves, for ever."""
    before: set[int] = set()
    while True:
        await trio.sleep(LOOK_S)
        zombies = {pid for pid in children(os.getpid()) if pid not in started and _state(pid) == "Z"}
        for pid in zombies & before:
            _reap(pid)
        before = zombies - before


async def _end(spared: Collection[int]) -> int:
    count = 0
    with trio.CancelScope(shield=True):
        for _ in range(ROUNDS):
            killed = _kill(spared)
            if not killed:
                break
            count += len(killed)
            with trio.move_on_after(ROUND_S):
                for pidfd in killed:
                    await trio.lowlevel.wait_readable(pidfd)
            for pidfd in killed:
                os.close(pidfd)
        for pid in children(os.getpid()):
            if pid not in spared and pid not in started:
                _reap(pid)
    return count


def _kill(spared: Collection[int]) -> list[int]:
    """Kill all below us but the spared and what is below them; pidfds of those that were alive."""
    killed: list[int] = []
    # All are found before the first is killed: its children would go to init where we have not adopted.
    for pid in list(below(os.getpid(), spared)):
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue  # reaped meanwhile, or we are out of descriptors
        try:
            if _state(pid) not in ("Z", ""):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                killed.append(pidfd)
                continue
        except OSError:
            pass  # ended meanwhile, or another user's
        os.close(pidfd)
    return killed


def below(pid: int, spared: Collection[int] = ()) -> Iterator[int]:
    """All processes below one, parents first; not the spared and what is below them."""
    waiting = [pid]
    while waiting:
        found = [child for child in children(waiting.pop()) if child not in spared]
        yield from found
        waiting += found


def children(pid: int) -> list[int]:
    """The processes whose parent it is, zombies too; none where there is no such process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # ended meanwhile
            found += map(int, task.read_text().split())
    return found


def _state(pid: int) -> str:
    """Its letter in /proc; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # somebody here did wait for it
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

"""One process of the operating system: started by exec, watched without being reaped, ended with its group.

A process leads a session and group of its own, so that a signal reaches what it started too. It is watched by
a pidfd and stays a zombie until `close`, which keeps its pid and its group from being taken by a stranger.
Linux only. May assume: called in the main thread under trio (a process started by another thread would be
told of its parent's death when that thread ends). What can fail: the start, with OSError.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import trio

KILL_S = 2.0  # only a process that the kernel cannot kill runs this out

started: set[int] = set()
"""Pids of the processes that were started here and are not reaped yet."""


class OsProcess:
    """A process from its start to its `close`, which must follow.

    Args:
        argv: the program and its arguments.
        pass_fds: descriptors that it inherits, under the same numbers; they stay the caller's own.
    """

    def __init__(self, argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> None:
        # What it prints goes where our log goes: standard output is for the service's one line. A closed standard
        # error's number may be anybody's file.
        said = subprocess.DEVNULL if sys.stderr is None else None
        # S603: the program is our own interpreter; no shell is involved. No preexec_fn: that would forbid vfork.
        self._popen = subprocess.Popen(  # noqa: S603
            argv,
            stdin=subprocess.DEVNULL,
            stdout=said if said is not None else 2,
            stderr=said,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        """Also the id of its session and group."""
        self.exit_code: int | None = None
        """None while it runs; negative: the signal that ended it."""
        started.add(self.pid)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:  # out of descriptors
            self._popen.kill()
            self._reap()
            raise

    async def ended(self) -> int:
        """Wait for its end; for one task at a time. Returns its exit code, negative for a signal."""
        while self.exit_code is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            # WNOWAIT: it stays a zombie. ASYNC222: it is dead, so this does not wait.
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
            if info is not None:
                self.exit_code = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        return self.exit_code

    async def ended_within(self, seconds: float) -> bool:
        """Wait so long for its end."""
        with trio.move_on_after(seconds):
            await self.ended()
        return self.exit_code is not None

    def signal(self, *numbers: signal.Signals) -> None:
        """Send signals to the process alone."""
        for number in numbers:
            with suppress(ProcessLookupError):  # it is gone; its pid is still its own
                os.kill(self.pid, number)

    async def close(self) -> None:
        """Kill whatever of its group still lives, and reap it. Bounded by `KILL_S`, not cancellable."""
        with trio.CancelScope(shield=True):
            with suppress(ProcessLookupError, PermissionError):  # nobody is left, or it changed its user
                os.killpg(self.pid, signal.SIGKILL)
            if await self.ended_within(KILL_S):
                self._reap()
            os.close(self._pidfd)

    def _reap(self) -> None:
        self._popen.wait()  # killed or a zombie: does not block
        started.discard(self.pid)


def fate(exit_code: int) -> str:
    """How a process ended, in words: `was killed by SIGSEGV`, `ended with exit code 70`."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"  # a real-time signal has no name

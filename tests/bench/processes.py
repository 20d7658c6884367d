"""Programs that a benchmark starts: their lines, their processor time, their memory, their end.

Plain blocking code, since nothing here is measured. Every wait has a bound: `Stuck` is raised past it, or when the
program has ended, with the end of what it wrote to standard error. Figures come from /proc: Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]
WORKER = b"supervisors.worker"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
NICE = -15  # of what is started, where that is allowed
KEPT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Of the environment: nobody who cares for speed and memory compiles at each start, which takes much of both."""
END_S = 30.0  # for a program to end after it was told to; then it is killed


class Stuck(Exception):
    """A program did not answer in time, or ended."""


class Program:
    """One started program.

    It runs at a high priority, where that is allowed, since others on the machine then disturb less.

    Args:
        command: with its arguments.
        env: added to ours.
    """

    realtime: ClassVar[bool] = False
    """Whether programs go before everything else on the machine; not for loads that fill it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = " ".join(Path(part).name for part in command[:3])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env={**KEPT, **(env or {})},
            start_new_session=True,
        )
        # before it starts threads or processes, which inherit it
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, self.pid, NICE)
            if self.realtime:
                os.sched_setscheduler(self.pid, os.SCHED_RR, os.sched_param(1))
        self.favour()
        self._lines = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def favour(self) -> None:
        """Do what is needed that its processes' priority counts: sessions may be scheduling groups of their own."""
        for member in family(self.pid):
            with contextlib.suppress(OSError):
                Path(f"/proc/{member}/autogroup").write_text(str(NICE))

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode("utf-8", "replace")

    def line(self, within: float) -> str:
        """The next line of its standard output. Raises Stuck."""
        assert self._process.stdout is not None
        until = time.monotonic() + within
        while b"\n" not in self._lines:
            left = until - time.monotonic()
            ready = left > 0 and select.select([self._process.stdout], [], [], left)[0]
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not data:
                why = "ended" if ready else f"said nothing for {within:g} s"
                raise Stuck(f"{self.name} {why}: {self.log[-2000:]}")
            self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def tell(self, command: str) -> None:
        """Write a line to its standard input. Raises Stuck."""
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), command.encode() + b"\n")
        except OSError as error:
            raise Stuck(f"{self.name} takes no commands ({error}): {self.log[-2000:]}") from error

    def answer(self, within: float) -> dict[str, Any]:
        """The next line, which is JSON. Raises Stuck."""
        answer: dict[str, Any] = json.loads(self.line(within))
        return answer

    def ask(self, command: str, within: float) -> dict[str, Any]:
        """A command that is answered by a line of JSON. Raises Stuck."""
        self.tell(command)
        return self.answer(within)

    def end(self) -> int:
        """Tell it to end, in order if it can; returns its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(END_S)
        self._process.stdout.close()
        self._errors.close()
        return code


@contextmanager
def started(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Run a program for the block."""
    program = Program(command, env)
    try:
        yield program
    finally:
        program.end()


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except OSError:
                continue  # that thread has just ended
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds, user and system, of a process and all that it has started, those that ended included."""
    ticks = 0
    for member in family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended: its parent has its time
        ticks += sum(map(int, fields[11:15]))  # utime, stime, and those of its ended children
    return ticks / TICKS


def roles(pid: int) -> dict[str, int]:
    """The service's processes: their numbers by role; `root` is the first."""
    found: dict[str, int] = {}
    for member in family(pid):
        try:
            words = Path(f"/proc/{member}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        found[words[words.index(WORKER) + 1].decode() if WORKER in words else "root"] = member
    return found


def own_cpu_s(pid: int) -> float:
    """Processor seconds of one process alone, to the nanosecond: its clock, numbered as in clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def rss_kb(pid: int) -> int:
    """Resident memory of a process and all that it has started, in KiB; shared pages count for each."""
    pages = 0
    for member in family(pid):
        try:
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except OSError:
            continue  # it has just ended
    return pages * PAGE_KB


def uptime() -> str:
    """The machine's load averages, and how many cores it has: how far to trust what was measured."""
    return f"load averages {' '.join(Path('/proc/loadavg').read_text().split()[:3])} on {os.cpu_count()} cores"

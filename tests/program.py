"""The command line as a real process, with everything that it starts.

async with program("--state", str(state), "--port", "0") as p:
    url = await p.listening()
    p.signal(signal.SIGTERM)
    assert await p.ended() == 0
    await p.nothing_left()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parents[1]


class Program:
    """One process of ours."""

    def __init__(self, process: trio.Process, log: Path) -> None:
        self.process = process
        self._log = log
        self._out = b""
        self._kept = ""
        self._pidfds: dict[int, int] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """Its standard error so far."""
        return self._kept or self._log.read_text("utf-8", "replace")

    @property
    def out(self) -> str:
        """Its standard output so far, as far as it was read."""
        return self._out.decode()

    async def line(self) -> str:
        """Its standard output up to the first line's end, or its end."""
        assert self.process.stdout is not None
        while b"\n" not in self._out and (data := await self.process.stdout.receive_some()):
            self._out += data
        return self.out

    async def listening(self) -> str:
        """The address that it says it listens on."""
        line = await self.line()
        assert line.startswith("listening on ws://"), (line, self.log)
        self.remember_children()
        return line.removeprefix("listening on ").strip()

    async def logged(self, text: str) -> None:
        """Wait until that is in its log."""
        while text not in self.log:
            assert self.process.poll() is None, self.log
            await trio.sleep(0.01)  # a file tells nobody that it grew

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code."""
        assert self.process.stdout is not None
        while data := await self.process.stdout.receive_some():
            self._out += data
        return await self.process.wait()

    def remember_children(self) -> list[int]:
        """The processes below it now; `nothing_left` waits for their ends."""
        below, waiting = [], [self.pid]
        while waiting:
            for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
                children = [int(pid) for pid in task.read_text().split()]
                below += children
                waiting += children
        for pid in below:
            if pid not in self._pidfds:
                self._pidfds[pid] = os.pidfd_open(pid)
        return below

    async def children(self, count: int) -> None:
        """Wait until it has started that many processes, and remember them."""
        while len(self.remember_children()) < count:
            assert self.process.poll() is None, self.log
            await trio.sleep(0.01)  # nobody is told of a process's children

    async def nothing_left(self) -> None:
        """All processes that were remembered have ended."""
        for pidfd in self._pidfds.values():
            await trio.lowlevel.wait_readable(pidfd)

    def close(self) -> None:
        self._kept = self.log
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()


@asynccontextmanager
async def program(*arguments: str, env: Mapping[str, str] | None = None, inline: bool = True) -> AsyncIterator[Program]:
    """`actors-main` with those arguments, killed at the end if it still runs.

    Args:
        inline: a service is one process (cheap to start); false: several, as it is by default.
        env: changes to the environment; empty values remove.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    environment = {name: value for name, value in environment.items() if value}
    runs = not arguments or arguments[0] == "run" or arguments[0].startswith("-")
    one = ["--inline"] if inline and runs and "--help" not in arguments else []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with log.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "supervisors.main", *arguments, *one],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                cwd=folder,
            )
        started = Program(process, log)
        try:
            yield started
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                await process.wait()
                assert process.stdout is not None
                await process.stdout.aclose()
                started.close()


EACH_IN_A_FORK = """
import json, os, sys
import actors.configuration, supervisors.main
for number, arguments in enumerate(json.loads(sys.argv[1])):
    pid = os.fork()
    if not pid:
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv = ["actors-main", *arguments]
        sys.exit(supervisors.main.main())
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


async def outcomes(*commands: Sequence[str]) -> list[tuple[int, str, str]]:
    """Of each of these commands, one after the other; their modules are imported once for all."""
    with tempfile.TemporaryDirectory() as folder:
        process = await trio.run_process(
            [sys.executable, "-c", EACH_IN_A_FORK, json.dumps(commands)],
            capture_stdout=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=folder,
        )
        codes = [int(code) for code in process.stdout.split()]
        assert len(codes) == len(commands)
        return [(code, _text(folder, f"{n}.out"), _text(folder, f"{n}.err")) for n, code in enumerate(codes)]


def _text(folder: str, name: str) -> str:
    return Path(folder, name).read_text()


async def outcome(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that ends by itself."""
    async with program(*arguments, env=env) as p:
        code = await p.ended()
        return code, p.out, p.log

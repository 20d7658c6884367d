"""The command line as a real process, with everything that it starts.

async with program("--state", str(state), "--port", "0") as p:
    url = await p.listening()
    p.signal(signal.SIGTERM)
    assert await p.ended() == 0
    await p.nothing_left()
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from tests.forks import MAIN, ROOT, SERVERS, SERVICE, Child, fork, run


class Program:
    """One process of ours."""

    def __init__(self, process: Child | trio.Process, stdout: trio.abc.ReceiveStream, log: Path) -> None:
        self.process = process
        self._stdout = stdout
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
        while b"\n" not in self._out and (data := await self._stdout.receive_some()):
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
        while data := await self._stdout.receive_some():
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
                with suppress(ProcessLookupError):  # it has ended since it was seen
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
async def program(
    *arguments: str, env: Mapping[str, str] | None = None, inline: bool = True, fresh: bool = False
) -> AsyncIterator[Program]:
    """`actors-main` with those arguments, killed at the end if it still runs.

    Args:
        inline: a service is one process (cheap to start); false: several, as it is by default.
        env: changes to the environment; empty values remove.
        fresh: a new interpreter, not a fork of one that has imported everything (`tests.forks`).
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    environment = {name: value for name, value in environment.items() if value}
    runs = not arguments or arguments[0] == "run" or arguments[0].startswith("-")
    one = ["--inline"] if inline and runs and "--help" not in arguments else []
    words = [*arguments, *one]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        read, write = os.pipe()
        async with trio.lowlevel.FdStream(read) as out:
            try:
                with log.open("wb") as stderr:
                    process: Child | trio.Process
                    if fresh:
                        process = await trio.lowlevel.open_process(
                            [sys.executable, "-m", "supervisors.main", *words],
                            stdin=subprocess.DEVNULL,
                            stdout=write,
                            stderr=stderr,
                            env=environment,
                            cwd=folder,
                        )
                    else:
                        process = await fork(
                            MAIN,
                            words,
                            stdout=write,
                            stderr=stderr.fileno(),
                            load=loaded_by(words),
                            env=environment,
                            cwd=folder,
                        )
            finally:
                os.close(write)
            started = Program(process, out, log)
            try:
                yield started
            finally:
                with trio.CancelScope(shield=True):
                    if process.poll() is None:
                        process.send_signal(signal.SIGKILL)
                    await process.wait()
                    started.close()


def loaded_by(words: Sequence[str]) -> tuple[str, ...]:
    """What a service with those arguments imports: more where servers are configured."""
    if "--inline" not in words or "--state" not in words:
        return SERVICE
    servers = Path(words[words.index("--state") + 1], "servers_config.json")
    return (*SERVICE, *SERVERS) if servers.is_file() and "command" in servers.read_text() else SERVICE


async def outcomes(*commands: Sequence[str]) -> list[tuple[int, str, str]]:
    """Of each of these commands, one after the other."""
    return [await outcome(*command) for command in commands]


async def outcome(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that ends by itself."""
    done = await run(MAIN, *arguments, env={**os.environ, **(env or {})})
    return done.code, done.out, done.err

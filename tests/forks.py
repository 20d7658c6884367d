"""Child processes that have imported everything before they begin: forks of one process that did it once.

A fresh interpreter takes half a second of work until our command line runs, a fork of one that has it all takes
a hundredth. It is a process like any other: own environment, arguments, streams, signals, exit code, ordered
end of the interpreter. What it does not show is the start of an interpreter; a few tests pay for that.

    child = await fork(MAIN, ["status"], stdin=null, stdout=write, stderr=write)
    assert await child.wait() == 0

The process that forks runs no loop and has no thread. It is started by the first test that wants a fork, and
ends, with all that it forked, when pytest does.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

ROOT = Path(__file__).resolve().parents[1]
MAIN = "import supervisors.main; supervisors.main.main()"
SERVICE = (  # what a service imports while it starts, in one process
    "supervisors.main",
    "supervisors.placement",
    "supervisors.reporter",
    "actors.configuration",
    "actors.log_output",
    "actors.logs",
    "actors.watcher",
    "actors.writer",
    "actors.local_model",
    "actors.streamer",
    "actors.gateway",
    "actors.session",
    "actors.roster",
    "actors.mcp_server",
)
SERVERS = ("actors.mcp_client",)  # when a server is connected
CHAT = ("supervisors.chat",)
MOST = 2**18  # bytes of an order: mostly the environment
MOST_OPEN = 1024  # descriptors of the process that forks: a few for each that runs


class Child:
    """A forked process."""

    def __init__(self, pid: int, pidfd: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Its exit code, negative for a signal, once it was waited for."""
        self._pidfd = pidfd
        self._status = status

    def send_signal(self, number: int) -> None:
        """Nothing happens when it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(os.read(self._status, 100))
            os.close(self._status)
            os.close(self._pidfd)
        return self.returncode

    async def wait(self) -> int:
        """Its exit code, when it has ended."""
        while (code := self.poll()) is None:
            await trio.lowlevel.wait_readable(self._status)
        return code


class Parent:
    """The process that forks."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()]
            )

    def fork(self, order: Mapping[str, Any], streams: Sequence[int]) -> Child:
        read, write = os.pipe()
        try:
            socket.send_fds(self.socket, [json.dumps(order).encode()], [*streams, write])
        finally:
            os.close(write)
        said, [pidfd], _, _ = socket.recv_fds(self.socket, 100, 1)
        os.set_inheritable(pidfd, False)
        return Child(int(said), pidfd, read)

    def end(self) -> None:
        self.socket.close()
        self.process.wait()


class _Only:
    parent: Parent | None = None
    lock = threading.Lock()


def belongs(descriptor: str) -> bool:
    """That descriptor of this process stays open while pytest runs."""
    return _Only.parent is not None and descriptor == str(_Only.parent.socket.fileno())


def pid() -> int:
    """Of the process that forks, 0 where there is none."""
    return 0 if _Only.parent is None else _Only.parent.process.pid


def end() -> None:
    """No more forks."""
    if _Only.parent is not None:
        _Only.parent.end()
        _Only.parent = None


async def fork(
    code: str,
    arguments: Sequence[str] = (),
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    load: Sequence[str] = SERVICE,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = ROOT,
    terminal: bool = False,
) -> Child:
    """A process that runs that code.

    Args:
        code: run as the main module; `sys.argv[1:]` are the arguments.
        stdin: descriptor; likewise the other streams. They stay open here; None is the null device.
        load: modules that are imported before, once for all.
        env: its whole environment; as ours by default.
        terminal: it leads a session of its own, and its standard input is the controlling terminal.
    """
    order = {
        "code": code,
        "arguments": list(arguments),
        "load": list(load),
        "env": dict(os.environ if env is None else env),
        "cwd": str(cwd),
        "terminal": terminal,
    }

    streams = (stdin, stdout, stderr)

    def ordered() -> Child:
        with _Only.lock:
            if _Only.parent is None:
                _Only.parent = Parent()
            null = os.open(os.devnull, os.O_RDWR)
            try:
                return _Only.parent.fork(order, [null if stream is None else stream for stream in streams])
            finally:
                os.close(null)

    return await trio.to_thread.run_sync(ordered)


@dataclass(frozen=True)
class Done:
    """What a process that ended by itself has left."""

    code: int
    out: str
    err: str


async def run(
    code: str,
    *arguments: str,
    stdin: bytes | int = b"",
    load: Sequence[str] = SERVICE,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = ROOT,
) -> Done:
    """Run that code to its end, killed where we are cancelled; arguments as of `fork`, but `stdin` may be its text."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if isinstance(stdin, bytes):
            given.write(stdin)
            given.seek(0)
            stdin = given.fileno()
        child = await fork(
            code, arguments, stdin=stdin, stdout=out.fileno(), stderr=err.fileno(), load=load, env=env, cwd=cwd
        )
        try:
            ended = await child.wait()
        finally:
            child.kill()
            with trio.CancelScope(shield=True):
                await child.wait()
        out.seek(0)
        err.seek(0)
        return Done(ended, out.read().decode(), err.read().decode())


# The process that forks.


def main(control: int) -> None:
    """Fork as ordered until the orders end. Returns in each fork, after what it was ordered."""
    orders = socket.socket(fileno=control)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}  # by pidfd: pid, where its exit code is told
    while True:
        for ready, _ in poll.poll():
            if ready != control:
                poll.unregister(ready)
                pid, told = running.pop(ready)
                tell(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(ready)
                os.close(told)
                continue
            said, descriptors, _, _ = socket.recv_fds(orders, MOST, 4)
            if not said:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                return
            order = json.loads(said)
            for name in order["load"]:
                importlib.import_module(name)
            gc.collect()
            gc.freeze()  # a collection that finds nothing would copy every page
            pid = os.fork()
            if not pid:
                orders.detach()
                become(order, descriptors)
                return
            *streams, told = descriptors
            for descriptor in streams:
                os.close(descriptor)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, told
            poll.register(pidfd, select.POLLIN)
            socket.send_fds(orders, [str(pid).encode()], [pidfd])


def tell(descriptor: int, code: int) -> None:
    """Nobody may want to know it any more."""
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, str(code).encode())


def become(order: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """What was ordered; returns, or raises, as the code does."""
    for number in range(3):
        os.dup2(descriptors[number], number)
    os.closerange(3, MOST_OPEN)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    if order["terminal"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # As an interpreter makes them at its start: what was there was made for other descriptors.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - to its end
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115 - likewise
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115 - likewise
    sys.argv = ["main", *order["arguments"]]
    exec(compile(order["code"], "<ordered>", "exec"), {"__name__": "__main__"})  # noqa: S102 - that is what it is for


if __name__ == "__main__":
    main(int(sys.argv[1]))

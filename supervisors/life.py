"""The life of one process as its parent sees it: start, orders, signs of life, last words, end.

`supervisors.process` decides how many there are of a role and what follows an end. Its control socket carries
orders, then a port with mail and control items; the process ends when that socket is closed. It is pinged once
it is ready. An ordered stop is `Quit`, SIGTERM after the grace, SIGKILL at last; what hangs gets SIGABRT, so
that it leaves its stacks in the log, then SIGKILL. Whatever happens, at the end its whole group is gone and
reaped, and so are the orphans that it left, where they come to us.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
import trio

from protocol.errors import Code, Fault
from protocol.frames import Boot, ControlItem, Failed, Ping, Pong, Quit, Ready, Report, Reported, Restart, Restarted
from protocol.reporter import PartState
from protocol.spec import Parked
from supervisors.exchange import Exchange
from supervisors.orphans import end_strangers
from supervisors.os_process import OsProcess, fate
from supervisors.plan import EXIT_UNUSABLE, Orders, Plan, framed
from supervisors.port import Port
from supervisors.status import Node

log = logging.getLogger("supervisors.process")

TERM_S = 2.0  # between SIGTERM and SIGKILL
ABORT_S = 1.0  # for the stacks of a hung process to be written, between SIGABRT and SIGKILL
UNREADY_S = 2.0  # for the ordered stop of a process that was never ready: it has nothing to finish
LAST_WORDS_S = 0.25  # for what an ended process has said to be read
CLOSED_S = 5.0  # between the end of its control socket and its own: its log may have to be read first


class ProcessEnded(Exception):
    """A process ended that should not have, or had to be ended."""


class Life:
    """One process, from its start until it and all that it left are gone. `live` must follow at once.

    Args:
        plan: what it is.
        exchange: of this process.
        listener: the Unix socket of its role.
        generation: counts the processes of its role; peers go by it.
        felt: called with each sign of life.
    Raises OSError.
    """

    def __init__(
        self,
        plan: Plan,
        exchange: Exchange,
        listener: socket.socket | None,
        generation: int,
        felt: Callable[[Life], None],
    ) -> None:
        self.pulse: Pong | None = None
        """The last sign of life, with its numbers."""
        self.failure: Exception | None = None
        """Why it ended, when nobody had asked for that."""
        self.settled = trio.Event()
        """It is ready, or it has ended before."""
        self.asked = False
        """Its end was asked for."""
        self._plan = plan
        self._exchange = exchange
        self._felt = felt
        self._said = ""
        self._ready, self._gone, self._read = trio.Event(), trio.Event(), trio.Event()
        self._watching = trio.CancelScope()
        self._port: Port | None = None
        self._reports: dict[int, trio.Event | Node | PartState | None] = {}
        self._last_report = 0
        orders = _orders(plan, exchange.addresses, listener, generation)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = OsProcess(
                    command(plan.role, theirs.fileno()),
                    pass_fds=[theirs.fileno(), *plan.fds.values(), *_numbers(listener)],
                )
            except BaseException:
                ours.close()
                raise
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._orders = orders

    def __str__(self) -> str:
        return f"{self._plan.role} (pid {self.process.pid})"

    @property
    def well(self) -> bool:
        """It is ready and runs."""
        return self._ready.is_set() and not self._gone.is_set()

    async def live(self) -> None:
        """See it through to the end. What came of it is `failure`, unless its end was asked for."""
        log.debug("%s was started", self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._talk)
                nursery.start_soon(self._oversee)
                await self.process.ended()
                self._gone.set()
                self._dismiss()
                with trio.move_on_after(LAST_WORDS_S):
                    await self._read.wait()
                nursery.cancel_scope.cancel()
        finally:
            await self.process.close()
            await trio.aclose_forcefully(self._stream)
            if strangers := await end_strangers():
                log.warning("%s is gone; %d processes that were left behind were killed", self, strangers)
            self._judge()
            self.settled.set()

    def quit(self) -> None:
        """Ask for its end, in order."""
        self.asked = True
        self._watching.cancel()

    async def report(self, within: float) -> Node | None:
        """Its status tree; None when it does not answer in that many seconds."""
        answer = await self._ask(Report, within)
        return answer if isinstance(answer, Node) else None

    async def restart(self, path: str, within: float) -> PartState | None:
        """Have it restart a part; None: it has no such part, or is not there. Raises Fault: it does not answer."""
        answer = await self._ask(lambda number: Restart(number, path), within)
        if isinstance(answer, trio.Event):
            raise Fault(Code.OVERLOADED, f"{self} has not said within {within:g} s that {path} was restarted.")
        return answer if isinstance(answer, PartState) else None

    async def _ask(
        self, question: Callable[[int], Report | Restart], within: float
    ) -> trio.Event | Node | PartState | None:
        """The answer; None where none can be asked, or it ends meanwhile; an event where none came."""
        if self._port is None or not self.well:
            return None
        self._last_report += 1
        number, came = self._last_report, trio.Event()
        self._reports[number] = came
        self._port.tell(question(number))
        with trio.move_on_after(within):
            await came.wait()
        return self._reports.pop(number)

    def _dismiss(self) -> None:
        """It has ended: whoever asked it something gets no answer."""
        for number in self._reports:
            self._answered(number, None)

    def _answered(self, number: int, answer: Node | PartState | None) -> None:
        """Give it to whoever asked that; nobody, where he waits no more."""
        came = self._reports.get(number)
        if isinstance(came, trio.Event):
            self._reports[number] = answer
            came.set()

    def control(self, port: Port, item: ControlItem) -> None:
        """One item from the process."""
        match item:
            case Ready():
                self._ready.set()
                self.settled.set()
            case Pong():
                self.pulse = item
                self._felt(self)
            case Reported(id=number, node=node):
                self._answered(number, msgspec.msgpack.decode(node, type=Node))
            case Restarted(id=number, part=part):
                self._answered(number, part)
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
            log.error("%s let go of its control socket and lives on: killed", self)
            self.process.signal(signal.SIGKILL)

    async def _serve(self, *, task_status: trio.TaskStatus[Port]) -> None:
        await self._exchange.serve(self._stream, control=self, task_status=task_status)

    async def _oversee(self) -> None:
        hung = ""
        with self._watching:
            hung = await self._watched()
        if hung:
            self.failure = ProcessEnded(f"{self} {hung} and was killed")
            log.error("%s %s: it is killed; the stacks of its threads follow", self, hung)
            # a stopped process takes no signal but these two; the stacks are written before anything else runs
            self.process.signal(signal.SIGABRT, signal.SIGCONT)
            if not await self._gone_within(ABORT_S):
                self.process.signal(signal.SIGKILL)
            return
        if self._port is not None:
            self._port.tell(Quit(self._plan.quiet_s))
        grace_s = self._plan.grace_s if self._ready.is_set() else UNREADY_S
        if await self._gone_within(grace_s):
            return
        log.warning("%s did not end within %g s: SIGTERM", self, grace_s)
        self.process.signal(signal.SIGTERM)
        if not await self._gone_within(TERM_S):
            log.warning("%s ignores SIGTERM: killed", self)
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
                self.failure = ProcessEnded(f"{self} used {used:.0f} MB of memory, its limit is {limit:.0f}")
                log.warning("%s uses %.0f MB of memory, its limit is %.0f: it is replaced", self, used, limit)
                return ""
        return f"answered no ping for {most * self._plan.ping_s:g} s"

    async def _gone_within(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await self._gone.wait()
        return self._gone.is_set()

    def _judge(self) -> None:
        code = self.process.exit_code
        if code is None:
            self.failure = ProcessEnded(f"{self} cannot be killed: the system holds it")
            return
        why = f": {self._said}" if self._said else ""
        if self.asked:
            self.failure = None
            if code != 0:
                log.warning("%s %s while it was stopped%s", self, fate(code), why)
        elif code == EXIT_UNUSABLE:
            self.failure = Parked(f"{self} cannot start{why or ': see the log'}")
        elif self.failure is None:
            self.failure = ProcessEnded(f"{self} {fate(code)}{why}")


def command(role: str, control: int) -> list[str]:
    """The program and its arguments."""
    safe = [] if _trusts_working_directory() else ["-P"]
    return [sys.executable, *safe, "-m", "supervisors.worker", role, str(control)]


def _trusts_working_directory() -> bool:
    # A new process finds modules in the working directory only if we do: that may hold anything.
    try:
        return bool(sys.path) and sys.path[0] in ("", os.getcwd())
    except OSError:  # it was removed
        return False


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

"""A process of the service: `python -m supervisors.worker ROLE FD` runs that role's part of the tree.

Started by `supervisors.process`, which sends the orders over the control socket and decides about its end:
signals to the whole group of the service (Ctrl-C, a service manager's SIGTERM) are not for it. When the parent
lets go of the socket it ends at once (`supervisors.leash`), with all that it started. A crash, or the SIGABRT
with which a hung process is ended, leaves the stacks of all threads on standard error.

Exit codes: 0 after an ordered stop, 70 a core part kept failing, 71 its parent was gone, 78 it cannot be built.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import trio

from protocol.errors import Fault
from protocol.frames import ControlItem, Failed, Ping, Pong, Quit, Ready, Report, Reported, Restart, Restarted
from protocol.spec import Group
from protocol.watcher import Snapshot
from supervisors import by_hand, interpreter, leash, orphans
from supervisors.exchange import Exchange
from supervisors.member import describe, explained
from supervisors.plan import EXIT_FAILED, EXIT_UNUSABLE, Orders, framed, read_orders
from supervisors.port import Port
from supervisors.status import rss_bytes, with_processes
from supervisors.supervisor import Escalated, Tree, running

log = logging.getLogger("supervisors.worker")

REPORT_S = 0.5  # for a process below us to say how it is; who asks us waits twice as long
LEAVE_S = 1.0  # for peers to know that we take no more mail
QUIET_S = 0.02  # between two looks whether something runs: nobody is told when it ends
FLUSH_S = 2.0  # for the last answers to leave; the peer may be stuck
NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Entry point."""
    _, _, descriptor = sys.argv  # as `supervisors.life` writes them; the role is there for who reads `ps`
    faulthandler.enable()
    interpreter.allow()
    for number in NOT_OURS:
        signal.signal(number, _nothing)  # not SIG_IGN: what we start would inherit that
    control = socket.socket(fileno=int(descriptor))
    control.set_inheritable(False)
    leash.put_on(control)
    sys.exit(run(control))


def run(control: socket.socket) -> int:
    """Do as ordered. Returns the exit code."""
    try:
        boot, orders = read_orders(control)
        for descriptor in (*orders.fds.values(), *([] if orders.listener is None else [orders.listener])):
            os.set_inheritable(descriptor, False)
        orphans.adopt()
    except EOFError:
        leash.end()
    except Exception as error:  # noqa: BLE001 - the boundary: whatever is wrong with the orders stays wrong
        return unusable(control, "a process", error)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(logging_by(orders))
            exchange = Exchange(
                boot.role,
                boot.incarnation,
                addresses=orders.addresses,
                place=cast(Callable[[str], str], named(orders.place)),
                vocabulary=named(orders.vocabulary) if orders.vocabulary else None,
            )
            make = cast(Callable[[str, dict[str, Any]], Group], named(orders.make))
            group = make(
                boot.role, {**orders.args, "fds": orders.fds, "exchange": exchange, "incarnation": boot.incarnation}
            )
        except Exception as error:  # noqa: BLE001 - the boundary: it would be found again by a restart
            return unusable(control, boot.role, error)
        try:
            return trio.run(work, group, exchange, control, orders.listener, strict_exception_groups=True)
        except Exception:  # the boundary: the last one, and its words belong into the log like all others
            log.critical("the process %s failed", boot.role, exc_info=True)
            return EXIT_FAILED


def unusable(control: socket.socket, role: str, error: Exception) -> int:
    """Say why it cannot be: in the log, and to the parent. Returns the exit code."""
    log.critical("%s cannot start: %s", role, describe(error), exc_info=None if explained(error) else error)
    with contextlib.suppress(OSError):  # the parent is gone; then so are we
        control.sendall(framed(Failed(describe(error))))
    return EXIT_UNUSABLE


def named(dotted: str) -> object:
    """What `package.module:name` names. Raises ImportError, AttributeError and whatever the module raises."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def logging_by(orders: Orders) -> Iterator[None]:
    """While it runs, logs go to standard error as configured; without a configuration as Python does it."""
    if orders.snapshot is None or sys.stderr is None:
        yield
        return
    snapshot = msgspec.convert(orders.snapshot, Snapshot)
    output = importlib.import_module("actors.log_output")
    with output.started(snapshot, sys.stderr.fileno(), os.environ):
        yield


class Duty:
    """What the parent says, and what it is told."""

    def __init__(self, listener: trio.SocketListener | None) -> None:
        self.tree: Tree | None = None
        self.nursery: trio.Nursery | None = None
        self.quiet_s = 0.0
        """How long what runs may go on before the stop."""
        self._listener = listener
        self.asked = trio.Event()
        """Told to end, in order."""
        self.starting = trio.CancelScope()
        """Ended when that is told before the tree runs."""

    def control(self, port: Port, item: ControlItem) -> None:
        """One item from the parent."""
        match item:
            case Ping(n=n):
                lag_ms = self.tree.lag.worst_ms if self.tree is not None else 0.0
                port.tell(Pong(n, lag_ms, rss_bytes() or 0, time.process_time()))
            case Report(id=id) if self.tree is not None and self.nursery is not None:
                self.nursery.start_soon(self.report, port, id, self.tree)
            case Restart(id=id, path=path) if self.tree is not None and self.nursery is not None:
                self.nursery.start_soon(self.restart, port, id, path, self.tree)
            case Quit(quiet_s=quiet_s):
                self.quiet_s = quiet_s
                self.asked.set()
                if self._listener is not None:
                    self._listener.socket.close()  # the root has it too: who connects now waits for our successor
                if self.tree is None:
                    self.starting.cancel()
            case _:
                pass  # nothing that a parent says

    async def report(self, port: Port, number: int, tree: Tree) -> None:
        """Say how the tree is, with the processes that are below it."""
        node = await with_processes(tree, REPORT_S)
        port.tell(Reported(number, msgspec.Raw(msgspec.msgpack.encode(node))))

    async def restart(self, port: Port, number: int, path: str, tree: Tree) -> None:
        """Restart a part, and say how it is then."""
        try:
            part = await by_hand.restart(tree, path)
        except (LookupError, Fault) as error:  # it went meanwhile
            log.warning("%s cannot be restarted: %s", path, error)
            part = None
        port.tell(Restarted(number, part))

    def hurry(self, *_: object) -> None:
        """SIGTERM: once told to end in order, at once; before that it is not for us."""
        if self.asked.is_set():
            leash.end()


async def work(group: Group, exchange: Exchange, control: socket.socket, listener: int | None) -> int:
    """Run the tree until the parent says Quit or a core part gives up. Returns the exit code."""
    ports = _listener(listener)
    duty = Duty(ports)
    signal.signal(signal.SIGTERM, duty.hurry)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
    async with trio.open_nursery() as nursery:
        duty.nursery = nursery
        port: Port = await nursery.start(tied, exchange, stream, duty)
        await nursery.start(exchange.run)
        nursery.start_soon(orphans.reap)
        error: Exception | None = None
        try:
            with duty.starting:
                await port.up()  # an actor's first message may be for the parent
                async with running(group, abroad=exchange) as duty.tree:
                    port.tell(Ready())
                    interpreter.settle()
                    if ports is not None:
                        nursery.start_soon(exchange.accept, ports)  # not before: who connects waits until we are ready
                    async with trio.open_nursery() as either:
                        either.start_soon(_then_cancel, duty.asked, either)
                        either.start_soon(_then_cancel, duty.tree.failed, either)
                    if duty.asked.is_set():
                        await exchange.leave(LEAVE_S)
                        with trio.move_on_after(duty.quiet_s):
                            await quiet(duty.tree)
                error = duty.tree.error
        except Escalated as raised:
            error = raised
        if error is not None:
            log.critical("a core part kept failing, the process %s ends: %s", exchange.role, error)
            port.tell(Failed(describe(error)))
        with trio.move_on_after(FLUSH_S):
            await exchange.flush()
        await orphans.end_all()
        nursery.cancel_scope.cancel()
    return 0 if error is None else EXIT_FAILED


async def quiet(tree: Tree) -> None:
    """Wait until no actor says that something runs."""
    while any(slot.known.get("running") for slot in tree.slots.values()):  # noqa: ASYNC110 - facts are for people
        await trio.sleep(QUIET_S)


async def tied(
    exchange: Exchange, stream: trio.SocketStream, duty: Duty, *, task_status: trio.TaskStatus[Port]
) -> None:
    """Listen to the parent; without it there is no life."""
    await exchange.serve(stream, control=duty, task_status=task_status)
    leash.end()  # it let go of us, or said what we do not understand


def _listener(descriptor: int | None) -> trio.SocketListener | None:
    if descriptor is None:
        return None
    return trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))


async def _then_cancel(event: trio.Event, nursery: trio.Nursery) -> None:
    await event.wait()
    nursery.cancel_scope.cancel()


def _nothing(*_: object) -> None:
    """A signal that is not for us."""


if __name__ == "__main__":
    main()

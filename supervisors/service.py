"""The service as a process: its tree from the start to the end that a signal asks for, in order or at once.

The first SIGTERM or SIGINT lets running turns end and stops the tree; before the tree runs it ends the start.
The second ends the process at whatever moment, and the children that it started with it. A core part that
keeps failing ends the service too: whoever runs it starts it anew.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import trio

from protocol.errors import Fault
from protocol.gateway import StopTaking
from protocol.mail import MailError, Ref
from protocol.spec import Group
from protocol.watcher import GetSnapshot
from protocol.writer import ListConversations
from supervisors import interpreter, orphans
from supervisors.supervisor import Escalated, Tree, running
from supervisors.systemd import Manager

if TYPE_CHECKING:
    from supervisors.exchange import Exchange

log = logging.getLogger("supervisors.service")

EXIT_SOFTWARE = 70  # EX_SOFTWARE of sysexits.h
FRONTS = "fronts/"  # where the processes of the fronts are in the root's tree
FORCE_S = 15.0  # over the grace: for cut-off turns to be stored and shown
ANSWER_S = 2.0  # for the watcher to say what is in force; it never waits for anything itself
TWICE_S = 0.5  # the same signal again within this is the same: `uv run` passes it on to who has got it already


class Stop:
    """What signals ask for: the first the end, in order; the second the end at once.

    Args:
        grace_s: for running turns, where nobody can say what is configured now.
    """

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.asked = trio.Event()
        self.signal = ""
        """Name of the first."""
        self.started = False
        """The tree runs: it can be drained."""
        self.starting = trio.CancelScope()
        """Ended by a signal that comes before."""

    async def obey(self, signals: AsyncIterator[int]) -> None:
        """Follow the signals, for ever."""
        first, at = 0, 0.0
        async for number in signals:
            name = signal.Signals(number).name
            if number == first and trio.current_time() - at < TWICE_S:
                continue
            if self.asked.is_set():
                log.warning("forced to end at once by a second %s", name)
                orphans.kill_all()
                logging.shutdown()  # what waits to be written, for a moment
                os._exit(128 + number)  # the store is crash-safe
            self.signal = name
            self.asked.set()
            first, at = number, trio.current_time()
            if not self.started:
                log.info("%s: stopping before the start was over", name)
                self.starting.cancel()


async def live(
    spec: Group, trees: list[Tree], stop: Stop, address: str, manager: Manager, abroad: Exchange | None = None
) -> int:
    """Run the tree, which `trees` gets, until `stop` or its failure. Returns the exit code.

    Args:
        manager: told when turns can be taken, and that we live.
        abroad: the way to actors in other processes; None: there are none.
    """
    try:
        with stop.starting:
            async with running(spec, abroad=abroad) as tree:
                trees.append(tree)
                stop.started = True
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(announce, tree, address, manager)
                    nursery.start_soon(manager.keep_alive)
                    nursery.start_soon(drain, tree, stop, nursery.cancel_scope, manager)
                    await tree.failed.wait()
                    log.critical("a core part kept failing, the service ends: %s", tree.error)
                    nursery.cancel_scope.cancel()
                return EXIT_SOFTWARE if tree.failed.is_set() else 0
    except Escalated as error:
        log.critical("the service could not start: %s", error)
        return EXIT_SOFTWARE
    return 0  # it was told to stop before it had started


async def announce(tree: Tree, address: str, manager: Manager) -> None:
    """Say on standard output, once, that turns can be taken; that may be long after the start."""
    store = tree.ref("store/writer")
    told = False
    while True:
        try:
            await store.ask(ListConversations(owner="", limit=1), within=ANSWER_S, again=True)
            break
        except (MailError, Fault) as error:  # parked, or its process does not start
            if not told:
                log.warning("no turns can be taken: the store does not open (%s); see `actors-main status`", error)
            told = True
    await tree.until(lambda: all(slot.settled for path, slot in tree.slots.items() if path.startswith(FRONTS)))
    manager.tell("READY=1", f"STATUS=listening on {address}")
    try:
        print(f"listening on {address}", flush=True)  # noqa: T201 - the one line of standard output
    except OSError as error:  # nobody reads it, or its disk is full
        log.warning("listening on %s, which could not be written to standard output: %s", address, error)
    interpreter.settle()


async def drain(tree: Tree, stop: Stop, done: trio.CancelScope, manager: Manager) -> None:
    """When the end is asked for, let running turns end, then let the tree stop."""
    await stop.asked.wait()
    grace_s = await configured_grace(tree, stop.grace_s)
    log.info("%s: stopping; running turns get %g s", stop.signal, grace_s)
    manager.tell("STOPPING=1")
    async with trio.open_nursery() as nursery:
        for path in gateways(tree):
            nursery.start_soon(drain_front, tree.ref(path), grace_s)
    done.cancel()


def gateways(tree: Tree) -> list[str]:
    """Addresses of the gateways: of the only one, or of one per front process."""
    if "front/gateway" in tree.slots:
        return ["front/gateway"]
    return [f"{path.removeprefix(FRONTS)}/gateway" for path in tree.slots if path.startswith(FRONTS)]


async def drain_front(gateway: Ref[Any], grace_s: float) -> None:
    """Let the running turns of a front end, and cut off those that do not within the grace."""
    try:
        cut = await gateway.ask(StopTaking(grace_s=grace_s), within=grace_s + FORCE_S, again=True)
    except MailError as error:
        log.warning("%s did not answer while stopping: %s", gateway.path, error)
    else:
        if cut:
            log.warning("%d turns did not end in time and are kept as interrupted", cut)


async def configured_grace(tree: Tree, known_s: float) -> float:
    """`chat.service.drain_s` as it is in force now; `known_s` where the watcher does not say."""
    try:
        return (await tree.ref("watcher").ask(GetSnapshot(), within=ANSWER_S)).drain_s
    except MailError:
        return known_s

"""SIGHUP: every process is replaced by a new one of its role, one role after the other, and the root stays.

Fronts and `llm` have two at a time: the new one is ready before the old one drains, and one that does not get
ready leaves the old one in its place. A front's successor has a name of its own (`front3` for `front1`), since
both have conversations for a while. `mcp` and `store` stop first, in order: a tool server must not run twice, nor
a database have two writers; what wants to reach them waits meanwhile.

What can fail is said in the log, by role, and changes nothing else. A signal during a succession asks for another
one after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable

import trio

from protocol.claim import FrontId
from protocol.errors import Fault
from protocol.gateway import StopTaking
from protocol.mail import MailError
from protocol.spec import Child, Status
from protocol.writer import FrontGone
from supervisors.process import Replace
from supervisors.service import FORCE_S, FRONTS, configured_grace
from supervisors.supervisor import Tree

log = logging.getLogger("supervisors.main")

READY_S = 75.0  # for a new process to be ready, or to fail; it says so itself before


class Succession:
    """Replaces processes.

    Args:
        trees: has the root's tree once it runs.
        front: makes a front's process as a child of the tree, by its role.
        grace_s: how long running turns get, where nobody can say what is configured now.
        first: the highest number of a front at the start.
        run: of the ids of fronts.
    """

    def __init__(self, trees: list[Tree], front: Callable[[str], Child], grace_s: float, first: int, run: str) -> None:
        self._trees = trees
        self._front = front
        self._grace_s = grace_s
        self._run = run
        self._last = first
        """The highest number of a front so far."""

    async def obey(self, signals: AsyncIterator[int]) -> None:
        """Replace all at each signal, for ever."""
        async for _ in signals:
            if self._trees:
                log.info("SIGHUP: every process is replaced")
                await self.replace_all(self._trees[0])
                log.info("SIGHUP: done")

    async def replace_all(self, tree: Tree) -> None:
        """One role after the other."""
        for role in ("store", "mcp"):
            await self.restart(tree, role)
        try:
            why = await tree.ref("llm").ask(Replace(), within=READY_S)
        except MailError as error:
            why = str(error)
        if why:
            log.error("llm keeps its process: %s", why)
        old = [path.removeprefix(FRONTS) for path in tree.slots if path.startswith(FRONTS)]
        async with trio.open_nursery() as leaving:
            for role in sorted(old, key=number):
                await self.replace_front(tree, role, leaving)

    async def restart(self, tree: Tree, role: str) -> None:
        """Stop it in order and start it anew."""
        try:
            await tree.restart(role)
        except LookupError as error:  # the tree is being stopped
            log.info("%s is not replaced: %s", role, error)
        else:
            log.info("%s is replaced", role)

    async def replace_front(self, tree: Tree, role: str, leaving: trio.Nursery) -> None:
        """Start another, and let the old one go when it is ready."""
        self._last += 1
        name = f"front{self._last}"
        path = f"{FRONTS}{name}"
        with trio.move_on_after(READY_S):
            await tree.start_child(FRONTS.rstrip("/"), self._front(name))
        if path not in tree.slots or tree.state(path) is not Status.RUNNING:
            why = tree.slots[path].last_error if path in tree.slots else ""
            log.error("%s stays, its successor did not get ready: %s", role, why or f"within {READY_S:g} s")
            tree.drop_child(path)
            return
        log.info("%s takes the place of %s", name, role)
        leaving.start_soon(self.let_go, tree, role)

    async def let_go(self, tree: Tree, role: str) -> None:
        """Its turns end, its sockets are closed with 1012, then it stops."""
        grace_s = await configured_grace(tree, self._grace_s)
        try:
            ask = StopTaking(grace_s=grace_s, replaced=True)
            await tree.ref(f"{role}/gateway").ask(ask, within=grace_s + FORCE_S, again=True)
        except MailError as error:
            log.warning("%s did not say that its turns have ended: %s", role, error)
        life = tree.slots[f"{FRONTS}{role}"].incarnation
        await tree.stop_child(f"{FRONTS}{role}")
        try:
            gone = FrontGone(str(FrontId(self._run, role, life)))
            await tree.ref("store/writer").ask(gone, within=FORCE_S, again=True)
        except (MailError, Fault) as error:  # then a front that looks for its conversations finds out
            log.warning("the store was not told that %s is gone: %s", role, error)


def number(role: str) -> int:
    """Of a front."""
    found = re.search(r"\d+$", role)
    return int(found[0]) if found else 0

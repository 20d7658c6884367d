"""Life and death of actors in one process: `running(Group(...))` starts a tree and stops it in order.

All tasks of a tree live in one nursery that is shielded from the caller's cancellation and ended only from
here: whatever happens to the body of `running`, the children are drained in reverse order, and every wait
on that way is bounded. `Tree` is the directory in which references find mailboxes.

What can fail: actors, and that is data (see `supervisors.branch`). When the root group itself gives up,
`Tree.failed` is set, and whoever runs the body leaves it then. KeyboardInterrupt or SystemExit raised by an
actor cancels the body and comes out of `running` after the ordered stop.

`Down` is told to watchers when an actor ends by itself, or is stopped to be started again; not when it is
stopped for good (the tree's end, `stop_child`). `Up` is told whenever one is ready.
"""

from __future__ import annotations

import fnmatch
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

from protocol.mail import Inlet, Mailbox, Ref
from protocol.spec import Child, Down, Group, Status, Up
from supervisors.branch import Branch, Escalated
from supervisors.member import Member
from supervisors.slot import Slot
from supervisors.status import LoopLag, Node, of_tree

Tap = Callable[[object], None]


class Abroad(Protocol):
    """The rest of the product, in other processes; what a tree hands on that is not its own."""

    def attach(self, tree: Tree) -> None:
        """The tree is there, and takes mail from now on."""
        ...

    def inlet(self, path: str) -> Inlet | None:
        """The sending side to an address in another process; None when no process has it."""
        ...

    def told(self, event: Down | Up) -> None:
        """An actor of this tree ended or is ready."""
        ...


class Tree:
    """A running tree; made by `running`."""

    nursery: trio.Nursery

    def __init__(self, root: Group, rng: random.Random) -> None:
        self.rng = rng
        self.slots: dict[str, Slot] = {}
        """The slots that can be addressed, by path; one that is being stopped for good is gone from here
        once it has ended or a new one took its path."""
        self.branches: dict[str, Branch] = {}
        """The groups by path; the root's is empty."""
        self.watchers: dict[Slot, set[str]] = {}
        """Who wants Down and Up, of which prefixes."""
        self.dead_letters = 0
        """Look-ups of an address that nobody has."""
        self.failed = trio.Event()
        """The root group gave up; `error` says why."""
        self.error: Exception | None = None
        self.fatal: BaseException | None = None
        """KeyboardInterrupt or the like, raised by an actor; the tree is being stopped for it."""
        self.body = trio.CancelScope()
        self.lag = LoopLag()
        self.abroad: Abroad | None = None
        """The other processes; None: there are none."""
        self._stop = trio.Event()
        self._changes = trio.lowlevel.ParkingLot()
        self._taps: dict[str, Tap] = {}
        self._root = Branch(self, root, "", None)

    # Addresses.

    def ref(self, path: str) -> Ref[Any]:
        """A reference to any address; it may come and go."""
        return Ref(self, path)

    def mailbox(self, path: str, *, letter: bool = True) -> Inlet | None:
        """The mailbox of a slot, here or abroad; None when there is no such slot: a dead letter, if one is for it."""
        slot = self.slots.get(path)
        if slot is not None:
            return slot.box
        inlet = self.abroad.inlet(path) if self.abroad is not None else None
        if inlet is None and letter:
            self.dead_letters += 1
        return inlet

    def house(self, path: str) -> Mailbox[Any] | None:
        """The mailbox of a slot of this tree, for mail from abroad; None, counted as a dead letter, without one."""
        slot = self.slots.get(path)
        if slot is None:
            self.dead_letters += 1
            return None
        return slot.box

    def up(self) -> list[Up]:
        """The actors of this tree that are ready."""
        return [Up(slot.path, slot.incarnation) for slot in self.slots.values() if slot.status is Status.RUNNING]

    def enter(self, slot: Slot) -> None:
        """A new slot has its path from now on."""
        self.slots[slot.path] = slot
        for pattern, tap in self._taps.items():
            if fnmatch.fnmatchcase(slot.path, pattern):
                slot.box.on_take = tap

    def leave(self, slot: Slot) -> None:
        """A slot is no more."""
        if self.slots.get(slot.path) is slot:
            del self.slots[slot.path]
        self.note_change()

    # For tests and operators.

    def tap(self, pattern: str, tap: Tap | None) -> None:
        """Call `tap` with each message (NUDGE too) that an actor is about to get; what it raises, the actor raises.

        Args:
            pattern: path or shell pattern (`front/sessions/*`); slots made later are tapped as well.
            tap: None removes it.
        """
        if tap is None:
            self._taps.pop(pattern, None)
        else:
            self._taps[pattern] = tap
        for path, slot in self.slots.items():
            if fnmatch.fnmatchcase(path, pattern):
                slot.box.on_take = tap

    def status(self) -> Node:
        """The tree with its live numbers."""
        return of_tree(self._root, self.lag, self.dead_letters)

    def state(self, path: str) -> Status:
        """The state of one slot or group. Raises LookupError."""
        return self._member(path).status

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` holds; looked at on every change of any state in the tree."""
        while not condition():
            await self._changes.park()

    async def reached(self, path: str, status: Status, *, incarnation: int = 0) -> None:
        """Wait until a slot or group is in a state, in that incarnation or a later one."""

        def there() -> bool:
            member = self.slots.get(path) or self.branches.get(path)
            return member is not None and member.status is status and member.incarnation >= incarnation

        await self.until(there)

    async def restart(self, path: str) -> None:
        """Stop and start one slot or group now; wakes a parked one. Returns once it is ready, parked or done.

        Raises LookupError for an unknown path or a tree that is stopped.
        """
        member = self._member(path)
        while member.parent is not None and not member.parent.alive:
            member = member.parent
        if member.parent is None:
            raise LookupError(f"{path}: the tree does not run")
        before = member.incarnation
        member.parent.by_hand(member)
        over = (Status.RUNNING, Status.PARKED, Status.STOPPED)
        await self.until(lambda: (member.incarnation > before and member.status in over) or self.failed.is_set())

    async def start_child(self, group: str, child: Child) -> None:
        """Add a child to a dynamic group and wait until it is ready, parked or done. Raises as `add_child`."""
        slot = self.add_child(group, child)
        await self.until(lambda: slot is None or slot.settled or self.failed.is_set())

    async def stop_child(self, path: str) -> None:
        """Stop (drained) and remove a child of a dynamic group; nothing happens if there is none."""
        slot = self.drop_child(path)
        await self.until(lambda: slot is None or slot not in slot.parent.members)

    def add_child(self, group: str, child: Child) -> Slot | None:
        """Add a child to a dynamic group: its mailbox is there at once, its actor soon.

        None when the group is stopped for good. Raises LookupError for an unknown group, ValueError for one
        that is not dynamic.
        """
        branch = self.branches.get(group)
        if branch is None:
            raise LookupError(f"no group {group!r} in the tree")
        if not branch.spec.dynamic:
            raise ValueError(f"group {group!r} is not dynamic: its children are fixed in the tree")
        return branch.add(child)

    def drop_child(self, path: str) -> Slot | None:
        """Begin to stop and remove a child of a dynamic group, in the background; returns its slot.

        Raises ValueError for a child of a group that is not dynamic.
        """
        slot = self.slots.get(path)
        if slot is None:
            return None
        if not slot.parent.spec.dynamic:
            raise ValueError(f"{path} is fixed in the tree: its group is not dynamic")
        slot.parent.drop(slot)
        return slot

    def _member(self, path: str) -> Member:
        member = self.slots.get(path) or self.branches.get(path)
        if member is None:
            raise LookupError(f"no {path!r} in the tree")
        return member

    # For the supervisors.

    def note_change(self) -> None:
        """Some state changed."""
        self._changes.unpark_all()

    def announce(self, event: Down | Up) -> None:
        """Tell the watchers, here and abroad; never the actor itself."""
        self.announce_abroad(event)
        if self.abroad is not None:
            self.abroad.told(event)

    def announce_abroad(self, event: Down | Up) -> None:
        """Tell the watchers here what happened to an actor, of this tree or of another process."""
        for slot, prefixes in self.watchers.items():
            if slot.path != event.path and any(concerns(prefix, event.path) for prefix in prefixes):
                slot.box.put(event)

    def fail(self, error: Exception) -> None:
        """The root group gives up."""
        self.error = error
        self.failed.set()
        self.note_change()

    def abort(self, error: BaseException) -> None:
        """An actor raised what is no Exception: end the body, stop in order, then raise it."""
        if self.fatal is None:
            self.fatal = error
        self.body.cancel()

    @trio.lowlevel.enable_ki_protection
    async def live(self) -> None:
        """Run the tree until `finish` was called, shielded."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as measuring:
                measuring.start_soon(self.lag.run)
                async with trio.open_nursery() as self.nursery:
                    self._root.begin()
                    await self._stop.wait()
                    await self._root.end(final=True)
                measuring.cancel_scope.cancel()

    async def started(self) -> None:
        """Wait until every child is ready, parked or done. Raises Escalated if the root gives up before."""
        await self.until(lambda: self._root.settled or self.failed.is_set())
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """The body is over: stop."""
        self._stop.set()


@asynccontextmanager
async def running(
    root: Group, *, rng: random.Random | None = None, abroad: Abroad | None = None
) -> AsyncIterator[Tree]:
    """Run a tree: the body begins when every child is ready, parked or done, and after it all are stopped.

    Args:
        root: its name is not part of the paths.
        rng: for the backoff's jitter; seeded by tests.
        abroad: the other processes, for mail to addresses that are not in this tree.
    Raises: Escalated when the root group gives up during the start; later that is `Tree.failed`.
    """
    tree = Tree(root, rng or random.Random())  # noqa: S311 - jitter is no secret
    if abroad is not None:
        tree.abroad = abroad
        abroad.attach(tree)
    ended: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.live, name=f"tree {root.name}")
        try:
            with tree.body:
                await tree.started()
                yield tree
        except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery: not in a group
            ended = error
        tree.finish()
    if tree.fatal is not None:
        raise tree.fatal
    if ended is not None:
        raise ended


def concerns(wanted: str, path: str) -> bool:
    """Whether a path is one that a watcher wants: by its beginning, or as a whole by a pattern with a `*`."""
    return fnmatch.fnmatchcase(path, wanted) if "*" in wanted else path.startswith(wanted)


__all__ = ["Abroad", "Escalated", "Tree", "running"]

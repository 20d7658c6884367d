"""An actor's place in the tree: it outlives the actor's incarnations.

The slot owns what survives a crash: the mailbox with its backlog, counters, watch list, and the object
that the child's `keep` makes. Each incarnation is one task; the slot's parent decides what follows its end.
Whatever an actor raises ends here as data; only what is no `Exception` (KeyboardInterrupt, SystemExit)
goes on, and stops the tree. An actor that ignores its cancellation is logged and left behind: nothing new
starts in its slot while it lives.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import trio

from protocol.mail import Mailbox, Ref
from protocol.spec import Actor, Child, Down, Keep, Parked, Status, Up
from supervisors.member import Member, cancelled, describe, explained, leaf

if TYPE_CHECKING:
    from supervisors.branch import Branch
    from supervisors.supervisor import Tree

CANCEL_S = 5.0  # an actor that has not ended this long after its cancellation is reported as stuck

Fact = str | int | float | bool

NO_FACTS: Mapping[str, Fact] = MappingProxyType({})  # one for all: most actors tell none


class NotReady(Exception):
    """An incarnation was not ready within its child's `start_s`."""


class KeptFailed(Exception):
    """What a slot keeps across incarnations failed in the background."""


class Slot(Member):
    """One actor's place."""

    __slots__ = (
        "_actor",
        "_asked",
        "_cancelled",
        "_keeper",
        "_scope",
        "after",
        "box",
        "facts",
        "kept_facts",
        "leaving",
        "live",
    )

    spec: Child
    parent: Branch

    def __init__(self, tree: Tree, spec: Child, path: str, parent: Branch) -> None:
        super().__init__(tree, spec, path, parent)
        self.box: Mailbox[Any] = Mailbox(path, spec.mailbox)
        self.box.redeliver = spec.redeliver
        self.facts = self.kept_facts = NO_FACTS
        self.live: Callable[[], Mapping[str, Fact]] | None = None
        """Gives more facts, those of this moment."""
        self.leaving = False
        """It is being stopped for good, or is stopped."""
        self.after: Slot | None = None
        """The slot that had this path before and is still being stopped."""
        self._actor: Actor | None = None
        self._keeper: Keeper | None = None
        self._scope: trio.CancelScope | None = None
        """Of the incarnation, once its task runs."""
        self._asked = self._cancelled = False

    def begin(self) -> None:
        """Start an incarnation in its own task."""
        self.incarnation += 1
        self.due_at, self.ready_at = None, None
        self.gated = self.leaving = self._asked = self._cancelled = False
        self.began_at = trio.current_time()
        self.facts = NO_FACTS
        self.live = None
        self.box.open()
        self.box.on_idle = self.ready
        self._ended = None
        self.alive = True
        self.turn(Status.STARTING)
        self.tree.nursery.start_soon(self._incarnation, Incarnation(self), name=f"{self.path}#{self.incarnation}")

    async def _incarnation(self, context: Incarnation) -> None:
        error: Exception | None = None
        returned = False
        try:
            async with trio.open_nursery() as context.tasks:
                scope = self._scope = context.tasks.cancel_scope
                if self._cancelled:
                    scope.cancel()
                actor = await self._resolve()
                scope.deadline = trio.current_time() + self.spec.start_s
                if self.spec.keep:
                    context.kept = await self._open_keep()
                await actor(self.box, context)
                returned = True
                scope.cancel()
            if not (returned or self._asked):
                error = NotReady(f"not ready within {self.spec.start_s:g} s")
        except Exception as raised:  # noqa: BLE001 - the boundary: an actor's error is its supervisor's data
            error = leaf(raised)
        except BaseException as raised:
            if cancelled(raised):
                raise
            self.tree.abort(leaf(raised))  # KeyboardInterrupt, SystemExit: stop all, in order
        finally:
            context.over = True
            self._over()
        if self._asked or self.tree.fatal is not None:
            if error is not None:
                self.remember(error)
                trace = None if explained(error) else error
                self.log.error("%s failed while it was stopped: %s", self.path, describe(error), exc_info=trace)
        else:
            self.parent.ended_by_itself(self, error)
        self._has_ended()
        self.parent.ring()

    def _over(self) -> None:
        self.alive, self._scope = False, None
        self.tree.watchers.pop(self, None)
        self.box.on_idle = None
        self.box.abandon_in_hand()

    def ready(self) -> None:
        """The incarnation is ready: by `ctx.ready()` or its first look into the mailbox."""
        if self.ready_at is not None or not self.alive:
            return
        self.box.on_idle = None
        self.ready_at = trio.current_time()
        if self._scope is not None:
            self._scope.deadline = float("inf")
        self.settled = True
        if self.status is not Status.STARTING:
            return
        self.turn(Status.RUNNING)
        if self.incarnation > 1:
            self.log.info("%s runs again (incarnation %d)", self.path, self.incarnation)
        self.tree.announce(Up(self.path, self.incarnation))
        self.parent.ring()

    async def end(self, *, final: bool, why: str = "") -> None:
        """Drain (`final`) or interrupt the incarnation, wait `shutdown_s`, cancel, wait `CANCEL_S`."""
        if self.alive:
            if final:
                self.leave()
            else:
                self._asked = True
                self.box.hold()
            self.turn(Status.DRAINING)
            ended = self.ended
            with trio.move_on_after(self.spec.shutdown_s):
                await ended.wait()
            self._cancel()
            with trio.move_on_after(CANCEL_S):
                await ended.wait()
            if not ended.is_set():
                self.last_error = "ignores its cancellation"
                self.log.error(
                    "%s still runs %g s after it was cancelled: it catches trio.Cancelled or blocks the loop; "
                    "nothing is started in its place while it lives",
                    self.path,
                    CANCEL_S,
                )
            elif not self.leaving:
                self.tree.announce(Down(self.path, self.incarnation, why, 0, parked=False))
        self.due_at = None
        if not final:
            if not self.leaving:
                self.turn(Status.RESTARTING)
            return
        self.retire()
        if self._keeper is not None:
            await self._keeper.close()

    def _cancel(self) -> None:
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def leave(self) -> None:
        """Stopping for good: no more mail."""
        self.leaving = self._asked = True
        self.box.close()

    def retire(self) -> None:
        """Nobody is there any more: the backlog's askers get Gone."""
        self.leave()
        self.box.set_down(True)
        self.due_at = None
        self.settled = True
        self.turn(Status.STOPPED)

    def close_keep(self) -> None:
        """Let go of what is kept, in the background; for a slot that ended by itself and is removed."""
        if self._keeper is not None:
            self.tree.nursery.start_soon(self._keeper.close, name=f"{self.path} closes what it keeps")

    def shut(self) -> None:
        """Take no mail: parked."""
        self.box.set_down(True)
        self.settled = True
        self.turn(Status.PARKED)

    async def _resolve(self) -> Actor:
        if self._actor is None:
            self._actor = cast(Actor, await resolve(self.spec.run))
        return self._actor

    @property
    def known(self) -> dict[str, Fact]:
        """All facts, as they are now."""
        return {**self.kept_facts, **self.facts, **(self.live() if self.live is not None else NO_FACTS)}

    @property
    def kept(self) -> object:
        """What the slot keeps, while it does; None otherwise."""
        return self._keeper.value if self._keeper is not None else None

    async def _open_keep(self) -> object:
        if self._keeper is None or self._keeper.closed.is_set():
            factory = cast(Keep, await resolve(self.spec.keep))
            self.kept_facts = NO_FACTS
            self._keeper = Keeper(self, factory)
        return await self._keeper.enter()


class Keeper:
    """The task that holds what a slot keeps: enters the context manager and leaves it, in one place."""

    def __init__(self, slot: Slot, factory: Keep) -> None:
        self.closed = trio.Event()
        self._slot = slot
        self._entered = trio.Event()
        self._release = trio.Event()
        self._scope = trio.CancelScope()
        self.value: object = None
        self._error: Exception | None = None
        slot.tree.nursery.start_soon(self._hold, factory, name=f"{slot.path} keeps")

    async def enter(self) -> object:
        """Wait until it is there. Raises what entering raised; cancelled, it gives up entering."""
        try:
            await self._entered.wait()
        finally:
            if not self._entered.is_set():
                self._scope.cancel()
        if self._error is not None:
            raise self._error
        return self.value

    async def _hold(self, factory: Keep) -> None:
        slot = self._slot
        try:
            with self._scope:
                async with factory(Kept(slot)) as self.value:
                    self._entered.set()
                    await self._release.wait()
        except Exception as raised:  # the boundary: a kept object's error is its supervisor's data
            if not self._entered.is_set():
                self._error = raised
            elif self._release.is_set() or slot.leaving:
                slot.log.exception("%s: what it keeps failed while it was stopped", slot.path)
            else:
                failure = KeptFailed(f"what {slot.path} keeps failed: {describe(raised)}")
                failure.__cause__ = raised
                self.closed.set()
                slot.parent.kept_failed(slot, failure)
        except trio.Cancelled:
            raise
        except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt, SystemExit: stop all, in order
            slot.tree.abort(raised)
        finally:
            self._entered.set()
            self.closed.set()

    async def close(self) -> None:
        """Leave it, within the slot's `shutdown_s`; then cancel."""
        self._release.set()
        with trio.move_on_after(self._slot.spec.shutdown_s):
            await self.closed.wait()
        self._scope.cancel()
        with trio.move_on_after(CANCEL_S):
            await self.closed.wait()
        if not self.closed.is_set():
            self._slot.log.error("%s: what it keeps ignores its cancellation", self._slot.path)


class Kept:
    """`KeepContext` of one slot."""

    __slots__ = ("_slot", "_tree")

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._tree = slot.tree

    @property
    def path(self) -> str:
        """Own address."""
        return self._slot.path

    @property
    def args(self) -> Mapping[str, Any]:
        """The child's `args`."""
        return self._slot.spec.args

    def ref(self, path: str) -> Ref[Any]:
        """A reference to any address."""
        return self._tree.ref(path)

    def report(self, **facts: Fact | None) -> None:
        """Facts for the status tree that outlive incarnations; None removes one."""
        self._slot.kept_facts = merged(self._slot.kept_facts, facts)

    def start_child(self, group: str, child: Child) -> None:
        """Add a child to a dynamic group; its mailbox is there at once."""
        self._tree.add_child(group, child)

    def stop_child(self, path: str) -> None:
        """Stop and remove a child of a dynamic group, in the background."""
        self._tree.drop_child(path)


class Incarnation(Kept):
    """`Context` of one incarnation; without effect on the slot once that is over."""

    __slots__ = ("incarnation", "kept", "over", "tasks")

    tasks: trio.Nursery

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot)
        self.incarnation = slot.incarnation
        self.kept: Any = None
        self.over = False

    def ready(self) -> None:
        """Started: the next child of the group may start."""
        if not self.over:
            self._slot.ready()

    def watch(self, prefix: str = "") -> None:
        """Down and Up of every other actor whose path starts with `prefix` go to own mailbox."""
        if not self.over:
            self._tree.watchers.setdefault(self._slot, set()).add(prefix)

    def report(self, **facts: Fact | None) -> None:
        """Facts for the status tree, until the end of this incarnation; None removes one."""
        if not self.over:
            self._slot.facts = merged(self._slot.facts, facts)

    def report_live(self, facts: Callable[[], Mapping[str, Fact]]) -> None:
        """Facts of the moment in which somebody looks, until the end of this incarnation."""
        if not self.over:
            self._slot.live = facts


def merged(before: Mapping[str, Fact], facts: Mapping[str, Fact | None]) -> Mapping[str, Fact]:
    """Facts, with those of the same name replaced; None removes one."""
    both = {**before, **facts}
    if None in facts.values():
        both = {name: fact for name, fact in both.items() if fact is not None}
    return cast(Mapping[str, Fact], both)  # there is no None in it any more


async def resolve(name: object) -> object:
    """The function behind `package.module:function`, imported in a thread: an import must not stall the loop.

    Raises Parked when it cannot be imported: a restart would find the same.
    """
    if not isinstance(name, str):
        return name
    module_name, _, function = name.partition(":")
    try:
        module = sys.modules.get(module_name)
        # A module may be there and half made, by an import that still runs in another thread.
        if module is None or getattr(module.__spec__, "_initializing", False):
            module = await trio.to_thread.run_sync(importlib.import_module, module_name)
        return getattr(module, function)
    except Exception as error:  # whatever a module raises at import, it will raise again
        raise Parked(f"cannot import {name}: {describe(error)}") from error

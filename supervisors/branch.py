"""The supervisor of one group: starts children in order, carries out decisions, stops in reverse.

One task per group (`_supervise`), woken by a bell. Children that end are judged at once, in their own
scheduler step, by `supervisors.restart`; what takes time (stopping siblings) is queued as a `Batch` for the
task. Ordered start is a gate: a gated child starts when all before it are settled (ready, parked or done),
and a child that fails before it was ever ready keeps the gate shut until its policy parks it or gives up.

When the group gives up, it stops all its children and ends as a failed child of the group above. Its slots,
with their mail and what they keep, stay for its next incarnation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.spec import Child, Down, Group, Parked, Restart, Status
from supervisors.member import Member, consequence, describe, explained, outcome_of
from supervisors.restart import Outcome, Verdict, decide, together
from supervisors.slot import Slot, resolve

if TYPE_CHECKING:
    from supervisors.supervisor import Tree


class Escalated(Exception):
    """A group gave up: a child of it failed too often, or what a slot keeps failed."""


@dataclass(frozen=True)
class Batch:
    """Members to be stopped in reverse and started in order, at a time."""

    members: Sequence[Member]
    at: float
    why: str
    failed: Member | None = None
    """The one whose end is the reason; None when restarted by hand."""


class Branch(Member):
    """The supervisor of one group."""

    spec: Group

    def __init__(self, tree: Tree, spec: Group, path: str, parent: Branch | None) -> None:
        super().__init__(tree, spec, path, parent)
        tree.branches[path] = self
        self.members: list[Member] = [self._make(child) for child in spec.children]
        self._bell = trio.Event()
        self._batches: list[Batch] = []
        self._failure: Exception | None = None
        self._leaving = False
        self._final = False

    def _make(self, spec: Child | Group) -> Member:
        return Branch(self.tree, spec, self._path(spec.name), self) if isinstance(spec, Group) else self._slot(spec)

    def _slot(self, spec: Child) -> Slot:
        slot = Slot(self.tree, spec, self._path(spec.name), self)
        self.tree.enter(slot)
        return slot

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    # Its own life, as a member of the group above.

    def begin(self) -> None:
        """Start an incarnation: all children, in order, in its own task."""
        self.incarnation += 1
        self.due_at, self.ready_at, self.gated = None, None, False
        self.began_at = trio.current_time()
        self._batches.clear()
        self._failure, self._leaving, self._final = None, False, False
        self._ended = None
        self.alive = True
        self.turn(Status.STARTING)
        self.tree.nursery.start_soon(self._supervise, name=f"group {self.path or self.spec.name}")

    @trio.lowlevel.enable_ki_protection
    async def _supervise(self) -> None:
        now = trio.current_time()
        for member in list(self.members):
            if self.spec.dynamic and member.incarnation and member.policy.restart is Restart.TEMPORARY:
                self._remove(member)
            else:
                member.plan(now, gated=member.spec.gate and not self.spec.dynamic, fresh=True)
        if self.spec.runs:
            with suppress(Parked):  # the first child parks for it, and says why
                await resolve(self.spec.runs)
        while self._failure is None and not self._leaving:
            while self._batches:
                await self._cycle(self._batches.pop(0))
            if self._failure is None and not self._leaving:
                self._start_due()
                self._settle()
                with trio.move_on_at(min((m.due_at or 0.0 for m in self._startable()), default=float("inf"))):
                    await self._bell.wait()
            self._bell = trio.Event()
        self.turn(Status.DRAINING)
        self._final = self._final or self.parent is None
        await self._end_members(final=self._final, why=f"stopped with {self._name}")
        self.alive = False
        if self._leaving:
            self.turn(Status.STOPPED if self._final else Status.RESTARTING)
        elif self._failure is not None and self.parent is not None:
            self.parent.ended_by_itself(self, self._failure)
        else:
            self.turn(Status.STOPPED)
        self._has_ended()
        if self.parent is not None:
            self.parent.ring()

    @property
    def _name(self) -> str:
        return f"group {self.path}" if self.path else "the whole tree"

    async def end(self, *, final: bool, why: str = "") -> None:
        """Stop all children in reverse order; `final` lets go of what they keep."""
        if self.alive:
            self._final = self._final or final
            self._leaving = True
            self.ring()
            await self.ended.wait()  # bounded: the sum of the children's own bounds
        self.due_at = None
        if final:
            await self._end_members(final=True, why=why)
        self.turn(Status.STOPPED if final else Status.RESTARTING)

    def shut(self) -> None:
        """Take no mail in any slot below: parked."""
        for member in self.members:
            member.shut()
        self.settled = True
        self.turn(Status.PARKED)

    async def _end_members(self, *, final: bool, why: str) -> None:
        if self.spec.dynamic:
            async with trio.open_nursery() as nursery:
                for member in list(self.members):
                    nursery.start_soon(partial(member.end, final=final, why=why), name=f"ends {member.path}")
            return
        for member in reversed(list(self.members)):
            await member.end(final=final, why=why)

    def _settle(self) -> None:
        if self.status is Status.STARTING and (self.spec.dynamic or all(m.settled for m in self.members)):
            self.settled = True
            self.ready_at = trio.current_time()
            self.turn(Status.RUNNING)
            if self.parent is not None:
                self.parent.ring()

    # Starting children.

    def ring(self) -> None:
        """Something changed: look again."""
        self._bell.set()

    def _startable(self) -> list[Member]:
        # In order: a gated member waits for all before it. Nothing starts while an earlier life goes on.
        found: list[Member] = []
        unsettled = False
        for member in self.members:
            # Few are due: what is asked of those only would cost each start the square of all members otherwise.
            if member.due_at is not None and not member.alive:
                waits = member.gated and unsettled
                if isinstance(member, Slot):
                    waits = waits or member.after in self.members or (member.leaving and self.spec.dynamic)
                if not waits:
                    found.append(member)
            unsettled = unsettled or not member.settled
        return found

    def _start_due(self) -> None:
        now = trio.current_time()
        for member in self._startable():
            if member.due_at is not None and member.due_at <= now:
                member.begin()

    async def _cycle(self, batch: Batch) -> None:
        for member in reversed(batch.members):
            if member is not batch.failed:
                await member.end(final=False, why=batch.why)
        for member in batch.members:
            if member not in self.members:
                continue  # removed while its siblings were stopped
            if batch.failed is None:
                member.plan(batch.at, gated=False, fresh=True)
            elif member.policy.restart is Restart.TEMPORARY:
                self._remove(member)
            else:
                member.plan(max(batch.at, member.due_at or 0.0), gated=True)

    # Ends of children.

    def ended_by_itself(self, member: Member, error: Exception | None) -> None:
        """Decide what follows; called by the member in the same scheduler step in which it ended."""
        now = trio.current_time()
        if error is not None:
            member.remember(error)
        if self._leaving or self._failure is not None:
            self._log(member, error, f"{self._name} is being stopped")
            member.turn(Status.RESTARTING)
            return
        outcome = outcome_of(error)
        if outcome is Outcome.DONE:
            member.settled = True
        mail = isinstance(member, Slot) and member.box.depth > 0
        decision = decide(
            member.policy, member.past, outcome, now=now, ready_s=member.ready_s, mail=mail, rng=self.tree.rng
        )
        member.past = decision.past
        self._log(member, error, consequence(decision, self._name), done=decision.verdict is Verdict.STOP)
        at = now + decision.delay_s
        retry_ms: int | None = None
        match decision.verdict:
            case Verdict.RESTART:
                retry_ms = round(decision.delay_s * 1000)
                self._restart(member, at)
            case Verdict.PARK:
                retry_ms = round(decision.delay_s * 1000) if decision.delay_s != float("inf") else None
                member.due_at = at if retry_ms is not None else None
                member.shut()
            case Verdict.ESCALATE:
                member.turn(Status.RESTARTING)
                self._fail(member, error)
            case Verdict.STOP:
                self._remove(member)
        if isinstance(member, Slot):
            reason = describe(error) if error is not None else ""
            parked = decision.verdict is Verdict.PARK
            self.tree.announce(Down(member.path, member.incarnation, reason, retry_ms, parked=parked))
        self.ring()

    def kept_failed(self, slot: Slot, error: Exception) -> None:
        """What a slot keeps failed: that is beyond a restart of its actor, so the group fails."""
        slot.remember(error)
        self._log(slot, error, f"{self._name} fails as a whole")
        self._fail(slot, error)
        self.ring()

    def _restart(self, member: Member, at: float) -> None:
        member.turn(Status.RESTARTING)
        index = self.members.index(member)
        positions = together(self.spec.strategy, index, len(self.members))
        if len(positions) == 1:
            member.plan(at, gated=member.gated)
            return
        up = [self.members[i] for i in positions if self.members[i].status not in (Status.PARKED, Status.STOPPED)]
        self._batches.append(Batch(up, at, f"restarted with {member.path}", member))

    def _remove(self, member: Member) -> None:
        if isinstance(member, Slot):
            member.retire()
            if self.spec.dynamic:
                member.close_keep()
                self._forget(member)

    def _forget(self, slot: Slot) -> None:
        if slot in self.members:
            self.members.remove(slot)
        self.tree.leave(slot)
        self.ring()

    def _fail(self, member: Member, error: Exception | None) -> None:
        if self._failure is not None or self._leaving:
            return
        reason = describe(error) if error is not None else "it returned"
        self._failure = Escalated(f"{member.path} failed too often; last: {reason}")
        self._failure.__cause__ = error
        self.remember(self._failure)
        if self.parent is None:
            self.tree.fail(self._failure)

    def _log(self, member: Member, error: Exception | None, next_step: str, *, done: bool = False) -> None:
        lived = trio.current_time() - member.began_at
        what = f"{member.path} (incarnation {member.incarnation}, {lived:.3g} s old)"
        if error is None:
            member.log.log(logging.DEBUG if done else logging.WARNING, "%s returned: %s", what, next_step)
        else:
            trace = error if member.log.isEnabledFor(logging.DEBUG) or not explained(error) else None
            member.log.error("%s failed: %s; %s", what, describe(error), next_step, exc_info=trace)

    # Children that come and go.

    def add(self, child: Child) -> Slot | None:
        """A new slot with an open mailbox, to be started at once; None when this group is stopped for good.

        The slot that is there already, if one of that name is there and not stopping.
        """
        if self._final or self.status is Status.STOPPED:
            return None
        before = self.tree.slots.get(self._path(child.name))
        if before is not None and not before.leaving:
            return before
        slot = self._slot(child)
        slot.after = before
        if self.status is Status.PARKED:
            slot.shut()
        slot.plan(trio.current_time(), gated=False)
        self.members.append(slot)
        self.ring()
        return slot

    def drop(self, slot: Slot) -> None:
        """Drain, stop and forget a slot, in the background; its path is free at once."""
        if not slot.leaving:
            slot.leave()
            self.tree.nursery.start_soon(self._drop, slot, name=f"stops {slot.path}")

    async def _drop(self, slot: Slot) -> None:
        await slot.end(final=True)
        self._forget(slot)

    def by_hand(self, member: Member) -> None:
        """Restart one member now, whatever its state."""
        self._batches.append(Batch((member,), trio.current_time(), "restarted by hand"))
        self.ring()

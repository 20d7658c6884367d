"""A process as an actor of its parent's tree: `child(Plan("llm"), exchange)`; restart, backoff, park are the tree's.

An incarnation is one process (`supervisors.life`): ready when the process says so, and failed when it ends, does
not get ready, answers no ping or takes too much memory. The slot keeps the Unix socket of the role: who connects
while the process is replaced waits in the kernel's queue. `Replace` starts a second process and stops the first
when the second is ready; then the incarnation is the second's.

What can fail: the process. That is `ProcessEnded`, with the reason that it gave; `Parked` for one that says
that it cannot be built; OSError when none can be started.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from protocol.frames import Pong
from protocol.mail import Mailbox, Nudge, Reply, Request
from protocol.reporter import PartState
from protocol.spec import Child, Context, KeepContext
from supervisors.exchange import Exchange
from supervisors.life import ABORT_S, TERM_S, Life, ProcessEnded
from supervisors.os_process import KILL_S
from supervisors.plan import Plan
from supervisors.status import Node

log = logging.getLogger("supervisors.process")

BACKLOG = 4096  # connections that wait while the process is replaced; the kernel may allow less


class Seat:
    """What a role keeps when its process changes: its socket, and who has the role now."""

    def __init__(self, listener: socket.socket | None) -> None:
        self.listener = listener
        self.life: Life | None = None
        """The process that has the role; None between two."""
        self.lives: list[Life] = []
        """All that run: one that is being replaced, or is to replace it, too."""
        self.generation = 0
        """Of processes of the role; peers go by it."""
        self.one = trio.Lock()
        """Of who replaces."""

    def start(self, ctx: Context) -> Life:
        """Start a process; `see_through` must follow. Raises OSError."""
        self.generation += 1
        plan: Plan = ctx.args["plan"]

        def felt(life: Life) -> None:
            if self.life is life and life.pulse is not None:
                pulse = life.pulse
                ctx.report(
                    pid=life.process.pid,
                    rss_mb=round(pulse.rss_bytes / 1e6, 1),
                    cpu_s=round(pulse.cpu_s, 3),
                    lag_ms=pulse.lag_ms,
                )

        life = Life(plan, ctx.args["exchange"], self.listener, self.generation, felt)
        self.lives.append(life)
        return life

    async def see_through(self, life: Life, done: trio.CancelScope) -> None:
        """To the end of that process; `done` is cancelled if it had the role, and nobody has asked for the end."""
        try:
            await life.live()
        finally:
            self.lives.remove(life)
        if self.life is life and not life.asked:
            done.cancel()

    def quit(self) -> None:
        """Ask all for their end."""
        for life in self.lives:
            life.quit()

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

    async def restart(self, path: str, within: float) -> PartState | None:
        """Have the process restart a part; None: it has no such part, or none runs. Raises Fault."""
        return await self.life.restart(path, within) if self.life is not None else None


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


class Replace(Request[str], frozen=True):
    """Ask: start another process, and once that is ready stop the present one in order, as far as it goes.

    Answered when the new one has the role, with an empty text; or with the reason why the old one keeps it.
    """


async def run(box: Mailbox[Replace | Nudge], ctx: Context) -> None:
    """The actor. Raises ProcessEnded, Parked, OSError."""
    seat: Seat = ctx.kept
    async with spell(seat, box, ctx) as (_, nursery):
        async for message in box:
            if isinstance(message, Replace) and box.reply_slot is not None:
                nursery.start_soon(_replace, seat, ctx, box.reply_slot, nursery)


@asynccontextmanager
async def spell(seat: Seat, box: Mailbox[Any], ctx: Context) -> AsyncIterator[tuple[Life, trio.Nursery]]:
    """One process, and what is done while it runs; the body is cancelled at its end, and at the body's end it is asked
    for. Raises ProcessEnded, Parked, OSError."""
    # We are ready when the process says so; not at our first look into the mailbox.
    box.on_idle = None
    seat.life = life = seat.start(ctx)
    ctx.report(pid=life.process.pid)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seat.see_through, life, nursery.cancel_scope)
            nursery.start_soon(_announce, life, ctx)
            yield life, nursery
            seat.quit()
    finally:
        last, seat.life = seat.life, None
    if last is not None and last.failure is not None:
        raise last.failure


async def _announce(life: Life, ctx: Context) -> None:
    await life.settled.wait()
    if life.well:
        ctx.ready()


async def _replace(seat: Seat, ctx: Context, reply: Reply, nursery: trio.Nursery) -> None:
    async with seat.one:
        if seat.life is None or seat.life.asked:
            reply.answer("it is being stopped")
            return
        try:
            new = seat.start(ctx)
        except OSError as error:
            reply.answer(f"no process could be started: {error}")
            return
        nursery.start_soon(seat.see_through, new, nursery.cancel_scope)
        await new.settled.wait()
        if not new.well or new.asked:
            why = str(new.failure or "it is being stopped")
            log.error("%s stays, its successor did not get ready: %s", seat.life, why)
            reply.answer(why)
            return
        log.info("%s takes the place of %s", new, seat.life)
        old, seat.life = seat.life, new
        old.quit()
        reply.answer("")


__all__ = ["Life", "ProcessEnded", "Replace", "Seat", "child", "keep", "run"]

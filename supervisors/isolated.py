"""An MCP server's actor in a process of its own (`isolate: true`), under the process that the others share.

`apart` makes of the server's place in the tree a place of the same path for a stand-in: it starts the process,
whose tree has the real actor, and passes all mail on to it, with the answers on their way back. What the real
actor says to others goes through the process of the stand-in, which also tells how it is. So nobody else
needs to know where it lives.

What can fail: the process; then asks in hand are `Gone`, as when an actor dies, and the supervisor starts anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2s
from typing import Any, cast

import msgspec

from protocol.mail import NUDGE, Gone, Inlet, Mailbox, Overloaded, Reply
from protocol.spec import Child, Context, Group, Intensity, KeepContext, OnLimit
from protocol.watcher import Connection, McpServer, Snapshot
from supervisors.exchange import Exchange
from supervisors.plan import Plan
from supervisors.process import Seat, spell
from supervisors.tree import logs

PARENT = "mcp"  # the role whose processes these are
PARK_S = 30.0  # between two tries of a process that keeps ending
RSS_LIMIT = 2048 * 2**20
GRACE_S = 15.0  # more than its server gets


def apart(exchange: Exchange) -> Callable[[Child, Snapshot], Child]:
    """Makes the place of a server's actor one of a stand-in for it, in a process that logs by that configuration until
    it follows the watcher itself; given to the roster."""

    def moved(place: Child, snapshot: Snapshot) -> Child:
        role = role_of(place.name)
        args = {name: msgspec.to_builtins(value) for name, value in place.args.items()}
        plan = Plan(
            role=role,
            make="supervisors.isolated:part",
            args=args,
            place="supervisors.isolated:parent",
            grace_s=GRACE_S,
            snapshot=lambda: snapshot,
        )
        return dataclasses.replace(
            place,
            run="supervisors.isolated:run",
            keep="supervisors.isolated:keep",
            shutdown_s=GRACE_S + 10.0,
            intensity=Intensity(restarts=5, period_s=60.0),
            on_limit=OnLimit.PARK,
            park_s=PARK_S,
            args={"plan": dataclasses.replace(plan, rss_limit=RSS_LIMIT), "exchange": exchange},
        )

    return moved


def role_of(name: str) -> str:
    """The role of a server's process, from the server's name: short, unique, and safe in a path."""
    safe = re.sub(r"[^A-Za-z0-9_]", "_", name)[:20]
    return f"{PARENT}-{safe}-{blake2s(name.encode(), digest_size=3).hexdigest()}"


def parent(_: str) -> str:
    """Whatever is not here is found through the parent."""
    return PARENT


def part(role: str, args: Mapping[str, Any]) -> Group:
    """In the process: the real actor in its place."""
    given = {name: args[name] for name in ("state_dir", "log_level", "config_access", "pinned")}
    server = msgspec.convert(args["server"], McpServer)
    connection = msgspec.convert(args["connection"], Connection)
    child = cast(Callable[..., Child], importlib.import_module("actors.server_child").child)
    return Group(role, (logs(role), Group(PARENT, (child(server, connection, **given),))))


@asynccontextmanager
async def keep(_: KeepContext) -> AsyncIterator[Seat]:
    """What is kept across processes: who has the role."""
    yield Seat(None)


async def run(box: Mailbox[Any], ctx: Context) -> None:
    """The stand-in. Raises ProcessEnded, Parked, OSError."""
    plan: Plan = ctx.args["plan"]
    exchange: Exchange = ctx.args["exchange"]
    seat: Seat = ctx.kept
    exchange.relay(plan.role)
    async with spell(seat, box, ctx) as (life, _):
        await life.settled.wait()  # what waits in the mailbox is for when it is there
        async for message in box:
            if message is not NUDGE:
                pass_on(message, box, exchange.inlet_at(plan.role, ctx.path))


def pass_on(message: Any, box: Mailbox[Any], inlet: Inlet) -> None:
    """One message to the real actor; an ask is answered by it, and given up when its asker gives up."""
    outer = box.reply_slot
    if outer is None:
        inlet.put(message)
        return
    inner = Reply()

    def answered(_: Reply) -> None:
        if inner.answered:
            box.settle(outer, inner.error if inner.error is not None else inner.value)

    inner.when_closed(answered)
    outer.when_closed(lambda _: inner.give_up())
    if not inlet.put(message, inner):
        box.fault(Gone(box.path) if inlet.closed else Overloaded(box.path))

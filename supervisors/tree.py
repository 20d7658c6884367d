"""The whole product: every actor, in the order in which it starts (and, reversed, stops).

`product` is all of it in one process. `part` is what one process of several runs, and `service` the root of
these, in which each process is a child like any actor. Paths are the same in both: the first word of a path
is the role of the process that the actor lives in (`role_of`), except for what the root keeps for itself.

Core parts escalate: without store, streamer or gateway there is no service, so after too many failures the
process ends and whoever runs it starts it anew. Fragile leaves park and are shown red.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.spec import Child, Group, Intensity, OnLimit

NAME = "mcp-actors"
OFTEN = Intensity(restarts=20, period_s=10.0)  # of what has so much to do that a message that kills it may come often
ROOT = frozenset({"watcher", "reporter", "door"})  # what the root runs itself
MOVED = {"roster": "mcp"}  # paths whose role is not their first word

Args = Mapping[str, Any]


def product(*, watcher: Args, writer: Args, local: Args, gateway: Args, reporter: Args) -> Group:
    """Everything in one process; the arguments are the `args` of the actors that need some."""
    return Group(
        NAME,
        (
            *head(watcher, reporter),
            logs(),
            store(writer),
            llm(local),
            *servers({}),
            front("front", gateway),
        ),
    )


def service(*, watcher: Args, reporter: Args, back: Sequence[Child], fronts: Sequence[Child], door: Args) -> Group:
    """The root of several processes.

    Args:
        back: the processes behind the fronts, in start order.
        fronts: the processes that clients talk to; more come and go while it runs.
    """
    return Group(
        NAME,
        (
            *head(watcher, reporter),
            logs(),
            *back,
            Group("fronts", tuple(fronts), dynamic=True, gate=False),
            Child("door", "supervisors.door:run", on_limit=OnLimit.PARK, park_s=60.0, args=door),
        ),
    )


def part(role: str, args: Args) -> Group:
    """What the process of that role runs; `args` by the name of the actor that gets them."""
    match role:
        case "store":
            own: tuple[Child | Group, ...] = (store(args["writer"]),)
        case "llm":
            own = (llm(args["local"]),)
        case "mcp":
            own = servers(args.get("roster", {}))
        case _:
            own = (front(role, args["gateway"]),)
    return Group(role, (logs(role), *own))


def role_of(path: str) -> str:
    """The role of the process that has that path, `root` for the root's own."""
    first = path.partition("/")[0].partition("-")[0]  # what is below a process is reached through it: mcp-NAME
    return "root" if first in ROOT else MOVED.get(first, first)


def head(watcher: Args, reporter: Args) -> tuple[Child, Child]:
    """What all others ask."""
    return (
        Child(
            "watcher",
            "actors.watcher:run",
            keep="actors.watcher:keep",
            redeliver=True,
            on_limit=OnLimit.PARK,
            park_s=60.0,
            args=watcher,
        ),
        Child("reporter", "supervisors.reporter:run", on_limit=OnLimit.PARK, park_s=60.0, args=reporter),
    )


def logs(role: str = "") -> Child:
    """Of each process; the root's has no role. Whoever tells them all of something needs an address of each."""
    args = {"address": f"{role}//logs"} if role else {}
    return Child("logs", "actors.logs:run", redeliver=True, on_limit=OnLimit.PARK, park_s=60.0, args=args)


def store(writer: Args) -> Group:
    """The store."""
    return Group(
        "store",
        (
            Child(
                "writer",
                "actors.writer:run",
                keep="actors.writer:keep",
                mailbox=4096,
                shutdown_s=15.0,
                intensity=OFTEN,
                args=writer,
            ),
        ),
    )


def llm(local: Args) -> Group:
    """Models."""
    return Group(
        "llm",
        (
            Child(
                "local",
                "actors.local_model:run",
                redeliver=True,
                on_limit=OnLimit.PARK,
                shutdown_s=10.0,
                args=local,
            ),
            Child("streamer", "actors.streamer:run", mailbox=4096, intensity=OFTEN),
        ),
    )


def servers(roster: Args) -> tuple[Group, Child]:
    """MCP servers, and who starts and stops their actors."""
    return (
        Group("mcp", dynamic=True),
        Child(
            "roster",
            "actors.roster:run",
            keep="actors.roster:keep",
            redeliver=True,
            on_limit=OnLimit.PARK,
            park_s=60.0,
            args=roster,
        ),
    )


def front(name: str, gateway: Args) -> Group:
    """What clients talk to."""
    return Group(
        name,
        (
            Group("sessions", dynamic=True, runs="actors.session:run"),
            Child(
                "gateway",
                "actors.gateway:run",
                keep="actors.gateway:keep",
                mailbox=1024,
                intensity=OFTEN,
                args=gateway,
            ),
        ),
    )

"""Toy roles for tests of processes: they import nothing heavy, so that a worker is there in a moment.

`part` builds what `args["how"]` says; the one actor of a role is at `ROLE/toy`. `parent` is a root to be killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from protocol.mail import Mailbox, Nudge, Request
from protocol.spec import Child, Context, Group, Intensity, Status
from supervisors import orphans
from supervisors.exchange import Exchange
from supervisors.plan import Plan
from supervisors.process import child
from supervisors.supervisor import running

# A process that ignores the end of its input and SIGTERM, and one that left its parent, session and group.
STUBBORN = """
trap '' TERM HUP
sh -c 'setsid sleep 1000 >/dev/null 2>&1 & echo $!'
exec >/dev/null 2>&1 sleep 1000
"""


class Echo(Request[list[Any]], frozen=True, tag=True):
    """Answered with the text and the pid of who answers."""

    text: str


class Relay(Request[list[Any]], frozen=True, tag=True):
    """Echo, by way of another actor."""

    to: str
    text: str


class Hold(Request[None], frozen=True, tag=True):
    """Never answered."""


class Write(Request[None], frozen=True, tag=True):
    """Append to a file; a cast is not answered."""

    path: str
    text: str


class Trouble(Request[list[int]], frozen=True, tag=True):
    """Start processes that do not want to end; answered with their pids."""


class Accompany(Request[int], frozen=True, tag=True):
    """Start a process in own group; answered with its pid."""


class Spin(Request[None], frozen=True, tag=True):
    """Keep the loop busy for ever."""


class Block(Request[None], frozen=True, tag=True):
    """Keep the loop blocked for ever."""

    deaf: bool = False
    """To SIGTERM too."""


class Grow(Request[None], frozen=True, tag=True):
    """Take memory."""

    megabytes: int


VOCABULARY = Echo | Relay | Hold | Write | Trouble | Accompany | Spin | Block | Grow


async def toy(box: Mailbox[VOCABULARY | Nudge], ctx: Context) -> None:
    """The actor."""
    kept: list[object] = []
    troubles: list[subprocess.Popen[bytes]] = []
    try:
        async for message in box:
            match message:
                case Echo(text=text):
                    box.reply([text, os.getpid()])
                case Relay(to=to, text=text):
                    box.reply(await ctx.ref(to).ask(Echo(text), within=5))
                case Hold():
                    kept.append(box.reply_slot)
                case Write(path=path, text=text):
                    append(path, text)
                    box.reply(None)
                case Trouble():
                    troubles.append(trouble())
                    box.reply([troubles[-1].pid, *printed(troubles[-1])])
                case Accompany():
                    troubles.append(companion())
                    box.reply(troubles[-1].pid)
                case Spin():
                    while True:
                        pass
                case Block(deaf=deaf):
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM] if deaf else [])
                    time.sleep(1000)  # noqa: ASYNC251 - the loop itself must be stuck
                case Grow(megabytes=megabytes):
                    kept.append(b"x" * (megabytes * 1_000_000))
                    box.reply(None)
                case _:
                    pass
    finally:
        for process in troubles:
            process.kill()  # only itself: what it started is for others to find
            process.wait()


def append(path: str, text: str) -> None:
    """To a file."""
    with Path(path).open("a") as file:
        file.write(text)


def say(what: object) -> None:
    """A line on standard output."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def companion() -> subprocess.Popen[bytes]:
    """A process of own group and session."""
    return subprocess.Popen(["sleep", "1000"])


def trouble() -> subprocess.Popen[bytes]:
    """Two processes that do not want to end."""
    return subprocess.Popen(
        ["sh", "-c", STUBBORN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
    )


def printed(process: subprocess.Popen[bytes]) -> list[int]:
    """The pids that it printed."""
    assert process.stdout is not None
    return [int(line) for line in process.stdout.read().split()]


async def never_ready(box: Mailbox[Any], ctx: Context) -> None:
    """An actor that does not look for mail."""
    await trio.sleep_forever()


async def lingering(box: Mailbox[VOCABULARY | Nudge], ctx: Context) -> None:
    """A toy that has no end."""
    await toy(box, ctx)
    await trio.sleep_forever()


async def failing(box: Mailbox[Any], ctx: Context) -> None:
    """An actor that fails as often as it is asked."""
    async for _ in box:
        raise RuntimeError("this part is broken")


async def stillborn(box: Mailbox[Any], ctx: Context) -> None:
    """An actor that cannot start."""
    raise RuntimeError("this part never works")


def part(role: str, args: Mapping[str, Any]) -> Group:
    """What a toy process runs."""
    match args.get("how"):
        case "unready":
            actor = Child("toy", "tests.roles:never_ready")
        case "lingering":
            actor = Child("toy", "tests.roles:lingering", shutdown_s=1000.0)
        case "failing" | "stillborn" as how:
            once = Intensity(restarts=0)
            return Group("toys", (Group(role, (Child("toy", f"tests.roles:{how}", intensity=once),), intensity=once),))
        case "wrong":
            raise ValueError("the key `how` says nonsense")
        case _:
            actor = Child("toy", "tests.roles:toy", mailbox=int(args.get("mailbox", 256)))
    return Group("toys", (Group(role, (actor,)),))


def plan(role: str, **more: Any) -> Plan:
    """Of a toy process."""
    return Plan(
        role,
        make="tests.roles:part",
        vocabulary="tests.roles:VOCABULARY",
        place="supervisors.exchange:role_of",
        **more,
    )


def parent() -> None:
    """A root with two processes: one that makes trouble, one that is busy. Prints the pids of each, as JSON lines."""
    orphans.adopt(workers_only=True)
    trio.run(_parent)


async def _parent() -> None:
    exchange = Exchange("root", vocabulary=VOCABULARY)
    group = Group("root", (child(plan("busy"), exchange), child(plan("nest"), exchange)))
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        async with running(group, abroad=exchange) as tree:
            [_, busy] = await tree.ref("busy/toy").ask(Echo(""), within=10)
            tree.ref("busy/toy").offer(Spin())
            incarnation = 0
            while True:
                incarnation += 1
                await tree.reached("nest", Status.RUNNING, incarnation=incarnation)
                [_, nest] = await tree.ref("nest/toy").ask(Echo(""), within=10, again=True)
                found = await tree.ref("nest/toy").ask(Trouble(), within=10)
                say({"busy": busy, "nest": nest, "trouble": found})
                await tree.until(lambda: tree.state("nest") is not Status.RUNNING)

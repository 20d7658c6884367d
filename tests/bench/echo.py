"""Actors that do nothing, in a process of their own: what mail, a start and a restart cost.

`python -m tests.bench.echo mail|crash COUNT` says one line of JSON: microseconds of each step.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median
from typing import Any

import msgspec
import trio

from protocol.mail import Mailbox, Request
from protocol.spec import Backoff, Child, Context, Group, Restart, Status
from supervisors.supervisor import Tree, running

WITHIN_S = 30.0
BATCH = 1000  # messages offered before the receiver gets its turn


class Note(msgspec.Struct, frozen=True, tag=True):
    """Nothing is answered."""

    number: int


class Count(Request[int], frozen=True, tag=True):
    """Ask: how many notes there were."""


class Fall(msgspec.Struct, frozen=True, tag=True):
    """The actor is to raise."""


died: dict[str, float] = {}
"""When each actor raised."""
back: dict[str, float] = {}
"""When its next incarnation could take messages."""
settled = trio.Event()


async def run(box: Mailbox[Note | Count | Fall], ctx: Context) -> None:
    """The actor."""
    if ctx.incarnation > 1:
        back[ctx.path] = time.perf_counter()
        if len(back) == ctx.args.get("all"):
            settled.set()
    notes = 0
    async for message in box:
        match message:
            case Note():
                notes += 1
            case Count():
                box.reply(notes)
            case Fall():
                died[ctx.path] = time.perf_counter()
                raise RuntimeError("as it was told")


def child(number: int, count: int) -> Child:
    """One of them."""
    return Child(
        f"echo{number}",
        "tests.bench.echo:run",
        restart=Restart.PERMANENT,
        mailbox=2 * BATCH,
        backoff=Backoff(first_s=0.01),
        args={"all": count},
    )


async def mail(count: int) -> dict[str, float]:
    """Microseconds of an offer and of an ask, the receiver's part included, and of starting an actor."""
    async with running(Group("bench", (child(0, 0), Group("more", dynamic=True)))) as tree:
        ref = tree.ref("echo0")
        began = time.perf_counter()
        for batch in range(count // BATCH):
            for number in range(BATCH):
                ref.offer(Note(batch * BATCH + number))
            assert await ref.ask(Count(), within=WITHIN_S) == (batch + 1) * BATCH
        offered = time.perf_counter()
        for _ in range(count // 10):
            await ref.ask(Count(), within=WITHIN_S)
        asked = time.perf_counter()
        started = await starts(tree, count // 100)
    return {
        "offer_us": (offered - began) / count * 1e6,
        "ask_us": (asked - offered) / (count // 10) * 1e6,
        "start_us": started,
    }


async def starts(tree: Tree, count: int) -> float:
    """Microseconds from asking for an actor to its answer."""
    began = time.perf_counter()
    for number in range(count):
        await tree.start_child("more", child(number, 0))
        await tree.ref(f"more/echo{number}").ask(Count(), within=WITHIN_S, again=True)
    return (time.perf_counter() - began) / count * 1e6


async def crash(count: int) -> dict[str, float]:
    """Microseconds from an exception to the next incarnation: the median of many actors, and the worst."""
    async with running(Group("bench", tuple(child(number, count) for number in range(count)))) as tree:
        for number in range(count):
            await tree.reached(f"echo{number}", Status.RUNNING)
        for number in range(count):
            # one after the other: what counts is one crash in a service that is well
            path = f"echo{number}"
            tree.ref(path).offer(Fall())
            assert await tree.ref(path).ask(Count(), within=WITHIN_S, again=True) == 0
        with trio.fail_after(WITHIN_S):
            await settled.wait()
    took = [(back[path] - at) * 1e6 for path, at in died.items()]
    return {"crash_us": median(took), "worst_us": max(took)}


if __name__ == "__main__":
    import logging

    # the same module as the actors' `run`, which the tree imports by its name
    from tests.bench import echo

    logging.disable()  # a crash is logged with its traceback, as it should be; here it is no news
    what: Any = {"mail": echo.mail, "crash": echo.crash}[sys.argv[1]]
    print(json.dumps(trio.run(what, int(sys.argv[2]))))  # noqa: T201 - a command's output

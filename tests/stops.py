"""Turns that are stopped one after the other, and what is left of them: used by the suite, and by a soak for long."""

from __future__ import annotations

import gc
import itertools
import sys
from dataclasses import dataclass, field

import trio
import trio.testing

from tests.fakes import FakeProvider, Script, Stall, Thought, ToolDelta
from tests.streaming import Harness

TOOL = ToolDelta([{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a'}}])
SCRIPTS = (
    Script(("some ", "text", Stall())),
    Script((Thought("hm"), Stall())),
    Script(before_head=Stall()),
    Script((b": working\n\n", Stall())),
    Script((TOOL, Stall())),
    Script(("x" * 100_000, Stall())),
)
"""Answers that hang, each somewhere else."""

WARM = 12  # turns that are not counted: what is made once is made by then


@dataclass
class Left:
    """What was there after the turns that were not counted, and at the end."""

    tasks: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Blocks of memory that Python has allocated."""
    closed_s: list[float] = field(default_factory=list)
    """Seconds from each stop until the upstream saw its connection end."""


def hanging() -> FakeProvider:
    """An upstream that answers with each of these in turn."""
    scripts = itertools.cycle(SCRIPTS)
    return FakeProvider(lambda _: next(scripts))


async def stopped(h: Harness, upstream: FakeProvider, count: int) -> Left:
    """Stop so many turns; each is stopped when the upstream, which is `hanging`, has sent all that it will."""
    left = Left()
    for request in range(1, WARM + count + 1):
        h.ask(request)
        asked = await upstream.request(1)
        script = SCRIPTS[(request - 1) % len(SCRIPTS)]
        while asked.sent < len(script.items) - 1:
            await trio.testing.wait_all_tasks_blocked()
        if request % 2:
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        h.cancel(request)
        await asked.closed.wait()
        left.closed_s.append(trio.current_time() - began)
        upstream.requests.clear()
        h.batches.clear()
        if request in (WARM, WARM + count):
            await trio.testing.wait_all_tasks_blocked(0.05)
            gc.collect()
            left.tasks.append(trio.lowlevel.current_statistics().tasks_living)
            left.connections.append(upstream.open)
            left.blocks.append(sys.getallocatedblocks())
    return left

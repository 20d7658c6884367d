"""Many producers in front of one writer, in a process of their own: how many durable messages a second.

`python -m tests.bench.producers FOLDER TYPE WHAT PRODUCERS SECONDS [PROFILE]` runs the real writer actor under the
real supervisor. Each producer has a conversation, and sends the next message when the last was acknowledged, which
is after the commit. WHAT: `turns`, alternately a user's message of 190 characters that begins a turn and an answer
of 680 that ends it; `events`, one event of a tool call after the other in one turn. Says one line of JSON; PROFILE
gets what cProfile saw of the thread that is not the store's.
"""

from __future__ import annotations

import cProfile
import json
import sys
import time
from pathlib import Path
from typing import Any

import trio

from protocol.mail import Ref
from protocol.spec import Child, Group
from protocol.writer import Append, BeginTurn, Closed, HopEvent, ToolEnded, UserEvent
from supervisors.supervisor import running

WITHIN_S = 30.0
QUESTION = "What time is it, and what do you think of it? " * 4
EVENTS = 100  # of one turn
ANSWER = "It is later than you think, and that is all there is to say of it. " * 10


async def turns(writer: Ref[Any], name: str, until: float) -> int:
    """Whole turns; how many messages."""
    done = 0
    while trio.current_time() < until:
        done += 2
        await writer.ask(begin(name, done), within=WITHIN_S)
        hop = HopEvent(1, ANSWER, "", [], {}, "bench", "bench-1", {"total_tokens": 200}, "stop")
        closed = Closed("completed", 9, ANSWER, "", {"total_tokens": 200}, "bench-1", "stop", None)
        await writer.ask(Append(name, done, "end", [hop, closed]), within=WITHIN_S)
    return done


async def events(writer: Ref[Any], name: str, until: float) -> int:
    """Events of a few turns; how many messages."""
    done = 0
    while trio.current_time() < until:
        if done % EVENTS == 0:
            turn = done + 1
            await writer.ask(begin(name, turn), within=WITHIN_S)
        done += 1
        event = ToolEnded(f"call-{done}", f"c{done}", done, "completed", "12 degrees, light rain", 12)
        await writer.ask(Append(name, turn, f"k{done}", [event]), within=WITHIN_S)
    return done


def written_bytes() -> int:
    """That this process has caused to be written to disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def begin(name: str, turn: int) -> BeginTurn:
    """A user's message."""
    return BeginTurn("local", name, turn, UserEvent(QUESTION, f"{name}-{turn}", streaming=True), queued=False)


async def main(folder: str, kind: str, what: str, producers: int, seconds: float, profile: str) -> dict[str, float]:
    """Produce for so long; what came of it."""
    produce = {"turns": turns, "events": events}[what]
    args = {"path": str(Path(folder) / "chat_history.db"), "type": kind}
    writer = Child("writer", "actors.writer:run", keep="actors.writer:keep", mailbox=4096, args=args)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        mine = await produce(ref, f"conversation-{number:04d}-of-the-benchmark", began + seconds)
        done += mine

    async with running(Group("bench", (Group("store", (writer,)),))) as tree:
        ref = tree.ref("store/writer")
        began, used, written = trio.current_time(), time.process_time(), written_bytes()
        sampler = cProfile.Profile() if profile else None
        if sampler is not None:
            sampler.enable()
        async with trio.open_nursery() as nursery:
            for number in range(producers):
                nursery.start_soon(one, number)
        if sampler is not None:
            sampler.disable()
            sampler.dump_stats(profile)
        took, used = trio.current_time() - began, time.process_time() - used
        facts = tree.status().children[0].children[0].facts
    written = written_bytes() - written
    return {"messages": done, "seconds": took, "cpu_s": used, "commits": float(facts["commits"]), "written": written}


if __name__ == "__main__":
    _, place, kind_, what_, producers_, seconds_, *profile_ = sys.argv
    answer = trio.run(main, place, kind_, what_, int(producers_), float(seconds_), profile_[0] if profile_ else "")
    print(json.dumps(answer))  # noqa: T201 - a command's output

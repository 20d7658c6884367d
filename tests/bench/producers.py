"""Many producers in front of one writer, in a process of their own: how many durable messages a second.

`python -m tests.bench.producers FOLDER TYPE WHAT PRODUCERS SECONDS [PROFILE]` runs the real writer actor under the
real supervisor. Each producer has a conversation, and sends the next message when the last was acknowledged, which
is after the commit. WHAT: `turns`, alternately a user's message of 190 characters that begins a turn and an answer
of 680 that ends it; `events`, one event of a tool call after the other in one turn.

Producers are in the writer's process, so what they take counts. It is little: like the port through which messages
of other processes come to a store they put each into the mailbox with a slot for its answer, and have no task and no
scope of their own. Says one line of JSON; `store_cpu_s` is of the threads that the database is written and read in,
without the actor and the producers. PROFILE gets what cProfile saw of the thread that is not the store's.
"""

from __future__ import annotations

import cProfile
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from protocol.inlet import Inlet
from protocol.mail import Reply
from protocol.spec import Child, Group
from protocol.writer import Append, BeginTurn, Closed, HopEvent, ToolEnded, UserEvent
from supervisors.supervisor import running

WITHIN_S = 30.0  # for what is under way when the time is over
QUESTION = "What time is it, and what do you think of it? " * 4
EVENTS = 100  # of one turn
ANSWER = "It is later than you think, and that is all there is to say of it. " * 10


def turns(name: str) -> Iterator[object]:
    """Whole turns, one after the other."""
    turn = 0
    while True:
        turn += 1
        yield begin(name, turn)
        hop = HopEvent(1, ANSWER, "", [], {}, "bench", "bench-1", {"total_tokens": 200}, "stop")
        closed = Closed("completed", 9, ANSWER, "", {"total_tokens": 200}, "bench-1", "stop", None)
        yield Append(name, turn, "end", [hop, closed])


def events(name: str) -> Iterator[object]:
    """Events of a few turns."""
    done = 0
    while True:
        turn = done + 1
        yield begin(name, turn)
        for done in range(turn, turn + EVENTS):
            event = ToolEnded(f"call-{done}", f"c{done}", done, "completed", "12 degrees, light rain", 12)
            yield Append(name, turn, f"k{done}", [event])


def begin(name: str, turn: int) -> BeginTurn:
    """A user's message."""
    return BeginTurn("local", name, turn, UserEvent(QUESTION, f"{name}-{turn}", streaming=True), queued=False)


class Producers:
    """All of them.

    Args:
        box: of the writer.
        produce: what one sends, by the name of its conversation.
    """

    def __init__(self, box: Inlet, produce: Callable[[str], Iterator[object]], count: int) -> None:
        self.done = 0
        """Messages that were acknowledged."""
        self._box = box
        self._messages = [produce(f"conversation-{number:04d}-of-the-benchmark") for number in range(count)]
        self._under_way = 0
        self._over = False
        self._quiet = trio.Event()
        self._failed: list[Exception] = []

    async def run(self, seconds: float) -> None:
        """For so long, and until the last answer is there. Raises: what a message was answered with instead."""
        for messages in self._messages:
            self._send(messages)
        await trio.sleep(seconds)
        self._over = True
        with trio.fail_after(WITHIN_S):
            await self._quiet.wait()
        if self._failed:
            raise ExceptionGroup("not stored", self._failed)

    def _send(self, messages: Iterator[object]) -> None:
        def answered(closed: Reply) -> None:
            self._under_way -= 1
            if closed.error is not None:
                self._failed.append(closed.error)
            else:
                self.done += 1
                if not self._over:
                    self._send(messages)
            if not self._under_way:
                self._quiet.set()

        reply = Reply()
        reply.when_closed(answered)
        self._under_way += 1
        if not self._box.put(next(messages), reply):
            raise RuntimeError("The writer's mailbox is full.")


def written_bytes() -> int:
    """That this process has caused to be written to disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


async def main(folder: str, kind: str, what: str, count: int, seconds: float, profile: str) -> dict[str, Any]:
    """Produce for so long; what came of it."""
    args = {"path": str(Path(folder) / "chat_history.db"), "type": kind}
    writer = Child("writer", "actors.writer:run", keep="actors.writer:keep", mailbox=4096, args=args)
    async with running(Group("bench", (Group("store", (writer,)),))) as tree:
        box = tree.mailbox("store/writer")
        assert box is not None
        producers = Producers(box, {"turns": turns, "events": events}[what], count)
        began, written = time.perf_counter(), written_bytes()
        used, here = time.process_time(), time.thread_time()
        sampler = cProfile.Profile() if profile else None
        if sampler is not None:
            sampler.enable()
        await producers.run(seconds)
        if sampler is not None:
            sampler.disable()
            sampler.dump_stats(profile)
        took, used, here = time.perf_counter() - began, time.process_time() - used, time.thread_time() - here
        facts = tree.status().children[0].children[0].facts
    return {
        "messages": producers.done,
        "seconds": took,
        "cpu_s": used,
        "store_cpu_s": used - here,
        "commits": float(facts["commits"]),
        "written": written_bytes() - written,
    }


if __name__ == "__main__":
    _, place, kind_, what_, producers_, seconds_, *profile_ = sys.argv
    answer = trio.run(main, place, kind_, what_, int(producers_), float(seconds_), profile_[0] if profile_ else "")
    print(json.dumps(answer))  # noqa: T201 - a command's output

"""Many bodies read by one task: each at its time, deadlines that move, and what is left when they have gone."""

from __future__ import annotations

import math
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from actors.chunked import Unsized
from actors.http1 import Body
from actors.poller import Flow, Poller
from actors.raw_stream import RawStream


class Answer:
    """A follower, and the peer that it reads from.

    Args:
        patience: seconds of silence that it bears.
        ends: when it is over in any case.
    """

    def __init__(self, poller: Poller, patience: float = math.inf, ends: float = math.inf) -> None:
        ours, self.peer = socket.socketpair()
        self.wire = RawStream(ours)
        self.data = b""
        self.stopped_at = math.nan
        self.most = 2**30
        """Bytes after which it wants no more."""
        self._poller = poller
        self._body = Body(self.wire, Unsized(), b"")
        self._patience = patience
        self._ends = ends
        self._silent_until = trio.current_time() + patience
        self.flow: Flow = poller.begin(self._body, self)

    @property
    def deadline(self) -> float:
        return min(self._silent_until, self._ends)

    def take(self, data: bytes, now: float) -> bool:
        self.data += data
        self._silent_until = now + self._patience
        return len(self.data) < self.most

    def stopped(self) -> None:
        assert math.isnan(self.stopped_at), "told twice"
        self.stopped_at = trio.current_time()

    def again(self) -> None:
        """Follow the rest."""
        self.stopped_at = math.nan
        self._silent_until = trio.current_time() + self._patience
        self.flow = self._poller.begin(self._body, self)

    def close(self) -> None:
        self._poller.leave(self.flow)
        self.wire.close()
        self.peer.close()


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[Poller, list[Answer]]]:
    """A poller that reads, and a list of what is closed at the end."""
    poller, answers = Poller(lambda: None), list[Answer]()
    try:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(poller.run)
            yield poller, answers
            tasks.cancel_scope.cancel()
    finally:
        for answer in answers:
            answer.close()
        poller.close()
    assert not len(poller)


@pytest.mark.autojump
@pytest.mark.parametrize("seed", range(4))
async def test_each_flow_ends_at_its_deadline_to_the_instant_whatever_others_do(seed: int) -> None:
    rng = random.Random(seed)
    async with reading() as (poller, answers):
        for _ in range(300):
            match rng.randrange(4):
                case 0 | 1:
                    ends = rng.choice([math.inf, trio.current_time() + rng.choice([0.5, 3.0, 20.0])])
                    answers.append(Answer(poller, rng.choice([0.25, 1.0, 8.0, 60.0]), ends))
                case 2 if answers:
                    rng.choice(answers).peer.send(b"x")
                case 3 if answers and not rng.randrange(4):
                    answers.pop(rng.randrange(len(answers))).close()  # its number is the next one's
            if not rng.randrange(2):
                await trio.sleep(rng.choice([0.1, 0.25, 1.0]))
            await at_their_deadlines(poller, answers)
        await trio.sleep(60.0)
        await at_their_deadlines(poller, answers)
        assert not len(poller)


async def at_their_deadlines(poller: Poller, answers: list[Answer]) -> None:
    await trio.testing.wait_all_tasks_blocked()
    flowing = [answer for answer in answers if math.isnan(answer.stopped_at)]
    assert all(answer.stopped_at == answer.deadline for answer in answers if answer not in flowing)
    assert all(answer.deadline > trio.current_time() for answer in flowing)
    assert len(poller) == len(flowing)


@pytest.mark.autojump
async def test_flows_that_come_and_go_leave_nothing_behind_before_their_deadlines() -> None:
    async with reading() as (poller, answers):
        answers.append(Answer(poller, 1e5))
        for _ in range(5000):
            poller.leave(answers[0].flow)
            answers[0].again()
        assert len(poller._dues) < 500
        await trio.sleep_until(answers[0].deadline)
        await trio.testing.wait_all_tasks_blocked()
        assert answers[0].stopped_at == trio.current_time()


async def test_who_wants_no_more_is_not_read_and_gets_all_of_it_when_it_goes_on() -> None:
    rng = random.Random(1)
    sent = {number: bytes(rng.randrange(256) for _ in range(2000)) for number in range(20)}
    async with reading() as (poller, answers):
        answers += [Answer(poller) for _ in sent]
        for at in range(0, 2000, 100):
            for number, answer in enumerate(answers):
                answer.peer.send(sent[number][at : at + 100])
                if not rng.randrange(4):
                    answer.most = len(answer.data) + rng.randrange(300)
            await trio.testing.wait_all_tasks_blocked()
            for answer in answers:
                if not math.isnan(answer.stopped_at):
                    assert len(answer.data) >= answer.most
                    answer.most = 2**30
                    answer.again()
        for answer in answers:
            answer.most = 2**30
            answer.peer.close()
            if not (answer.flow.stopped or math.isnan(answer.stopped_at)):
                answer.again()
        while len(poller):
            await trio.testing.wait_all_tasks_blocked()
        assert all(answer.flow.result() for answer in answers)
        assert [answer.data for answer in answers] == [*sent.values()]

"""Answers that flow: many at once, of every kind, stopped anywhere, to a receiver that takes when it likes.

Which comes first is drawn by a seed and left to the machine; what must be true does not depend on it.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

from actors import outlet, poller, streamer
from actors.streamer import Streamer
from protocol.errors import Code
from protocol.streamer import Failed, Finished
from tests.fakes import Cut, FakeProvider, Item, Pause, Script, Stall, fail, page, raw, say
from tests.peer import tasks
from tests.scripts import written
from tests.streaming import Harness, harness, provider

REQUESTS = 40


@dataclass
class Plan:
    """What is asked, and what must come of it."""

    scripts: list[Script]
    """Of its tries; the last stands for all further ones."""
    text: str
    code: Code | None = None
    """Of the failure that it ends with."""
    whole: bool = True
    """All of the text must have come, not a part of it."""


def stream(items: tuple[Item, ...]) -> bytes:
    return b"".join(written(item, "\n") for item in items) + b"data: [DONE]\n\n"


def cut_up(rng: random.Random, data: bytes) -> list[bytes | Pause]:
    """The bytes in pieces of any size; some come late."""
    parts: list[bytes | Pause] = []
    while data:
        size = rng.choice([1, 2, 7, 40, 400])
        parts.append(data[:size])
        data = data[size:]
        if not rng.randrange(6):
            parts.append(Pause(0.001))
    return parts


def drawn(rng: random.Random) -> Plan:
    words = [f"w{number} " for number in range(rng.choice([0, 1, 3, 30, 80]))]
    text, done = "".join(words), say(*words).items
    late = tuple(part for word in words for part in ((word, Pause(0.001)) if not rng.randrange(4) else (word,)))
    match rng.choice(["words", "late", "bytes", "at once", "cut", "stall", "again", "page", "json", "gzip", "wrong"]):
        case "words":
            return Plan([say(*words)], text)
        case "late":
            return Plan([Script((*late, *done[len(words) :]))], text)
        case "bytes":
            return Plan([raw(*cut_up(rng, stream(done)), framing=rng.choice(["chunked", "close"]))], text)
        case "at once":
            return Plan([raw(stream(done))], text)
        case "cut":
            return Plan([Script((*late, "x", Pause(0.02), Cut()))], text + "x", Code.LLM_STREAM_BROKEN)
        case "stall":
            return Plan([Script((*late, "x", Stall()))], text + "x", Code.LLM_STREAM_BROKEN)
        case "again":
            return Plan([fail(503, headers={"Retry-After": "0"}), Script((b": hm\n\n", Cut())), say(*words)], text)
        case "page":
            return Plan([page("<p>Log in")], "", Code.LLM_UNAVAILABLE)
        case "json":
            body = {"choices": [{"message": {"content": text or "."}, "finish_reason": "stop"}]}
            return Plan([raw(json.dumps(body).encode(), content_type="application/json")], text or ".")
        case "gzip":
            coded = gzip.compress(stream(done))
            return Plan([Script((coded,), headers={"Content-Encoding": "gzip"}, done=False)], text)
        case _:
            wrong = {"error": {"message": "the model fell over", "code": 502}}
            return Plan([Script((*late, "x", wrong, Stall()))], text + "x", Code.LLM_UNAVAILABLE)


@asynccontextmanager
async def streaming(
    monkeypatch: pytest.MonkeyPatch, plans: dict[int, Plan], pause: Callable[[], float], **client: Any
) -> AsyncIterator[tuple[Harness, FakeProvider, list[Streamer]]]:
    """The streamer, told by whoever asks which plan is meant; its receiver pauses before it takes a message."""
    made: list[Streamer] = []
    real = Streamer.__init__

    def noted(self: Streamer, *args: Any) -> None:
        real(self, *args)
        made.append(self)

    async def wait() -> None:
        await trio.sleep(pause())  # a receiver that is slow is what they are tried with

    monkeypatch.setattr(Streamer, "__init__", noted)
    monkeypatch.setattr(outlet, "MOST_WAITING", 20)
    monkeypatch.setattr(poller, "MANY", 10**9)  # it would rest by the kernel's clock, which does not jump
    tried: Counter[int] = Counter()

    def reply(body: Any) -> Script:
        number = int(body["messages"][0]["content"])
        tried[number] += 1
        scripts = plans[number].scripts
        return scripts[min(tried[number], len(scripts)) - 1]

    async with FakeProvider(reply) as upstream:
        asked = provider(upstream.base_url, breaker={"failures": 0}, **client)
        async with harness(asked, mailbox=1, before=wait) as h:
            yield h, upstream, made


def answering() -> bool:
    """There are tasks of requests, or more than one of the streamer: one takes the mail, others answer."""
    names = [task.name for task in tasks()]
    return names.count("actors.streamer.Streamer.serve") > 1 or any(
        name.startswith(("request ", "outlet ")) for name in names
    )


async def nothing_runs(h: Harness, upstream: FakeProvider, made: Streamer) -> None:
    """Whatever was begun is over, and has given back what it had."""
    while h.facts()["running"] or answering():
        await trio.testing.wait_all_tasks_blocked(0.005)
    assert not len(made._clients._poller)
    assert all(not one.gate.through and not one.gate.waiting for one in made._upstreams._upstreams.values())
    assert all(not one.requests and not one.pieces for one in made._outlets.values())
    h.configure(version=2)
    await h.until_configured(2)
    while upstream.open:
        await trio.testing.wait_all_tasks_blocked(0.005)
    assert not len(made._clients)


@pytest.mark.autojump
@pytest.mark.parametrize("seed", range(6))
async def test_each_answer_is_exact_and_what_is_stopped_is_over(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    plans = {number: drawn(rng) for number in range(1, REQUESTS + 1)}
    stops = {number: rng.choice([0, 0, 1, 5, 20]) for number in plans if not rng.randrange(3)}

    def pause() -> float:
        return rng.choice([0.0, 0.0, 0.001, 0.01])

    options = {"idle_timeout": 30.0, "retries": 2, "limits": {"concurrent": rng.choice([None, 7]), "wait": 1000.0}}
    async with streaming(monkeypatch, plans, pause, **options) as (h, upstream, made):

        async def stop(number: int) -> None:
            for _ in range(rng.randrange(4)):
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(0.5):
                await h.until(lambda: len(h.pieces(number)) >= stops[number])
            h.cancel(number)
            if rng.randrange(2):
                h.cancel(number)

        async with trio.open_nursery() as stopping:
            for number in plans:
                h.ask(number, str(number))
                if number in stops:
                    stopping.start_soon(stop, number)
                if not rng.randrange(3):
                    await trio.lowlevel.checkpoint()
        for number, plan in plans.items():
            if number in stops:
                continue
            end = await h.end(number)
            assert h.text(number) == plan.text, (number, plan)
            assert (end.fault.code if isinstance(end, Failed) else None) == plan.code, (number, plan, end)
        await nothing_runs(h, upstream, made[0])
        for number in stops:
            words = h.text(number).split()
            assert words == [word for word in plans[number].text.split() if word in words]  # some may be left out
            ends = [piece for piece in h.pieces(number) if isinstance(piece, Finished | Failed)]
            assert ends == h.pieces(number)[-1:][: len(ends)]


async def test_of_what_is_cancelled_while_it_flows_nothing_more_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {number: Plan([Script(("begun", Stall()))], "") for number in range(1, 9)}
    async with streaming(monkeypatch, plans, lambda: 0.0) as (h, upstream, made):
        for number in plans:
            h.ask(number, str(number))
        await h.until(lambda: all(h.text(number) for number in plans))
        await trio.testing.wait_all_tasks_blocked()
        for left, number in enumerate(plans, 1):
            made[0].cancel(h.listener, number)
            # before any task has had a turn, which might be that of the poller: one may run under that number again
            assert len(made[0]._clients._poller) == len(plans) - left
        await nothing_runs(h, upstream, made[0])


@pytest.mark.parametrize("how", ["stopped", "crashed", "cancelled"])
async def test_the_end_of_the_streamer_is_that_of_all_that_flows(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(streamer, "LAST_S", 0.05)
    rng = random.Random(how)
    plans = {number: Plan([Script(("begun ", *["x"] * rng.randrange(40), Stall()))], "") for number in range(1, 81)}
    async with streaming(monkeypatch, plans, lambda: 0.0) as (h, upstream, made):
        for number in plans:
            h.ask(number, str(number))
            if number % 20 == 0:
                await trio.lowlevel.checkpoint()
        await h.until(lambda: all(h.text(number) for number in plans))
        if how == "stopped":
            await h.tree.restart("llm/streamer")
            for number in plans:
                assert (await h.failed(number)).fault.code is Code.LLM_STREAM_BROKEN
        elif how == "crashed":
            box = h.tree.slots["llm/streamer"].box

            def fall(_: object) -> None:
                box.on_take = None
                raise RuntimeError("a bug")

            box.on_take = fall
            h.cancel(1)
        else:
            made[0]._nursery.cancel_scope.cancel()
        while upstream.open:
            await trio.testing.wait_all_tasks_blocked(0.005)
        plans[1] = Plan([say("anew")], "anew")
        h.batches.clear()
        while len(made) < 2:
            await trio.testing.wait_all_tasks_blocked(0.005)
        h.ask(1, "1")
        await h.finished(1)
        await nothing_runs(h, upstream, made[1])

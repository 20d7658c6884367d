"""Promises of mailboxes and the four verbs, without a supervisor; the last ones for mail by every way."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Code, Fault
from protocol.mail import NUDGE, Gone, Mailbox, Overloaded, Ref, Reply, Request, TooSlow
from tests.ways import WAYS, Note, Twice, way


class Ask(Request[int], frozen=True):
    n: int = 0


class Post:
    """A directory by hand."""

    def __init__(self, *boxes: Mailbox[Any]) -> None:
        self.boxes = {box.path: box for box in boxes}
        self.dead = 0

    def mailbox(self, path: str, *, letter: bool = True) -> Mailbox[Any] | None:
        if letter and path not in self.boxes:
            self.dead += 1
        return self.boxes.get(path)


def pair(limit: int = 256) -> tuple[Mailbox[Any], Ref[Any]]:
    box: Mailbox[Any] = Mailbox("a", limit)
    return box, Ref(Post(box), "a")


async def collect(box: Mailbox[Any]) -> list[object]:
    return [message async for message in box]


async def test_messages_come_in_order_and_the_loop_ends_after_the_backlog() -> None:
    box, ref = pair()
    assert all(ref.offer(n) for n in range(100))
    box.close()
    assert not ref.offer(100)
    assert await collect(box) == list(range(100))
    assert (box.counters.taken, box.counters.dead) == (100, 1)


async def test_a_full_mailbox_refuses_and_counts() -> None:
    box, ref = pair(limit=2)
    assert [ref.offer(n) for n in range(4)] == [True, True, False, False]
    assert (box.depth, box.counters.refused) == (2, 2)
    with pytest.raises(Overloaded):
        await ref.ask(Ask(), within=1)


@pytest.mark.autojump
async def test_send_waits_for_room_and_keeps_order() -> None:
    box, ref = pair(limit=3)
    sent: list[int] = []

    async def send_all() -> None:
        for n in range(10):
            await ref.send(n)
            sent.append(n)
        box.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == [0, 1, 2]
        assert await anext(aiter(box)) == 0
        await trio.testing.wait_all_tasks_blocked()
        assert sent == [0, 1, 2, 3]
        assert await collect(box) == list(range(1, 10))


async def test_a_waiting_sender_gets_gone_when_nobody_is_there_any_more() -> None:
    box, ref = pair(limit=1)
    ref.offer(0)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(Gone):
                await ref.send(1)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        box.set_down(True)


async def test_nudges_are_coalesced_come_first_and_are_never_refused() -> None:
    box, ref = pair(limit=1)
    ref.offer("mail")
    for _ in range(5):
        ref.nudge()
    box.close()
    assert await collect(box) == [NUDGE, "mail"]


async def test_a_nudge_wakes_a_waiting_actor() -> None:
    box, ref = pair()
    async with trio.open_nursery() as nursery:

        async def wake() -> None:
            await trio.testing.wait_all_tasks_blocked()
            ref.nudge()

        nursery.start_soon(wake)
        assert await anext(aiter(box)) is NUDGE


async def answering(box: Mailbox[Any]) -> None:
    async for message in box:
        if message.n < 0:
            box.fault(ValueError("negative"))
        else:
            box.reply(message.n * 2)


async def test_ask_is_answered_or_faulted() -> None:
    box, ref = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answering, box)
        assert await ref.ask(Ask(4), within=5) == 8
        with pytest.raises(ValueError, match="negative"):
            await ref.ask(Ask(-1), within=5)
        assert box.in_flight == 0
        box.close()


async def test_answers_may_come_later_and_in_any_order() -> None:
    box, ref = pair()
    got: dict[int, int] = {}

    async def ask(n: int) -> None:
        got[n] = await ref.ask(Ask(n), within=5)

    async with trio.open_nursery() as nursery:
        for n in range(3):
            nursery.start_soon(ask, n)
        await trio.testing.wait_all_tasks_blocked()
        batch = box.drain(10)
        assert box.in_flight == 3
        for message, reply in reversed(batch):
            box.settle(reply, message.n + 10)
        assert box.in_flight == 0
    assert got == {0: 10, 1: 11, 2: 12}


async def test_drain_takes_at_most_what_is_there() -> None:
    box, ref = pair()
    for n in range(5):
        ref.offer(n)
    assert [m for m, _ in box.drain(3)] == [0, 1, 2]
    assert [m for m, _ in box.drain(9)] == [3, 4]
    assert box.drain(9) == []


@pytest.mark.autojump
async def test_too_slow_closes_the_slot_and_a_late_answer_is_ignored() -> None:
    box, ref = pair()
    with pytest.raises(TooSlow, match="Ask within 2 s"):
        await ref.ask(Ask(1), within=2)
    assert await anext(aiter(box)) == Ask(1)
    slot = box.reply_slot
    assert slot is not None
    assert not slot.open
    assert box.in_flight == 0
    box.reply(1)


@pytest.mark.autojump
async def test_an_asker_that_is_cancelled_leaves_nothing_in_hand() -> None:
    box, ref = pair()

    async def ask() -> None:
        await ref.ask(Ask(1), within=50)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await anext(aiter(box))
        assert box.in_flight == 1
        nursery.cancel_scope.cancel()
    assert box.in_flight == 0


async def test_asks_in_hand_of_a_dead_actor_get_gone_and_the_backlog_stays() -> None:
    box, ref = pair()
    outcomes: list[str] = []

    async def ask(n: int) -> None:
        try:
            outcomes.append(f"{n}: {await ref.ask(Ask(n), within=5)}")
        except Gone:
            outcomes.append(f"{n}: gone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, 2)
        await trio.testing.wait_all_tasks_blocked()
        await anext(aiter(box))
        box.abandon_in_hand()
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == ["1: gone"]
        nursery.start_soon(answering, box)
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == ["1: gone", "2: 4"]
        box.close()
    assert box.counters.lost == 1


@pytest.mark.autojump
async def test_again_sends_until_somebody_answers() -> None:
    post = Post()
    ref: Ref[Any] = Ref(post, "a")
    with pytest.raises(Gone):
        await ref.ask(Ask(1), within=5)
    with pytest.raises(TooSlow):
        await ref.ask(Ask(1), within=5, again=True)
    assert post.dead > 10
    async with trio.open_nursery() as nursery:
        box: Mailbox[Any] = Mailbox("a")

        async def appear() -> None:
            await trio.sleep(1)
            post.boxes["a"] = box
            await answering(box)

        nursery.start_soon(appear)
        assert await ref.ask(Ask(3), within=5, again=True) == 6
        box.close()


async def test_a_cached_ref_finds_the_slot_that_took_the_path() -> None:
    old, ref = pair()
    assert ref.offer(1)
    old.close()
    assert not ref.offer(2)
    new: Mailbox[Any] = Mailbox("a")
    ref._directory.boxes["a"] = new  # type: ignore[attr-defined]  # the test's own directory
    assert ref.offer(3)
    assert (old.depth, new.depth) == (1, 1)


async def test_down_gives_the_backlog_up_at_once() -> None:
    box, ref = pair()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Gone):
                await ref.ask(Ask(), within=5)

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        ref.offer(1)
        box.set_down(True)
    assert (box.depth, box.counters.dead) == (0, 2)
    box.open()
    assert ref.offer(1)


async def test_hold_ends_the_loop_and_keeps_the_mail() -> None:
    box, ref = pair()
    ref.offer(1)
    box.hold()
    assert await collect(box) == []
    assert ref.offer(2)
    box.open()
    box.close()
    assert await collect(box) == [1, 2]


async def test_an_ended_loop_can_be_cancelled_though_it_is_entered_again_and_again() -> None:
    box, _ = pair()
    box.close()
    with trio.move_on_after(0.01) as scope:
        while True:
            await collect(box)
    assert scope.cancelled_caught


async def test_a_reader_with_a_full_box_lets_others_run() -> None:
    box, ref = pair(limit=1000)
    seen: list[int] = []
    async with trio.open_nursery() as nursery:

        async def other() -> None:
            seen.append(box.depth)
            box.close()

        for n in range(1000):
            ref.offer(n)
        nursery.start_soon(other)
        await collect(box)
    assert seen[0] > 900


async def test_a_reply_slot_takes_the_first_answer_only() -> None:
    reply = Reply()
    reply.answer(1)
    reply.fault(ValueError())
    assert await reply.wait() == 1


STEP = st.one_of(
    st.tuples(st.just("offer"), st.integers(1, 5)),
    st.tuples(st.just("send"), st.integers(1, 5)),
    st.tuples(st.just("take"), st.integers(1, 5)),
    st.tuples(st.just("drain"), st.integers(1, 5)),
    st.tuples(st.just("crash"), st.just(0)),
    st.tuples(st.just("hold"), st.just(0)),
    st.tuples(st.just("nudge"), st.integers(1, 3)),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(STEP, max_size=60), st.integers(1, 8))
def test_nothing_is_lost_doubled_or_reordered_across_crashes(steps: list[tuple[str, int]], limit: int) -> None:
    async def play() -> None:
        box, ref = pair(limit)
        numbers = iter(range(10_000))
        accepted: list[int] = []
        seen: list[object] = []
        nudged = False

        async def send(n: int) -> None:
            await ref.send(n)

        async with trio.open_nursery() as nursery:
            for step, amount in steps:
                match step:
                    case "offer":
                        for _ in range(amount):
                            n, room = next(numbers), box.depth < limit
                            assert ref.offer(n) is room
                            if room:
                                accepted.append(n)
                    case "send":
                        for _ in range(min(amount, limit - box.depth)):
                            n = next(numbers)
                            await send(n)
                            accepted.append(n)
                    case "take":
                        for _ in range(min(amount, box.depth + nudged)):
                            message = await anext(aiter(box))
                            if message is NUDGE:
                                assert nudged
                                nudged = False
                            else:
                                seen.append(message)
                    case "drain":
                        seen.extend(m for m, _ in box.drain(amount))
                    case "crash":
                        box.abandon_in_hand()
                        box.open()
                    case "hold":
                        box.hold()
                        assert await collect(box) == []
                        box.open()
                    case "nudge":
                        for _ in range(amount):
                            ref.nudge()
                        nudged = True
            nursery.cancel_scope.cancel()
        box.close()
        seen.extend(m for m in await collect(box) if m is not NUDGE)
        assert seen == accepted
        assert box.counters.taken == len(accepted)

    trio.run(play)


# The same lines for mail within a process and between two.

by_every_way = pytest.mark.parametrize("kind", WAYS)


async def doubling(box: Mailbox[Any]) -> None:
    async for message in box:
        match message:
            case Twice(n) if n < 0:
                box.fault(Fault(Code.INVALID_MESSAGE, "negative", hint="Take another."))
            case Twice(n):
                box.reply(n * 2)
            case _:
                pass


@by_every_way
async def test_each_sender_s_messages_come_in_order_and_the_mailbox_stays_bounded(kind: str) -> None:
    async with way(kind) as (there, here):
        box, other = there.box("x", limit=8), there.box("y")
        ref, seen, deepest = here.ref("b/x"), dict[int, list[int]](), 0

        async def send(sender: int) -> None:
            for n in range(sender, 300, 3):
                await ref.send(Note(n))

        async def take() -> None:
            nonlocal deepest
            async for message in box:
                deepest = max(deepest, box.depth + 1)
                seen.setdefault(message.n % 3, []).append(message.n)
                if message.n % 16 == 0:
                    # One full mailbox holds nobody else up: an ask of its neighbour is answered all the while.
                    assert await here.ref("b/y").ask(Twice(1), within=10) == 2

        async with trio.open_nursery() as nursery:
            nursery.start_soon(doubling, other)
            async with trio.open_nursery() as work:
                for sender in range(3):
                    work.start_soon(send, sender)
                work.start_soon(take)
                while sum(map(len, seen.values())) < 300:
                    await trio.testing.wait_all_tasks_blocked(0.001)
                box.close()
            other.close()
        assert seen == {sender: [*range(sender, 300, 3)] for sender in range(3)}
        assert deepest <= 8
        assert box.counters.refused == 0


@by_every_way
async def test_an_ask_is_answered_faulted_missed_or_given_up(kind: str) -> None:
    async with way(kind) as (there, here), trio.open_nursery() as nursery:
        box = there.box("x", limit=2)
        ref = here.ref("b/x")
        ask = partial(ref.ask, within=10)

        nursery.start_soon(doubling, box)
        assert [await ask(Twice(n)) for n in range(5)] == [0, 2, 4, 6, 8]
        with pytest.raises(Fault) as caught:
            await ask(Twice(-1))
        assert caught.value.body == Fault(Code.INVALID_MESSAGE, "negative", hint="Take another.").body
        assert box.in_flight == 0
        box.hold()  # the actor's loop ends; mail waits
        assert ref.offer(Note(1))
        await ref.send(Note(2))
        with pytest.raises(Overloaded, match="b/x"):
            await ask(Twice(1))
        assert (box.depth, box.counters.refused) == (2, 1)
        box.drain(2)

        with pytest.raises(TooSlow, match=r"no answer to Twice within 0\.01 s"):
            await ref.ask(Twice(1), within=0.01)
        with trio.move_on_after(0.01):
            await ask(Twice(2))
        await trio.testing.wait_all_tasks_blocked(0.005)
        slots = [reply for _, reply in box.drain(2)]
        assert [reply is not None and reply.open for reply in slots] == [False, False]
        assert box.in_flight == 0
        box.settle(slots[0], 1)  # late: nobody hears it

        outcomes: list[str] = []

        async def lose() -> None:
            with pytest.raises(Gone, match="b/x"):
                await ask(Twice(1))
            outcomes.append("gone")

        nursery.start_soon(lose)
        nursery.start_soon(lose)
        while box.depth < 2:
            await trio.testing.wait_all_tasks_blocked(0.001)
        box.drain(1)
        box.abandon_in_hand()
        while not outcomes:
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert box.depth == 1
        box.set_down(True)
        with pytest.raises(Gone, match="b/x"):
            await ask(Twice(1))
        with pytest.raises(Gone, match="b/nobody"):
            await here.ref("b/nobody").ask(Twice(1), within=10)
    assert outcomes == ["gone", "gone"]
    assert there.dead == 1


@by_every_way
async def test_again_asks_until_somebody_is_there(kind: str) -> None:
    async with way(kind) as (there, here), trio.open_nursery() as nursery:
        ref = here.ref("b/x")

        async def appear() -> None:
            while not there.dead:
                await trio.testing.wait_all_tasks_blocked(0.001)
            await doubling(there.box("x"))

        nursery.start_soon(appear)
        assert await ref.ask(Twice(3), within=10, again=True) == 6
        there.boxes["b/x"].close()

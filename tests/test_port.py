"""Promises of one connection between two processes: gathered, bounded, fair, and nobody else's trouble when it ends."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Code, Fault
from protocol.frames import (
    Answered,
    Asked,
    Cast,
    ControlItem,
    Credit,
    Dropped,
    Full,
    Hello,
    Item,
    Missed,
    Ping,
    Pong,
    Quit,
    Ready,
    Room,
)
from protocol.mail import Gone, Overloaded, Request, TooSlow
from protocol.packing import PART, WINDOW, Packer, Unpacker
from protocol.spec import Up
from protocol.vocabulary import encoded
from supervisors import peer as peers
from supervisors.port import PAUSE_S, Port
from tests.ways import Fetch, House, Note, Twice, Whole, house, joined, socketpair


def data_of(*items: Item) -> bytes:
    packer = Packer()
    for item in items:
        packer.add(item)
    return b"".join(iter(lambda: bytes(packer.take() or b""), b""))


def body(message: object) -> memoryview:
    return memoryview(encoded(message))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.001)


class Raw:
    """The other end of a port, by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.came: list[Item] = []
        self._unpacker = Unpacker()

    async def say(self, *items: Item) -> None:
        await self.stream.send_all(data_of(*items))

    async def read(self, *kinds: type, count: int = 1) -> list[Any]:
        """Read until so many of these kinds came; those."""
        while len(found := [item for item in self.came if isinstance(item, kinds)]) < count:
            data = await self.stream.receive_some(65536)
            assert data, f"the port ended; came: {self.came}"
            for items in self._unpacker.feed(data):
                self.came += [copied(item) for item in items]
        return found

    async def ended(self) -> None:
        """Read until the port ends."""
        try:
            while data := await self.stream.receive_some(65536):
                for items in self._unpacker.feed(data):
                    self.came += [copied(item) for item in items]
        except trio.BrokenResourceError:
            pass  # it ended with something of ours unread


def copied(item: Item) -> Item:
    if isinstance(item, Cast | Asked | Answered):
        return msgspec.structs.replace(item, body=memoryview(bytes(item.body)))
    return item


@asynccontextmanager
async def raw(mine: House, role: str = "z", up: tuple[Up, ...] = ()) -> AsyncIterator[tuple[Raw, Port]]:
    """A port of ours with a peer by hand, which has said Hello."""
    assert mine.abroad is not None
    ours, theirs = socketpair()
    async with theirs, trio.open_nursery() as nursery:
        port = await nursery.start(mine.abroad.serve, ours)
        other = Raw(theirs)
        await other.say(Hello(role, 1, [*up]))
        await port.up()
        [hello] = await other.read(Hello)
        assert (hello.role, hello.incarnation) == (mine.role, 1)
        yield other, port
        nursery.cancel_scope.cancel()


class Counted(trio.abc.Stream):
    """Notes what is sent at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.sent: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_all_that_is_sent_in_one_tick_leaves_as_one_frame() -> None:
    a, b = house("a"), house("b")
    mine, theirs = socketpair()
    counted = Counted(mine)
    async with joined(a, b, (counted, theirs)):
        box, ref = b.box("x"), a.ref("b/x")
        for _ in range(3):
            before = len(counted.sent)
            for n in range(50):
                assert ref.offer(Note(n))
                await ref.send(Note(n))
            await until(lambda: box.depth == 100)
            [frame] = counted.sent[before:]
            assert int.from_bytes(frame[:4], "big") == len(frame) - 4
            box.drain(100)


async def test_small_casts_pass_between_the_parts_of_a_large_answer() -> None:
    a, b = house("a"), house("b")
    size = 40_000_000
    async with joined(a, b), trio.open_nursery() as nursery:
        large, small, asker = b.box("large"), b.box("small"), a.box("x")
        passed = 0

        async def answer() -> None:
            async for fetch in large:
                large.reply(bytes(fetch.size))

        async def echo() -> None:
            async for note in small:
                b.ref("a/x").offer(note)

        async def ping() -> None:
            nonlocal passed
            a.ref("b/small").offer(Note(0))
            async for note in asker:
                passed = note.n
                a.ref("b/small").offer(Note(note.n + 1))

        for task in (answer, echo, ping):
            nursery.start_soon(task)
        answered = await a.ref("b/large").ask(Fetch(size), within=15)
        # One there and back per some parts: they never waited for the whole.
        assert len(answered) == size
        assert passed > size // PART // 20
        nursery.cancel_scope.cancel()


async def test_large_messages_of_all_kinds_come_whole_and_in_order() -> None:
    a, b = house("a"), house("b")
    async with joined(a, b), trio.open_nursery() as nursery:
        box, ref = b.box("x"), a.ref("b/x")
        notes = [Note(n, bytes(100_000)) for n in range(20)]

        async def count() -> None:
            seen: list[int] = []
            async for message in box:
                if isinstance(message, Whole):
                    box.reply(2 * [*message.notes])
                    assert seen == [1, 2, 3]
                    return
                seen.append(message.n)

        nursery.start_soon(count)
        await ref.send(Note(1, bytes(3_000_000)))
        assert ref.offer(Note(2))
        assert ref.offer(Note(3, bytes(1_000_000)))
        assert await ref.ask(Whole(notes), within=10) == notes + notes


GARBAGE = {
    "too long": b"\xff\xff\xff\xff",
    "malformed": b"\0\0\0\x01\xc1",
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
    "torn": data_of(Ping(1))[:-1],
    "control": data_of(Quit()),
    "credit": data_of(Credit(255)),
    "hello": data_of(Hello("z", 1, [])),
    "twice": data_of(Asked(1, "a/x", body(Twice(1))), Asked(1, "a/x", body(Twice(1)))),
    "flood": data_of(*[Cast("a/none", False, body(Note(1)))] * (WINDOW + 1)),
    "end": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_a_port_that_breaks_ends_alone(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    a, b = house("a"), house("b")
    assert a.abroad is not None
    box = a.box("x")
    async with joined(a, b), trio.open_nursery() as nursery:
        other = b.box("x")
        tasks = trio.lowlevel.current_statistics().tasks_living
        ours, theirs = socketpair()
        peer = Raw(theirs)
        async with theirs:
            port = await nursery.start(a.abroad.serve, ours)
            await peer.say(Hello("z", 1, [Up("z/y", 1)]), Asked(7, "a/x", body(Twice(1))))
            await port.up()
            assert a.events[-1:] == [Up("z/y", 1)]

            async def lose() -> None:
                with pytest.raises(Gone, match="z/y"):
                    await a.ref("z/y").ask(Twice(1), within=10)

            async with trio.open_nursery() as asking:
                asking.start_soon(lose)
                await peer.read(Asked)
                await peer.stream.send_all(garbage)
                if garbage in (b"", GARBAGE["torn"]):
                    await trio.aclose_forcefully(peer.stream)
                else:
                    await peer.ended()
            slot = box.drain(1)[0][1]
            assert slot is not None
            assert not slot.open  # whoever asked is gone
            assert a.events[-1].path == "z/y"
            assert a.ref("z/y").offer(Note(1)) is False
        await until(lambda: trio.lowlevel.current_statistics().tasks_living == tasks)
        assert len(a.abroad.ports) == 1
        nursery.start_soon(ask_of, a, "b/x", 3)
        await until(lambda: other.depth)
        other.settle(other.drain(1)[0][1], 6)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (garbage != b"")
    assert all("the port to z" in line for line in said)


async def ask_of(mine: House, path: str, n: int) -> None:
    assert await mine.ref(path).ask(Twice(n), within=10) == 2 * n


@pytest.mark.autojump
async def test_who_says_no_hello_is_not_kept() -> None:
    a = house("a")
    assert a.abroad is not None
    one, _other = trio.testing.memory_stream_pair()
    port = Port(one, a.abroad, opened_by=None)
    before = trio.current_time()
    await port.serve(hello_within=10)
    assert trio.current_time() == before + 10
    with pytest.raises(Gone):
        await port.up()


async def test_without_credit_mail_waits_in_order_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "QUEUE", 40)
    a = house("a")
    async with raw(a) as (other, port), trio.open_nursery() as nursery:
        ref = a.ref("z/x")
        assert all(ref.offer(Note(n)) for n in range(WINDOW))
        assert (await other.read(Cast, count=WINDOW))[-1].to == "z/x"
        assert port.mail.under_way == WINDOW
        outcomes: list[str] = []

        async def send() -> None:
            await ref.send(Note(1000))
            outcomes.append("sent")

        async def give_up() -> None:
            with pytest.raises(TooSlow):
                await ref.ask(Twice(1), within=0.001)
            outcomes.append("too slow")

        nursery.start_soon(send)
        nursery.start_soon(give_up)
        await until(lambda: outcomes)
        assert outcomes == ["too slow"]
        assert all(ref.offer(Note(n)) for n in range(WINDOW, WINDOW + 40))
        assert not ref.offer(Note(0))
        with pytest.raises(Overloaded, match="z/x"):
            await ref.ask(Twice(1), within=10)
        await other.say(Credit(39))
        await other.read(Cast, count=WINDOW + 39)
        assert outcomes == ["too slow"]
        await other.say(Credit(2))
        sent = await other.read(Cast, Asked, count=WINDOW + 41)
        notes = [msgspec.msgpack.decode(cast.body, type=Note) for cast in sent]
        assert [note.n for note in notes] == [*range(WINDOW + 40), 1000]
        assert [cast.waits for cast in sent] == [False] * (WINDOW + 40) + [True]
        assert outcomes == ["too slow", "sent"]
        # The one that was given up before it left was never sent.
        assert not [item for item in other.came if isinstance(item, Asked | Dropped)]


async def test_an_address_that_is_full_holds_back_who_writes_to_it_and_nobody_else() -> None:
    a, b = house("a"), house("b")
    async with joined(a, b), trio.open_nursery() as nursery:
        full, free, ref = b.box("full", limit=2), b.box("free", limit=1000), a.ref("b/full")
        sent: list[int] = []

        async def send() -> None:
            for n in range(2 * WINDOW):
                await ref.send(Note(n))
                sent.append(n)

        nursery.start_soon(send)
        await until(lambda: full.depth == 2)
        await trio.testing.wait_all_tasks_blocked(0.005)
        # What left before the peer could say that it is full is taken there, and no more.
        assert len(sent) <= WINDOW
        assert not ref.offer(Note(-1))
        with pytest.raises(Overloaded):
            await ref.ask(Twice(1), within=10)
        for n in range(600):
            await a.ref("b/free").send(Note(n))
        await until(lambda: free.depth == 600)
        seen: list[int] = []
        while len(seen) < 2 * WINDOW:
            seen += [message.n for message, _ in full.drain(2)]
            assert full.depth <= 2
            await trio.testing.wait_all_tasks_blocked()
        assert seen == [*range(2 * WINDOW)] == sent
        await until(lambda: ref.offer(Note(-2)))
        await until(lambda: full.depth)
        assert full.counters.refused == 0


async def test_what_finds_a_full_or_a_queued_mailbox_is_refused_there() -> None:
    a = house("a")
    box = a.box("x", limit=1)
    async with raw(a) as (other, _):

        def cast(n: int, *, waits: bool) -> Cast:
            return Cast("a/x", waits, body(Note(n)))

        await other.say(cast(1, waits=False), cast(2, waits=False), Asked(1, "a/x", body(Twice(1))))
        assert await other.read(Missed) == [Missed(1, "overloaded", "a/x")]
        await other.say(cast(3, waits=True), cast(4, waits=True), cast(5, waits=False), Asked(2, "a/x", body(Twice(1))))
        assert (await other.read(Missed, count=2))[1] == Missed(2, "overloaded", "a/x")
        assert await other.read(Full) == [Full("a/x")]
        assert box.counters.refused == 4
        seen = [message.n for message, _ in box.drain(1)]
        for _ in range(2):
            await until(lambda: box.depth)
            seen += [message.n for message, _ in box.drain(1)]
        assert seen == [1, 3, 4]
        assert await other.read(Room) == [Room("a/x")]
        await other.say(cast(6, waits=True))
        await until(lambda: box.depth)
        box.close()
        await other.say(cast(7, waits=True), cast(8, waits=False), Asked(3, "a/x", body(Twice(1))))
        assert (await other.read(Missed, count=3))[2] == Missed(3, "gone", "a/x")
        assert box.counters.dead == 3
        await other.say(Asked(4, "a/y", body(Twice(1))))
        assert (await other.read(Missed, count=4))[3] == Missed(4, "gone", "a/y")
        assert a.dead == 1


class Odd(Request[int], frozen=True, tag=True):
    """Of no vocabulary."""


async def test_what_cannot_be_said_or_understood_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    a, b = house("a"), house("b")
    async with joined(a, b), trio.open_nursery() as nursery:
        box, ref = b.box("x"), a.ref("b/x")
        answers: dict[str, object] = {
            "large": bytes(70_000_000),
            "wrong": "text",
            "no data": object(),
            "mistake": ValueError("no"),
            "slow": TooSlow("b/y: no answer"),
            "fault": Fault(Code.TOOL_TIMEOUT, retryable=False),
        }
        outcomes: dict[str, str] = {}

        async def answer() -> None:
            async for message in box:
                if isinstance(message, Fetch):
                    box.settle(box.reply_slot, [*answers.values()][message.size])

        nursery.start_soon(answer)
        for size, name in enumerate(answers):
            with pytest.raises((Fault, TooSlow)) as caught:
                await ref.ask(Fetch(size), within=10)
            outcomes[name] = str(caught.value)
        internal = "INTERNAL: Something failed inside the service."
        assert outcomes == {
            "large": "MESSAGE_TOO_LARGE: The answer cannot be passed on: 70000005 bytes, 67108864 are allowed.",
            "wrong": internal,
            "no data": internal,
            "mistake": internal,
            "slow": "b/y: no answer",
            "fault": "TOOL_TIMEOUT: The tool did not answer in time.",
        }
        with pytest.raises(Fault, match=r"INTERNAL"):
            await ref.ask(Odd(), within=10)
        assert ref.offer(Odd())
        too_large = Note(1, bytes(70_000_000))
        assert not ref.offer(too_large)
        with pytest.raises(Fault, match=r"MESSAGE_TOO_LARGE: Note to b/x: 700\d+ bytes, 67108864 are allowed\."):
            await ref.send(too_large)
        with pytest.raises(Fault, match="MESSAGE_TOO_LARGE"):
            await ref.ask(Whole([too_large]), within=10)
        with pytest.raises(TypeError):
            ref.offer(object())
        before = box.counters.taken
        await ref.send(Note(1))
        await until(lambda: box.counters.taken > before)
        nursery.cancel_scope.cancel()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 5
    assert sum("Invalid value 'Odd'" in line for line in lines) == 2


class Notes:
    """`Control` that keeps what came, and fails at Quit."""

    def __init__(self) -> None:
        self.came: list[ControlItem] = []

    def control(self, port: Port, item: ControlItem) -> None:
        self.came.append(item)
        if isinstance(item, Ping):
            port.tell(Pong(item.n, 0.0, 0, 0.0))
        if item == Quit():
            raise LookupError("a mistake")


async def test_control_items_go_both_ways_before_any_hello_and_a_mistake_there_ends_the_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, notes = house("a"), Notes()
    assert a.abroad is not None
    ours, theirs = socketpair()
    async with theirs, trio.open_nursery() as nursery:
        peer = Raw(theirs)
        port = await nursery.start(lambda **more: a.abroad.serve(ours, control=notes, **more))  # type: ignore[union-attr]
        await peer.say(Ready(), Ping(4))
        assert await peer.read(Pong) == [Pong(4, 0.0, 0, 0.0)]
        await peer.say(Quit())
        await peer.ended()
        with pytest.raises(Gone):
            await port.up()
    assert notes.came == [Ready(), Ping(4), Quit()]
    assert "a mistake" in caplog.text


async def test_what_was_flushed_arrives_though_the_port_is_closed_at_once() -> None:
    a = house("a")
    async with raw(a) as (other, port):
        for n in range(200):
            assert a.ref("z/x").offer(Note(n, bytes(5000)))

        async def read() -> None:
            await other.ended()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await port.flush()
            port.close()
        assert len([item for item in other.came if isinstance(item, Cast)]) == 200
        await port.flush()  # of an ended one: nothing to wait for
        port.tell(Ready())


async def test_after_a_pause_an_item_leaves_at_once_and_what_the_kernel_does_not_take_follows_in_order() -> None:
    a = house("a")
    async with raw(a) as (other, port):
        assert isinstance(other.stream, trio.SocketStream)
        await until(lambda: time.perf_counter() - port._wrote_at > PAUSE_S)
        await trio.testing.wait_all_tasks_blocked()
        assert a.ref("z/x").offer(Note(1))
        came = other.stream.socket._sock.recv(1000)  # type: ignore[attr-defined]  # before any other task runs
        [[cast]] = Unpacker().feed(came)
        assert isinstance(cast, Cast)
        for n in range(2, 150):
            assert a.ref("z/x").offer(Note(n, bytes(5000)))
            if n % 10 == 0:
                await trio.testing.wait_all_tasks_blocked()
                await until(lambda: time.perf_counter() - port._wrote_at > PAUSE_S)
        casts = await other.read(Cast, count=148)
        assert [msgspec.msgpack.decode(cast.body)["n"] for cast in casts] == [*range(2, 150)]


class Choppy(trio.abc.Stream):
    """Gives what comes in pieces of random size, and takes its time."""

    def __init__(self, stream: trio.abc.Stream, rng: random.Random) -> None:
        self._stream = stream
        self._rng = rng

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            some = self._rng.choice([1, 7, 100, 5000, 100_000])
            await self._stream.send_all(view[:some])
            view = view[some:]

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(self._rng.choice([1, 3, 50, 4000, 65536]))

    async def aclose(self) -> None:
        await self._stream.aclose()


STEP = st.tuples(st.sampled_from(["offer", "send", "ask", "give up"]), st.integers(1, 90), st.sampled_from("xyz"))


@settings(deadline=None, max_examples=25)
@given(st.lists(STEP, max_size=12), st.integers(0, 2**32), st.integers(1, 300))
def test_whatever_the_splits_each_address_gets_all_that_was_taken_in_order(
    steps: list[tuple[str, int, str]], seed: int, limit: int
) -> None:
    async def play() -> None:
        rng = random.Random(seed)
        a, b = house("a"), house("b")
        one, other = trio.testing.memory_stream_pair()
        # Large enough for offers: those may be refused there by a full mailbox, which is another promise.
        boxes = {name: b.box(name, 2000 if name == "x" else limit) for name in "xyz"}
        seen: dict[str, list[int]] = {name: [] for name in boxes}
        taken: dict[str, list[int]] = {name: [] for name in boxes}
        given_up: set[int] = set()
        numbers = iter(range(100_000))

        async def act(name: str) -> None:
            box = boxes[name]
            async for message in box:
                # What was given up may have left already; if it has not, it never does.
                if message.n not in given_up:
                    seen[name].append(message.n)
                if isinstance(message, Twice):
                    box.reply(2 * message.n)

        async def do(verb: str, count: int, name: str) -> None:
            ref = a.ref(f"b/{name}")
            for _ in range(count):
                n = next(numbers)
                match verb:
                    case "offer" if name == "x":
                        assert ref.offer(Note(n))
                    case "ask" if name == "x":
                        taken[name].append(n)
                        assert await ref.ask(Twice(n), within=100) == 2 * n
                        continue
                    case "give up" if name == "x":
                        given_up.add(n)
                        with trio.move_on_after(0):
                            await ref.ask(Twice(n), within=100)
                        continue
                    case _:
                        await ref.send(Note(n, bytes(rng.choice([0, 10, 3000]))))
                taken[name].append(n)

        async with joined(a, b, (Choppy(one, rng), Choppy(other, rng))), trio.open_nursery() as nursery:
            for name in boxes:
                nursery.start_soon(act, name)
            for step in steps:
                await do(*step)
            await until(lambda: all(len(seen[name]) == len(taken[name]) for name in boxes))
            for box in boxes.values():
                box.close()
        assert seen == taken

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))

"""Promises of the exchange: who is reached how, what waits, what is told when a process comes or goes."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from protocol.frames import Hello
from protocol.mail import Gone, Mailbox
from protocol.spec import Child, Context, Down, Group, Restart, Up
from supervisors import exchange
from supervisors.exchange import Exchange
from supervisors.supervisor import Tree, running
from tests.test_port import Raw
from tests.ways import WORDS, House, Note, Twice, house, joined, listening, socketpair


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.001)


def abroad(mine: House) -> Exchange:
    assert mine.abroad is not None
    return mine.abroad


@asynccontextmanager
async def alive(mine: House, listener: trio.SocketListener | None = None) -> AsyncIterator[None]:
    """Its exchange runs; at the end that process dies."""
    async with trio.open_nursery() as nursery:
        await nursery.start(abroad(mine).run, listener)
        yield
        nursery.cancel_scope.cancel()


async def doubling(box: Mailbox[Any]) -> None:
    async for message in box:
        box.reply(message.n * 2)


async def ask(mine: House, path: str, n: int) -> None:
    assert await mine.ref(path).ask(Twice(n), within=10) == 2 * n


async def test_mail_for_a_process_that_is_not_there_yet_waits_and_its_end_and_return_are_told(tmp_path: Path) -> None:
    address = str(tmp_path / "b")
    a = house("a", addresses={"b": address})
    first, second = house("b", 1), house("b", 2)
    first.ready = second.ready = [Up("b/x", 1)]
    async with alive(a), trio.open_nursery() as nursery:
        # Before anybody has bound the socket, then before anybody takes connections from it.
        assert a.ref("b/x").offer(Note(1))
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with listening(address) as listener:
            await a.ref("b/x").send(Note(2))
            nursery.start_soon(ask, a, "b/x", 3)
            await trio.testing.wait_all_tasks_blocked(0.02)
            box = first.box("x")
            async with alive(first, listener):
                await until(lambda: box.depth == 3)
                assert [message.n for message, _ in box.drain(2)] == [1, 2]
                assert a.events == [Up("b/x", 1)]
                abroad(first).told(Down("b/x", 1, "no", 0, parked=False))
                abroad(first).told(Up("b/x", 2))
                box.reply(0)
                _, slot = box.drain(1)[0]
                box.settle(slot, 6)
                await until(lambda: Up("b/x", 2) in a.events)

                async def lose() -> None:
                    with pytest.raises(Gone, match="b/x"):
                        await ask(a, "b/x", 1)

                nursery.start_soon(lose)
                await until(lambda: box.depth)
            # It has died with an ask in hand. The next one gets what is sent meanwhile.
            gone: list[Down | Up] = [Down("b/x", 2, "its process ended", None, parked=False)]
            await until(lambda: a.events[-1:] == gone)
            box = second.box("x")
            assert a.ref("b/x").offer(Note(4))
            nursery.start_soon(ask, a, "b/x", 5)
            async with alive(second, listener):
                nursery.start_soon(doubling, box)
                await until(lambda: box.counters.taken == 2)
                assert a.events[-2:] == [*gone, Up("b/x", 1)]
                assert not abroad(a).peers["b"].waiting
                await ask(a, "b/x", 7)
                box.close()


async def test_a_lost_connection_is_made_again_without_mail_to_send(tmp_path: Path) -> None:
    address = str(tmp_path / "b")
    a, b = house("a", addresses={"b": address}), house("b")
    b.ready = [Up("b/x", 1)]
    async with listening(address) as listener, alive(a), alive(b, listener):
        a.ref("b/x").offer(Note(1))
        for times in range(1, 4):
            await until(lambda times=times: len(a.events) == 2 * times - 1)  # type: ignore[misc]  # a default in a lambda
            next(iter(abroad(b).ports)).close()
        await until(lambda: len(a.events) == 7)
        came, went = Up("b/x", 1), Down("b/x", 1, "its process ended", None, parked=False)
        assert a.events == [*[came, went] * 3, came]


async def test_when_both_connect_at_once_one_connection_carries_all_in_order(tmp_path: Path) -> None:
    for n in range(8):
        addresses = {role: str(tmp_path / f"{role}{n}") for role in "ab"}
        houses = [house(role, addresses=addresses) for role in "ab"]
        a, b = houses
        boxes = [a.box("x"), b.box("x")]
        async with listening(addresses["a"]) as one, listening(addresses["b"]) as two:
            async with alive(a, one), alive(b, two):
                for n in range(100):
                    await a.ref("b/x").send(Note(n))
                    await b.ref("a/x").send(Note(n))
                await until(lambda boxes=boxes: all(box.depth == 100 for box in boxes))  # type: ignore[misc]  # likewise
                await until(lambda a=a, b=b: len(abroad(a).ports) == len(abroad(b).ports) == 1)  # type: ignore[misc]  # likewise
                [port], [other] = abroad(a).ports, abroad(b).ports
                assert port is abroad(a).peers["b"].port
                assert other is abroad(b).peers["a"].port
                assert port.opened_by == other.opened_by
                assert all([message.n for message, _ in box.drain(100)] == [*range(100)] for box in boxes)
                assert a.events == b.events == []


async def test_a_socketpair_is_kept_over_a_connection_and_a_successor_over_its_predecessor(tmp_path: Path) -> None:
    address = str(tmp_path / "b")
    a, b, c = house("a", addresses={"b": address}), house("b"), house("b", 2)
    b.ready, c.ready = [Up("b/x", 1)], [Up("b/x", 5)]
    async with listening(address) as listener, alive(b, listener), trio.open_nursery() as nursery:
        async with alive(a):
            async with joined(a, b):
                kept = abroad(a).peers["b"].port
                stream = await trio.open_unix_socket(address)
                async with stream:
                    # "a" once more: what is refused is closed, and nobody is told anything.
                    again = Raw(stream)
                    await again.say(Hello("a", 1, []))
                    await again.ended()
                assert abroad(a).peers["b"].port is kept
                assert a.events == [Up("b/x", 1)]
                async with joined(a, c):
                    gone = Down("b/x", 1, "its process ended", None, parked=False)
                    assert a.events == [Up("b/x", 1), gone, Up("b/x", 5)]
                    box = c.box("x")
                    nursery.start_soon(doubling, box)
                    await ask(a, "b/x", 2)
                    box.close()
                await until(lambda: len(a.events) == 5)
                assert abroad(a).peers["b"].port is kept


@pytest.mark.parametrize(
    ("hello", "why"),
    [(Hello("a", 1, []), "it says that it is a, as we are"), (Hello("c", 1, []), "it says that it is c where b was")],
)
async def test_who_is_not_who_it_should_be_gets_no_mail(
    tmp_path: Path, hello: Hello, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "b")
    a = house("a", addresses={"b": address})
    async with listening(address) as listener, alive(a):
        a.ref("b/x").offer(Note(1))
        for _ in range(2):
            async with await listener.accept() as stream:
                other = Raw(stream)
                assert await other.read(Hello) == [Hello("a", 1, [])]
                await other.say(hello)
                await other.ended()
                assert len(other.came) == 1
    assert why in caplog.text
    assert a.events == []
    assert "c" not in abroad(a).peers


async def test_paths_that_nobody_has_are_dead_letters_and_own_ones_stay_at_home() -> None:
    a = House("a", abroad=Exchange("a", vocabulary=WORDS, place=lambda path: "a" if path == "special" else path[0]))
    abroad(a).attach(a)
    for path in ("special", "a/none", "c/x"):
        assert not a.ref(path).offer(Note(1))
        with pytest.raises(Gone, match=path):
            await a.ref(path).send(Note(1))
    assert a.dead == 6
    b = house("b")
    async with joined(a, b):
        ref = a.ref("b/x")
        assert ref.offer(Note(1))
        ref.nudge()
        await until(lambda: b.dead)
    with pytest.raises(Gone, match="b/x"):
        await ref.ask(Twice(1), within=10)
    assert abroad(a).peers["b"].counters.dead == 1  # the nudge
    assert not ref.offer(Note(1))
    assert a.dead == 8


async def test_connections_are_taken_again_when_descriptors_had_run_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exchange, "CROWDED_S", 0.0)
    ours, theirs = socketpair()

    class Crowded:
        """Of a process that has no descriptors left for a while."""

        def __init__(self) -> None:
            self.results: list[Exception | trio.SocketStream] = [OSError(errno.EMFILE, "too many"), ours]

        async def accept(self) -> trio.SocketStream:
            if not self.results:
                raise trio.ClosedResourceError
            result = self.results.pop(0)
            if isinstance(result, Exception):
                raise result
            return result

    a = house("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(abroad(a).accept, cast(Any, Crowded()))  # a listener is final
        other = Raw(theirs)
        await other.say(Hello("z", 1, []))
        await other.read(Hello)
        await trio.aclose_forcefully(theirs)
    assert "no connection can be taken: [Errno 24] too many" in caplog.text


# Two trees: the product's own parts, in two processes but for the process.


async def echo(box: Mailbox[Any], ctx: Context) -> None:
    async for message in box:
        if message.n < 0:
            raise ValueError("negative")
        box.reply(message.n * 2)


@asynccontextmanager
async def trees(seen: list[object]) -> AsyncIterator[tuple[Tree, Tree]]:
    async def watch(box: Mailbox[Any], ctx: Context) -> None:
        ctx.watch("b")
        ctx.watch("logs")
        async for event in box:
            seen.append(event)

    async def idle(box: Mailbox[Any], ctx: Context) -> None:
        async for _ in box:
            pass

    one, other = Exchange("a", vocabulary=WORDS), Exchange("b", vocabulary=WORDS)
    a = Group("a", (Child("logs", idle), Group("a", (Child("watch", watch), Child("echo", echo)))))
    b = Group(
        "b",
        (
            Child("logs", idle),
            Group("b", (Child("echo", echo), Group("sessions", dynamic=True), Child("local", idle))),
        ),
    )
    mine, theirs = socketpair()
    async with trio.open_nursery() as nursery:
        first = await nursery.start(one.serve, mine)
        await nursery.start(other.serve, theirs)
        async with running(a, abroad=one) as tree:
            assert not first.role  # the other end has no tree yet: it has not said Hello
            async with running(b, abroad=other) as second:
                await first.up()
                yield tree, second
        nursery.cancel_scope.cancel()


async def test_two_trees_are_one_for_who_writes_watches_and_asks() -> None:
    seen: list[object] = []
    async with trees(seen) as (a, b):
        ref = a.ref("b/echo")
        assert await ref.ask(Twice(4), within=10) == 8
        with pytest.raises(Gone, match="b/echo"):
            await ref.ask(Twice(-1), within=10)
        assert await ref.ask(Twice(5), within=10, again=True) == 10
        session = Child("s1", echo, restart=Restart.TEMPORARY)
        await b.start_child("b/sessions", session)
        assert await a.ref("b/sessions/s1").ask(Twice(1), within=10) == 2
        await b.restart("logs")
        await b.restart("b/local")
        await until(lambda: Up("b/local", 2) in seen)
        with pytest.raises(Gone):
            await a.ref("b/none").ask(Twice(1), within=10)
        assert b.dead_letters == 1
        assert a.dead_letters == 0
        assert a.mailbox("logs") is a.slots["logs"].box  # each has its own
        assert a.mailbox("c/x") is None
        assert a.dead_letters == 1
        assert await b.ref("a/echo").ask(Twice(1), within=10) == 2
    assert seen == [
        *[Up(path, 1) for path in ("b/echo", "b/local")],
        Down("b/echo", 1, "ValueError: negative", 0, parked=False),
        Up("b/echo", 2),
        Down("b/local", 1, "restarted by hand", 0, parked=False),
        Up("b/local", 2),
    ]


async def test_a_process_below_another_is_told_of_the_actors_that_the_other_hears_of() -> None:
    front, middle, below = house("f"), house("m"), house("b", place=lambda _: "m")
    front.ready = [Up("f/gateway", 1)]
    abroad(middle).relay("b")
    gone: list[Down | Up] = [Down("f/gateway", 2, "its process ended", None, parked=False)]
    async with joined(middle, front):
        async with joined(middle, below):
            await until(lambda: below.events == [Up("f/gateway", 1)])  # it came later, and hears of what was there
            own = below.boxes["logs"] = below.box("logs")  # every process has one, so others say whose is meant
            inlet = abroad(middle).house("b//logs")
            assert inlet is not None
            assert inlet.put(Note(1))
            await until(lambda: own.depth == 1)
            assert abroad(below).house("b//logs") is own
            abroad(front).told(Up("f/gateway", 2))
            await until(lambda: below.events[1:] == [Up("f/gateway", 2)])
            for port in [*abroad(front).ports]:
                port.close()
            await until(lambda: below.events[2:] == gone)
            async with joined(middle, front):
                await until(lambda: below.events[3:] == [Up("f/gateway", 1)])

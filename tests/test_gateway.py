"""Promises of the gateway's loop: growth reaches the store, drains end turns, notices tell of parts that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from actors.gateway import AT_ONCE, grown, growth_of
from actors.turnlog import TurnLog
from protocol.errors import Code, Fault
from protocol.gateway import StopTaking
from protocol.mcp_server import Catalogue
from protocol.spec import Down, Up
from protocol.writer import Append, AppendDeltas, BeginTurn, Done, ListUnfinished
from tests.fakes import Script, Stall, say
from tests.service import front_of, of_type, service, text_of


class NoDisk(Exception):
    """What taps raise."""


async def test_what_grows_is_stored_while_the_answer_runs(tmp_path: Path) -> None:
    gate, ticked = trio.Event(), trio.Event()
    stored: list[str] = []
    async with service(tmp_path, Script(("Hel", "lo", Stall(gate))) + say("!").items) as s, s.client() as client:

        def see(message: object) -> None:
            if isinstance(message, AppendDeltas):
                stored.append("".join(delta.text for delta in message.deltas))
                ticked.set()

        s.tree.tap("store/writer", see)
        await client.send("user_message", message="hi")
        await ticked.wait()
        assert "Hello".startswith("".join(stored))
        gate.set()
        await client.until("turn_finished")


async def test_persist_deltas_false_stores_no_text_of_a_running_answer(tmp_path: Path) -> None:
    settings = {"chat": {"service": {"streaming": {"persistence": {"persist_deltas": False, "interval_ms": 10}}}}}
    messages: list[str] = []
    async with service(tmp_path, say("Hel", "lo"), settings=settings, interval=0.05) as s, s.client() as client:
        s.tree.tap("store/writer", lambda message: messages.append(type(message).__name__))
        frames = await client.say("hi")
        assert text_of(frames) == "Hello"
        assert "Append" in messages
        assert "AppendDeltas" not in messages


async def test_where_no_text_is_stored_much_of_it_wakes_nobody(tmp_path: Path) -> None:
    persistence = {"persist_deltas": False, "interval_ms": 60_000, "min_chars": 100}
    settings = {"chat": {"service": {"streaming": {"persistence": persistence}}}}
    async with service(tmp_path, say(*["x" * 150] * 9), settings=settings) as s, s.client() as client:
        waited_for = front_of(s).flush
        await client.say("hi")
        assert front_of(s).flush is waited_for
        assert not waited_for.is_set()


async def test_much_text_does_not_wait_for_the_tick(tmp_path: Path) -> None:
    persistence = {"persist_deltas": True, "interval_ms": 60_000, "min_chars": 100}
    settings = {"chat": {"service": {"streaming": {"persistence": persistence}}}}
    gate, ticked = trio.Event(), trio.Event()
    async with (
        service(tmp_path, Script(("x" * 150, Stall(gate))) + say("!").items, settings=settings) as s,
        s.client() as client,
    ):
        s.tree.tap("store/writer", lambda message: ticked.set() if isinstance(message, AppendDeltas) else None)
        await client.send("user_message", message="hi")
        await ticked.wait()
        gate.set()
        await client.until("turn_finished")


async def test_what_comes_while_a_tick_is_stored_counts_for_the_next(tmp_path: Path) -> None:
    persistence = {"persist_deltas": True, "interval_ms": 60_000, "min_chars": 100}
    settings = {"chat": {"service": {"streaming": {"persistence": persistence}}}}
    gate, second = trio.Event(), trio.Event()
    stored: list[str] = []
    async with (
        service(tmp_path, Script(("x" * 150, Stall(gate))) + say("!").items, settings=settings) as s,
        s.client() as client,
    ):

        def see(message: object) -> None:
            if isinstance(message, AppendDeltas):
                stored.append("".join(delta.text for delta in message.deltas))
                if len(stored) == 1:
                    [running] = front_of(s).running()
                    running.add("y" * 120)
                else:
                    second.set()

        s.tree.tap("store/writer", see)
        await client.send("user_message", message="hi")
        await second.wait()  # within the test's time: it does not wait for the tick's
        assert stored == ["x" * 150, "y" * 120]
        gate.set()
        await client.until("turn_finished")


@pytest.mark.parametrize("pause", [3600.0, 0.001])
async def test_a_store_that_refuses_is_not_asked_for_each_piece_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    persistence = {"persist_deltas": True, "interval_ms": 60_000, "min_chars": 100}
    settings = {"chat": {"service": {"streaming": {"persistence": persistence}}}}
    gate, asked = trio.Event(), trio.Event()
    visit = ListUnfinished()  # there and back: what was sent before is there, too
    ticks: list[str] = []
    taken: list[object] = []

    def full(_: object, message: AppendDeltas, __: object) -> Done | Fault:
        """In the store's thread, or here."""
        if len(ticks) < 4:
            return Fault(Code.STORAGE_FULL)
        taken.append(message)
        return Done()

    def see(message: object) -> None:
        if isinstance(message, AppendDeltas):
            ticks.append("".join(delta.text for delta in message.deltas))
            asked.set()

    monkeypatch.setattr("actors.gateway.REFUSED_S", pause)
    monkeypatch.setattr("actors.ticks.append_deltas", full)
    async with (
        service(tmp_path, Script(("x" * 150, Stall(gate))) + say("!").items, settings=settings) as s,
        s.client() as client,
    ):
        s.tree.tap("store/writer", see)
        await client.send("user_message", message="hi")
        await asked.wait()
        [running] = front_of(s).running()
        for _ in range(9):
            front_of(s).grew(running)
            await s.tree.ref("store/writer").ask(visit, within=10)
        if pause > 1:
            assert ticks == ["x" * 150]
        else:
            while not taken:
                front_of(s).grew(running)
                await s.tree.ref("store/writer").ask(visit, within=10)
            assert ticks[:4] == ["x" * 150] * 4
        gate.set()
        await client.until("turn_finished")
    assert caplog.text.count("is not stored yet") == 1
    assert caplog.text.count("is stored again") == (pause < 1)


async def test_a_drain_lets_turns_end_and_refuses_new_ones(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items) as s, s.client() as client:
        await client.send("user_message", message="one")
        await client.until("assistant_delta")
        async with trio.open_nursery() as nursery:
            cut: list[int] = []

            async def drain() -> None:
                cut.append(await s.ref("front/gateway").ask(StopTaking(grace_s=10.0), within=15.0))

            nursery.start_soon(drain)
            while True:
                status, _, body = await s.get("/readyz")
                if status == 503:
                    break
            assert b"shutting down" in body
            await client.send("user_message", message="two", request_id="r2")
            [*_, error] = await client.until("error")
            assert (error["error_code"], error["request_id"]) == ("SHUTTING_DOWN", "r2")
            gate.set()
            frames = await client.until("turn_finished")
            assert frames[-1]["outcome"] == "completed"
        assert cut == [0]


async def test_a_drain_waits_for_a_message_that_is_not_on_disk_yet(tmp_path: Path) -> None:
    trying = trio.Event()
    order: list[str] = []
    async with service(tmp_path, say("answered")) as s, s.client() as client:

        def no_store(message: object) -> None:
            if isinstance(message, BeginTurn):
                trying.set()
                raise NoDisk

        def see(message: object) -> None:
            if isinstance(message, Append) and message.key == "closed":
                order.append("closed")

        async def drain() -> None:
            order.append(str(await s.ref("front/gateway").ask(StopTaking(grace_s=10.0), within=15.0)))

        s.tree.tap("store/writer", no_store)
        await client.send("user_message", message="hi")
        await trying.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            while front_of(s).taking:
                await client.alive()
            await client.alive()
            s.tree.tap("store/writer", see)
            frames = await client.until("turn_finished")
            assert frames[-1]["outcome"] == "completed"
        assert order == ["closed", "0"]


async def test_a_drain_cuts_off_what_is_never_stored_either(tmp_path: Path) -> None:
    async with service(tmp_path, say("unseen")) as s, s.client() as client:
        trying = trio.Event()

        def no_store(message: object) -> None:
            if isinstance(message, BeginTurn):
                trying.set()
                raise NoDisk

        s.tree.tap("store/writer", no_store)
        await client.send("user_message", message="hi", request_id="r1")
        await trying.wait()
        async with trio.open_nursery() as nursery:
            cut: list[int] = []

            async def drain() -> None:
                cut.append(await s.ref("front/gateway").ask(StopTaking(grace_s=0.05), within=15.0))

            nursery.start_soon(drain)
            session = s.tree.slots[f"front/sessions/{client.conversation}"]
            drained = trio.Event()
            session.box.on_take = lambda message: drained.set() if getattr(message, "now", False) else None
            await drained.wait()
            s.tree.tap("store/writer", None)
            frames = await client.until("turn_finished")
            assert frames[-1]["outcome"] == "interrupted"
        assert cut == [1]


async def test_a_drain_cuts_off_what_does_not_end(tmp_path: Path) -> None:
    async with service(tmp_path, Script(("half", Stall()))) as s, s.client() as client:
        await client.send("user_message", message="one")
        await client.until("assistant_delta")
        assert await s.ref("front/gateway").ask(StopTaking(grace_s=0.05), within=15.0) == 1
        frames = await client.until("turn_finished")
        assert frames[-1]["outcome"] == "interrupted"
        assert of_type(frames, "assistant_message")[0]["message"] == "half"
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.send("history")
        page = (await client.until("history"))[-1]
        assert [m["status"] for m in page["messages"]] == ["interrupted", "interrupted"]


async def test_a_crashed_part_is_told_and_its_return_too(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:

        def die(_: object) -> None:
            s.tree.tap("llm/streamer", None)
            raise RuntimeError("broken on purpose")

        s.tree.tap("llm/streamer", die)
        s.ref("llm/streamer").nudge()
        [*_, degraded] = await client.until("degraded")
        assert degraded["what"] == "llm/streamer"
        assert "broken on purpose" in degraded["reason"]
        [*_, recovered] = await client.until("recovered")
        assert recovered["what"] == "llm/streamer"


async def test_a_tool_server_is_back_when_it_says_what_it_has(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        gateway = s.ref("front/gateway")
        for incarnation in (1, 2):
            gateway.offer(Down("mcp/odd", incarnation, "nobody there", 100, parked=False))
            gateway.offer(Up("mcp/odd", incarnation + 1))  # it runs, and has no connection yet
        gateway.offer(Catalogue("odd", [], [], [], ""))
        gateway.offer(Down("mcp/odd", 3, "gone again", None, parked=True))
        gateway.offer(Down("mcp/odd", 3, "", None, parked=False))  # taken out of the configuration
        kinds = [frame["type"] for frame in [await client.next() for _ in range(5)]]
        assert kinds == ["degraded", "degraded", "recovered", "degraded", "recovered"]
        assert "mcp/odd" not in front_of(s).down


def test_a_tick_that_was_not_acknowledged_is_sent_again_unchanged() -> None:
    log = TurnLog("c", 1)
    log.attached = True
    log.begin_hop(1, 7)
    log.add("one ")
    first = grown(log)
    log.add("two ")
    assert grown(log) == first
    log.stored = log.sending
    second = grown(log)
    assert second is not None
    assert (second.seq, second.text) == (2, "two ")
    log.stored = log.sending
    assert grown(log) is None


async def test_deltas_go_out_while_the_growth_of_many_turns_is_gathered() -> None:
    logs = [TurnLog(f"c{number}", 1) for number in range(AT_ONCE * 5)]
    for log in logs:
        log.attached = True
        log.add("before", thinking=True)
        log.add("text")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            logs[-1].add("meanwhile")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        growth = await growth_of(logs)
        nursery.cancel_scope.cancel()
    assert turns >= 3
    assert [log for log, _ in growth] == logs
    assert {(delta.thinking, delta.text) for _, delta in growth[:-1]} == {("before", "text")}
    last = growth[-1][1]
    assert last.text.startswith("text" + "meanwhile" * 3)
    assert logs[-1].sending == last.seq

"""What front keeps straight: every socket reads every turn once, from turn_started to its end, at its own speed."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors.client_socket import HOLD_S, Socket
from actors.front import LOADING_S, Conversation, Front
from actors.listening import Listening
from actors.outbox import Outbox
from actors.turnlog import TurnLog
from protocol.client import Degraded, Pong, ToolExecution, TurnFinished, TurnStarted
from protocol.mcp_server import Catalogue, Tool
from protocol.session import Say
from protocol.spec import Child, KeepContext
from tests.test_transcript import configured
from tests.wsframes import decoded

Frame = dict[str, Any]


class Sink:
    """An outbox without a connection, whose room the test decides."""

    def __init__(self) -> None:
        self.data = b""
        self.room = 10**9
        self.frame_s = 0.0
        self.on_room: Callable[[], None] | None = None
        self.fails = False
        self.later: list[tuple[float, Callable[[], None]]] = []

    def after(self, seconds: float, call: Callable[[Any], None], about: Any) -> None:
        self.later.append((seconds, lambda: call(about)))

    @property
    def full(self) -> bool:
        return self.room <= 0

    def write(self, data: bytes) -> None:
        if self.fails:
            raise RuntimeError("this socket is in trouble")
        self.data += data
        self.room -= len(data)

    def drain(self, room: int) -> None:
        """The peer took bytes."""
        self.room = room
        if self.on_room is not None:
            self.on_room()

    def frames(self) -> list[Frame]:
        return decoded(self.data)


class House:
    """A front whose supervisor only takes notes."""

    def __init__(self) -> None:
        self.started: list[Child] = []
        self.stopped: list[str] = []
        context = SimpleNamespace(
            path="front/gateway",
            start_child=lambda _, child: self.started.append(child),
            stop_child=self.stopped.append,
            ref=lambda path: SimpleNamespace(path=path, there=False, offer=lambda _: True),
        )

        async def status() -> bytes:
            return b""

        self.front = Front(cast(KeepContext, context), configured(), listening=cast(Listening, None), status=status)
        self.closed: list[tuple[int, int]] = []

    def socket(self) -> tuple[Socket, Sink]:
        sink, number = Sink(), self.front.next_number()
        socket = Socket(number, cast(Outbox, sink), lambda code, _: self.closed.append((number, code)))
        self.front.sockets[number] = socket
        return socket, sink


def begin(conversation: Conversation, turn: int, *, streaming: bool = True) -> TurnLog:
    log = TurnLog(conversation.id, turn, streaming=streaming)
    log.begin(TurnStarted(turn, f"message {turn}", "m", "p"))
    conversation.attach(log)
    return log


def end(conversation: Conversation) -> None:
    log = conversation.tail
    log.add_frame(lambda seq: TurnFinished(log.turn, seq, "completed"))
    conversation.finish()


def tool(log: TurnLog) -> None:
    log.add_frame(lambda seq: ToolExecution(log.turn, seq, "x", "add", "demo", "executing"))


def in_trio(play: Callable[[], None]) -> None:
    async def run() -> None:
        play()

    trio.run(run)


@given(rng=st.randoms(use_true_random=False), steps=st.integers(5, 80))
def test_sockets_that_come_and_read_at_any_time_miss_nothing_and_get_nothing_twice(
    rng: random.Random, steps: int
) -> None:
    in_trio(lambda: _play(rng, steps))


def _play(rng: random.Random, steps: int) -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    sinks: list[tuple[Sink, int | None, int]] = []
    """With the turn that ran when it came, and the first turn that it gets whole."""
    texts: dict[int, str] = {}
    tools: dict[int, list[int]] = {}
    turn = 0
    for step in range(steps):
        choice, live = rng.random(), conversation.live
        if choice < 0.15:
            socket, sink = house.socket()
            sink.room = rng.choice([0, 50, 10**9])
            house.front.enter(socket, conversation)
            sinks.append((sink, live.turn if live else None, turn + 1))
        elif live is None and choice < 0.5:
            turn += 1
            begin(conversation, turn)
            texts[turn], tools[turn] = "", []
        elif live is not None and choice < 0.55:
            end(conversation)
        elif live is not None and choice < 0.65:
            tool(live)
            tools[turn].append(live.seq)
            conversation.pump()
        elif live is not None and choice < 0.85:
            live.add(f"<{step}>")
            texts[turn] += f"<{step}>"
            conversation.pump()
        elif choice < 0.97 and sinks:
            rng.choice(sinks)[0].drain(rng.choice([1, 200, 10**9]))
        else:
            conversation.let_go()
    if conversation.live is not None:
        end(conversation)
    for sink, joined, first in sinks:
        for _ in range(200):
            sink.drain(10**9)
        frames = sink.frames()
        seen = [f["turn"] for f in frames if f["type"] == "turn_started"]
        assert seen == ([joined] if joined else []) + list(range(first, turn + 1))
        assert [f["turn"] for f in frames if f["type"] == "turn_finished"] == seen
        assert [f["turn"] for f in frames] == sorted(f["turn"] for f in frames)
        for number in seen:
            of_turn = [f for f in frames if f["turn"] == number]
            assert of_turn[0]["type"] == "turn_started"
            assert of_turn[-1]["type"] == "turn_finished"
            seqs = [f["seq"] for f in of_turn[1:]]
            assert seqs == sorted(set(seqs))
            text = "".join(f.get("text", "") for f in of_turn)
            calls = [f["seq"] for f in of_turn if f["type"] == "tool_execution"]
            assert text == texts[number]
            assert calls == tools[number]


async def test_who_comes_while_a_turn_runs_gets_it_from_its_start() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    log = begin(conversation, 1)
    log.add("half a sent")
    socket, sink = house.socket()
    house.front.enter(socket, conversation)
    log.add("ence")
    conversation.pump()
    assert [(f["type"], f.get("text")) for f in sink.frames()] == [
        ("turn_started", None),
        ("assistant_delta", "half a sentence"),
    ]


async def test_of_a_log_that_is_over_a_quiet_reader_gets_whole_frames_and_of_the_next_one_all() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    log = begin(conversation, 1)
    log.add("text")
    tool(log)
    log.add("more")
    end(conversation)
    socket, sink = house.socket()
    house.front.enter(socket, conversation)
    socket.place(log, 1, headed=True, quiet=True)
    socket.pump()
    begin(conversation, 2).add("all")
    end(conversation)
    assert [(f["type"], f["turn"]) for f in sink.frames()] == [
        ("tool_execution", 1),
        ("turn_finished", 1),
        ("turn_started", 2),
        ("assistant_delta", 2),
        ("turn_finished", 2),
    ]


@pytest.mark.parametrize("how", ["time", "release", "again"])
async def test_a_held_socket_gets_nothing_until_it_has_said_where_it_was(how: str) -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    socket, sink = house.socket()
    house.front.enter(socket, conversation)
    socket.hold()
    [(seconds, expire)] = sink.later
    assert seconds == HOLD_S
    begin(conversation, 1).add("text")
    end(conversation)
    sink.drain(10**9)
    assert sink.data == b""
    if how == "time":
        expire()
    else:
        socket.release()
    assert [f["type"] for f in sink.frames()] == ["turn_started", "assistant_delta", "turn_finished"]
    if how == "again":  # held anew: the time of the first hold does not end the second
        socket.hold()
        begin(conversation, 2)
        expire()
        assert len(sink.frames()) == 3
        sink.later[1][1]()
        assert len(sink.frames()) == 4


async def test_who_wants_fewer_frames_gets_text_in_lumps_and_all_else_at_once() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    _, sink = house.socket()
    _, beside = house.socket()
    for one in house.front.sockets.values():
        house.front.enter(one, conversation)
    sink.frame_s = 1000
    log = begin(conversation, 1)

    def add(text: str) -> None:
        log.add(text)
        conversation.pump()

    for text in "abc":
        add(text)
    seen = ("turn_started", None), ("assistant_delta", "a")
    assert tuple((f["type"], f.get("text")) for f in sink.frames()) == seen
    [(seconds, timer)] = sink.later
    assert 0 < seconds <= 1000
    timer()
    assert (sink.frames()[2]["text"], sink.frames()[2]["seq"]) == ("bc", 3)
    for text in "de":
        add(text)
    tool(log)
    conversation.pump()
    assert [(f["type"], f["seq"]) for f in sink.frames()[3:]] == [("assistant_delta", 5), ("tool_execution", 6)]
    sink.later.pop()[1]()  # nothing has come since
    assert len(sink.frames()) == 5
    add("f")
    add("g")
    end(conversation)
    assert [f["type"] for f in sink.frames()[-2:]] == ["assistant_delta", "turn_finished"]
    assert "".join(f.get("text", "") for f in sink.frames()) == "abcdefg"
    assert [f["text"] for f in beside.frames() if "text" in f] == [*"abcdefg"]


async def test_a_socket_in_trouble_ends_alone() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    (bad, broken), (good, sink) = house.socket(), house.socket()
    for socket in (bad, good):
        house.front.enter(socket, conversation)
    broken.fails = True
    begin(conversation, 1).add("text")
    end(conversation)
    assert [f["type"] for f in sink.frames()] == ["turn_started", "assistant_delta", "turn_finished"]
    assert set(house.closed) == {(bad.number, 1011)}


async def test_a_paused_socket_stands_still_and_misses_nothing() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    socket, sink = house.socket()
    house.front.enter(socket, conversation)
    socket.paused = True
    begin(conversation, 1).add("text")
    end(conversation)
    assert sink.data == b""
    socket.paused = False
    socket.pump()
    assert [f["type"] for f in sink.frames()] == ["turn_started", "assistant_delta", "turn_finished"]


async def test_moving_to_another_conversation_ends_what_came_from_the_first() -> None:
    house = House()
    first, second = house.front.conversation("one", "ann"), house.front.conversation("two", "ann")
    socket, sink = house.socket()
    house.front.enter(socket, first)
    house.front.enter(socket, second)
    begin(first, 1).add("one")
    begin(second, 7).add("two")
    second.pump()
    sink.drain(10**9)
    assert [(f["type"], f["turn"]) for f in sink.frames()] == [("turn_started", 7), ("assistant_delta", 7)]
    assert socket not in first.sockets
    house.front.leave(socket)
    assert not second.sockets
    assert second.live is not None, "the turn goes on without it"


async def test_logs_are_freed_once_all_have_read_them() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    (fast, _), (slow, sink) = house.socket(), house.socket()
    for socket in (fast, slow):
        house.front.enter(socket, conversation)
    sink.room = 0
    for turn in range(1, 6):
        begin(conversation, turn).add("text")
        end(conversation)
    assert alive() >= 5, "one has read nothing yet"
    sink.drain(10**9)
    assert alive() == 1
    kept = conversation.tail
    conversation.let_go()
    assert conversation.tail is not kept
    assert (conversation.tail.turn, conversation.tail.seq, conversation.live) == (5, 0, None)
    begin(conversation, 6).add("text")
    end(conversation)
    assert [f["turn"] for f in sink.frames() if f["type"] == "turn_finished"] == [1, 2, 3, 4, 5, 6]


def alive() -> int:
    gc.collect()
    return sum(isinstance(found, TurnLog) for found in gc.get_objects())


async def test_a_log_is_kept_while_it_runs_is_read_or_is_an_anchor() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    socket, sink = house.socket()
    house.front.enter(socket, conversation)
    log = begin(conversation, 1)
    log.add("text")
    conversation.let_go()
    assert conversation.tail is log
    sink.room = 0
    end(conversation)
    conversation.let_go()
    assert conversation.tail is log
    sink.drain(10**9)
    socket.paused = True
    conversation.let_go()
    assert conversation.tail is log
    socket.paused = False
    conversation.let_go()
    assert conversation.tail is not log


@pytest.mark.autojump
async def test_conversations_that_nobody_needs_are_let_go() -> None:
    house = House()
    front = house.front
    idle, entered, running, asked = (
        front.conversation(name, "ann") for name in ("idle", "entered", "running", "asked")
    )
    front.enter(house.socket()[0], entered)
    begin(running, 1)
    asked.unanswered["r"] = (Say(1, "r", "r", "hi", None), 0)
    await trio.sleep(10)  # virtual
    front.retire(60)
    assert set(front.conversations) == {"idle", "entered", "running", "asked"}
    await trio.sleep(100)  # virtual
    front.retire(60)
    assert set(front.conversations) == {"entered", "running", "asked"}
    assert house.stopped == ["front/sessions/idle"]
    assert front.conversation("idle", "ann") is not idle
    for socket in tuple(front.sockets.values()):
        front.leave(socket)
    end(running)
    front.retire(60)
    assert {"entered", "running"} <= set(front.conversations), "they were needed until now"


async def test_a_session_is_started_once_it_is_needed_with_its_own_conversation() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    assert house.front.conversation("c", "ann") is conversation
    assert house.front.session(conversation).path == "front/sessions/c"
    [child] = house.started
    assert (child.name, child.args["conversation"], child.args["front"]) == ("c", conversation, house.front)


async def test_notices_go_to_those_who_were_welcomed_and_keep_up() -> None:
    house = House()
    conversation = house.front.conversation("c", "ann")
    (welcomed, seen), (slow, behind), (_, unwelcomed) = house.socket(), house.socket(), house.socket()
    house.front.enter(welcomed, conversation)
    house.front.enter(slow, conversation)
    behind.room = 0
    house.front.announce(Degraded("mcp/demo", "it ended"))
    assert [f["type"] for f in seen.frames()] == ["degraded"]
    assert behind.data == unwelcomed.data == b""
    house.front.tell(welcomed.number, Pong("1"))
    house.front.tell(4711, Pong("2"))
    assert seen.frames()[1:] == [{"type": "pong", "request_id": "1"}]


async def test_quiet_is_told_when_the_last_turn_has_ended() -> None:
    house = House()
    one, two = house.front.conversation("one", "ann"), house.front.conversation("two", "ann")
    begin(one, 1)
    begin(two, 1)
    house.front.taking = False
    quiet = house.front.quiet
    assert [log.conversation for log in house.front.running()] == ["one", "two"]
    end(one)
    house.front.settle()
    assert not quiet.is_set()
    end(two)
    house.front.settle()
    assert quiet.is_set()
    assert not house.front.quiet.is_set()


async def test_tools_come_and_go_with_their_servers() -> None:
    house = House()
    front = house.front
    changed = front.tools_changed
    add = Tool("add", "", {}, {})
    front.offer_tools(Catalogue("demo", [add], [], [], ""))
    assert changed.is_set()
    before = front.merged
    front.offer_tools(Catalogue("other", [add], [], [], ""))
    assert set(front.merged.names()) == {("demo", "add"), ("other", "add")}
    assert set(before.names()) == {("demo", "add")}, "a running turn keeps the one that it began with"
    changed = front.tools_changed
    front.withdraw_tools("nobody")
    assert not changed.is_set()
    front.withdraw_tools("other")
    assert changed.is_set()
    assert set(front.merged.names()) == {("demo", "add")}


async def test_numbers_are_never_used_twice() -> None:
    front = House().front
    numbers = [front.next_number() for _ in range(5)]
    requests = [front.next_request() for _ in range(5)]
    assert len(set(numbers)) == len(set(requests)) == 5
    assert 0 not in requests, "0 means none"


@pytest.mark.autojump
async def test_messages_that_wait_one_after_the_other_do_so_once_for_a_model_that_is_being_loaded() -> None:
    front = House().front

    def loading(loads: bool) -> None:
        llm = msgspec.structs.replace(front.snapshot.llm, loading=loads)
        front.configure(msgspec.structs.replace(front.snapshot, llm=llm))

    for _ in range(2):
        loading(True)
        began = trio.current_time()
        for _ in range(3):
            await front.model_there()
            assert trio.current_time() - began == LOADING_S
        loading(False)
        await front.model_there()

"""Resume, as the contract says it: from any position, at any moment, no gap, no piece twice, through the real service.

A *piece* is an entry of the turn's log; a frame with several pieces carries the seq of its last one. What a
client must have got is read from the log that front keeps, and from a client that never left.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from actors.store import Storage
from actors.store_errors import Full, Unavailable
from actors.turnlog import Thought
from protocol.client import HISTORY_PAGE
from protocol.writer import Append, BeginTurn, Closed, HopEvent, LoadHistory, UserEvent
from tests.fakes import Script, Stall, ask_tools, say, think
from tests.service import LIGHT, Client, Frame, Service, front_of, of_type, service, text_of

WHOLE = ("tool_execution", "assistant_message", "turn_finished")


@asynccontextmanager
async def back(s: Service, conversation: str, position: Any, *, how: str = "resume") -> AsyncIterator[Client]:
    """A new socket that resumes: `position` is (turn, seq), (turn, None) or None."""
    fields = {} if position is None else {"turn": position[0], "seq": position[1]}
    fields = {name: value for name, value in fields.items() if value is not None}
    if how == "hello":
        async with s.client("?conversation=new") as client:
            await client.send("hello", conversation_id=conversation, resume=fields, request_id="h")
            frames = await client.until("welcome", request_id="h")
            assert len(frames) == 1
            assert frames[0]["conversation_id"] == conversation
            yield client
    else:
        async with s.client(f"?conversation={conversation}") as client:
            await client.send("resume", request_id="back", **fields)
            yield client


async def answered(client: Client) -> list[Frame]:
    """What the resume gave, where no turn runs: commands are done one after the other."""
    return await client.alive()


def entries_of(s: Service, conversation: str) -> list[str | Thought | bytes]:
    return list(front_of(s).conversations[conversation].tail.entries)


def text_after(entries: list[str | Thought | bytes], seq: int) -> str:
    return "".join(e for e in entries[seq:] if isinstance(e, str))


def thinking_after(entries: list[str | Thought | bytes], seq: int) -> str:
    return "".join(e.text for e in entries[seq:] if isinstance(e, Thought))


# Clients that come and go.


def hops(asked: Any) -> Script:
    """Thinking, text and tools, several hops; how many says the number of the message."""
    said = next(m["content"] for m in reversed(asked["messages"]) if m["role"] == "user")
    done = sum(m["role"] == "assistant" for m in asked["messages"][_last_user(asked) :])
    words = [f"{said}.{done}.{word} " for word in range(12)]
    if done < int(said[-1]) % 3:
        calls = ask_tools(("c1", "add", {"a": done, "b": 1}), ("c2", "slow", {"steps": 2, "step_s": 0.01}), text=words)
        return Script((*think("hm ", f"{done} ").items[:2], *calls.items))
    return say(*words)


def _last_user(asked: Any) -> int:
    return max(place for place, m in enumerate(asked["messages"]) if m["role"] == "user")


class Wanderer:
    """A client that loses its socket again and again, and only knows what it has seen."""

    def __init__(self, s: Service, conversation: str, rng: random.Random, last: str) -> None:
        self.s, self.conversation, self.rng, self.last = s, conversation, rng, last
        self.position: tuple[int, int] = (1, 0)
        self.texts: Counter[int] = Counter()
        self.text: dict[tuple[int, str], str] = {}
        self.live: set[int] = set()
        """Turns whose text it got to the end."""
        self.whole: list[tuple[int, int, str]] = []
        self.started: Counter[int] = Counter()

    async def run(self) -> None:
        while not self.whole or self.whole[-1][2] != self.last:
            async with back(
                self.s, self.conversation, self.position, how=self.rng.choice(["resume", "hello"])
            ) as client:
                left = self.rng.choice([0, 1, 2, 5, 10, 30])
                while left and (not self.whole or self.whole[-1][2] != self.last):
                    self.take(await client.next())
                    left -= 1

    def take(self, frame: Frame) -> None:
        kind = frame["type"]
        if kind == "turn_started":
            assert frame["turn"] > self.position[0] or (frame["turn"] == 1 and not self.position[1])
            self.started[frame["turn"]] += 1
            self.position = (frame["turn"], 0)
        if "seq" not in frame:
            return
        place = (frame["turn"], frame["seq"])
        assert place > self.position, "a piece came twice"
        assert place[0] == self.position[0] or kind == "turn_finished" or place[0] == 1, "no turn_started before it"
        self.position = place
        if kind in WHOLE:
            ending = f"{place[0]} finished" if kind == "turn_finished" else kind
            self.whole.append((*place, ending if kind == "turn_finished" else str(frame["status"])))
        if kind == "assistant_message":
            mine = self.text.get((place[0], "assistant_delta"), "")
            assert frame["message"].startswith(mine), "a gap in the text"
            if mine == frame["message"]:
                self.live.add(place[0])
        if kind.endswith("_delta"):
            key = (place[0], kind)
            self.text[key] = self.text.get(key, "") + frame["text"]


@pytest.mark.parametrize("seed", range(3))
async def test_clients_that_come_and_go_get_every_turn_without_gap_and_nothing_twice(tmp_path: Path, seed: int) -> None:
    turns = 4
    async with service(tmp_path, hops, servers=LIGHT, interval=0.001) as s, s.client() as steady:
        await steady.say("0")  # the conversation is there
        last = f"{turns + 1} finished"
        wanderers = [Wanderer(s, steady.conversation, random.Random(f"{seed}.{n}"), last) for n in range(3)]
        async with trio.open_nursery() as nursery:
            for wanderer in wanderers:
                nursery.start_soon(wanderer.run)
            for number in range(1, turns + 1):
                await steady.say(str(number))
        frames = steady.seen
        messages = {f["turn"]: f for f in of_type(frames, "assistant_message")}
        for turn, message in messages.items():
            assert text_of([f for f in frames if f.get("turn") == turn]) == message["message"]
        expected = [
            (f["turn"], f["seq"], f"{f['turn']} finished" if f["type"] == "turn_finished" else f["status"])
            for f in frames
            if f["type"] in WHOLE and f.get("status") != "progress"
        ]
        for wanderer in wanderers:
            assert [item for item in wanderer.whole if item[2] != "progress"] == expected
            assert set(wanderer.started.values()) <= {1}
        assert any(wanderer.live - {1} for wanderer in wanderers), "some text was followed to its end across sockets"


# From every position.


async def test_from_every_position_of_a_running_turn(tmp_path: Path) -> None:
    gate = trio.Event()
    first = ask_tools(("c1", "add", {"a": 1, "b": 2}), text=("one ", "two "))
    replies = (
        say("before"),
        Script((*think("hm ", "so ").items[:2], *first.items)),
        Script(("three ", "four ", Stall(gate), "five")) + say(" six").items,
    )
    async with service(tmp_path, *replies, servers=LIGHT) as s, s.client() as steady:
        await steady.say("hi")
        await steady.send("user_message", message="go")
        while not text_of(steady.seen).endswith("four "):
            await steady.next()
        entries = entries_of(s, steady.conversation)
        assert len(entries) == 8
        async with trio.open_nursery() as nursery:
            ready: list[trio.Event] = []

            async def check(seq: int | None, how: str, mine: trio.Event) -> None:
                async with back(s, steady.conversation, (2, seq), how=how) as client:
                    place = min(max(seq or 0, 0), len(entries))
                    while text_of(client.seen) != text_after(entries, place):
                        await client.next()
                    mine.set()
                    await client.until("turn_finished")
                    frames = [f for f in client.seen if f["type"] != "welcome"]
                    assert len({f["seq"] for f in frames if "seq" in f}) == len([f for f in frames if "seq" in f])
                    assert (frames[0]["type"] == "turn_started") is (seq is None)
                    assert len(of_type(frames, "turn_started")) == (seq is None)
                    [message] = of_type(frames, "assistant_message")
                    assert message["message"] == "one two three four five six"
                    assert message["message"].endswith(text_of(frames))
                    assert text_of(frames) == text_after(entries_of(s, steady.conversation), place)
                    assert text_of(frames, "thinking_delta") == thinking_after(entries, place)
                    tools = [f["status"] for f in of_type(frames, "tool_execution")]
                    shown = [seq for seq, e in enumerate(entries, 1) if isinstance(e, bytes)]
                    assert tools == ["executing", "completed"][len([seq for seq in shown if seq <= place]) :]

            for seq in (None, -5, *range(len(entries) + 2), 10**9, 2**70):
                for how in ("resume", "hello") if seq is not None else ("resume",):
                    ready.append(trio.Event())
                    nursery.start_soon(check, seq, how, ready[-1])
            for event in ready:
                await event.wait()
            gate.set()
        assert len(s.provider.requests) == 3


@pytest.mark.parametrize("forget", [False, True], ids=["from the log", "from the store"])
async def test_from_every_position_of_finished_turns(tmp_path: Path, forget: bool) -> None:
    tools = ask_tools(("c1", "add", {"a": 1, "b": 2}), ("c2", "fail", {"message": "no"}), text=("one ", "two "))
    async with service(tmp_path, tools, say("three"), servers=LIGHT) as s, s.client() as steady:
        frames = [*await steady.say("first"), *await steady.say("second"), *await steady.say("third")]
        whole = [f for f in frames if f["type"] in (*WHOLE, "turn_started")]
        if forget:
            front_of(s).conversations[steady.conversation].let_go()
        async with s.client() as client:
            for turn in (1, 2, 3):
                ends = [f["seq"] for f in frames if f["type"] == "turn_finished" and f["turn"] == turn]
                for seq in (None, *range(-1, ends[0] + 2)):
                    fields = {} if seq is None else {"seq": seq}
                    await client.send("resume", turn=turn, **fields)
                    got = await answered(client)
                    assert [plain(f) for f in got] == [
                        plain(f)
                        for f in whole
                        if f["turn"] > turn or (f["turn"] == turn and f.get("seq", 0) > (-1 if seq is None else seq))
                        if not (f["turn"] == turn and f["type"] == "turn_started" and seq is not None)
                    ]
            for beyond in ({"turn": 4}, {"turn": 4, "seq": 7}, {"turn": 10**30, "seq": 1}, {"turn": 3, "seq": 10**30}):
                await client.send("resume", **beyond)
                assert await answered(client) == []
            for before in ({"turn": 0}, {"turn": -7, "seq": 3}):
                await client.send("resume", **before)
                assert [plain(f) for f in await answered(client)] == [plain(f) for f in whole]


def plain(frame: Frame) -> Frame:
    """Without the model, which a stored turn has as the provider named it."""
    return {key: value for key, value in frame.items() if key not in ("model", "provider")}


async def test_without_a_position_the_last_page_and_the_running_turn_from_its_start(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, say("one"), Script(("two ", Stall(gate), "three"))) as s, s.client() as steady:
        await steady.say("hi")
        await steady.send("user_message", message="go")
        await steady.until("assistant_delta")
        await steady.send("user_message", message="later")
        await steady.until("message_queued")
        async with back(s, steady.conversation, None) as client:
            page, *_ = await client.until("turn_started")
            assert (page["type"], page["request_id"], page["more"]) == ("history", "back", False)
            assert [(m["turn"], m["role"], m["content"]) for m in page["messages"]] == [
                (1, "user", "hi"),
                (1, "assistant", "one"),
            ]
            assert (await client.until("assistant_delta"))[-1]["text"] == "two "
            gate.set()
            frames = await client.until("turn_finished", turn=2)
            assert text_of(frames) == "three"
            assert [f["turn"] for f in await client.until("turn_started")] == [3]


async def test_a_socket_that_says_nothing_gets_the_running_turn_from_its_start(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate), "b", *say("c").items)), say("d")) as s, s.client() as steady:
        await steady.send("user_message", message="go", request_id="r1")
        await steady.until("assistant_delta")
        async with s.client(f"?conversation={steady.conversation}") as late:
            assert late.welcome["running_turn"] == 1
            assert [f["type"] for f in await late.until("assistant_delta")] == ["turn_started", "assistant_delta"]
            gate.set()
            await late.until("turn_finished")
            assert text_of(late.seen) == "abc"
            assert text_of(await late.say("next")) == "d"


@pytest.mark.parametrize("word", ["stop", "user_message"])
async def test_a_client_that_begins_with_something_else_is_not_held_up(tmp_path: Path, word: str) -> None:
    async with service(tmp_path, Script(("a", Stall())), say("b")) as s, s.client() as steady:
        await steady.send("user_message", message="go")
        await steady.until("assistant_delta")
        async with s.client(f"?conversation={steady.conversation}") as late:
            await late.send(word, **({"message": "more"} if word == "user_message" else {}))
            frames = await late.until("assistant_delta")
            assert "turn_started" in [f["type"] for f in frames]
            assert front_of(s).sockets[max(front_of(s).sockets)].held is None
            await late.send("stop")
            await late.until("turn_finished", turn=1)


# While the store is asked.


class Held:
    """The store's answers to history queries wait, once `hold` was called, until `release`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = trio.Event()
        self.release = trio.Event()
        self.release.set()
        self.fails = False
        query = Storage.query

        async def held(storage: Storage, message: Any, within: float) -> object:
            answer = await query(storage, message, within)
            if isinstance(message, LoadHistory) and not self.release.is_set():
                self.asked.set()
                await self.release.wait()
            if isinstance(message, LoadHistory) and self.fails:
                raise Unavailable("scripted")
            return answer

        monkeypatch.setattr(Storage, "query", held)

    def hold(self) -> None:
        self.asked, self.release = trio.Event(), trio.Event()


@pytest.mark.parametrize("position", [None, (1, 0), (1, None), (2, 1), (3, 0)])
@pytest.mark.parametrize("late", [False, True], ids=["the answer is from before", "the answer is from after"])
async def test_a_turn_that_begins_and_ends_while_the_store_is_asked_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: Any, late: bool
) -> None:
    held = Held(monkeypatch)
    async with service(tmp_path, say("a", "b")) as s, s.client() as steady:
        await steady.say("1")
        await steady.say("2")
        front_of(s).conversations[steady.conversation].let_go()
        if late:
            # the writer gets the query last: it is held before it is read
            held = Before(monkeypatch)
        held.hold()
        async with back(s, steady.conversation, position) as client:
            await held.asked.wait()
            live = [*await steady.say("3"), *await steady.say("4")]
            held.release.set()
            frames = await client.until("turn_finished", turn=4)
            mine = [f for f in frames if f.get("turn", 0) >= 3]
            assert of_type(mine, *WHOLE, "turn_started") == of_type(live, *WHOLE, "turn_started")
            assert text_of(mine) == "abab"
            earlier = [(f["turn"], f["type"]) for f in frames if f.get("turn", 9) < 3]
            closing = ["assistant_message", "turn_finished"]
            if position is None:
                assert [m["turn"] for m in frames[0]["messages"]] == [1, 1, 2, 2]
                assert earlier == []
            else:
                turn, seq = position
                own = closing if seq is not None else ["turn_started", *closing]
                expected = [(turn, kind) for kind in own] if turn < 3 else []
                expected += [(2, kind) for kind in ("turn_started", *closing)] if turn < 2 else []
                assert earlier == expected
            assert await client.alive() == []


class Before(Held):
    """As `Held`, but the store reads after the wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        query = Storage.query
        self.release = trio.Event()
        self.release.set()

        async def held(storage: Storage, message: Any, within: float) -> object:
            if isinstance(message, LoadHistory) and not self.release.is_set():
                self.asked.set()
                await self.release.wait()
            return await query(storage, message, within)

        monkeypatch.setattr(Storage, "query", held)


@pytest.mark.parametrize("position", [None, (1, 0)])
@pytest.mark.parametrize("late", [False, True], ids=["the answer is from before", "the answer is from after"])
async def test_a_turn_that_ends_while_the_store_is_asked_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: Any, late: bool
) -> None:
    gate = trio.Event()
    async with service(tmp_path, say("a"), Script(("b", Stall(gate), *say("c").items)), say("d")) as s:
        async with s.client() as steady:
            await steady.say("1")
            await steady.send("user_message", message="2")
            await steady.until("assistant_delta")
            held = Before(monkeypatch) if late else Held(monkeypatch)
            held.hold()
            async with back(s, steady.conversation, position) as client:
                await held.asked.wait()
                gate.set()
                await steady.until("turn_finished")
                await steady.say("3")
                held.release.set()
                frames = await client.until("turn_finished", turn=3)
                told = [(f["turn"], f["type"]) for f in frames if "turn" in f and not f["type"].endswith("_delta")]
                second = [(turn, kind) for turn in (2, 3) for kind in ("turn_started", *WHOLE[1:])]
                assert told == ([(1, kind) for kind in WHOLE[1:]] if position else []) + second
                assert text_of(frames) == "bcd"
                if position is None:
                    assert [m["turn"] for m in frames[0]["messages"]] == [1, 1]


async def test_without_the_store_the_error_is_told_and_the_running_turn_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = trio.Event()
    held = Held(monkeypatch)
    async with service(tmp_path, say("a"), Script(("b", Stall(gate), *say("c").items))) as s, s.client() as client:
        await client.say("1")
        await client.send("user_message", message="2")
        await client.until("assistant_delta")
        held.fails = True
        await client.send("resume", turn=1, seq=0, request_id="r")
        [error] = await client.alive()
        assert (error["error_code"], error["request_id"]) == ("STORAGE_UNAVAILABLE", "r")
        await client.send("resume", turn=2, seq=0)  # of the running turn all is here
        gate.set()
        assert text_of(await client.until("turn_finished")) == "bc"


async def test_an_end_that_cannot_be_stored_is_resumed_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Storage.commit

    async def full(storage: Storage, operations: Any) -> list[object]:
        if any(isinstance(o, Append) and any(isinstance(e, Closed) for e in o.events) for o in operations):
            raise Full("scripted")
        return await commit(storage, operations)

    monkeypatch.setattr(Storage, "commit", full)
    async with service(tmp_path, say("a", "b")) as s, s.client() as steady:
        live = await steady.say("1")
        assert (live[-1]["outcome"], live[-1]["error"]["error_code"]) == ("failed", "STORAGE_FULL")
        async with back(s, steady.conversation, (1, 1)) as client:
            assert await client.until("turn_finished") == of_type(live, "assistant_message", "error", "turn_finished")


# Several in a row, elsewhere, far behind.


async def test_two_resumes_in_a_row_are_each_answered_whole(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, say("a"), Script(("b", "c", Stall(gate), *say("d").items))) as s, s.client() as client:
        await client.say("1")
        await client.send("user_message", message="2")
        while text_of(client.seen) != "abc":
            await client.next()
        await client.send("resume", turn=1, seq=0)
        await client.send("resume", turn=2, seq=1)
        await client.send("ping", request_id="p")
        frames = await client.until("pong")
        assert [(f["type"], f.get("turn")) for f in frames[:3]] == [
            ("assistant_message", 1),
            ("turn_finished", 1),
            ("turn_started", 2),
        ]
        assert "".join(f["text"] for f in frames if f["type"] == "assistant_delta") == "bc" + "c"
        gate.set()
        assert text_of(await client.until("turn_finished")) == "d"


async def test_resume_right_after_clear_history_is_of_the_new_conversation(tmp_path: Path) -> None:
    async with service(tmp_path, say("a")) as s, s.client() as client:
        await client.say("1")
        await client.send("clear_history")
        await client.send("resume", turn=1, seq=0)
        await client.send("resume")
        await client.send("user_message", message="2")
        cleared, page, *frames = await client.until("turn_finished")
        assert cleared["type"] == "session_cleared"
        assert page == {
            "type": "history",
            "conversation_id": cleared["conversation_id"],
            "messages": [],
            "more": False,
        }
        assert [f["type"] for f in frames] == ["turn_started", "assistant_delta", "assistant_message", "turn_finished"]


async def test_a_position_of_an_unknown_conversation_is_not_used_in_the_default_one(tmp_path: Path) -> None:
    async with service(tmp_path, say("a")) as s, s.client() as steady:
        await steady.say("1")
        async with s.client("?conversation=new") as client:
            await client.send("hello", conversation_id="nope", resume={"turn": 1, "seq": 0}, request_id="h")
            error, welcome = await client.until("welcome")
            assert (error["error_code"], error["request_id"]) == ("NOT_FOUND", "h")
            assert welcome["conversation_id"] == steady.conversation
            assert await client.alive() == []


async def test_more_than_a_page_behind_gets_the_newest_page_and_goes_on_live(tmp_path: Path) -> None:
    async with service(tmp_path, say("live")) as s, s.client() as steady:
        await steady.say("1")
        writer = s.ref("store/writer")
        for turn in range(2, HISTORY_PAGE + 3):
            user = UserEvent(str(turn), f"x{turn}", streaming=True)
            hop = HopEvent(1, "text", "", [], {}, "p", "m", None, "stop")
            closed = Closed("completed", 3, "text", "", None, "m", "stop", None)
            await writer.ask(BeginTurn("local", steady.conversation, turn, user, queued=False), within=5)
            await writer.ask(Append(steady.conversation, turn, "k", [hop, closed]), within=5)
        last = HISTORY_PAGE + 2
        front_of(s).conversations[steady.conversation].let_go()
        async with s.client(f"?conversation={steady.conversation}") as client:
            await client.send("resume", turn=3, seq=3, request_id="b")  # a page and no more
            frames = await client.alive()
            assert [f["turn"] for f in of_type(frames, "turn_finished")] == list(range(4, last + 1))
            await client.send("resume", turn=2, seq=3, request_id="b")
            [page] = await client.alive()
            assert (page["type"], page["more"], page["request_id"]) == ("history", True, "b")
            assert [m["turn"] for m in page["messages"] if m["role"] == "user"] == list(range(3, last + 1))

"""What the writer promises: an answer means it is on disk, whatever dies next."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import apsw
import pytest
import trio

from actors.store import Store
from protocol.errors import Code, Fault
from protocol.mail import Gone, Ref
from protocol.spec import Backoff, Child, Group, Status
from protocol.writer import (
    Append,
    AppendDeltas,
    Began,
    BeginTurn,
    Closed,
    Delta,
    Done,
    Enter,
    Entered,
    HopEvent,
    ListUnfinished,
    LoadHistory,
    StartTurn,
    Unfinished,
    UserEvent,
)
from supervisors.supervisor import Tree, running
from tests.forks import fork

WITHIN = 10.0
PATH = "store/writer"


def specs(
    path: Path, *, kind: str = "auto_persist", keep: str = "actors.writer:keep", shutdown_s: float = 5.0
) -> Group:
    args = MappingProxyType({"path": str(path), "type": kind})
    backoff = Backoff(first_s=0.01)
    writer = Child("writer", "actors.writer:run", keep=keep, args=args, shutdown_s=shutdown_s, backoff=backoff)
    return Group("root", (Group("store", (writer,)),))


@asynccontextmanager
async def writing(path: Path, *, kind: str = "auto_persist", keep: str = "actors.writer:keep") -> AsyncIterator[Tree]:
    async with running(specs(path, kind=kind, keep=keep)) as tree:
        yield tree


def facts(tree: Tree) -> dict[str, str | int | float | bool]:
    (store,) = tree.status().children
    return store.children[0].facts


def begin(turn: int = 1, *, conversation: str = "c", content: object = "hi", queued: bool = False) -> BeginTurn:
    return BeginTurn("ann", conversation, turn, UserEvent(content, f"r{turn}", streaming=True), queued)


def append(content: str, *, key: str = "k", turn: int = 1, conversation: str = "c") -> Append:
    return Append(conversation, turn, key, [HopEvent(1, content, "", [], {}, "p", "m", None, "stop")])


def in_file(path: Path, sql: str) -> int:
    """A number, by a connection of our own."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
        return int(db.execute(sql).get)


# Group commit.


async def test_an_answer_means_that_it_is_on_disk_and_commits_are_shared(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    producers, each = 40, 5

    async def produce(writer: Ref[Any], number: int) -> None:
        name = f"c{number}"
        for turn in range(1, each + 1):
            began = await writer.ask(begin(turn, conversation=name), within=WITHIN)
            assert began == Began(turn, repeated=False)
            history = await writer.ask(LoadHistory("ann", name), within=WITHIN)
            assert history.last_turn == turn, "a query sees what was acknowledged before it was sent"
        where = f"FROM turn JOIN conversation ON conversation = conversation.n WHERE id = '{name}'"
        assert in_file(path, f"SELECT count(*) {where}") == each

    async with writing(path) as tree:
        async with trio.open_nursery() as nursery:
            for number in range(producers):
                nursery.start_soon(produce, tree.ref(PATH), number)
        seen = facts(tree)
        assert seen["operations"] == producers * each
        # The first message of every producer is queued before the writer wakes; how the others meet is chance.
        assert 0 < int(seen["commits"]) <= producers * (each - 1) + 1
        assert seen["file"] == str(path)
        assert int(seen["log_bytes"]) > 0
        assert {t.name for t in threading.enumerate()} >= {"store writer", "store reader"}
    assert not {t.name for t in threading.enumerate()} & {"store writer", "store reader"}


async def test_a_bad_operation_fails_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    answers: dict[int, object] = {}

    async def say(writer: Ref[Any], number: int) -> None:
        content = "half a \ud800 pair" if number == 7 else "whole"
        try:
            began = await writer.ask(begin(conversation=f"c{number}", content=content), within=WITHIN)
            answers[number] = began
        except Fault as fault:
            answers[number] = fault.code

    async with writing(tmp_path / "chat.db") as tree:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(say, tree.ref(PATH), number)
        assert facts(tree)["commits"] == 1, "the bad one was among the others"
    assert answers == {n: Code.INVALID_MESSAGE if n == 7 else Began(1, repeated=False) for n in range(20)}


async def test_a_query_sees_what_was_sent_before_it_acknowledged_or_not(tmp_path: Path) -> None:
    async with writing(tmp_path / "chat.db") as tree:
        writer: Ref[Any] = tree.ref(PATH)
        for turn in range(1, 21):
            assert writer.offer(begin(turn)), "as by a session that died right after"
            history = await writer.ask(LoadHistory("ann", "c"), within=WITHIN)
            assert history.running == list(range(1, turn + 1))


async def test_a_thousand_conversations_that_are_entered_at_once_are_all_answered_each_its_own(tmp_path: Path) -> None:
    async with writing(tmp_path / "chat.db") as tree:
        ref: Ref[Any] = tree.ref(PATH)
        await ref.ask(begin(conversation="c7"), within=WITHIN)
        answers: dict[int, object] = {}

        async def load(number: int) -> None:
            query = LoadHistory("ann", f"c{number}", missing_ok=number % 2 == 0)
            try:
                answers[number] = len((await ref.ask(query, within=4 * WITHIN, again=True)).running)
            except Fault as fault:
                answers[number] = fault.code

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(load, number)
        for number, answer in answers.items():
            assert answer == (1 if number == 7 else Code.NOT_FOUND if number % 2 else 0), number


async def test_every_message_is_answered(tmp_path: Path) -> None:
    closing_event = Closed("completed", 3, "a", "", None, "m", "stop", None)
    async with writing(tmp_path / "chat.db") as tree:
        writer: Ref[Any] = tree.ref(PATH)
        asked: list[tuple[Any, object]] = [
            (Enter("ann", "new!", "c"), Entered("c", new=False)),
            (begin(1), Began(1, repeated=False)),
            (begin(2, queued=True), Began(2, repeated=False)),
            (AppendDeltas([Delta("c", 1, 1, 2, "a", "")]), Done()),
            (append("a"), Done()),
            (Append("c", 1, "end", [closing_event]), Done()),
            (ListUnfinished(), [Unfinished("ann", "c")]),
            (StartTurn("c", 2), Done()),
        ]
        for message, answer in asked:
            assert await writer.ask(message, within=WITHIN) == answer, message
        with pytest.raises(Fault) as refused:
            await writer.ask(LoadHistory("bob", "c"), within=WITHIN)
        assert refused.value.code is Code.NOT_FOUND
        writer.nudge()
        assert (await writer.ask(LoadHistory("ann", "c"), within=WITHIN)).running == [2]
        assert writer.offer(append("cast", turn=2)), "a message without an asker is written, too"
    with closing(Store(str(tmp_path / "chat.db"))) as store:
        store.open()
        assert "cast" in str(store.query(LoadHistory("ann", "c")))


async def test_a_drained_stop_writes_the_backlog_first(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with writing(path) as tree:
        writer: Ref[Any] = tree.ref(PATH)
        assert all(writer.offer(begin(conversation=f"c{number}")) for number in range(200))
    assert sorted(os.listdir(tmp_path)) == ["chat.db", "chat.db.lock"], "closed clean: no log is left"
    assert in_file(path, "SELECT count(*) FROM turn") == 200


# Crashes.


# Without `keep` a store in memory is gone with its incarnation.
@pytest.mark.parametrize(
    ("kind", "keep"), [("auto_persist", "actors.writer:keep"), ("auto_persist", ""), ("memory", "actors.writer:keep")]
)
async def test_turns_go_on_running_when_only_the_writer_crashed(tmp_path: Path, kind: str, keep: str) -> None:
    def crash(message: object) -> None:
        assert not isinstance(message, StartTurn), "a fault"

    async with writing(tmp_path / "chat.db", kind=kind, keep=keep) as tree:
        writer: Ref[Any] = tree.ref(PATH)
        await writer.ask(begin(), within=WITHIN)
        tree.tap(PATH, crash)
        with pytest.raises(Gone):
            await writer.ask(StartTurn("c", 1), within=WITHIN)
        await tree.reached(PATH, Status.RUNNING, incarnation=2)
        history = await writer.ask(LoadHistory("ann", "c"), within=WITHIN)
        assert history.running == [1]
        assert await writer.ask(append("it goes on"), within=WITHIN) == Done()


async def test_a_crash_with_a_batch_in_hand_loses_nothing_that_is_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    rng = random.Random(7)
    taken = 0

    def crash(message: object) -> None:
        nonlocal taken
        taken += 1
        if taken % 60 == 59:
            raise RuntimeError("a fault")

    async def produce(writer: Ref[Any], number: int) -> None:
        for turn in range(1, 11):
            message = begin(turn, conversation=f"c{number}")
            assert (await writer.ask(message, within=WITHIN, again=True)).turn == turn
            if rng.random() < 0.5:
                assert (await writer.ask(message, within=WITHIN, again=True)).repeated

    group = specs(path)
    async with running(group) as tree:
        tree.tap(PATH, crash)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(produce, tree.ref(PATH), number)
        tree.tap(PATH, None)
    assert in_file(path, "SELECT count(*) FROM turn") == 200
    assert in_file(path, "SELECT count(*) FROM event") == 200
    assert in_file(path, "SELECT count(*) FROM turn WHERE state != 'running'") == 0


async def test_the_next_service_closes_what_was_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "actors.writer")
    async with writing(tmp_path / "chat.db") as tree:
        await tree.ref(PATH).ask(begin(), within=WITHIN)
        await tree.ref(PATH).ask(AppendDeltas([Delta("c", 1, 1, 2, "half", "")]), within=WITHIN)
    async with writing(tmp_path / "chat.db") as tree:
        history = await tree.ref(PATH).ask(LoadHistory("ann", "c"), within=WITHIN)
    end = history.events[-1].event
    assert isinstance(end, Closed)
    assert (end.outcome, end.message, history.running) == ("interrupted", "half", [])
    assert "1 running turns of the last run were closed" in caplog.text


async def test_a_stop_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    """Whatever the moment of the cancellation: an answered operation is there, and none is there by half."""
    path = tmp_path / "chat.db"
    acked: set[str] = set()
    gone = 0

    async def produce(writer: Ref[Any], cut: int, number: int, stop: trio.Event) -> None:
        nonlocal gone
        for turn in range(1, 100):
            try:
                await writer.ask(begin(turn, conversation=f"{cut}-{number}"), within=WITHIN)
            except Gone:
                gone += 1
                return
            acked.add(f"{cut}-{number}-r{turn}")
            if number == turn == cut:
                stop.set()

    for cut in range(1, 11):
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            async with running(specs(path, shutdown_s=0.0)) as tree:  # cancelled at once, without a drain
                for number in range(1, 11):
                    nursery.start_soon(produce, tree.ref(PATH), cut, number, stop)
                await stop.wait()
    assert gone == 100
    begun = "SELECT id, request_id FROM turn JOIN conversation ON conversation = conversation.n"
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
        turns = {f"{name}-{request}" for name, request in db.execute(begun)}
    assert acked <= turns
    assert in_file(path, "SELECT count(*) FROM event WHERE kind = 'user'") == len(turns)


CHILD = """
import random, sys, trio
from types import MappingProxyType
from pathlib import Path
from protocol.writer import *
from supervisors.supervisor import running
from tests.test_writer import PATH, WITHIN, append, begin, specs

async def produce(writer, number):
    name, seq = f"c{number}", 0
    for turn in range(1, 1000):
        await writer.ask(begin(turn, conversation=name), within=WITHIN)
        print("begun", name, turn, flush=True)
        for piece in range(3):
            seq += 1
            await writer.ask(AppendDeltas([Delta(name, turn, 1, seq, f"{piece}.", "")]), within=WITHIN)
            print("said", name, turn, piece, flush=True)
        await writer.ask(append("whole", turn=turn, conversation=name), within=WITHIN)
        end = Closed("completed", seq + 1, "whole", "", None, "m", "stop", None)
        await writer.ask(Append(name, turn, "end", [end]), within=WITHIN)
        print("ended", name, turn, flush=True)

async def main():
    async with running(specs(Path(sys.argv[1]))) as tree, trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(produce, tree.ref(PATH), number)

trio.run(main)
"""


@pytest.mark.parametrize("seed", range(3))
async def test_a_killed_process_keeps_what_it_acknowledged(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "chat.db"
    wanted = random.Random(seed).randint(20, 400)
    read, write = os.pipe()
    written = b""
    async with trio.lowlevel.FdStream(read) as out:
        child = await fork(CHILD, [str(path)], stdout=write, load=("tests.test_writer",))
        os.close(write)
        while part := await out.receive_some():
            written += part
            if written.count(b"\n") >= wanted:
                child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
    acks = [line.split() for line in written.decode().splitlines(keepends=True) if line.endswith("\n")]
    begun = {(name, int(turn)) for what, name, turn, *_ in acks if what == "begun"}
    ended = {(name, int(turn)) for what, name, turn, *_ in acks if what == "ended"}
    said = {(name, int(turn)): int(rest[0]) for what, name, turn, *rest in acks if what == "said"}
    assert len(begun) >= 8
    with closing(Store(str(path))) as store:
        store.open()
        cut_off = store.recover()
        assert cut_off <= 8
        outcomes = []
        for name, turn in begun:
            history: Any = store.query(LoadHistory("ann", name, before=turn + 1, limit=1))
            first, *_, last = [stored.event for stored in history.events]
            assert isinstance(first, UserEvent)
            assert isinstance(last, Closed)
            outcomes.append(last.outcome)
            if (name, turn) in ended:
                assert last.outcome == "completed"
            elif last.outcome == "interrupted" and last.message != "whole":
                heard = "".join(f"{piece}." for piece in range(said.get((name, turn), -1) + 1))
                assert last.message.startswith(heard), "every acknowledged piece is in the text"
                assert "0.1.2.".startswith(last.message), "and none of it twice"
            else:
                assert last.message == "whole"
        assert outcomes.count("interrupted") <= cut_off

"""What the writer does about a store that cannot be used, is full, held or slow."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from actors.database_file import has_room
from actors.store import Store
from protocol.errors import Code, Fault
from protocol.mail import Gone, Ref
from protocol.pending import ExpirePending
from protocol.spec import Status
from protocol.writer import (
    Began,
    Done,
    Enter,
    Entered,
    ListUnfinished,
    LoadHistory,
)
from supervisors.supervisor import Tree
from tests.test_writer import PATH, WITHIN, append, begin, facts, writing


def last_error(tree: Tree) -> str:
    (store,) = tree.status().children
    return store.children[0].last_error


async def parked_with(path: Path) -> str:
    async with writing(path) as tree:
        await tree.reached(PATH, Status.PARKED)
        with pytest.raises(Gone):
            await tree.ref(PATH).ask(begin(), within=WITHIN)
        return last_error(tree)


async def test_an_unusable_file_parks_the_writer_with_a_text_for_operators(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    (tmp_path / "garbage.db").write_bytes(b"no database\n" * 1000)
    (tmp_path / "file").touch()
    assert "not a SQLite database" in await parked_with(tmp_path / "garbage.db")
    assert (tmp_path / "garbage.db").read_bytes() == b"no database\n" * 1000
    assert "its directory is a file" in await parked_with(tmp_path / "file" / "chat.db")
    with closing(Store(str(tmp_path / "chat.db"))) as store:
        store.open()
        assert f"in use by another running service (process {os.getpid()})" in await parked_with(tmp_path / "chat.db")
    async with writing(tmp_path / "chat.db") as tree:
        assert await tree.ref(PATH).ask(begin(), within=WITHIN) == Began(1, repeated=False)


async def test_turns_are_recovered_when_the_first_try_was_parked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    path = tmp_path / "chat.db"
    with closing(Store(str(path))) as store:
        store.open()
        store.commit([begin()])
        async with writing(path) as tree:
            await tree.reached(PATH, Status.PARKED)
            store.close()
            await tree.restart(PATH)
            await tree.reached(PATH, Status.RUNNING)
            assert (await tree.ref(PATH).ask(LoadHistory("ann", "c"), within=WITHIN)).running == []


async def test_damage_met_while_running_parks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    path = tmp_path / "chat.db"
    async with writing(path) as tree:
        for turn in range(1, 4):
            await tree.ref(PATH).ask(begin(turn, content="x" * 20_000), within=WITHIN)
    with path.open("r+b") as file:
        for page in range(3, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    async with writing(path) as tree:
        with pytest.raises((Fault, Gone)):
            await tree.ref(PATH).ask(LoadHistory("ann", "c"), within=WITHIN)
        await tree.reached(PATH, Status.PARKED)
        assert "is damaged" in last_error(tree)
        assert str(path) in last_error(tree)


async def test_a_full_disk_is_said_and_passes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "actors.writer")
    made: list[apsw.Connection] = []
    monkeypatch.setattr(apsw, "connection_hooks", [made.append])
    async with writing(tmp_path / "chat.db") as tree:
        writer: Ref[Any] = tree.ref(PATH)
        await writer.ask(begin(), within=WITHIN)
        made[0].pragma("max_page_count", int(made[0].pragma("page_count")) + 2)
        for _ in range(2):
            with pytest.raises(Fault) as refused:
                await writer.ask(append("x" * 100_000), within=WITHIN)
            assert refused.value.code is Code.STORAGE_FULL
            assert (await writer.ask(LoadHistory("ann", "c"), within=WITHIN)).running == [1]
        assert "No space is left" in str(facts(tree)["trouble"])
        made[0].pragma("max_page_count", 1_000_000)
        assert await writer.ask(append("x" * 100_000), within=WITHIN) == Done()
        assert "trouble" not in facts(tree)
        assert tree.state(PATH) is Status.RUNNING
    assert caplog.text.count("No space is left") == 1, "said once, not per message"
    assert "can be written again" in caplog.text


async def test_a_disk_that_has_room_again_is_found_without_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL)
    made: list[apsw.Connection] = []
    looks: list[str] = []
    room = False

    def look(path: str) -> bool:
        looks.append(path)
        return room

    monkeypatch.setattr(apsw, "connection_hooks", [made.append])
    monkeypatch.setattr("actors.writer.DUE_S", 0.01)
    monkeypatch.setattr("actors.store.has_room", look)
    async with writing(tmp_path / "chat.db") as tree:
        writer: Ref[Any] = tree.ref(PATH)
        await writer.ask(begin(), within=WITHIN)
        while facts(tree)["operations"] == 1:  # noqa: ASYNC110 - see below
            await trio.sleep(0.01)  # for its first look at what is due, which tells nobody
        made[0].pragma("max_page_count", int(made[0].pragma("page_count")) + 2)
        with pytest.raises(Fault):
            await writer.ask(append("x" * 100_000), within=WITHIN)
        while len(looks) < 3:  # noqa: ASYNC110 - see below
            await trio.sleep(0.01)  # it looks by itself, and tells nobody
        await writer.ask(ExpirePending(), within=WITHIN)  # which writes nothing, as nothing is due
        assert "No space is left" in str(facts(tree)["trouble"])
        made[0].pragma("max_page_count", 1_000_000)
        room = True
        while "trouble" in facts(tree):  # noqa: ASYNC110 - see below
            await trio.sleep(0.01)  # as above
        assert set(looks) == {str(tmp_path / "chat.db")}


def test_room_is_what_the_file_system_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_room(str(tmp_path / "chat.db"))
    assert has_room("/nowhere/at/all/chat.db")  # the database will say what is wrong
    monkeypatch.setattr("actors.database_file.ROOM_BYTES", 2**62)
    assert not has_room(str(tmp_path / "chat.db"))
    assert not list(tmp_path.iterdir())


async def test_another_programs_lock_is_waited_out_or_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr("actors.store.BUSY_MS", 1)
    path = tmp_path / "chat.db"
    async with writing(path) as tree:
        with closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Fault) as refused:
                await tree.ref(PATH).ask(begin(), within=WITHIN)
            assert refused.value.code is Code.STORAGE_UNAVAILABLE
            other.execute("ROLLBACK")
        assert await tree.ref(PATH).ask(begin(), within=WITHIN) == Began(1, repeated=False)
        assert tree.state(PATH) is Status.RUNNING


async def test_a_slow_query_is_ended_and_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL)
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n WHERE ? <> ? + ?"
    monkeypatch.setattr("actors.rows.TURNS_BEFORE", endless)
    monkeypatch.setattr("actors.writer.QUERY_S", 0.3)
    async with writing(tmp_path / "chat.db") as tree:
        writer: Ref[Any] = tree.ref(PATH)
        await writer.ask(Enter("ann", "new!", "c"), within=WITHIN)
        outcome: list[Code] = []

        async def ask_for_ever() -> None:
            with pytest.raises(Fault) as refused:
                await writer.ask(LoadHistory("ann", "c"), within=WITHIN)
            outcome.append(refused.value.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_ever)
            await trio.testing.wait_all_tasks_blocked()
            assert await writer.ask(Enter("ann", "c", ""), within=WITHIN) == Entered("c", new=False)
            assert outcome == [], "the commit did not wait for the query"
        assert outcome == [Code.STORAGE_UNAVAILABLE]
        assert await writer.ask(ListUnfinished(), within=WITHIN) == []


async def test_a_store_in_memory_leaves_no_file(tmp_path: Path) -> None:
    async with writing(tmp_path / "chat.db", kind="memory") as tree:
        await tree.ref(PATH).ask(begin(), within=WITHIN)
        assert (await tree.ref(PATH).ask(LoadHistory("ann", "c"), within=WITHIN)).running == [1]
    assert os.listdir(tmp_path) == []

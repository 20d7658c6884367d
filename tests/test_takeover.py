"""What a session leaves behind when it dies, or when the store refuses its journal: nothing that is lost or runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from actors.running_turn import RunningTurn
from actors.store import Storage
from actors.store_errors import Full
from protocol.writer import Append, BeginTurn, LoadHistory
from tests.fakes import Script, Stall, ask_tool, say
from tests.service import LIGHT, front_of, service


async def test_a_request_of_a_session_that_died_before_its_commit_ends(tmp_path: Path, monkeypatch: Any) -> None:
    release, seen, commit = trio.Event(), trio.Event(), Storage.commit

    async def held(storage: Any, operations: Any) -> Any:
        if any(isinstance(o, BeginTurn) for o in operations):
            seen.set()
            await release.wait()
        return await commit(storage, operations)

    monkeypatch.setattr(Storage, "commit", held)
    async with service(tmp_path, Script(("x", Stall())), say("once")) as s, s.client() as c:
        await c.send("user_message", message="hi", request_id="r")
        await seen.wait()
        first = await s.provider.request(1)

        def boom(message: object) -> None:
            if type(message).__name__ == "Stop":
                s.tree.tap("front/sessions/*", None)
                raise RuntimeError("boom")

        s.tree.tap("front/sessions/*", boom)
        await c.send("stop")
        await c.alive()
        release.set()
        await c.until("turn_finished")
        assert not front_of(s).requests
        await first.abandoned.wait()


async def test_a_journal_that_could_not_be_stored_is_stored_with_the_end(tmp_path: Path, monkeypatch: Any) -> None:
    commit, full = Storage.commit, [True]

    async def failing(storage: Any, operations: Any) -> Any:
        if full[0] and any(isinstance(o, Append) and o.key.startswith("hop") for o in operations):
            full[0] = False
            raise Full("scripted")
        return await commit(storage, operations)

    monkeypatch.setattr(Storage, "commit", failing)
    replies = (ask_tool("add", {"a": 1, "b": 2}, text=("let me see",)), say("fine"))
    async with service(tmp_path, *replies, servers=LIGHT) as s, s.client() as c:
        assert (await c.say("hi"))[-1]["outcome"] == "failed"
        history = await s.ref("store/writer").ask(LoadHistory("local", c.conversation), within=5)
        assert [type(e.event).__name__ for e in history.events] == [
            "UserEvent",
            "HopEvent",
            "ToolStarted",
            "ToolEnded",
            "Closed",
        ]


async def test_a_turn_that_kills_its_session_each_time_comes_to_an_end(tmp_path: Path, monkeypatch: Any) -> None:
    def deadly(*_: Any) -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(RunningTurn, "answered", deadly)
    async with service(tmp_path, ask_tool("add", {"a": 1, "b": 2})) as s, s.client() as c:
        await c.send("user_message", message="hi")
        await c.until("turn_finished")
        assert len(s.provider.requests) <= 4
        assert c.seen[-1]["type"] == "turn_finished"

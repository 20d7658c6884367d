"""What sweeping beside the writer promises: by the limits in force, and nobody waits for it or loses by it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import apsw
import pytest
import trio

from actors import kept_results, retention
from actors.sweeper import IN_USE_S, Known
from protocol.mail import Mailbox, Ref
from protocol.spec import Backoff, Child, Context, Group, Status
from protocol.watcher import (
    Configured,
    Connection,
    Deltas,
    Llm,
    Logging,
    Mcp,
    Retention,
    SavedSessions,
    Service,
    Snapshot,
    Storage,
    Subscribe,
    ToolNotifications,
    WebSocket,
)
from protocol.writer import (
    Append,
    BeginTurn,
    Closed,
    Done,
    Enter,
    InUse,
    ListConversations,
    ListSaved,
    LoadSaved,
    SaveSession,
    StartTurn,
    UserEvent,
)
from supervisors.supervisor import Tree, running

WITHIN = 10.0
PATH = "store/writer"
NEVER = 100_000.0  # minutes
AT_ONCE = 0.0001
CLOSED = Closed("completed", 3, "answer", "", None, "m", "stop", None)


@pytest.fixture(autouse=True)
def nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests enter would otherwise be live for seconds."""
    monkeypatch.setattr(retention, "ENTERED_S", 0.0)


def configured(
    minutes: float, *, hours: float | None = None, sessions: int | None = None, state_dir: str = ""
) -> Configured:
    limits = Retention(hours, None, sessions, minutes)
    snapshot = Snapshot(
        version=1,
        websocket=WebSocket("127.0.0.1", 0, "/", [], False, False, 1, 0, 0),
        storage=Storage("memory", "x", limits, SavedSessions(True, None, 2)),
        service=Service("", True, Deltas(True, 200, 1024), 5, ToolNotifications(False, False, "", ""), {}, "new"),
        llm=Llm("", {}),
        mcp=Mcp("", Connection(1, 1, 1, 1, 1), {}),
        logging=Logging("INFO", ""),
        problems=[],
        state_dir=state_dir,
        drain_s=1,
    )
    return Configured(snapshot)


async def watcher(box: Mailbox[Any], ctx: Context) -> None:
    """Says what it was told last, as the real one does."""
    current, subscribers = configured(NEVER), set[str]()
    async for message in box:
        match message:
            case Subscribe(to):
                subscribers.add(to)
                ctx.ref(to).offer(current)
            case Configured() as current:
                for path in subscribers:
                    ctx.ref(path).offer(current)


class House:
    """A writer with a watcher, and short words for its users."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.writer: Ref[Any] = tree.ref(PATH)

    def configure(self, to: Configured) -> None:
        assert self.tree.ref("watcher").offer(to)

    async def say(self, *conversations: str, turns: int = 1) -> None:
        for name in conversations:
            for turn in range(1, turns + 1):
                user = UserEvent(f"to {name}", f"r{turn}", streaming=True)
                await self.writer.ask(BeginTurn("ann", name, turn, user, queued=False), within=WITHIN)
                await self.writer.ask(Append(name, turn, "end", [CLOSED]), within=WITHIN)

    async def names(self) -> list[str]:
        page = await self.writer.ask(ListConversations("ann"), within=WITHIN)
        return [row.conversation for row in page.conversations]

    async def gone(self, *conversations: str) -> None:
        """Wait until none of them is there: the whole test has a bound."""
        while set(conversations) & set(await self.names()):  # noqa: ASYNC110 - nobody is told of what a sweep takes
            await trio.sleep(0.005)  # so that asking leaves it the time


@asynccontextmanager
async def living(path: Path, *, kind: str = "auto_persist") -> AsyncIterator[House]:
    args = MappingProxyType({"path": str(path / "chat.db"), "type": kind})
    writer = Child("writer", "actors.writer:run", keep="actors.writer:keep", args=args, backoff=Backoff(first_s=0.01))
    group = Group("root", (Child("watcher", watcher), Group("store", (writer,))))
    async with running(group) as tree:
        yield House(tree)


@pytest.mark.parametrize("kind", ["auto_persist", "memory"])
async def test_limits_hold_as_soon_as_they_are_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO, "actors.writer")
    async with living(tmp_path, kind=kind) as house:
        await house.say("a", "b", "c")
        for number in range(4):
            await house.writer.ask(SaveSession("ann", "b", "n", f"s{number}"), within=WITHIN)
        house.configure(configured(NEVER, sessions=1))
        assert await house.names() == ["c", "b", "a"]
        house.configure(configured(AT_ONCE, sessions=1))
        await house.gone("a")
        assert await house.names() == ["c", "b"], "the newest, and one that is saved"
        saved = await house.writer.ask(ListSaved("ann"), within=WITHIN)
        assert [found.saved_id for found in saved] == ["s3", "s2"]
        house.configure(configured(AT_ONCE, hours=1e-9))
        await house.gone("c")
        assert await house.names() == ["b"]
    assert "retention removed 1 conversations, 0 single turns, 2 saved sessions" in caplog.text


async def test_a_conversation_that_a_client_is_in_stays_until_it_leaves(tmp_path: Path) -> None:
    async with living(tmp_path) as house:
        await house.say("named", "entered", "origin", "canary")
        await house.writer.ask(SaveSession("ann", "origin", "n", "s"), within=WITHIN)
        await house.writer.ask(Enter("ann", "entered", ""), within=WITHIN)
        await house.writer.ask(LoadSaved("ann", "s", "loaded"), within=WITHIN)
        house.writer.offer(InUse(["named"]))
        house.configure(configured(AT_ONCE, hours=1e-9))
        await house.gone("canary")
        assert sorted(await house.names()) == ["entered", "loaded", "named", "origin"]
        house.writer.offer(InUse(["named"], left=["loaded", "entered"]))
        await house.gone("entered", "loaded")
        assert await house.names() == ["origin", "named"]


async def test_who_is_where_outlives_a_crash_of_the_writer(tmp_path: Path) -> None:
    def crash(message: object) -> None:
        assert not isinstance(message, StartTurn), "a fault"

    async with living(tmp_path) as house:
        await house.say("named", "canary")
        house.writer.offer(InUse(["named"]))
        assert len(await house.names()) == 2
        house.tree.tap(PATH, crash)
        house.writer.offer(StartTurn("named", 1))
        await house.tree.reached(PATH, Status.RUNNING, incarnation=2)
        house.configure(configured(AT_ONCE, hours=1e-9))
        await house.gone("canary")
        assert await house.names() == ["named"]


@pytest.mark.autojump
async def test_who_was_not_named_again_has_left() -> None:
    known = Known()
    known.take(InUse(["a", "b", "c"]))
    await trio.sleep(IN_USE_S / 2)  # virtual time
    known.take(InUse(["b"], left=["c"]))
    known.expire()
    assert set(known.in_use) == {"a", "b"}
    await trio.sleep(IN_USE_S / 2)  # virtual time
    known.expire()
    assert set(known.in_use) == {"b"}
    await trio.sleep(IN_USE_S / 2)  # virtual time
    known.expire()
    assert not known.in_use


async def test_what_is_kept_of_results_goes_with_its_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_results, "SETTLED_S", -1.0)
    state = str(tmp_path)

    async def until_only(*conversations: str) -> None:
        while set(kept_results.folders(state)) != set(conversations):  # noqa: ASYNC110 - nobody is told of it
            await trio.sleep(0.005)  # so that looking leaves it the time

    async with living(tmp_path) as house:
        await house.say("a", "b")
        for conversation in ("a", "b", "of-an-earlier-run"):
            assert kept_results.keep(state, conversation, b"x", text=True)
        house.configure(configured(NEVER, state_dir=state))
        await until_only("a", "b")
        await house.writer.ask(SaveSession("ann", "a", "n", "s1"), within=WITHIN)
        await house.writer.ask(LoadSaved("ann", "s1", "copy"), within=WITHIN)
        await until_only("a", "b", "copy")
        house.configure(configured(AT_ONCE, sessions=1, state_dir=state))
        await until_only("a", "copy")  # the one is saved, the other the newest


async def test_messages_are_stored_while_a_long_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 1)
    path = tmp_path / "chat.db"

    def left() -> int:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            nobodys = "SELECT turn.n FROM turn JOIN conversation ON conversation = conversation.n WHERE owner = ''"
            return int(db.execute(f"SELECT count(*) FROM event WHERE turn IN ({nobodys})").get)  # noqa: S608  # a literal

    async with living(tmp_path) as house:
        await house.say("old", turns=50)
        house.configure(configured(AT_ONCE, hours=1e-9))
        await house.gone("old")
        for number in range(5):
            user = UserEvent("new", "r1", streaming=True)
            assert await house.writer.ask(BeginTurn("ann", f"new{number}", 1, user, queued=False), within=WITHIN)
        assert 0 < left() <= 100
    # The stop did not wait for the end of the sweep; the next service goes on with it.
    async with living(tmp_path) as house:
        house.configure(configured(AT_ONCE))
        while left():  # noqa: ASYNC110 - nobody is told of what a sweep takes
            await trio.sleep(0.005)  # so that looking leaves it the time
        assert len(await house.names()) == 5


async def test_a_sweep_that_the_disk_refuses_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.store.BUSY_MS", 1)
    said: list[str] = []
    heard = trio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "retention" in record.getMessage():
                said.append(record.getMessage())
                heard.set()

    listener = Listener(logging.WARNING)
    logging.getLogger("actors.writer").addHandler(listener)
    try:
        async with living(tmp_path) as house:
            await house.say("a", "b")
            with closing(apsw.Connection(str(tmp_path / "chat.db"))) as other:
                other.execute("BEGIN IMMEDIATE")
                house.configure(configured(AT_ONCE, sessions=1))
                await heard.wait()
                assert await house.names() == ["b", "a"]
                other.execute("ROLLBACK")
            await house.gone("a")
            assert house.tree.state(PATH) is Status.RUNNING
            assert await house.writer.ask(StartTurn("b", 1), within=WITHIN) == Done()
    finally:
        logging.getLogger("actors.writer").removeHandler(listener)
    assert "held by another program" in said[0]

"""Promises of the status tree: all numbers there, and readable by a stranger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from protocol.mail import Gone, Mailbox, Request
from protocol.spec import Child, Context, Group, Parked
from supervisors.status import BEAT_S, MOST_SHOWN, PROCESSES, LoopLag, Mail, Node, age, render, with_processes
from supervisors.supervisor import running


class Do(Request[Any], frozen=True):
    what: str = ""


async def actor(box: Mailbox[Any], ctx: Context) -> None:
    ctx.report(started=ctx.incarnation, gone=1)
    ctx.report(gone=None)
    async for message in box:
        if message.what == "boom":
            ctx.report(only_before=True)
            raise ValueError("bad byte 0xff at 7")
        if message.what == "answer":
            box.reply(1)


async def missing(box: Mailbox[Any], ctx: Context) -> None:
    raise Parked("command `npx` not found: install Node.js or change servers_config.json")


async def counting(box: Mailbox[Any], ctx: Context) -> None:
    asked = 0

    def facts() -> dict[str, str | int | float | bool]:
        nonlocal asked
        asked += 1
        return {"asked": asked, "both": "live"}

    ctx.report(both="reported", incarnation=ctx.incarnation)
    if ctx.incarnation == 1:
        ctx.report_live(facts)
    async for _ in box:
        raise ValueError


@pytest.mark.autojump
async def test_facts_of_the_moment_are_asked_for_by_who_looks_until_the_actor_ends() -> None:
    async with running(Group("root", (Child("busy", counting),))) as tree:
        looks = [tree.status().children[0].facts for _ in range(2)]
        tree.ref("busy").offer(Do("end"))
        await trio.testing.wait_all_tasks_blocked()
        after = tree.status().children[0].facts
    assert looks == [{"asked": n, "both": "live", "incarnation": 1} for n in (1, 2)]
    assert after == {"both": "reported", "incarnation": 2}


@pytest.mark.autojump
async def test_the_tree_shows_live_numbers() -> None:
    spec = Group("root", (Group("store", (Child("writer", actor),)), Child("mcp", missing, park_s=120)))
    async with running(spec) as tree:
        with pytest.raises(Gone):
            await tree.ref("store/writer").ask(Do("boom"), within=5)
        assert await tree.ref("store/writer").ask(Do("answer"), within=5) == 1
        tree.ref("nobody").offer(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: tree.ref("store/writer").ask(Do("keep me waiting"), within=500))
            await trio.testing.wait_all_tasks_blocked()
            node = tree.status()
            nursery.cancel_scope.cancel()
    assert (node.kind, node.path, node.state, node.dead_letters) == ("group", "", "running", 1)
    assert node.rss_bytes is not None
    assert node.rss_bytes > 1_000_000
    store, mcp = node.children
    (writer,) = store.children
    assert (writer.path, writer.kind, writer.state) == ("store/writer", "actor", "running")
    assert (writer.incarnation, writer.restarts, writer.last_error) == (2, 1, "ValueError: bad byte 0xff at 7")
    assert writer.facts == {"started": 2}
    assert writer.mailbox == Mail(depth=0, limit=256, oldest_s=0.0, in_flight=1, taken=3, refused=0, dead=0, lost=1)
    assert (mcp.state, mcp.uptime_s) == ("parked", None)
    assert mcp.retry_in_s == pytest.approx(120, abs=1)
    again = msgspec.json.decode(msgspec.json.encode(node), type=Node)
    assert again == node


@pytest.mark.autojump
async def test_of_a_great_many_those_are_shown_that_something_is_the_matter_with() -> None:
    spec = Group("root", (Group("sessions", tuple(Child(f"s{number}", actor) for number in range(1000))),))
    async with running(spec) as tree:
        for number in (7, 900):
            with pytest.raises(Gone):
                await tree.ref(f"sessions/s{number}").ask(Do("boom"), within=5)
        await tree.ref("sessions/s999").ask(Do("answer"), within=5)
        (sessions,) = tree.status().children
    *shown, others = sessions.children
    assert len(shown) == MOST_SHOWN
    assert {"s7", "s900"} < {node.name for node in shown}
    assert (others.name, others.path) == (f"and {1000 - MOST_SHOWN} others", "sessions/*")
    assert others.mailbox is not None
    assert sum(node.mailbox.taken for node in sessions.children if node.mailbox is not None) == 3
    assert len(msgspec.json.encode(sessions)) < 50_000


def test_rendered_for_a_stranger() -> None:
    def node(name: str, **more: Any) -> Node:
        plain = {"kind": "actor", "state": "running", "uptime_s": 192.0, "incarnation": 1, "restarts": 0}
        empty = {"path": name, "pid": 7, "retry_in_s": None, "last_error": "", "last_error_at": ""}
        return Node(name=name, **{**empty, **plain, **more})

    mail = Mail(depth=3, limit=256, oldest_s=2.25, in_flight=1, taken=40, refused=2, dead=0, lost=0)
    writer = node("writer", mailbox=mail, facts={"batch": 12, "file": "chat.db", "stderr": "no license found"})
    demo = node(
        "demo",
        state="parked",
        uptime_s=None,
        restarts=5,
        retry_in_s=272.0,
        last_error="ServerDied: exit code 1",
        last_error_at="2026-01-02T03:04:05Z",
    )
    root = node("root", kind="group", rss_bytes=31_000_000, loop_lag_ms=0.4, dead_letters=0, children=[writer, demo])
    assert render(root) == (
        "root  running for 3m12s, pid 7, 31 MB, loop lag 0.4 ms\n"
        "├─ writer  running for 3m12s, 40 taken, 3 of 256 waiting, oldest 2.2s, 1 in hand, 2 refused (full)\n"
        "│      batch=12  file=chat.db\n"
        "│      stderr: no license found\n"
        "└─ ! demo  parked, next try in 4m32s, 5 restarts\n"
        "       last error 2026-01-02T03:04:05Z: ServerDied: exit code 1\n"
    )
    # what runs and needs somebody all the same
    full = node("writer", facts={"trouble": "No space is left."})
    assert render(full) == "! writer  running for 3m12s\n    trouble: No space is left.\n"
    hung = node("llm", kind="process", answers=False)
    assert render(hung) == "! llm  running for 3m12s, pid 7, does not answer\n"


@pytest.mark.parametrize(
    ("state", "pid", "answers"), [("running", 7, False), ("running", None, True), ("restarting", 7, True)]
)
async def test_a_process_that_runs_and_says_nothing_does_not_answer(state: str, pid: int | None, answers: bool) -> None:
    root = Node("", "", "group", "running", 1, 1, 0, 1.0, None, "", "", children=[])
    llm = Node("llm", "llm", "actor", state, 1, 1, 0, 1.0, None, "", "")

    async def silence(within: float) -> None:
        return None

    slot = SimpleNamespace(spec=SimpleNamespace(run=PROCESSES[0]), kept=SimpleNamespace(pid=pid, report=silence))
    tree: Any = SimpleNamespace(slots={"llm": slot}, status=lambda: msgspec.structs.replace(root, children=[llm]))
    (found,) = (await with_processes(tree, 1.0)).children
    assert (found.kind, found.pid, found.answers) == ("process", pid or 0, answers)


def test_what_strangers_wrote_stays_on_its_line_and_moves_no_cursor() -> None:
    facts: dict[str, str | int | float | bool] = {"quarantined": "a b\n\x1b[2J\u202ec"}
    node = Node("odd", "mcp/odd", "actor", "running", 7, 1, 0, 1.0, None, "", "", facts=facts)
    assert render(node).endswith("quarantined: a b\\n\\x1b[2J\\u202ec\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0314, "31ms"),
        (1, "1.0s"),
        (59.9, "59.9s"),
        (59.97, "1m00s"),
        (3599, "59m59s"),
        (18_120, "5h02m"),
        (273_600, "3d04h"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


async def test_loop_lag_is_the_worst_of_the_last_windows() -> None:
    lag, now = LoopLag(), trio.current_time()
    assert lag.worst_ms == 0
    lag.came(now + 1, now + 1.25)
    lag.came(now + 2, now + 2)
    assert lag.worst_ms == 250
    lag.came(now + 11, now + 11.125)  # the first window is over
    lag.came(now + 12, now + 12)
    assert lag.worst_ms == 250
    lag.came(now + 22, now + 22)
    assert lag.worst_ms == 0


@pytest.mark.autojump
async def test_a_loop_that_is_busy_for_long_is_seen() -> None:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    async with running(Group("root", ())) as tree:
        await trio.sleep(10 * BEAT_S)
        assert tree.lag.worst_ms == 0
        clock.jump(5 * BEAT_S)  # as if a task had taken as long
        await trio.sleep(BEAT_S)
        assert tree.lag.worst_ms >= 4 * BEAT_S * 1000

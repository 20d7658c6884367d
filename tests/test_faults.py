"""Every actor raises at every message that it handles; clients see what the contract promises, no more.

For each row of tests/faults.py: two sockets stay open, the turn ends exactly once with its outcome, the
actor is back, the status tells of the restart, and the next turn is answered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import yaml

from actors import local_model
from protocol import errors
from protocol.gateway import GetFigures, StopTaking
from protocol.mail import Request
from protocol.mcp_server import (
    AnswerQuestion,
    AnswerSampling,
    Catalogue,
    CompleteArgument,
    GetPrompt,
    ReadResource,
    RequestEnded,
    ResourceUpdated,
    Resting,
    SamplingRequest,
    SetServerLog,
    SubscribeResource,
    TellTools,
    UnsubscribeResource,
    UrlVisited,
    UserQuestion,
)
from protocol.models import ListModels
from protocol.pending import (
    CancelPending,
    DecidePending,
    DropGrant,
    ExpirePending,
    ListGrants,
    OpenPending,
    Pending,
    PendingSettled,
    ReadPending,
    WatchPending,
)
from protocol.pins import CheckTools, OnlyServers, PinningChanged
from protocol.reporter import GetStatus, RestartPart
from protocol.spec import Child, Down, Group, Status, Up
from protocol.watcher import GetConfig, GetSnapshot, ListVersions, Rollback, SetConfig, SetLocalModel, Subscribe
from protocol.writer import (
    DeleteSaved,
    FrontGone,
    InUse,
    ListConversations,
    ListSaved,
    LoadSaved,
    ReadSaved,
    Release,
    SaveSession,
    TakeUnfinished,
)
from supervisors.tree import product
from tests.fakes import Script, Stall, ask_tool, fail, say
from tests.faults import ROWS, VOCABULARY, Row, words
from tests.service import LIGHT, Client, Frame, Service, connected, front_of, of_type, service, text_of

OF_AN_ACTOR = 2  # rows of a service: what dies again and again comes back later and later
OF_A_SERVER = 1  # the second restart of a server takes a second


class Injected(Exception):
    """The fault."""


class Fault:
    """Raises once, at the nth message of that kind."""

    def __init__(self, s: Service, row: Row) -> None:
        self.hit = trio.Event()
        self._row = row
        self._left = row.nth
        self._s = s

    def arm(self) -> None:
        """From now on."""
        self._s.tree.tap(self._row.actor, self._tap)

    def disarm(self) -> None:
        """No more."""
        self._s.tree.tap(self._row.actor, None)

    def _tap(self, message: object) -> None:
        if type(message).__name__ == self._row.message and not self.hit.is_set():
            self._left -= 1
            if not self._left:
                self.hit.set()
                raise Injected(f"at {self._row.message}")


class Scene:
    """What the scenes have at hand: the asking client, another one in the same conversation, the gate."""

    def __init__(self, s: Service, client: Client, fault: Fault, gate: trio.Event, row: Row) -> None:
        self.s, self.client, self.fault, self.gate, self.row = s, client, fault, gate, row
        self.frames: list[Frame] = []

    async def say(self, text: str = "go") -> None:
        await self.client.send("user_message", message=text, request_id="r1")

    async def shown(self) -> None:
        """The answer has begun to show."""
        self.frames += await self.client.until("assistant_delta")

    async def finish(self) -> None:
        self.gate.set()
        self.frames += await self.client.until("turn_finished")


Play = Callable[[Scene], Awaitable[None]]
SCENES: dict[str, Play] = {}


def scene(name: str) -> Callable[[Play], Play]:
    def add(play: Play) -> Play:
        SCENES[name] = play
        return play

    return add


@scene("answer")
async def answer(x: Scene) -> None:
    x.fault.arm()
    await x.say()
    await x.finish()


@scene("slow")
async def slow(x: Scene) -> None:
    """The answer stands still in the middle until the fault has happened, or a second batch comes with it."""
    x.fault.arm()
    await x.say()
    await x.shown()
    if x.row.message == "Pieces":
        x.gate.set()
    await x.fault.hit.wait()
    await x.finish()


@scene("tool")
async def tool(x: Scene) -> None:
    x.fault.arm()
    await x.say("tool")
    await x.finish()


@scene("queue")
async def queue(x: Scene) -> None:
    x.fault.arm()
    await x.say()
    await x.shown()
    await x.client.send("user_message", message="second", request_id="r2")
    if x.row.message == "Say":
        await x.fault.hit.wait()
    else:
        x.frames += await x.client.until("message_queued")
    await x.finish()
    x.frames += await x.client.until("turn_finished", turn=2)


@scene("stop")
async def stop(x: Scene) -> None:
    await x.say()
    await x.shown()
    x.fault.arm()
    await x.client.send("stop")
    await x.fault.hit.wait()
    await x.finish()


@scene("stop tool")
async def stop_tool(x: Scene) -> None:
    await x.say("tool")
    x.frames += await x.client.until("tool_execution", status="executing")
    x.fault.arm()
    await x.client.send("stop")
    await x.fault.hit.wait()
    await x.finish()


@scene("drain")
async def drain(x: Scene) -> None:
    await x.say()
    await x.shown()
    x.fault.arm()
    async with trio.open_nursery() as nursery:

        async def stop_taking() -> None:
            await x.s.ref("front/gateway").ask(StopTaking(grace_s=30.0), within=15.0, again=True)

        nursery.start_soon(stop_taking)
        await x.fault.hit.wait()
        await x.finish()


async def in_mid_turn(x: Scene, act: Callable[[], Awaitable[None]]) -> None:
    await x.say()
    await x.shown()
    x.fault.arm()
    await act()
    await x.fault.hit.wait()
    await x.finish()


@scene("nudge")
async def nudge(x: Scene) -> None:
    async def act() -> None:
        x.s.ref(x.row.actor).nudge()

    await in_mid_turn(x, act)


@scene("configure")
async def configure(x: Scene) -> None:
    async def act() -> None:
        path = x.s.state / "runtime_config.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["chat"]["service"]["max_tool_hops"] = settings["chat"]["service"].get("max_tool_hops", 5) + 1
        path.write_text(yaml.safe_dump(settings))

    await in_mid_turn(x, act)


def offering(path: str, message: object) -> Play:
    async def play(x: Scene) -> None:
        async def act() -> None:
            assert x.s.ref(path).offer(message)

        await in_mid_turn(x, act)

    return play


SCENES["gateway down"] = offering("mcp/demo", Down("front/gateway", 1, "", 0, parked=False))
SCENES["asker down"] = offering("llm/streamer", Down("front/gateway", 1, "", 0, parked=False))
SCENES["asker up"] = offering("llm/streamer", Up("front/gateway", 1))
SCENES["gateway up"] = offering("mcp/demo", Up("front/gateway", 1))
SCENES["roster down"] = offering("front/gateway", Down("roster", 1, "", 0, parked=False))
SCENES["roster up"] = offering("front/gateway", Up("roster", 1))
SCENES["watcher down"] = offering("llm/local", Down("watcher", 1, "", 0, parked=False))
SCENES["watcher up"] = offering("llm/local", Up("watcher", 1))
SCENES["subscribe"] = offering("watcher", Subscribe("front/gateway"))
SCENES["local"] = offering("watcher", SetLocalModel(None))
SCENES["resting"] = offering("front/gateway", Resting("mcp/demo", "it was too slow", 1000))
SCENES["catalogue"] = offering("front/gateway", Catalogue("demo", [], [], [], ""))
SCENES["user question"] = offering("front/gateway", UserQuestion("q", "demo", "c", "Who?", schema={}))
SCENES["sampling"] = offering("front/gateway", SamplingRequest("s", "demo", "c", 1, [], 10))
SCENES["request ended"] = offering("front/gateway", RequestEnded("q", "the call ended"))
SCENES["url visited"] = offering("front/gateway", UrlVisited("q"))


@scene("snapshot")
async def snapshot(x: Scene) -> None:
    async def act() -> None:
        assert (await x.s.ref("watcher").ask(GetSnapshot(), within=10, again=True)).version >= 1

    await in_mid_turn(x, act)


def asking(path: str, message: Request[object]) -> Play:
    """An actor is asked, and asked again when it died of it; a typed refusal is an answer too."""

    async def play(x: Scene) -> None:
        async def act() -> None:
            with contextlib.suppress(errors.Fault):
                await x.s.ref(path).ask(message, within=10, again=True)

        await in_mid_turn(x, act)

    return play


WATCHER, WRITER, DEMO_SERVER = "watcher", "store/writer", "mcp/demo"
SCENES["read the configuration"] = asking(WATCHER, GetConfig())
SCENES["change the configuration"] = asking(WATCHER, SetConfig({"chat": {"service": {"max_tool_hops": 5}}}))
SCENES["list versions"] = asking(WATCHER, ListVersions())
SCENES["roll back"] = asking(WATCHER, Rollback(1))
SCENES["save"] = asking(WRITER, SaveSession("local", "c", "name", "s1"))
SCENES["list saved"] = asking(WRITER, ListSaved("local"))
SCENES["read saved"] = asking(WRITER, ReadSaved("local", "s1"))
SCENES["load saved"] = asking(WRITER, LoadSaved("local", "s1", "fresh"))
SCENES["delete saved"] = asking(WRITER, DeleteSaved("local", "s1"))
SCENES["list conversations"] = asking(WRITER, ListConversations("local"))
SCENES["status"] = asking("reporter", GetStatus())
SCENES["restart"] = asking("reporter", RestartPart("logs"))
SCENES["tell tools"] = offering(DEMO_SERVER, TellTools("front/gateway"))
SCENES["take unfinished"] = asking(WRITER, TakeUnfinished())
SCENES["release"] = asking(WRITER, Release("run:front1#1", ["c"]))
SCENES["front gone"] = asking(WRITER, FrontGone("run:front1#1"))
SCENES["front down"] = offering(WRITER, Down("fronts/front1", 1, "", 0, parked=False))
SCENES["front up"] = offering(WRITER, Up("fronts/front1", 2))
ASKED = OpenPending(Pending("p", "question", "local", "demo", {"message": "?"}), lasts_s=60.0)
SCENES["open pending"] = asking(WRITER, ASKED)
SCENES["decide pending"] = asking(WRITER, DecidePending("p", ["local"], "question", "declined", "k"))
SCENES["cancel pending"] = asking(WRITER, CancelPending("c"))
SCENES["expire pending"] = asking(WRITER, ExpirePending())
SCENES["drop grant"] = asking(WRITER, DropGrant("local", "demo", "add"))
SCENES["read pending"] = asking(WRITER, ReadPending("p"))
SCENES["list grants"] = asking(WRITER, ListGrants("local"))
SCENES["watch pending"] = offering(WRITER, WatchPending("front/gateway"))
SCENES["check tools"] = asking(WRITER, CheckTools("demo", "source", {}, to="mcp/demo"))
SCENES["only servers"] = asking(WRITER, OnlyServers(["demo"]))
SETTLED = Pending("tool-x", "approval", "", "demo", {}, tool="add", state="declined")
SCENES["tool settled"] = offering(DEMO_SERVER, PendingSettled(SETTLED))
SCENES["pinning changed"] = offering(DEMO_SERVER, PinningChanged())
SCENES["in use"] = offering(WRITER, InUse([]))
SCENES["list models"] = asking("llm/streamer", ListModels())
SCENES["figures"] = asking("front/gateway", GetFigures())
SCENES["server log"] = offering(DEMO_SERVER, SetServerLog("INFO"))
SCENES["read resource"] = asking(DEMO_SERVER, ReadResource("demo://readme"))
SCENES["answer question"] = asking(DEMO_SERVER, AnswerQuestion("q", "decline"))
SCENES["answer sampling"] = asking(DEMO_SERVER, AnswerSampling("s", refused="no"))
SCENES["complete"] = asking(DEMO_SERVER, CompleteArgument("topic", "", prompt="haiku"))
SCENES["subscribe to a resource"] = asking(DEMO_SERVER, SubscribeResource("demo://readme", "front/gateway"))
SCENES["unsubscribe from a resource"] = offering(DEMO_SERVER, UnsubscribeResource("demo://readme", "front/gateway"))
SCENES["resource updated"] = offering("front/gateway", ResourceUpdated("demo", "demo://readme"))
SCENES["get prompt"] = asking(DEMO_SERVER, GetPrompt("none", {}))


@scene("settle pending")
async def settle_pending(x: Scene) -> None:
    async def act() -> None:
        await x.s.ref(WRITER).ask(ASKED, within=10, again=True)
        await x.client.send("answer", question_id="p", action="decline", request_id="a1")
        x.frames += await x.client.until("question_settled", request_id="a1")

    await in_mid_turn(x, act)


@scene("connect")
async def connect(x: Scene) -> None:
    async def act() -> None:
        async with x.s.client() as late:
            assert late.conversation == x.client.conversation

    await in_mid_turn(x, act)


@scene("ready")
async def ready(x: Scene) -> None:
    async def act() -> None:
        await x.s.get("/readyz")

    await in_mid_turn(x, act)


def replies(gate: trio.Event) -> Callable[[object], Script]:
    """By the last user message: a tool call first, or text that stands still until the gate is open."""

    def reply(asked: object) -> Script:
        if not isinstance(asked, dict):
            return fail(404)  # it is asked for its models
        last = asked["messages"][-1]
        if last["role"] == "user" and last["content"] == "tool":
            return ask_tool("slow", {"steps": 3, "step_s": 0.12}, text=("I ", "look. "))
        return Script(("Hel", "lo ", Stall(gate), *say("wor", "ld").items))

    return reply


@asynccontextmanager
async def stage(s: Service, row: Row) -> AsyncIterator[tuple[Scene, Client]]:
    gate = trio.Event()
    s.provider.replies = [replies(gate)]
    async with s.client("?conversation=new") as client:
        if row.actor == "front/sessions/*":
            row = dataclasses.replace(row, actor=f"front/sessions/{client.conversation}")
        async with s.client(f"?conversation={client.conversation}") as other:
            if other.welcome["type"] == "error":  # no message yet, so no row: it enters with the first
                await other.next()
                front = front_of(s)
                moved = max(front.sockets.values(), key=lambda socket: socket.number)
                front.enter(moved, front.conversations[client.conversation])
            await other.send("stop")  # whoever says nothing yet might resume, and is shown nothing for a second
            await other.until("error", error_code="TURN_NOT_RUNNING")
            yield Scene(s, client, Fault(s, row), gate, row), other


def batches() -> list[list[Row]]:
    """Rows that share a service, one after the other: few of an actor, or its restarts become slow and too many."""
    found: list[list[Row]] = []
    for row in ROWS:
        most = OF_A_SERVER if row.actor == DEMO_SERVER else OF_AN_ACTOR
        fits = (b for b in found if b[-1].provoke != "drain" and sum(r.actor == row.actor for r in b) < most)
        batch = next(fits, None)
        if batch is None:
            found.append(batch := [])
        batch.append(row)
    return found


def uses_tools(row: Row) -> bool:
    return "tool" in row.provoke or row.actor == DEMO_SERVER


@pytest.mark.parametrize("rows", batches(), ids=lambda rows: f"{rows[0].name} to {rows[-1].name}")
async def test_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> None:
    monkeypatch.setattr(local_model, "PACKAGES", ())  # it asks for no configuration where its extra is not installed
    servers = LIGHT if any(map(uses_tools, rows)) else {}
    async with service(tmp_path, servers=servers) as s:
        for row in rows:
            if uses_tools(row):  # a row before this one may have ended its server
                await s.ref(DEMO_SERVER).ask(ReadResource("demo://readme"), within=10, again=True)
                await connected(s, "demo")
            try:
                await happens(s, row)
            except BaseException as error:
                error.add_note(f"in the row {row.name}")
                raise


async def happens(s: Service, row: Row) -> None:
    async with stage(s, row) as (x, other):
        client, actor = x.client, x.row.actor
        slot = s.tree.slots.get(actor)
        before = slot.incarnation if slot else 1
        await SCENES[row.provoke](x)
        assert x.fault.hit.is_set()
        first = [f for f in x.frames if f.get("turn", 1) == 1]
        [finished] = of_type(first, "turn_finished")
        assert finished["outcome"] == row.outcome, first
        assert len(of_type(first, "turn_started")) == 1
        whole = of_type(first, "assistant_message")
        if whole:
            assert text_of(first) == whole[0]["message"]

        # the other socket saw the same end, and both are open
        frames = await other.until("turn_finished", turn=finished["turn"])
        assert frames[-1] == finished
        await client.alive()
        await other.alive()

        # the actor is back, and the status says what happened
        await s.tree.reached(actor, Status.RUNNING, incarnation=before + 1)
        node = find(json.loads((await s.get("/status"))[2]), actor)
        assert node["restarts"] >= before
        assert f"Injected: at {row.message}" in node["last_error"]

        # life goes on, unless it was to end
        await client.send("user_message", message="next", request_id="r9")
        if row.provoke == "drain":
            assert (await client.until("error"))[-1]["error_code"] == "SHUTTING_DOWN"
            return
        frames = await client.until("turn_finished")
        assert frames[-1]["outcome"] == "completed"
        assert text_of(frames) == "Hello world"
        assert not [f for f in client.seen if f["type"] == "turn_finished"][2 + (row.provoke == "queue") :]
        x.fault.disarm()


def find(node: Frame, path: str) -> Frame:
    """A node of the status tree."""
    if node["path"] == path:
        return node
    for child in node["children"]:
        try:
            return find(child, path)
        except LookupError:
            continue
    raise LookupError(path)


def paths(group: Group, above: str = "") -> list[str]:
    """Paths of all actors of a group; `*` stands for the children of a dynamic one."""
    found: list[str] = ["*"] if group.dynamic else []
    for child in group.children:
        if isinstance(child, Child):
            found.append(child.name)
        else:
            found += [f"{child.name}/{path}" for path in paths(child)]
    return found


def test_the_matrix_has_a_row_for_every_actor_and_every_message() -> None:
    whole = product(watcher={}, writer={}, local={}, gateway={}, reporter={})
    tree = {path.replace("mcp/*", "mcp/demo") for path in paths(whole)}
    assert set(VOCABULARY) == tree
    for actor in VOCABULARY:
        assert {row.message for row in ROWS if row.actor == actor} >= words(actor), actor

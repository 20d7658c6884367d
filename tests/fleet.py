"""The service as several real processes, under load, with parts of it killed: what must hold meanwhile.

async with fleet(tmp_path, provider) as f:
    pid = await f.pid("llm")
    os.kill(pid, signal.SIGKILL)
    await f.replaced("llm", pid)

`Talker` is a client that goes on talking and checks what every client may rely on; `chaos` kills roles at random
under many of them. The suite runs it for a twentieth of the time of `tests/soak`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import trio
import trio_websocket

from tests.fakes import FakeProvider, Reply
from tests.program import Program, program
from tests.service import LIGHT, Client, Frame, prepare

OUTCOMES = {"completed", "stopped", "interrupted", "failed"}


@dataclass
class Node:
    """What is read of the status tree."""

    path: str
    name: str
    kind: str
    state: str
    pid: int
    restarts: int
    facts: Mapping[str, Any]
    children: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Node:
        children = [cls.of(child) for child in raw["children"]]
        return cls(
            **{name: raw[name] for name in ("path", "name", "kind", "state", "pid", "restarts", "facts")},
            children=children,
        )

    def all(self) -> list[Node]:
        return [self, *(node for child in self.children for node in child.all())]


class Fleet:
    """A running service of several processes."""

    def __init__(self, running: Program, url: str, state: Path) -> None:
        self.program = running
        self.url = url
        self.state = state
        self.port = int(url.rpartition(":")[2].partition("/")[0])

    @asynccontextmanager
    async def client(self, query: str = "") -> AsyncIterator[Client]:
        """A socket, welcomed."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream, trio.open_nursery() as nursery:
            websocket = await trio_websocket.wrap_client_stream(
                nursery, stream, f"127.0.0.1:{self.port}", "/ws/chat" + query
            )
            yield Client(websocket, json.loads(await websocket.get_message()))
            with trio.move_on_after(1.0):
                await websocket.aclose()
            nursery.cancel_scope.cancel()

    async def get(self, path: str) -> tuple[int, bytes]:
        """An HTTP GET: status and body."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            answer = b""
            while part := await stream.receive_some(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def status(self) -> Node:
        """The tree of all processes."""
        while True:
            code, body = await self.get("/status")
            if code == 200:
                return Node.of(json.loads(body))

    async def processes(self) -> dict[str, Node]:
        """The processes by role."""
        return {node.name: node for node in (await self.status()).all() if node.kind == "process"}

    async def owner(self, conversation: str) -> str:
        """The front that has a conversation in which a turn was begun."""
        for role, node in (await self.processes()).items():
            if any(found.path.endswith(f"/sessions/{conversation}") for found in node.all()):
                return role
        raise AssertionError(f"no front has {conversation}")

    async def pid(self, role: str) -> int:
        """Of the process that has the role, once it runs."""
        while True:
            node = (await self.processes()).get(role)
            if node is not None and node.pid and node.state == "running":
                return node.pid
            await trio.sleep(0.02)  # the status is asked for, it tells nobody

    async def replaced(self, role: str, pid: int) -> int:
        """Wait until another process has the role and all of its actors are up."""
        while True:
            node = (await self.processes()).get(role)
            if node is not None and node.pid not in (0, pid) and node.state == "running" and node.children:
                return node.pid
            await trio.sleep(0.02)  # as above

    async def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the process of a role; its pid."""
        pid = await self.pid(role)
        os.kill(pid, number)
        return pid


@asynccontextmanager
async def fleet(
    folder: Path,
    *replies: Reply,
    fronts: int = 2,
    settings: Mapping[str, Any] | None = None,
    servers: Mapping[str, Any] | None = None,
    interval: float = 0.0,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Fleet, FakeProvider]]:
    """The product in processes, ready to take turns; stopped in order at the end if it still runs."""
    state = folder / "state"
    async with FakeProvider(*replies, interval=interval) as provider:
        prepare(state, provider, settings or {}, LIGHT if servers is None else servers)
        arguments = ("--state", str(state), "--port", "0", "--fronts", str(fronts))
        async with program(*arguments, env=env, inline=False) as running:
            running_fleet = Fleet(running, await running.listening(), state)
            yield running_fleet, provider
            if running.process.poll() is None:
                running.remember_children()
                running.signal(signal.SIGTERM)
                code = await running.ended()
                assert code == 0, running.log
                await running.nothing_left()


@dataclass
class Talk:
    """What one client has seen."""

    conversation: str = ""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Turns of messages that were acknowledged, by request_id."""
    outcomes: dict[int, str] = field(default_factory=dict)
    """How turns ended."""
    notices: set[str] = field(default_factory=set)
    """Kinds of notices."""
    errors: list[str] = field(default_factory=list)
    talking: trio.Event = field(default_factory=trio.Event)
    """A turn has ended."""


def check_turn(frames: Sequence[Frame], turn: int) -> str:
    """What holds for the frames of one turn, whatever dies behind the front; its outcome."""
    mine = [frame for frame in frames if frame.get("turn") == turn and frame["type"] != "error"]
    assert mine[0]["type"] == "turn_started", mine
    assert [frame["type"] for frame in mine].count("turn_finished") == 1
    assert mine[-1]["type"] == "turn_finished"
    said = "".join(frame["text"] for frame in mine if frame["type"] == "assistant_delta")
    whole = [frame["message"] for frame in mine if frame["type"] == "assistant_message"]
    assert whole == ([said] if said else []), (said, whole)
    positions = [frame["seq"] for frame in mine if "seq" in frame]
    assert positions == sorted(set(positions))
    outcome = str(mine[-1]["outcome"])
    assert outcome in OUTCOMES
    return outcome


async def talk(f: Fleet, talk: Talk, over: trio.Event, *, tool_every: int = 4) -> None:
    """Talk on one socket that must stay, until it is over; the last turn is seen to its end."""
    async with f.client("?conversation=new") as client:
        talk.conversation = client.conversation
        for number in count(1):
            if over.is_set():
                return
            request = f"m{number}"
            await client.send(
                "user_message", message="tool" if number % tool_every == 0 else "text", request_id=request
            )
            frames: list[Frame] = []
            while not (frames and frames[-1]["type"] == "turn_finished"):
                frame = await client.next()
                frames.append(frame)
                if frame["type"] in ("degraded", "recovered"):
                    talk.notices.add(frame["type"])
                elif frame["type"] == "turn_started":
                    talk.acknowledged[request] = frame["turn"]
                elif frame["type"] == "error":
                    talk.errors.append(frame["error_code"])
                    if request not in talk.acknowledged:
                        break  # it was refused, and says so
            else:
                turn = talk.acknowledged[request]
                talk.outcomes[turn] = check_turn(frames, turn)


@dataclass
class Chaos:
    """What happened."""

    talks: list[Talk]
    kills: list[str]
    probes: int
    slowest_probe_s: float
    back_s: list[float]
    """How long each role took to be back."""


@asynccontextmanager
async def prober(f: Fleet, happened: Chaos) -> AsyncIterator[None]:
    """Somebody else asks all the while whether the service is alive. Raises when that is not answered."""
    command = [sys.executable, "-m", "tests.prober", str(f.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:  # noqa: ASYNC220 - a millisecond
        try:
            yield
            said, _ = await trio.to_thread.run_sync(asking.communicate)
        finally:
            asking.kill()
    assert asking.returncode == 0
    probes, slowest = said.split()
    happened.probes, happened.slowest_probe_s = int(probes), float(slowest)


async def chaos(f: Fleet, *, seconds: float, clients: int, seed: int, roles: Sequence[str]) -> Chaos:
    """Kill roles at random under talking clients. Raises whatever a client must never see."""
    rng = random.Random(seed)
    happened = Chaos([Talk() for _ in range(clients)], [], 0, 0.0, [])
    over = trio.Event()

    async with prober(f, happened), trio.open_nursery() as nursery:
        for one in happened.talks:
            nursery.start_soon(talk, f, one, over)
        end = trio.current_time() + seconds
        order = list(roles)
        while order or trio.current_time() < end:
            role = order.pop(0) if order else rng.choice(roles)  # each once, then at random
            await trio.sleep(rng.uniform(0.1, 0.6))  # at any moment of their turns
            pid = await f.kill(role)
            began = time.perf_counter()
            await f.replaced(role, pid)
            happened.back_s.append(time.perf_counter() - began)
            happened.kills.append(role)
        over.set()
    return happened


async def kept(f: Fleet, talks: Sequence[Talk]) -> None:
    """Every acknowledged message is in the history, once, and every turn has the outcome that its client saw."""
    for one in talks:
        if not one.acknowledged:
            continue
        async with f.client(f"?conversation={one.conversation}") as client:
            assert client.conversation == one.conversation
            turns: list[int] = []
            before: dict[str, int] = {}
            more = True
            while more:
                await client.send("history", **before)
                page = (await client.until("history"))[-1]
                turns = [m["turn"] for m in page["messages"] if m["role"] == "user"] + turns
                more, before = page["more"], {"before": min(turns)} if turns else {}
            assert set(one.acknowledged.values()) <= set(turns)
            assert len(turns) == len(set(turns))


async def renew(f: Fleet, happened: Talk, over: trio.Event) -> None:
    """Talk as a good client does: what is not acknowledged is said again, also on another connection.

    A connection that the service closes is one with 1012, and is made anew at once.
    """
    number, turn, position = 1, 0, 0
    while True:
        async with f.client(f"?conversation={happened.conversation or 'new'}") as client:
            happened.conversation = client.conversation
            try:
                while not over.is_set():
                    request = f"m{number}"
                    if request in happened.acknowledged:
                        await client.send("resume", turn=turn, seq=position)
                    else:
                        await client.send("user_message", message="text", request_id=request)
                    while True:
                        frame = await client.next()
                        if frame["type"] == "turn_started" and frame.get("request_id") == request:
                            happened.acknowledged[request] = turn = frame["turn"]
                            position = 0
                        elif frame["type"] == "error":
                            happened.errors.append(frame["error_code"])
                            assert frame["retryable"], frame
                            assert request not in happened.acknowledged
                            await trio.sleep(0.05)  # before it is said again
                            break
                        elif frame.get("turn") == turn and turn:
                            position = max(position, frame.get("seq", 0))
                            if frame["type"] == "turn_finished":
                                assert turn not in happened.outcomes
                                happened.outcomes[turn] = frame["outcome"]
                                happened.talking.set()
                                number, turn = number + 1, 0
                                break
                return
            except trio_websocket.ConnectionClosed as closed:
                if closed.reason is None or closed.reason.code != 1012:
                    raise

"""The streamer in a small tree of its own: what its tests ask, and what comes back.

The tree is the real one with three actors: a watcher that hands out the test's snapshot, a receiver that
keeps every batch, and the streamer::

    async with FakeProvider(say("a")) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        assert (await h.finished(1)).finish_reason == "stop"
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import trio
import trio.testing

from actors import streamer
from protocol.mail import Mailbox
from protocol.spec import Child, Context, Group
from protocol.streamer import Cancel, Complete, Failed, Finished, Piece, Pieces, Text
from protocol.watcher import (
    ClientOptions,
    Configured,
    Connection,
    Deltas,
    GetSnapshot,
    Llm,
    Logging,
    Mcp,
    Provider,
    Retention,
    SavedSessions,
    Service,
    Snapshot,
    Storage,
    Subscribe,
    ToolNotifications,
    WebSocket,
)
from supervisors.supervisor import Tree, running

KEY = "sk-planted-4711-secret"


def snapshot(*providers: Provider, version: int = 1, fallbacks: Sequence[str] = ()) -> Snapshot:
    return Snapshot(
        version=version,
        websocket=WebSocket("127.0.0.1", 0, "/ws/chat", [], False, False, 1, 0, 0),
        storage=Storage("memory", "x", Retention(None, None, None, 1), SavedSessions(True, None, None)),
        service=Service("", True, Deltas(True, 200, 1024), 5, ToolNotifications(False, False, "", ""), {}, "new"),
        llm=Llm(
            providers[0].name if providers else "", {provider.name: provider for provider in providers}, list(fallbacks)
        ),
        mcp=Mcp("", Connection(1, 1, 1, 1, 1), {}),
        logging=Logging("INFO", ""),
        problems=[],
        state_dir="",
        drain_s=1,
    )


def provider(base_url: str, name: str = "p", key: str | None = None, parameters: Any = None, **client: Any) -> Provider:
    options = msgspec.convert(client, ClientOptions)
    return Provider(name, base_url, "m1", key, parameters or {}, options)


@dataclass
class Harness:
    """A running tree and what its receiver got."""

    tree: Tree
    batches: list[list[Piece]]
    gate: trio.Event
    """The receiver takes messages once it is set."""
    came: trio.lowlevel.ParkingLot
    listener: str = "front/gateway"

    def ask(self, request: int, said: str = "hi", to: str = "", **fields: Any) -> None:
        values: dict[str, Any] = {"provider": "", "model": "", "conversation": "c"} | fields
        tools = values.pop("tools", [])
        values["tools"] = msgspec.json.encode(tools) if tools else b""
        messages = [{"role": "user", "content": said}]
        to = to or self.listener
        assert self.tree.ref("llm/streamer").offer(Complete(request=request, to=to, messages=messages, **values))

    def cancel(self, request: int) -> None:
        assert self.tree.ref("llm/streamer").offer(Cancel(self.listener, request))

    def pieces(self, request: int) -> list[Piece]:
        return [piece for batch in self.batches for piece in batch if piece.request == request]

    def text(self, request: int) -> str:
        return "".join(piece.text for piece in self.pieces(request) if isinstance(piece, Text))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.came.park()

    async def end(self, request: int) -> Finished | Failed:
        """The last piece of a request; checks that it is the only one of its kind, and the last."""
        ends: list[Piece] = []

        def ended() -> bool:
            ends[:] = [piece for piece in self.pieces(request) if isinstance(piece, Finished | Failed)]
            return bool(ends)

        await self.until(ended)
        assert ends == self.pieces(request)[-1:]
        assert isinstance(ends[0], Finished | Failed)
        return ends[0]

    async def finished(self, request: int) -> Finished:
        end = await self.end(request)
        assert isinstance(end, Finished), end
        return end

    async def failed(self, request: int) -> Failed:
        end = await self.end(request)
        assert isinstance(end, Failed), end
        return end

    def configure(self, *providers: Provider, version: int = 2, fallbacks: Sequence[str] = ()) -> None:
        """Another configuration; it comes to the streamer through the watcher's mailbox and its own."""
        newer = snapshot(*providers, version=version, fallbacks=fallbacks)
        assert self.tree.ref("watcher").offer(Configured(newer))

    async def until_configured(self, version: int) -> None:
        """Wait until the streamer has taken that configuration."""
        while self.facts().get("configured") != version:
            await trio.testing.wait_all_tasks_blocked(0.005)

    def facts(self) -> dict[str, Any]:
        """What status shows of the streamer."""
        return self.tree.slots["llm/streamer"].known


@asynccontextmanager
async def harness(
    *providers: Provider,
    taking: bool = True,
    mailbox: int = 256,
    fallbacks: Sequence[str] = (),
    backoff_s: float = 0.001,
    before: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Harness]:
    """A running streamer; the first provider is the active one.

    Args:
        before: awaited by the receiver with each message, before it takes the next.
    """
    batches: list[list[Piece]] = []
    gate, came = trio.Event(), trio.lowlevel.ParkingLot()
    if taking:
        gate.set()

    async def watcher(box: Mailbox[Any], ctx: Context) -> None:
        current, subscribers = snapshot(*providers, fallbacks=fallbacks), set[str]()
        async for message in box:
            match message:
                case GetSnapshot():
                    box.reply(current)
                case Subscribe(to):
                    subscribers.add(to)
                    ctx.ref(to).offer(Configured(current))
                case Configured(current):
                    for path in subscribers:
                        ctx.ref(path).offer(message)

    async def receiver(box: Mailbox[Any], ctx: Context) -> None:
        ctx.ready()
        await gate.wait()
        async for message in box:
            assert isinstance(message, Pieces)
            batches.append(message.pieces)
            came.unpark_all()
            if before is not None:
                await before()

    tree = Group(
        "root",
        (
            Child("watcher", watcher),
            Group("llm", (Child("streamer", streamer.run, args={"backoff_s": backoff_s}, shutdown_s=0.2),)),
            Group("front", (Child("gateway", receiver, mailbox=mailbox, shutdown_s=0.2),)),
        ),
    )
    async with running(tree) as live:
        yield Harness(live, batches, gate, came)

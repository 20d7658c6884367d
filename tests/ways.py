"""Mail by every way that it can take: within a process, through a socketpair, through a Unix socket.

What is promised of mail holds for each: a test that takes a `Way` runs the same lines over all of them.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from protocol.mail import Inlet, Mailbox, Ref, Request
from protocol.spec import Down, Up
from supervisors.exchange import Exchange

WAYS = ("here", "socketpair", "unix socket")


class Note(msgspec.Struct, frozen=True, tag=True):
    n: int
    pad: bytes = b""


class Twice(Request[int], frozen=True, tag=True):
    n: int


class Fetch(Request[bytes], frozen=True, tag=True):
    size: int


class Whole(Request[list[Note]], frozen=True, tag=True):
    notes: list[Note]


WORDS = Note | Twice | Fetch | Whole


@dataclass
class House:
    """The mailboxes of one process, without a tree: `Directory` for who writes, `Home` for an exchange."""

    role: str = ""
    boxes: dict[str, Mailbox[Any]] = field(default_factory=dict)
    abroad: Exchange | None = None
    dead: int = 0
    ready: list[Up] = field(default_factory=list)
    events: list[Down | Up] = field(default_factory=list)

    def box(self, name: str, limit: int = 256) -> Mailbox[Any]:
        path = f"{self.role}/{name}"
        self.boxes[path] = Mailbox(path, limit)
        return self.boxes[path]

    def mailbox(self, path: str, *, letter: bool = True) -> Inlet | None:
        inlet = self.boxes.get(path) or (self.abroad.inlet(path) if self.abroad is not None else None)
        self.dead += letter and inlet is None
        return inlet

    def house(self, path: str) -> Mailbox[Any] | None:
        self.dead += path not in self.boxes
        return self.boxes.get(path)

    def up(self) -> list[Up]:
        return self.ready

    def announce_abroad(self, event: Down | Up) -> None:
        self.events.append(event)

    def ref(self, path: str) -> Ref[Any]:
        return Ref(self, path)


def house(role: str, incarnation: int = 1, **more: Any) -> House:
    """One with an exchange, attached."""
    made = House(role, abroad=Exchange(role, incarnation, vocabulary=WORDS, **more))
    assert made.abroad is not None
    made.abroad.attach(made)
    return made


def socketpair() -> tuple[trio.SocketStream, trio.SocketStream]:
    one, other = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(one)), trio.SocketStream(
        trio.socket.from_stdlib_socket(other)
    )


@asynccontextmanager
async def listening(path: str) -> AsyncIterator[trio.SocketListener]:
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        await listener.bind(path)
        listener.listen(100)
        yield trio.SocketListener(listener)


@asynccontextmanager
async def joined(one: House, other: House, streams: Any = None) -> AsyncIterator[None]:
    """Two processes with a socketpair between them, both up."""
    assert one.abroad is not None
    assert other.abroad is not None
    mine, theirs = streams or socketpair()
    async with trio.open_nursery() as nursery:
        first = await nursery.start(one.abroad.serve, mine)
        second = await nursery.start(other.abroad.serve, theirs)
        await first.up()
        await second.up()
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def way(kind: str) -> AsyncIterator[tuple[House, House]]:
    """Where mailboxes are, and where who writes to them is: the same, or two processes."""
    if kind == "here":
        only = House("b")
        yield only, only
        return
    there = house("b")
    assert there.abroad is not None
    if kind == "socketpair":
        here = house("a")
        async with joined(here, there):
            yield there, here
        return
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "b")
        here = house("a", addresses={"b": address})
        assert here.abroad is not None
        async with listening(address) as listener, trio.open_nursery() as nursery:
            await nursery.start(there.abroad.run, listener)
            await nursery.start(here.abroad.run)
            yield there, here
            nursery.cancel_scope.cancel()

"""Clients that outlive the front they talk to: they come again, resume where they were, and repeat what nobody took.

Each has two conversations and goes back and forth between them on one socket, so that it is passed between fronts.
`rove` asserts what a client may rely on: a message that was acknowledged is there once, its turn ends once, whoever
died meanwhile, and what the history says of it is what the client was told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio_websocket

from tests.service import Client, Frame

BROKEN = (
    *(trio_websocket.ConnectionClosed, trio_websocket.HandshakeError),
    *(OSError, trio.BrokenResourceError, trio.TooSlowError),
)
SOCKET_TURNS = 5  # on one socket
HANDSHAKE_S = 1.0  # the library waits for ever where the connection ends before the handshake does


@dataclass
class Told:
    """What the client knows of one message of its own."""

    conversation: int
    request: str
    turn: int = 0
    """0: not acknowledged."""
    seq: int | None = None
    ends: list[str] = field(default_factory=list)
    message: str | None = None


@dataclass
class Rover:
    """One client, whatever sockets it needed."""

    ports: Sequence[int]
    """Of the fronts; taken in turn."""
    says: Callable[[], None] = lambda: None
    """Called with each new message."""
    homes: list[str] = field(default_factory=lambda: ["", ""])
    told: list[Told] = field(default_factory=list)
    broken: int = 0
    """How often a socket ended under it."""
    moves: int = 0
    """How often it changed the conversation on a socket."""
    _dialled: int = 0

    @asynccontextmanager
    async def connect(self, query: str) -> AsyncIterator[Client]:
        """A socket, welcomed."""
        self._dialled += 1
        port = self.ports[self._dialled % len(self.ports)]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
            with trio.fail_after(HANDSHAKE_S):
                path = f"/ws/chat{query}"
                websocket = await trio_websocket.wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", path)
            client = Client(websocket, {})
            while not client.welcome:
                frame = await client.next()
                client.welcome = frame if frame["type"] == "welcome" else {}
            yield client
            with trio.move_on_after(1.0):
                await websocket.aclose()
            nursery.cancel_scope.cancel()

    async def rove(self, over: trio.Event) -> None:
        """Until it is over; the last turn is seen to its end."""
        self._next()
        while not (over.is_set() and self.told[-1].ends):
            try:
                await self._talk(over)
            except* BROKEN:
                self.broken += 1
        left = [index for index, home in enumerate(self.homes) if home]
        while left:
            try:
                await self._check(left[0])
                del left[0]
            except* BROKEN:
                self.broken += 1

    def _next(self) -> Told:
        number = len(self.told)
        message = Told(number // 2 % 2, f"m{number}")
        self.told.append(message)
        self.says()
        return message

    async def _talk(self, over: trio.Event) -> None:
        """On one socket, as long as it holds; now and then on a new one."""
        message = self.told[-1] if not self.told[-1].ends else self._next()
        async with self.connect(f"?conversation={self.homes[message.conversation] or 'new'}") as client:
            if not self.homes[message.conversation]:
                self.homes[message.conversation] = await self._settle(client)
            while True:
                await self._finish(client, message)
                if over.is_set() or len(self.told) % SOCKET_TURNS == 0:
                    return
                before, message = message, self._next()
                home = self.homes[message.conversation]
                if not home:
                    return
                if message.conversation != before.conversation:
                    await client.send("hello", conversation_id=home)
                    await client.until("welcome", conversation_id=home)
                    self.moves += 1

    async def _settle(self, client: Client) -> str:
        """A conversation is there for others once it has a message."""
        await client.send("user_message", message="first", request_id="first")
        await client.until("turn_finished")
        return client.conversation

    async def _finish(self, client: Client, message: Told) -> None:
        if message.turn:
            await client.send("resume", turn=message.turn, **({"seq": message.seq} if message.seq is not None else {}))
        else:
            await client.send("user_message", message=f"say {message.request}", request_id=message.request)
        while not message.ends:
            self._note(message, await client.next())

    def _note(self, message: Told, frame: Frame) -> None:
        kind = frame["type"]
        if kind == "error":
            assert frame.get("request_id") != message.request or frame["retryable"], frame
            if frame.get("request_id") == message.request:
                raise OSError("refused: again")
        elif kind in ("turn_started", "message_queued") and frame.get("request_id") == message.request:
            message.turn = frame["turn"]
        if not message.turn or frame.get("turn") != message.turn:
            return
        if "seq" in frame:
            message.seq = frame["seq"]
        if kind == "assistant_message":
            message.message = frame["message"]
        elif kind == "turn_finished":
            message.ends.append(frame["outcome"])

    async def _check(self, index: int) -> None:
        """The history of that conversation says what the client was told."""
        said: dict[int, Any] = {}
        answers: dict[int, Any] = {}
        async with self.connect(f"?conversation={self.homes[index]}") as client:
            assert client.conversation == self.homes[index]
            before: dict[str, int] = {}
            more = True
            while more:
                await client.send("history", **before)
                page = (await client.until("history"))[-1]
                for row in page["messages"]:
                    rows = said if row["role"] == "user" else answers
                    assert row["turn"] not in rows
                    rows[row["turn"]] = row
                more, before = page["more"], {"before": min(said)}
        for message in (one for one in self.told if one.conversation == index and one.turn):
            assert len(message.ends) == 1
            assert said[message.turn]["content"] == f"say {message.request}"
            ended = {"completed": "complete"}.get(message.ends[0], message.ends[0])
            assert said[message.turn]["status"] == ended, message
            assert message.message == (answers[message.turn]["content"] if message.turn in answers else None), message
        contents = [row["content"] for row in said.values()]
        assert len(contents) == len(set(contents)), "a message was taken twice"
        assert {row["status"] for row in said.values()} <= {"complete", "interrupted"}

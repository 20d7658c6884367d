"""Many streams as fast as they are taken, and clients of every kind beside them: each gets exactly what was said.

Some stay for turn after turn, some want fewer frames, some read slowly or nothing at all, some reset in the middle of
a frame, close in mid-answer, or lose their socket and resume. Whoever reads checks every piece and its order;
afterwards the history of every conversation is what the model said, also of those who did not wait for it.
"""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import trio

from actors.outbox import HIGH
from actors.turnlog import MERGE_CHARS
from tests.fakes import Script
from tests.peer import CLOSE, TEXT, Peer, Served, frame, nothing_left, peer, upgrade
from tests.scripts import Finish, Item, Thought, written
from tests.service import front_of, service

TOGETHER = 5  # pieces that the provider sends at once: they come in one frame or in few
SMALL_BUFFER = 4096  # bytes that the kernel takes for who reads slowly or not at all
SLOW_S = 0.002  # between two frames of who reads slowly
SOON = 15  # frames that somebody gets, at most, before it is gone
LUMPS_MS = 5
LONG, PIECE = 300, 20_000  # pieces and characters of what nobody reads: past what any kernel takes
NEW = "?conversation=new"
GOING, STALLED = (1001).to_bytes(2, "big"), (1013).to_bytes(2, "big")
PAGE = 5  # messages of the history at once


KINDS = {
    "stays": 6,
    "wants_lumps": 2,
    "reads_slowly": 2,
    "reads_nothing": 1,
    "resets": 2,
    "closes": 2,
    "resumes": 2,
}
"""How many clients do what."""


class Answer(NamedTuple):
    """What the model says to one message."""

    number: int
    pieces: int
    size: int = 0

    @property
    def message(self) -> str:
        """What asks for it."""
        return f"{self.number} {self.pieces} {self.size}"

    def thoughts(self) -> list[str]:
        """The first tenth."""
        return [f"{self.number}?{at} " for at in range(self.pieces // 10)]

    def words(self) -> list[str]:
        """All the others."""
        return [f"{self.number}.{at} é".ljust(self.size, ".") for at in range(self.pieces // 10, self.pieces)]


def model(asked: Any) -> Script:
    """The provider's reply."""
    wanted = Answer(*map(int, asked["messages"][-1]["content"].split()))
    items: list[Item] = [*map(Thought, wanted.thoughts()), *wanted.words(), Finish("stop")]
    lumps = [items[at : at + TOGETHER] for at in range(0, len(items), TOGETHER)]
    return Script(tuple(b"".join(written(item, "\n") for item in lump) for lump in lumps))


class Heard:
    """One turn, as one client gets it, through as many sockets as it takes."""

    def __init__(self, wanted: Answer) -> None:
        self.wanted = wanted
        self.turn = self.seq = self.frames = 0
        self.text = self.thinking = ""
        self.over = False

    def take(self, message: dict[str, Any]) -> None:
        """The next frame; checks what can be checked of it."""
        kind = message["type"]
        assert kind != "error", message
        if kind == "turn_started":
            assert not self.seq
            self.turn = message["turn"]
        if "seq" not in message:
            return
        assert (message["turn"], message["seq"] > self.seq) == (self.turn, True), "a piece came twice"
        self.seq = message["seq"]
        self.frames += 1
        if kind == "assistant_delta":
            self.text += message["text"]
        elif kind == "thinking_delta":
            self.thinking += message["text"]
        elif kind == "assistant_message":
            assert message["message"] == "".join(self.wanted.words())
        else:
            assert (kind, message["outcome"]) == ("turn_finished", "completed")
            self.over = True

    @property
    def exact(self) -> bool:
        """It got all of it."""
        said = "".join(self.wanted.thoughts()), "".join(self.wanted.words())
        return self.over and (self.thinking, self.text) == said


@dataclass
class Crowd:
    """All clients, and what they share.

    Args:
        s: a running service whose provider is `model`.
        pieces: of an answer.
        seed: of what each does when.
        look: called at each frame that comes to those who stay.
    """

    s: Served
    pieces: int
    seed: int
    look: Callable[[], None] = lambda: None
    kept: dict[str, dict[int, Answer]] = field(default_factory=dict)
    """What the history must have, by conversation and turn."""
    exact: Counter[str] = field(default_factory=Counter)
    """Turns that clients of a kind heard to the last piece."""
    left: Counter[str] = field(default_factory=Counter)
    """How often one of a kind was gone before the end of a turn."""
    calm: trio.Event = field(default_factory=trio.Event)
    """Everybody is through but those who read nothing."""

    async def run(self, turns: int, times: int) -> None:
        """So many times the clients of each kind, each for so many turns. Raises what one of them must not see."""
        async with trio.open_nursery() as deaf:
            async with trio.open_nursery() as others:
                for kind, count in KINDS.items():
                    act: Callable[[int, random.Random], Awaitable[None]] = getattr(self, kind)
                    for number in range(count * times):
                        rng = random.Random(f"{self.seed} {kind} {number}")
                        (deaf if act == self.reads_nothing else others).start_soon(act, turns, rng)
            self.calm.set()
        await self._check_history()
        for kind in ("stays", "wants_lumps", "reads_slowly"):
            assert self.exact[kind] == KINDS[kind] * times * turns

    def check_that_some_left(self) -> None:
        """Else nothing was shown about them."""
        assert self.exact["resumes"], "somebody was back in time for all of it"
        assert all(self.left[kind] for kind in ("resets", "closes", "resumes")), self.left

    async def stays(self, turns: int, rng: random.Random) -> None:
        """Reads all that comes, at once."""
        async with peer(self.s, NEW) as p:
            conversation = await welcomed(p)
            for _ in range(turns):
                heard = await self._ask(p, conversation)
                await self._listen(p, heard)
                self._is_exact("stays", heard)

    async def wants_lumps(self, turns: int, rng: random.Random) -> None:
        """Wants text in few frames."""
        async with peer(self.s, NEW) as p:
            conversation = await welcomed(p)
            await p.say("hello", frame_ms=LUMPS_MS)
            await p.until("welcome")
            for _ in range(turns):
                heard = await self._ask(p, conversation)
                await self._listen(p, heard)
                self._is_exact("wants_lumps", heard)

    async def reads_slowly(self, turns: int, rng: random.Random) -> None:
        """Is always behind."""
        async with unread(self.s) as p:
            conversation = await welcomed(p)
            for _ in range(turns):
                heard = await self._ask(p, conversation)
                while not heard.over:
                    heard.take(await p.next())
                    await trio.sleep(rng.uniform(0, SLOW_S))  # this is what it is
                self._is_exact("reads_slowly", heard)

    async def reads_nothing(self, turns: int, rng: random.Random) -> None:
        """Is sent more than anybody takes for it; reads when the others are through, if it is still wanted then."""
        async with unread(self.s) as p:
            conversation = await welcomed(p)
            heard = await self._ask(p, conversation, Answer(self._number(), LONG, PIECE))
            await self.calm.wait()
            while not heard.over and (found := await p.receive()) is not None:
                if found[0] == TEXT:
                    heard.take(json.loads(found[1]))
                elif found[0] == CLOSE:
                    assert found[1][:2] == STALLED, found
                    assert "".join(heard.wanted.words()).startswith(heard.text)
                    self.left["reads_nothing"] += 1
                    return
            self._is_exact("reads_nothing", heard)

    async def resets(self, turns: int, rng: random.Random) -> None:
        """Is gone in the middle of a frame of its own, at any moment of an answer."""
        for _ in range(turns):
            async with peer(self.s, NEW) as p:
                heard = await self._ask(p, await welcomed(p))
                await self._listen(p, heard, rng.randrange(1, SOON))
                self.left["resets"] += not heard.over
                whole = frame(TEXT, b'{"type":"ping"}')
                await p.send(whole[: rng.randrange(1, len(whole))])
                p.reset()

    async def closes(self, turns: int, rng: random.Random) -> None:
        """Closes at any moment of an answer, and is answered in kind."""
        for _ in range(turns):
            async with peer(self.s, NEW) as p:
                heard = await self._ask(p, await welcomed(p))
                await self._listen(p, heard, rng.randrange(1, SOON))
                self.left["closes"] += not heard.over
                await p.frame(CLOSE, GOING)
                assert await p.closed(answer=False) == (1001, "")

    async def resumes(self, turns: int, rng: random.Random) -> None:
        """Loses its socket again and again, and says where it was."""
        conversation, heard = "new", None
        for _ in range(turns):
            while heard is None or not heard.over:
                async with peer(self.s, f"?conversation={conversation}") as p:
                    if heard is None:
                        conversation = await welcomed(p)
                        heard = await self._ask(p, conversation)
                    else:
                        await p.say("resume", turn=heard.turn, seq=heard.seq)
                    await self._listen(p, heard, rng.randrange(1, SOON))
                    self.left["resumes"] += not heard.over
                    if rng.random() < 0.5:
                        p.reset()
            self.exact["resumes"] += heard.exact  # one that comes after the end gets the closing frames only
            assert "".join(heard.wanted.words()).startswith(heard.text)
            heard, conversation = None, "new"

    def _number(self) -> int:
        return sum(map(len, self.kept.values()))

    async def _ask(self, p: Peer, conversation: str, wanted: Answer | None = None) -> Heard:
        """Say something; returns when the turn has begun."""
        wanted = wanted or Answer(self._number(), self.pieces)
        heard = Heard(wanted)
        await p.say("user_message", message=wanted.message)
        while not heard.turn:
            heard.take(await p.next())
        self.kept.setdefault(conversation, {})[heard.turn] = wanted
        return heard

    async def _listen(self, p: Peer, heard: Heard, frames: int = 10**9) -> None:
        """To the end of the turn, or for so many frames."""
        most = heard.frames + frames
        while not heard.over and heard.frames < most:
            heard.take(await p.next())
            self.look()

    def _is_exact(self, kind: str, heard: Heard) -> None:
        assert heard.exact, f"{kind} missed something of {heard.wanted}"
        self.exact[kind] += 1

    async def _check_history(self) -> None:
        for conversation, answers in self.kept.items():
            async with peer(self.s, f"?conversation={conversation}") as p:
                last = max(answers)
                await p.say("resume", turn=last, seq=0)  # it may still run: nobody has waited for it
                while (found := await p.until("turn_finished"))["turn"] != last:
                    pass
                assert found["outcome"] == "completed"
                said: dict[int, str] = {}
                before: dict[str, int] = {}
                more = True
                while more:
                    await p.say("history", limit=PAGE, request_id="page", **before)
                    page = await p.until("history")
                    said |= {m["turn"]: m["content"] for m in page["messages"] if m["role"] == "assistant"}
                    more, before = page["more"], {"before": min(said)}
                assert said == {turn: "".join(wanted.words()) for turn, wanted in answers.items()}


async def welcomed(p: Peer) -> str:
    """The conversation that a socket is in."""
    return str((await p.until("welcome"))["conversation_id"])


@asynccontextmanager
async def unread(s: Served) -> AsyncIterator[Peer]:
    """A peer whose kernel takes little for it."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    await sock.connect(("127.0.0.1", s.port))
    async with trio.SocketStream(sock) as stream:
        p = Peer(stream)
        await p.send(upgrade(s.port, path=f"/ws/chat{NEW}"))
        await p.head()
        yield p


async def flood(folder: Path, *, turns: int, pieces: int, times: int, seed: int) -> Crowd:
    """A crowd in one process: nothing is left of it, and nobody has cost more than a socket may."""
    most = 0
    async with service(folder, model) as s:
        front = front_of(s)

        def look() -> None:
            nonlocal most
            most = max(most, *(one.outbox.waiting for one in front.sockets.values()))

        crowd = Crowd(s, pieces, seed, look)
        async with nothing_left(s):
            await crowd.run(turns, times)
        crowd.check_that_some_left()
        assert not front.requests
        assert not list(front.running())
    assert HIGH <= most <= HIGH + 2 * MERGE_CHARS, "it was full, and no more than one merged frame over"
    return crowd

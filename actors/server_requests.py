"""What a server wants of us while it works on a call: a question to the user, or an answer of a model.

Each goes up as an event to the gateway that the call's progress goes to, and waits here for the answer that comes
down as a message of its own. It ends without one when its call ends, when that gateway's process is gone, when the
server takes it back, or when the connection ends; whoever was told is told that too.

Whose call it is: in the newer era, and over streamable HTTP, a request comes in the course of its call, which is known
then (`CALL`). Else a request of the older era names no call, so it belongs to the only call that runs; where none or
several run it is declined, and from then on this server works on one call at a time, also after a restart.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from actors.call_clock import CallClock
from actors.elicitation import MESSAGE_MAX, refusal
from protocol.mcp_server import AnswerQuestion, AnswerSampling, RequestEnded, SamplingRequest, UrlVisited, UserQuestion
from protocol.spec import Context

OPEN_MAX = 8  # requests of one call that wait at a time; a person answers one after the other
QUESTIONS_MAX = 50  # of one call in all: a server may take back what it asked, and ask again
MOST_S = 90_000.0  # for an answer: over the longest `chat.tools.question_timeout`, which the gateway counts
SAMPLING_MAX = 4 * 1024 * 1024  # bytes of what a model is to be told
VISIT_S = 120.0  # for a person to do at an address what has to be done there before a call
VISITS_MAX = 256  # addresses that were opened and of which the server may still say that it is done

CALL: ContextVar[Hashable] = ContextVar("CALL", default=None)
"""The call in whose course the present task does what it does."""

log = logging.getLogger(__name__)

Answer = AnswerQuestion | AnswerSampling


@dataclass
class _Running:
    """A call that the server works on."""

    to: str
    """The gateway; empty: nobody can be asked, it is a read or a prompt."""
    clock: CallClock
    questions: int = 0
    """How often it had the user asked."""
    sampled: int = 0
    """How often it had a model asked."""


@dataclass
class _Open:
    """A request that waits for its answer."""

    call: Hashable
    to: str
    """The gateway that was told."""
    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    reason: str = "nobody waits for it any more"
    """Why there is none."""


@dataclass
class _Visit:
    """An address that the user is to open, and of which the server may say that it is done."""

    question: str
    to: str
    done: trio.Event = field(default_factory=trio.Event)


class Unasked(Exception):
    """It was not asked at all; the text says why, for the server.

    Args:
        bad: what it wants makes no sense, or is too much.
    """

    def __init__(self, text: str, *, bad: bool = False) -> None:
        super().__init__(text)
        self.bad = bad


class ServerRequests:
    """Those of one incarnation.

    Args:
        server: its name.
    """

    def __init__(self, server: str, ctx: Context) -> None:
        self.asked = 0
        """How many there were so far."""
        self.turns = trio.CapacityLimiter(math.inf)
        """To be held while the server works on a call."""
        self._server = server
        self._ctx = ctx
        self._running: dict[Hashable, _Running] = {}
        self._open: dict[str, _Open] = {}
        self._visits: dict[str, _Visit] = {}
        self._told = False

    @property
    def alone(self) -> bool:
        """The server works on one call at a time, because what it asks names no call."""
        return self.turns.total_tokens == 1

    def one_at_a_time(self) -> None:
        """From now on no call begins while another one runs."""
        self.turns.total_tokens = 1

    def clock(self) -> CallClock | None:
        """That of the call in whose course the present task does what it does; None: it is in none."""
        running = self._running.get(CALL.get())
        return None if running is None else running.clock

    @contextmanager
    def during(self, call: Hashable, to: str, clock: CallClock) -> Iterator[None]:
        """What the server asks in here is asked in that call, and is over when it is."""
        self._running[call] = _Running(to, clock)
        token = CALL.set(call)
        try:
            yield
        finally:
            CALL.reset(token)
            del self._running[call]
            for waiting in tuple(self._open.values()):
                if waiting.call == call:
                    self._end(waiting, "the call is over")

    async def ask_user(
        self, message: str, *, schema: dict[str, Any] | None, url: str | None, elicitation: str | None = None
    ) -> AnswerQuestion:
        """Ask the user whose call it is; the action is `cancel` where nobody answers. Raises Unasked.

        Args:
            elicitation: the server's own id, by which it may later say that the address was visited.
        """
        call, running = self._attributed()
        if wrong := refusal(schema, url):
            raise Unasked(wrong, bad=True)
        if running.questions >= QUESTIONS_MAX:
            raise Unasked(f"the user was asked {QUESTIONS_MAX} times in this call already")
        running.questions += 1
        question = self._new_id()
        asked = UserQuestion(question, self._server, str(call), message[:MESSAGE_MAX], schema, url)
        if elicitation is not None:
            self._visits[elicitation] = _Visit(question, running.to)
            if len(self._visits) > VISITS_MAX:
                del self._visits[next(iter(self._visits))]
        with running.clock.paused():
            answer = await self._wait(question, call, asked, running.to)
        return answer if isinstance(answer, AnswerQuestion) else AnswerQuestion(question, "cancel")

    async def ask_model(self, asked: SamplingRequest) -> AnswerSampling:
        """Have a model asked, in the call whose it is; what comes before the messages is filled in. Raises Unasked."""
        call, running = self._attributed()
        if len(msgspec.json.encode(asked)) > SAMPLING_MAX:
            raise Unasked(f"the messages have more than {SAMPLING_MAX} bytes", bad=True)
        request = self._new_id()
        running.sampled += 1
        asked = msgspec.structs.replace(
            asked, request=request, server=self._server, call=str(call), nth=running.sampled
        )
        with running.clock.paused():
            answer = await self._wait(request, call, asked, running.to)
        return answer if isinstance(answer, AnswerSampling) else AnswerSampling(request, refused="nobody answered")

    def take(self, answer: Answer) -> bool:
        """An answer came; whether somebody still waited for it."""
        key = answer.question if isinstance(answer, AnswerQuestion) else answer.request
        waiting = self._open.get(key)
        if waiting is None or waiting.done.is_set():
            return False
        waiting.answer = answer
        waiting.done.set()
        return True

    def visited(self, elicitation: str) -> None:
        """The server says that what was to be done at an address is done."""
        visit = self._visits.get(elicitation)
        if visit is not None and not visit.done.is_set():
            visit.done.set()
            self._ctx.ref(visit.to).offer(UrlVisited(visit.question))

    async def until_visited(self, elicitations: list[str]) -> None:
        """Wait for the server to say of all of them that it is done, within reason: it need not say so."""
        running = self._running.get(CALL.get())
        with trio.move_on_after(VISIT_S), running.clock.paused() if running is not None else nullcontext():
            for elicitation in elicitations:
                if (visit := self._visits.get(elicitation)) is not None:
                    await visit.done.wait()

    def gateway_gone(self, path: str) -> None:
        """Its process is gone, and with it whoever was asked."""
        for waiting in self._open.values():
            if waiting.to == path:
                self._end(waiting, "the part of the service that asked is gone")

    def _new_id(self) -> str:
        return secrets.token_hex(8)

    def _attributed(self) -> tuple[Hashable, _Running]:
        """The call that it came in. Raises Unasked."""
        self.asked += 1
        call = CALL.get()
        if call is None:
            self.one_at_a_time()
            if len(self._running) == 1:
                (call,) = self._running
        running = self._running.get(call)
        if running is None or not running.to:
            log.log(
                logging.DEBUG if self._told else logging.WARNING,  # it may ask a thousand times a second
                "MCP server %r asks for something, and it cannot be told in which call (%d run): declined",
                self._server,
                len(self._running),
            )
            self._told = True
            raise Unasked("it cannot be told in which call this is asked")
        if sum(waiting.call == call for waiting in self._open.values()) >= OPEN_MAX:
            raise Unasked(f"{OPEN_MAX} requests of this call wait already")
        return call, running

    async def _wait(self, key: str, call: Hashable, asked: UserQuestion | SamplingRequest, to: str) -> Answer | None:
        if not self._ctx.ref(to).offer(asked):
            raise Unasked("nobody can be asked at the moment")
        waiting = self._open[key] = _Open(call, to)
        try:
            with trio.move_on_after(MOST_S):
                await waiting.done.wait()
        finally:
            del self._open[key]
            if waiting.answer is None:
                self._ctx.ref(to).offer(RequestEnded(key, waiting.reason))
        return waiting.answer

    def _end(self, waiting: _Open, reason: str) -> None:
        if not waiting.done.is_set():
            waiting.reason = reason
            waiting.done.set()

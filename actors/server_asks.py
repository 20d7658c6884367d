"""What servers ask in their calls, in one front: questions to users, and requests to the model.

Each is a task of the gateway, and a row of the store as long as a person is waited for; which one counts is the store's
to decide, so that every socket of the owner may answer. It is over as soon as its call or its server is, or nobody can
be asked. What is open is kept by front: the next incarnation of the gateway goes on with it. Whatever fails, the
server gets an answer, if it still wants one.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
import trio

from actors import aside, sampling
from actors.catalogue import text_of
from actors.decisions import until_settled
from actors.front import Front
from actors.settling import show_completed
from actors.turnlog import TurnLog
from actors.usage import added, priced
from protocol.errors import Code, Fault
from protocol.mail import MailError, Ref
from protocol.mcp_server import (
    AnswerQuestion,
    AnswerSampling,
    RequestEnded,
    SamplingRequest,
    UrlVisited,
    UserQuestion,
)
from protocol.pending import (
    APPROVAL,
    OPERATORS,
    QUESTION,
    SAMPLING,
    DecidePending,
    OpenPending,
    Pending,
    ReadPending,
)
from protocol.streamer import Complete, Failed, Finished

STORE_S = 10.0  # for the store to take a question, or to say how it stands
TAKE_S = 10.0  # for the server's actor to take an answer

log = logging.getLogger("actors.gateway")

Asked = UserQuestion | SamplingRequest
ACTIONS = {"answered": "accept", "declined": "decline"}
"""How a question's row is settled -> what the server is told; `cancel` for all else."""


class Place(NamedTuple):
    """Where a call is made."""

    owner: str
    conversation: str = ""
    log: TurnLog | None = None
    """None: it is of no turn."""


def id_of(asked: Asked) -> str:
    """Its id, which is that of its row too."""
    return asked.question if isinstance(asked, UserQuestion) else asked.request


class ServerAsks:
    """Those of one incarnation of the gateway.

    Args:
        tasks: where they run; ended by the caller.
    """

    def __init__(self, front: Front, tasks: trio.Nursery) -> None:
        self._front = front
        self._tasks = tasks
        self._writer: Ref[Any] = front.writer
        self._scopes: dict[str, trio.CancelScope] = {}
        for asked in front.server_asks.values():
            self._begin(asked)

    def take(self, asked: Asked) -> None:
        """A server asks."""
        if id_of(asked) not in self._front.server_asks:
            self._front.server_asks[id_of(asked)] = asked
            self._begin(asked)

    def ended(self, message: RequestEnded) -> None:
        """Nobody waits for it any more."""
        if (scope := self._scopes.get(message.request)) is not None:
            scope.cancel()

    def server_down(self, server: str) -> None:
        """Its connection is gone, and all that it asked."""
        for key, asked in tuple(self._front.server_asks.items()):
            if asked.server == server and key in self._scopes:
                self._scopes[key].cancel()

    def visited(self, message: UrlVisited) -> None:
        """What was to be done at an address is done; whoever was asked is told."""
        self._tasks.start_soon(self._visited, message.question)

    def _begin(self, asked: Asked) -> None:
        scope = self._scopes[id_of(asked)] = trio.CancelScope()
        run = partial(self._question, asked) if isinstance(asked, UserQuestion) else partial(self._sampling, asked)
        self._tasks.start_soon(self._run, asked, scope, run)

    async def _run(self, asked: Asked, scope: trio.CancelScope, run: Callable[[], Any]) -> None:
        key = id_of(asked)
        answer: AnswerQuestion | AnswerSampling
        with scope, self._paused(asked.call):
            try:
                answer = await run()
            except (MailError, Fault) as error:
                log.warning("%s was asked nothing for MCP server %r: %s", key, asked.server, error)
                why = error.body.text if isinstance(error, Fault) else "nobody can be asked at the moment"
                answer = _none(asked, why)
            except Exception:  # boundary: one request's trouble is its own
                log.exception("what MCP server %r asked could not be handled", asked.server)
                answer = _none(asked, "Something failed inside the service.")
            await self._tell(asked.server, answer)
        # past this line only if the gateway itself goes on: otherwise its next incarnation goes on with it
        del self._scopes[key], self._front.server_asks[key]
        if scope.cancelled_caught:
            await self._settle(asked, "cancelled")

    def _paused(self, call: str) -> AbstractContextManager[None]:
        clock = self._front.clocks.get(call)
        return clock.paused() if clock is not None else nullcontext()

    async def _tell(self, server: str, answer: AnswerQuestion | AnswerSampling) -> None:
        try:
            await self._front.ctx.ref(f"mcp/{server}").ask(answer, within=TAKE_S)
        except (MailError, Fault) as error:
            log.info("MCP server %r was not answered: %s", server, error)

    def _place(self, call: str) -> Place:
        """Raises Fault: the call is over."""
        if (own := self._front.by_hand.get(call)) is not None:
            return Place(own.owner, own.id)
        found = self._front.calls.get(call)
        conversation = self._front.conversations.get(found[0].conversation) if found is not None else None
        if found is None or conversation is None:
            raise Fault(Code.TURN_NOT_RUNNING, "The call is over.")
        return Place(conversation.owner, conversation.id, found[0])

    # Questions.

    async def _question(self, asked: UserQuestion) -> AnswerQuestion:
        place = self._place(asked.call) if asked.call else Place(OPERATORS)
        body = {"message": asked.message, "schema": asked.schema, "url": asked.url}
        row = self._row(asked, place, QUESTION, {key: value for key, value in body.items() if value is not None})
        settled = await until_settled(self._front, OpenPending(row, self._lasts_s(asked.expires_at)))
        content = settled.answer if asked.url is None and isinstance(settled.answer, dict) else None
        return AnswerQuestion(asked.question, ACTIONS.get(settled.state, "cancel"), content)

    def _lasts_s(self, expires_at: str) -> float:
        if not expires_at:
            return self._front.snapshot.tools.question_timeout
        return max(0.1, datetime.fromisoformat(expires_at).timestamp() - time.time())

    def _row(self, asked: Asked, place: Place, kind: Literal["approval", "question"], body: dict[str, Any]) -> Pending:
        turn = place.log.turn if place.log is not None else 0
        return Pending(
            id=id_of(asked),
            kind=kind,
            owner=place.owner,
            server=asked.server,
            body=body,
            conversation=place.conversation,
            turn=turn,
            # an approval that names a call is one of the call itself, without which it is not made
            call=asked.call if kind == QUESTION else "",
            tool=SAMPLING if kind == APPROVAL else "",
            front=self._front.id,
        )

    async def _settle(self, asked: Asked, state: Literal["cancelled", "answered"]) -> None:
        """Settle its row, if it has one that is open."""
        kind = QUESTION if isinstance(asked, UserQuestion) else APPROVAL
        try:
            found = await self._writer.ask(ReadPending(id_of(asked)), within=STORE_S, again=True)
            settling = DecidePending(found.id, [found.owner], kind, state, secrets.token_hex(8))
            await self._writer.ask(settling, within=STORE_S, again=True)
        except Fault as fault:
            if fault.code is not Code.NOT_FOUND:  # it never had one
                log.warning("%s stays open until its time is over: %s", id_of(asked), fault)
        except MailError as error:
            log.warning("%s stays open until its time is over: %s", id_of(asked), error)

    async def _visited(self, question: str) -> None:
        if (asked := self._front.server_asks.get(question)) is not None:
            await self._settle(asked, "answered")  # whatever was clicked here, it has been done
        try:
            found = await self._writer.ask(ReadPending(question), within=STORE_S, again=True)
        except (MailError, Fault) as error:
            log.info("nobody is told that an address was visited: %s", error)
            return
        show_completed(self._front, found)

    # Requests to the model.

    async def _sampling(self, asked: SamplingRequest) -> AnswerSampling:
        front, tools = self._front, self._front.snapshot.tools
        place = self._place(asked.call)
        server = front.snapshot.mcp.servers.get(asked.server)
        policy = (server.sampling if server is not None else None) or tools.sampling
        if policy == "deny":
            return _refused(asked, "The operator does not allow it.")
        if asked.nth > tools.sampling_requests:
            return _refused(asked, f"One call may have a model asked {tools.sampling_requests} times.")
        if policy == "ask":
            reason = f"The MCP server {asked.server} wants a model to be asked for it."
            body = {"tool_name": SAMPLING, "arguments": sampling.shown(asked), "reason": reason}
            row = self._row(asked, place, APPROVAL, body)
            opening = OpenPending(row, tools.approval_timeout, unless_granted=True)
            settled = await until_settled(front, opening)
            if settled.state != "answered":
                refused = settled.state == "declined"
                return _refused(asked, "The user did not allow it." if refused else "The user did not answer.")
            if isinstance(settled.answer, dict):
                asked = sampling.edited(asked, settled.answer.get("arguments"))
        llm = sampling.limited(asked, front.snapshot.llm, tools.sampling_tokens)
        provider = llm.providers.get(name := sampling.provider_for(asked, llm))
        vision, small = (provider.client.vision, provider.client.small) if provider is not None else (True, False)
        complete = Complete(
            request=0,
            to="",
            provider=name,
            model="",
            messages=sampling.messages_of(asked, vision=vision),
            tools=b"" if small else text_of(sampling.tools_of(asked)),
            conversation=place.conversation,
            llm=llm,
        )
        try:
            text, finished = await aside.answer(front, complete)
        except Fault as fault:
            front.tally.request(provider, Failed(0, fault.body))
            raise
        self._count(place, finished)
        return AnswerSampling(
            asked.request, sampling.blocks_of(text, finished), finished.model, sampling.stop_reason(finished)
        )

    def _count(self, place: Place, finished: Finished) -> None:
        """What it used is the turn's."""
        provider = self._front.snapshot.llm.providers.get(finished.provider)
        usage = priced(finished.usage, provider.client.prices) if provider is not None else finished.usage
        self._front.tally.request(provider, msgspec.structs.replace(finished, usage=usage))
        if place.log is not None:
            place.log.aside = added(place.log.aside, usage)


def _none(asked: Asked, why: str) -> AnswerQuestion | AnswerSampling:
    if isinstance(asked, UserQuestion):
        return AnswerQuestion(asked.question, "cancel")
    return _refused(asked, why)


def _refused(asked: SamplingRequest, why: str) -> AnswerSampling:
    return AnswerSampling(asked.request, refused=why)

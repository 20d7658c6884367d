"""One request on its way: its providers in their order, the tries at each, and the waits between them.

Tried again, and handed to a fallback, is only what has shown nothing yet. The error that is told in the end is
that of the provider that was asked, with a word of each fallback's. `client.total_timeout` of that provider
bounds all of it. Fails with `Fault` only: whatever a stranger's answer provokes ends here, without secrets.
"""

from __future__ import annotations

import logging
import math
import random
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import trio

from actors.attempt import Attempt
from actors.completion import Completion, request_body
from actors.outlet import Outlet
from actors.provider import Client, Clients
from actors.question import Question
from actors.retry import delay_s
from actors.sending import Sending, Sendings
from actors.sse import MAX_EVENT, EventTooLarge
from actors.upstream import Upstreams
from actors.verdict import Complaint
from protocol.errors import Code, Fault
from protocol.streamer import Complete, Finished
from protocol.watcher import Llm, Provider

log = logging.getLogger(__name__)


RESTS = trio.CancelScope()
"""In the place of the scope of a task where none answers a request, since its answer flows."""


class Means(NamedTuple):
    """What all requests are answered with."""

    clients: Clients
    upstreams: Upstreams
    sendings: Sendings
    backoff_s: float
    """The largest delay before the second try."""
    go_on: Callable[[Asking], None]
    """Called when `answer` is to be, again."""


class Asking:
    """One request.

    Args:
        llm: the configuration that it keeps to its end.
    """

    __slots__ = (
        "_attempt",
        "_client",
        "_completion",
        "_faults",
        "_first",
        "_means",
        "_place",
        "_provider",
        "_question",
        "_sendings",
        "_tried",
        "_until",
        "conversation",
        "number",
        "outlet",
        "scope",
    )

    def __init__(self, request: Complete, llm: Llm, outlet: Outlet, means: Means) -> None:
        self.number = request.request
        self.conversation = request.conversation
        self.scope = trio.CancelScope()
        """Of the task that answers it, while there is one."""
        self._question = Question(request, llm)
        self.outlet = outlet
        self._means = means
        self._completion = Completion(request.request, request.model)
        self._sendings: tuple[Sending, ...] = ()
        self._first: Provider | None = None
        """Who is asked first; None: nobody yet."""
        self._until = math.inf
        """When all of it is to be over, in trio's time."""
        self._faults: tuple[Fault, ...] = ()
        """Of the providers before the present one."""
        self._place = 0
        self._provider: Provider | None = None
        """The present one, while its client is taken."""
        self._client: Client | None = None
        self._tried = 0
        self._attempt: Attempt | None = None
        """Whose answer flows."""

    @property
    def flows(self) -> bool:
        """It is not over, and no task is needed for now."""
        return self._attempt is not None

    def rest(self) -> None:
        """It flows: the task that answered it ends."""
        cancelled = self.scope.cancel_called
        self.scope = RESTS
        if cancelled:  # when nothing waited any more
            self.cancel()

    def cancel(self) -> None:
        """End it without a word."""
        if self._attempt is not None:
            self._attempt.stay()  # now: its task ends it in the next round of the loop only
        self._go_on()
        self.scope.cancel()

    def _go_on(self) -> None:
        if self.scope is RESTS:
            self.scope = trio.CancelScope()
            self._means.go_on(self)

    async def answer(self) -> Finished | None:
        """The answer's end; its pieces go to the outlet. None: it flows, and is gone on with later. Raises Fault."""
        try:
            if self._first is None:
                self._question.find()
                self._first = self._question.ways[0][0]
                if (total_s := self._first.client.total_timeout) is not None:
                    # All tries and the waits between them: who asked waits for the whole.
                    self._until = trio.current_time() + total_s
            if self._until == math.inf:
                return await self._along()
            with trio.CancelScope(deadline=self._until):
                return await self._along()
            if self._completion.complete:
                return self._completion.finish()  # only its usage or end mark was still waited for
            raise Fault(
                Code.LLM_STREAM_BROKEN if self._completion.shown else Code.LLM_UNAVAILABLE,
                f"{self._first.name}: the whole answer took longer than {self._first.client.total_timeout:g} s.",
                hint="Ask for less, or raise the provider's client.total_timeout.",
            )
        except Fault:
            raise
        except Exception as error:  # noqa: BLE001  # a boundary, see the head; a cancellation passes through it
            # The traceback may quote what was sent, so it is redacted like any other text.
            text = self._redact("".join(traceback.format_exception(error)))
            log.error("request crashed:\n%s", text)  # noqa: TRY400  # with the traceback as it is, secrets and all
            raise Fault(Code.INTERNAL) from None

    async def _along(self) -> Finished | None:
        """The providers, in their order."""
        while True:
            provider = self._provider or self._question.ways[self._place][0]
            try:
                return await self._tries(provider)
            except Complaint as complaint:
                self._faults += (complaint.fault(provider.name, self._redact),)
                self._place += 1
                last = self._completion.shown or self._place >= len(self._question.ways)
                if last or (self._place == 1 and not complaint.elsewhere):
                    raise _joined(self._faults) from None
            following = self._question.ways[self._place][0]
            log.warning("%s; %s is asked instead", self._faults[-1].body.text.rstrip("."), following.name)

    async def _tries(self, provider: Provider) -> Finished | None:
        """The tries at one provider."""
        finished: Finished | None = None
        try:
            client = self._client or await self._take(provider)
            while True:
                try:
                    finished = await self._once(provider, client)
                    return finished
                except Complaint as complaint:
                    delay = self._delay(complaint, self._tried)
                    if delay is None or self._tried > provider.client.retries or self._completion.shown:
                        raise
                    log.info("%s: %s; trying again in %.1f s", provider.name, complaint.what, delay)
                await trio.sleep(delay)
        finally:
            if self._attempt is None:
                taken, self._client, self._provider = self._client, None, None
                if taken is not None:
                    await self._means.clients.give_back(taken)

    async def _take(self, provider: Provider) -> Client:
        """Have all that asking it needs."""
        question = self._question
        self._sendings += (self._means.sendings.of(provider),)
        question.body = msgspec.json.encode(request_body(question.ways[self._place][1], provider))
        self._client = client = await self._means.clients.take(provider)
        self._provider, self._tried = provider, 0
        return client

    async def _once(self, provider: Provider, client: Client) -> Finished | None:
        """Begin a try, or go on with the one whose answer has flowed."""
        attempt, self._attempt = self._attempt, None
        finished: Finished | None = None
        try:
            if attempt is not None:
                finished = await attempt.go_on()
            else:
                attempt = await self._begin(provider)
                finished = await attempt.ask(client, self._question, self._sendings[-1], provider.client)
            if finished is None:
                self._attempt = attempt
            else:
                attempt.turn.succeeded()
            return finished
        except EventTooLarge:
            raise Complaint(
                Code.LLM_STREAM_BROKEN, f"one event of the answer is larger than {MAX_EVENT} bytes"
            ) from None
        except Complaint as complaint:
            if attempt is not None:
                attempt.turn.failed(complaint)
            raise
        finally:
            if attempt is not None and self._attempt is None:
                await attempt.leave()

    async def _begin(self, provider: Provider) -> Attempt:
        turn = await self._means.upstreams.of(provider).turn()
        self._tried += 1
        model = self._question.ways[self._place][1].model or provider.model
        self._completion = Completion(self.number, model, provider.name)
        log.debug("%s: request %d is sent, try %d", provider.name, self.number, self._tried)
        return Attempt(self._completion, self.outlet, turn, self._until, self._go_on)

    def _redact(self, text: str) -> str:
        for sending in self._sendings:
            text = sending.redact(text)
        return text

    def _delay(self, complaint: Complaint, tried: int) -> float | None:
        if not complaint.retry:
            return None
        luck = random.random()  # noqa: S311  # spreads load, guards nothing
        return delay_s(tried, complaint.after_s, luck, self._means.backoff_s)


def _joined(faults: Sequence[Fault]) -> Fault:
    """What the asked provider said, and after it what its fallbacks said."""
    first = faults[0].body
    return Fault(
        first.code,
        "; ".join(fault.body.text.rstrip(".") for fault in faults) + "." if len(faults) > 1 else first.text,
        hint=first.hint,
        retryable=any(fault.body.retryable for fault in faults),
    )

"""One request on its way: its providers in their order, the tries at each, and the waits between them.

Tried again, and handed to a fallback, is only what has shown nothing yet. The error that is told in the end is
that of the provider that was asked, with a word of each fallback's. `client.total_timeout` of that provider
bounds all of it. Fails with `Fault` only: whatever a stranger's answer provokes ends here, without secrets.
"""

from __future__ import annotations

import logging
import random
import traceback

import msgspec
import trio

from actors.attempt import attempt
from actors.completion import Completion, request_body
from actors.outlet import Outlet
from actors.provider import Clients
from actors.question import Question
from actors.retry import delay_s
from actors.sending import Sending, prepare
from actors.sse import MAX_EVENT, EventTooLarge
from actors.upstream import Upstreams
from actors.verdict import Complaint
from protocol.errors import Code, Fault
from protocol.streamer import Complete, Finished
from protocol.watcher import Llm, Provider

log = logging.getLogger(__name__)


class Asking:
    """One request.

    Args:
        llm: the configuration that it keeps to its end.
        backoff_s: the largest delay before the second try.
    """

    def __init__(
        self,
        request: Complete,
        llm: Llm,
        outlet: Outlet,
        clients: Clients,
        upstreams: Upstreams,
        backoff_s: float,
    ) -> None:
        self.number = request.request
        self.conversation = request.conversation
        self._question = Question(request, llm)
        self._outlet = outlet
        self._clients = clients
        self._upstreams = upstreams
        self._backoff_s = backoff_s
        self._completion = Completion(request.request, request.model)
        self._sendings: list[Sending] = []

    async def answer(self) -> Finished:
        """The answer's end; its pieces go to the outlet. Raises Fault."""
        try:
            self._question.find()
            first = self._question.ways[0][0]
            total_s = first.client.total_timeout
            # All tries and the waits between them: who asked waits for the whole.
            if total_s is None:
                return await self._along()
            with trio.move_on_after(total_s):
                return await self._along()
            if self._completion.complete:
                return self._completion.finish()  # only its usage or end mark was still waited for
            raise Fault(
                Code.LLM_STREAM_BROKEN if self._completion.shown else Code.LLM_UNAVAILABLE,
                f"{first.name}: the whole answer took longer than {total_s:g} s.",
                hint="Ask for less, or raise the provider's client.total_timeout.",
            )
        except Fault:
            raise
        except Exception as error:  # noqa: BLE001  # a boundary, see the head; a cancellation passes through it
            # The traceback may quote what was sent, so it is redacted like any other text.
            text = self._redact("".join(traceback.format_exception(error)))
            log.error("request crashed:\n%s", text)  # noqa: TRY400  # with the traceback as it is, secrets and all
            raise Fault(Code.INTERNAL) from None

    async def _along(self) -> Finished:
        faults: list[Fault] = []
        for place, provider in enumerate([provider for provider, _ in self._question.ways]):
            if faults:
                log.warning("%s; %s is asked instead", faults[-1].body.text.rstrip("."), provider.name)
            try:
                sending = prepare(provider)
                self._sendings.append(sending)
                return await self._tries(provider, place, sending)
            except Complaint as complaint:
                faults.append(complaint.fault(provider.name, self._redact))
                if self._completion.shown or (place == 0 and not complaint.elsewhere):
                    break
        raise _joined(faults)

    async def _tries(self, provider: Provider, place: int, sending: Sending) -> Finished:
        upstream = self._upstreams.of(provider)
        question = self._question
        model = question.ways[place][1].model or provider.model
        question.body = msgspec.json.encode(request_body(question.ways[place][1], provider))
        async with self._clients.using(provider) as client:
            for tried in range(1, provider.client.retries + 2):
                completion = Completion(self.number, model, provider.name)
                self._completion = completion
                log.debug("%s: request %d is sent, try %d", provider.name, self.number, tried)
                try:
                    with await upstream.turn() as turn:
                        try:
                            finished = await attempt(
                                client, question, sending, provider.client, completion, self._outlet, turn
                            )
                        except EventTooLarge:
                            raise Complaint(
                                Code.LLM_STREAM_BROKEN, f"one event of the answer is larger than {MAX_EVENT} bytes"
                            ) from None
                        except Complaint as complaint:
                            turn.failed(complaint)
                            raise
                        turn.succeeded()
                        return finished
                except Complaint as complaint:
                    delay = self._delay(complaint, tried)
                    if delay is None or tried > provider.client.retries or completion.shown:
                        raise
                    log.info("%s: %s; trying again in %.1f s", provider.name, complaint.what, delay)
                await trio.sleep(delay)
        raise AssertionError("the last try returns or raises")

    def _redact(self, text: str) -> str:
        for sending in self._sendings:
            text = sending.redact(text)
        return text

    def _delay(self, complaint: Complaint, tried: int) -> float | None:
        if not complaint.retry:
            return None
        luck = random.random()  # noqa: S311  # spreads load, guards nothing
        return delay_s(tried, complaint.after_s, luck, self._backoff_s)


def _joined(faults: list[Fault]) -> Fault:
    """What the asked provider said, and after it what its fallbacks said."""
    first = faults[0].body
    return Fault(
        first.code,
        "; ".join(fault.body.text.rstrip(".") for fault in faults) + "." if len(faults) > 1 else first.text,
        hint=first.hint,
        retryable=any(fault.body.retryable for fault in faults),
    )

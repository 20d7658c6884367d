"""One try of one request: a provider's answer from its head to its end, as pieces.

Once the answer flows no task waits for it (actors/poller.py): one, its frames and its scopes take more memory than
all else that a running answer needs. Who asked is told when there is something to be done again.

Bounds: the first event by `first_token_timeout`, silence after it by `idle_timeout`, what may follow the end
of the answer by constants; waiting for a slow receiver counts as none of them. Fails with `Complaint` (the
provider's fault, or the way to it) or `EventTooLarge`; pieces that came before that stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import trio

from actors.answer import MAX_ERROR_BODY, TEARS, Answer, torn
from actors.completion import Completion
from actors.outlet import Outlet
from actors.poller import Flow
from actors.provider import Client
from actors.question import Question
from actors.sending import Sending
from actors.sse import MAX_EVENT, Decoder, EventTooLarge
from actors.upstream import Turn
from actors.verdict import Complaint, of_status
from protocol.errors import Code
from protocol.streamer import Finished
from protocol.watcher import ClientOptions

AFTER_FINISH_S = 5.0  # for usage and the end mark after the finish; some providers send neither
AFTER_END_S = 0.1  # for the body's own end after the end mark, so that the connection can be used again

_HEAD = 1024  # bytes at the beginning of a body that tell what it is, or are quoted if they do not
_BLANK = b"\xef\xbb\xbf \t\r\n"  # what may stand before JSON: a byte order mark, and space
_NO_STREAM = (b"{", b"[", b"<")  # no field of an event stream begins so: one JSON object, or a page


class Attempt:
    """One try. Who made it ends it with `leave`, unless its answer flows; no task waits while that is so.

    Args:
        turn: of the provider; left with this.
        until: when the whole request is to be over, in trio's time.
        flown: called when the answer does not flow any more: then `go_on` is to be.
    """

    __slots__ = (
        "_answer",
        "_begun",
        "_completion",
        "_deadline",
        "_decoder",
        "_failed",
        "_finished",
        "_flow",
        "_flown",
        "_idle_s",
        "_outlet",
        "_question",
        "_until",
        "turn",
    )

    def __init__(
        self, completion: Completion, outlet: Outlet, turn: Turn, until: float, flown: Callable[[], None]
    ) -> None:
        self._completion = completion
        self._outlet = outlet
        self.turn = turn
        self._until = until
        self._flown = flown
        self._idle_s = math.inf
        self._question: Question | None = None
        """Until something was shown."""
        self._answer: Answer | None = None
        self._flow: Flow | None = None
        self._decoder = Decoder()
        self._deadline = math.inf
        self._begun = False
        self._finished = False
        """`_deadline` is for what may follow the answer."""
        self._failed: Complaint | EventTooLarge | None = None

    async def ask(
        self, client: Client, question: Question, sending: Sending, options: ClientOptions
    ) -> Finished | None:
        """Ask, once; pieces go to the outlet. None: the answer flows. Raises Complaint, EventTooLarge."""
        self._question, self._idle_s = question, options.idle_timeout
        # until the first event it stays: comments alone are no answer
        self._deadline = trio.current_time() + options.first_token_timeout
        flows = False
        with trio.CancelScope(deadline=self._deadline) as silence:
            answer = self._answer = await client.ask(question.body, sending)
            if not 200 <= answer.status < 300:
                raise of_status(answer.status, await answer.read(MAX_ERROR_BODY), answer.after_s, answer.again)
            if answer.content_type == "text/html":
                raise _page(await answer.read(MAX_ERROR_BODY))
            flows = await self._stream(answer, silence)
        if flows and not self._flows(answer):
            return await self.go_on()
        return None if flows else self._finish(silent=silence.cancelled_caught, first_s=options.first_token_timeout)

    async def go_on(self) -> Finished | None:
        """The answer does not flow any more; as `ask`."""
        answer, completion = self._answer, self._completion
        if answer is None:
            raise RuntimeError("only an answer that has flowed goes on")
        ended = silent = False
        while not (ended or silent):
            try:
                if (flow := self._flow) is not None:
                    self._flow = None
                    ended = flow.result()
                elif completion.complete:
                    with trio.CancelScope(deadline=self._deadline) as rest:
                        ended = await answer.follow(self.take)
                    silent = rest.cancelled_caught
                elif self._flows(answer):
                    return None
            except TEARS as error:
                if completion.complete and self._failed is None:
                    return completion.finish()  # the answer was whole before the connection broke
                raise torn(error) from error
            if self._failed is not None:
                self._fail(self._failed)
            if self._outlet.full:
                await self._room(None)
            elif not (ended or completion.complete):
                silent = trio.current_time() >= self._deadline
                await trio.lowlevel.checkpoint()  # it may be the time for all of it that is over
        if ended:
            self._close()
        return self._finish(silent=silent)

    def _flows(self, answer: Answer) -> bool:
        """Have what is left read by the one task that reads all streams; False: it has stopped already."""
        self._flow = answer.flow(self)
        return not self._flow.stopped

    def _fail(self, failed: Exception) -> NoReturn:
        self._failed = None
        try:
            raise failed
        finally:
            del failed  # no cycle through its traceback, which knows this

    def _finish(self, *, silent: bool, first_s: float = math.inf) -> Finished:
        completion = self._completion
        if silent and not completion.complete:
            if completion.events:
                raise Complaint(
                    Code.LLM_STREAM_BROKEN,
                    f"nothing came for {self._idle_s:g} s, the answer broke off",
                    retry=True,
                )
            raise Complaint(Code.LLM_UNAVAILABLE, f"no answer within {first_s:g} s")
        return completion.finish()

    def stay(self) -> None:
        """Where its answer flows: no piece of it comes any more."""
        if self._answer is not None:
            self._answer.stay()

    async def leave(self) -> None:
        """Be done with it, wherever it stands."""
        try:
            if self._answer is not None:
                await self._answer.leave()
        finally:
            self._answer = self._flow = self._failed = None
            self.turn.leave()

    # As a follower of its answer.

    @property
    def deadline(self) -> float:
        """When it is silent for too long, or the whole request takes too long."""
        return min(self._deadline, self._until)

    def take(self, data: bytes, now: float) -> bool:
        """Take some of the answer; False: no more for now."""
        try:
            self._take(data, now)
        except (Complaint, EventTooLarge) as error:
            self._failed = error  # it is the answer that is wrong; its connection is not
            return False
        # Complete: the time that is left has become another.
        return not (self._completion.complete or self._outlet.full)

    def stopped(self) -> None:
        """It does not flow any more."""
        self._flown()

    async def _stream(self, answer: Answer, silence: trio.CancelScope) -> bool:
        """Read to the end, or to where the answer is complete; True: to where the rest flows."""
        completion, outlet = self._completion, self._outlet
        head = b""
        while True:
            try:
                if self._begun and answer.flows:
                    # What was shown goes on its way before the rest is seen to: the receiver runs in the next round.
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                    return True
                chunk = await answer.read_some()
            except Complaint:
                if completion.complete and self._failed is None:
                    return False  # the answer was whole before the connection broke
                raise
            if not chunk:
                break
            if not self._begun and len(head) < _HEAD:
                head += chunk[:_HEAD]
                if head.lstrip(_BLANK)[:1] in _NO_STREAM:
                    await self._whole(chunk, answer, silence)
                    return False
            self._take(chunk, trio.current_time())
            outlet.push()
            if outlet.full:
                await self._room(silence)
            silence.deadline = self._deadline
        self._close()
        if not completion.events and head:
            words = head.decode("utf-8", "replace")
            raise Complaint(Code.LLM_STREAM_BROKEN, "the answer is no event stream", words, retry=True)
        return False

    def _close(self) -> None:
        """The body has ended: what its last bytes amount to."""
        for event in self._decoder.close():
            self._completion.take(event, self._outlet.pieces)

    def _take(self, chunk: bytes, now: float) -> None:
        """Take some of the stream. Raises Complaint, EventTooLarge."""
        completion, pieces = self._completion, self._outlet.pieces
        for event in self._decoder.feed(chunk):
            completion.take(event, pieces)
        if completion.shown and self._question is not None:
            self._question.let_go()
            self._question = None
        self._go_on(now)

    def _go_on(self, now: float) -> None:
        """Something came just now: how long may be silence from here."""
        completion = self._completion
        if completion.complete:
            rest = now + (AFTER_END_S if completion.ended else AFTER_FINISH_S)
            # What comes then does not prolong it: some providers send signs of life for as long as somebody listens.
            self._deadline = min(self._deadline, rest) if self._finished else rest
            self._finished = True
        elif completion.events:
            self._deadline = now + self._idle_s
            if not self._begun:
                self._begun = True
                self.turn.answered()

    async def _room(self, silence: trio.CancelScope | None) -> None:
        if silence is not None:
            silence.deadline = math.inf  # it is we who do not read
        await self._outlet.room()
        self._finished = False
        self._go_on(trio.current_time())

    async def _whole(self, body: bytes, answer: Answer, silence: trio.CancelScope) -> None:
        """The body is no stream: asked for with `stream: false`, or an error, or a page."""
        parts, size = [body], len(body)
        while body and size <= MAX_EVENT:
            silence.deadline = trio.current_time() + self._idle_s
            body = await answer.read_some()
            parts.append(body)
            size += len(body)
        if size > MAX_EVENT:
            raise EventTooLarge
        whole = b"".join(parts).lstrip(_BLANK)
        if whole[:1] == b"<":
            raise _page(whole[:MAX_ERROR_BODY])
        self._completion.take_whole(whole, self._outlet.pieces)
        self._outlet.push()


def _page(body: bytes) -> Complaint:
    return Complaint(
        Code.LLM_UNAVAILABLE,
        "a web page came instead of an answer",
        body.decode("utf-8", "replace"),
        hint="Check the provider's base_url, and whether a proxy or login page is in the way.",
    )

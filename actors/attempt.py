"""One try of one request: a provider's answer from its head to its end, as pieces.

Bounds: the first event by `first_token_timeout`, silence after it by `idle_timeout`, what may follow the end
of the answer by constants; waiting for a slow receiver counts as none of them. Fails with `Complaint` (the
provider's fault, or the way to it) or `EventTooLarge`; pieces that came before that stand.
"""

from __future__ import annotations

import math

import trio

from actors.answer import MAX_ERROR_BODY, TEARS, Answer, torn
from actors.completion import Completion
from actors.outlet import Outlet
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


async def attempt(
    client: Client,
    question: Question,
    sending: Sending,
    options: ClientOptions,
    completion: Completion,
    outlet: Outlet,
    turn: Turn,
) -> Finished:
    """Ask once; pieces go to the outlet. Raises Complaint, EventTooLarge."""
    answer: Answer | None = None
    reading: _Reading | None = None
    flows = False
    try:
        with trio.CancelScope(deadline=trio.current_time() + options.first_token_timeout) as silence:
            answer = await client.ask(question.body, sending)
            if not 200 <= answer.status < 300:
                raise of_status(answer.status, await answer.read(MAX_ERROR_BODY), answer.after_s, answer.again)
            if answer.content_type == "text/html":
                raise _page(await answer.read(MAX_ERROR_BODY))
            reading = _Reading(answer, completion, outlet, silence, options.idle_timeout, turn, question)
            flows = await reading.stream()
        silent = silence.cancelled_caught
        if reading is not None and flows:  # no scope of ours stands around it but its own
            silent = await reading.flow()
    finally:
        if answer is not None:
            await answer.leave()
    if silent and not completion.complete:
        if completion.events:
            raise Complaint(
                Code.LLM_STREAM_BROKEN,
                f"nothing came for {options.idle_timeout:g} s, the answer broke off",
                retry=True,
            )
        raise Complaint(Code.LLM_UNAVAILABLE, f"no answer within {options.first_token_timeout:g} s")
    return completion.finish()


class _Reading:
    """The reading of one body."""

    __slots__ = (
        "_answer",
        "_begun",
        "_completion",
        "_deadline",
        "_decoder",
        "_failed",
        "_idle_s",
        "_outlet",
        "_question",
        "_silence",
        "_turn",
    )

    def __init__(
        self,
        answer: Answer,
        completion: Completion,
        outlet: Outlet,
        silence: trio.CancelScope,
        idle_s: float,
        turn: Turn,
        question: Question,
    ) -> None:
        self._answer = answer
        self._completion = completion
        self._outlet = outlet
        self._silence = silence
        self._idle_s = idle_s
        self._turn = turn
        self._question: Question | None = question
        """Until something was shown."""
        self._decoder = Decoder()
        self._deadline = silence.deadline  # until the first event it stays: comments alone are no answer
        self._begun = False
        self._failed: Complaint | EventTooLarge | None = None

    async def stream(self) -> bool:
        """Read to the end, or to where the answer is complete; True: to where the rest flows. Raises as `flow`."""
        answer, completion, outlet = self._answer, self._completion, self._outlet
        head = b""
        while True:
            try:
                if self._begun and answer.flows:
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
                    await self._whole(chunk)
                    return False
            self._take(chunk, trio.current_time())
            outlet.push()
            if outlet.full:
                await self._room()
            self._silence.deadline = self._deadline
        self._close()
        if not completion.events and head:
            words = head.decode("utf-8", "replace")
            raise Complaint(Code.LLM_STREAM_BROKEN, "the answer is no event stream", words, retry=True)
        return False

    async def flow(self) -> bool:
        """Read what is left, by the one task that reads all streams; True: it was silent for too long.

        Raises Complaint, EventTooLarge.
        """
        ended = False
        while not ended:
            try:
                # The deadline moves with each delta; moving a scope's each time would cost more than the delta.
                with trio.CancelScope(deadline=self._deadline):
                    ended = await self._answer.follow(self._sink)
            except TEARS as error:
                if self._completion.complete and self._failed is None:
                    return False  # as in `stream`
                raise torn(error) from error
            if self._failed is not None:
                raise self._failed
            if self._outlet.full:
                await self._room()
            elif not ended and trio.current_time() >= self._deadline:
                return True
        self._close()
        return False

    def _close(self) -> None:
        """The body has ended: what its last bytes amount to."""
        for event in self._decoder.close():
            self._completion.take(event, self._outlet.pieces)

    def _sink(self, chunk: bytes, now: float) -> bool:
        try:
            self._take(chunk, now)
        except (Complaint, EventTooLarge) as error:
            self._failed = error  # it is the answer that is wrong; its connection is not
            return False
        # Complete: the time that is left has become another.
        return not (self._completion.complete or self._outlet.full)

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
            self._deadline = now + (AFTER_END_S if completion.ended else AFTER_FINISH_S)
        elif completion.events:
            self._deadline = now + self._idle_s
            if not self._begun:
                self._begun = True
                self._turn.answered()

    async def _room(self) -> None:
        self._silence.deadline = math.inf  # it is we who do not read
        await self._outlet.room()
        self._go_on(trio.current_time())

    async def _whole(self, body: bytes) -> None:
        """The body is no stream: asked for with `stream: false`, or an error, or a page."""
        parts, size = [body], len(body)
        while body and size <= MAX_EVENT:
            self._silence.deadline = trio.current_time() + self._idle_s
            body = await self._answer.read_some()
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

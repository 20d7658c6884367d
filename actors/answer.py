"""A provider's answer: what its head says, and its body as it comes.

The body of an answer that flows is read past httpcore (actors/http1.py), many bodies by one task (actors/poller.py);
what is compressed although nobody asked for it is read all the same, if it can be. Bounds are the caller's. Fails with
`Complaint` LLM_STREAM_BROKEN where the connection breaks, LLM_UNAVAILABLE where the body cannot be read.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Self, cast

import httpcore
import trio
from httpcore._async.connection_pool import PoolByteStream

from actors.chunked import Torn
from actors.coding import CODINGS, Inflater, Unreadable
from actors.heads import said_in
from actors.http1 import Body, Came
from actors.poller import Flow, Follower, Poller, Sink
from actors.sse import MAX_EVENT
from actors.verdict import Complaint
from protocol.errors import Code

MAX_ERROR_BODY = 64 * 1024  # bytes read of an error's body; its words are in the first of them

FAILURES = httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError
"""What httpcore raises for a connection that fails."""

TOLD = b"content-type", b"content-encoding", b"retry-after", b"retry-after-ms", b"x-should-retry"
"""What is read of an answer's head."""

TEARS = Torn, OSError
"""What our own reading of a body raises."""


class Answer:
    """A response whose head has come; all is closed when its block ends."""

    # No generator makes the block: its frame, and what belongs to it, would stand while the body flows.
    __slots__ = (
        "_body",
        "_chunks",
        "_flow",
        "_inflater",
        "_poller",
        "_stream",
        "_unread",
        "after_s",
        "again",
        "content_type",
        "sets_cookies",
        "status",
    )

    def __init__(self, response: httpcore.Response, poller: Poller) -> None:
        said = response.said if isinstance(response, Came) else said_in(response.headers)
        headers = {name.decode("latin-1"): said[name].decode("latin-1") for name in TOLD if name in said}
        self.status = response.status
        self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self.after_s = _retry_after(headers)
        """Seconds that it asks us to wait before we ask again; None: it does not say."""
        self.again = headers.get("x-should-retry", "").strip().lower() != "false"
        """Asking again is not forbidden (OpenAI and those that copy it say so)."""
        codings: set[str] = set()
        if coded := headers.get("content-encoding"):
            codings = {coding.strip().lower() for coding in coded.split(",")} - {"", "identity"}
        self._unread = "" if len(codings) < 2 and codings <= CODINGS else ", ".join(sorted(codings))[:50]
        self._inflater = Inflater() if codings else None
        self.sets_cookies = b"set-cookie" in said
        self._poller = poller
        self._flow: Flow | None = None
        # Past httpcore, where it may be: its way costs more than all else that is done with a delta.
        self._body: Body | None = None if codings else response.extensions.get("body")
        self._chunks = response.aiter_stream() if self._body is None else None
        # Not the response: its headers, and those of the request, need not stay while the body flows.
        self._stream = cast(PoolByteStream, response.stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    @property
    def flows(self) -> bool:
        """It can be followed."""
        return self._body is not None

    def flow(self, follower: Follower) -> Flow:
        """Hand the rest of the body to the follower as it comes; nobody need wait. `leave` ends it, too."""
        if self._body is None:
            raise RuntimeError("only an answer that flows is followed")
        self._flow = self._poller.begin(self._body, follower)
        return self._flow

    def stay(self) -> None:
        """It flows no more: not another byte of it is handed on."""
        if self._flow is not None:
            self._poller.leave(self._flow)

    def follow(self, sink: Sink) -> Awaitable[bool]:
        """Hand the rest of the body to the sink as it comes, until that wants no more; True: until its end.

        Many bodies are read by one task: the sink must be quick, and raise nothing. To be awaited; that raises what
        is in `TEARS`.
        """
        if self._body is None:
            raise RuntimeError("only an answer that flows is followed")
        return self._poller.follow(self._body, sink)

    async def read_some(self) -> bytes:
        """Some of the body; b"" at its end. Raises Complaint, LLM_STREAM_BROKEN when the connection breaks."""
        inflater = self._inflater
        if inflater is None:
            return await self._read_raw()
        if self._unread:
            raise Complaint(Code.LLM_UNAVAILABLE, "its answer is compressed, which was not asked for", self._unread)
        try:
            while not (part := inflater.part()):
                if not (data := await self._read_raw()):
                    break
                inflater.feed(data)
        except Unreadable:
            raise Complaint(Code.LLM_STREAM_BROKEN, "the answer is compressed, and not readable", retry=True) from None
        return part

    async def _read_raw(self) -> bytes:
        try:
            if self._body is not None:
                return await self._body.read()
            return b"" if self._chunks is None else await anext(self._chunks)
        except StopAsyncIteration:
            return b""
        except (*FAILURES, *TEARS, trio.ClosedResourceError) as error:
            raise torn(error) from error

    async def read(self, most: int = MAX_EVENT) -> bytes:
        """The body, at most `most` bytes of it; what is past that is not read."""
        body = bytearray()
        while len(body) < most and (chunk := await self.read_some()):
            body += chunk
        return bytes(body[:most])

    async def leave(self) -> None:
        """Be done with it, wherever it stands."""
        self.stay()
        if self._body is not None:
            self._body.close()
        else:
            await self._end_chunks()
        with trio.CancelScope(shield=True):  # nothing in it waits for a peer
            await self._stream.aclose()

    async def _end_chunks(self) -> None:
        # httpcore's body is async generators within each other. One that is dropped half-way is finalised by
        # the garbage collector, outside of our task and with a warning; a read that is cancelled at its
        # first wait ends them all here. What is buffered until then is little.
        with trio.CancelScope() as scope, suppress(Complaint):
            scope.cancel()
            while await self._read_raw():
                pass


def torn(error: Exception) -> Complaint:
    """The connection broke."""
    return Complaint(
        Code.LLM_STREAM_BROKEN, "the connection broke in the middle of the answer", words(error), retry=True
    )


def words(error: Exception) -> str:
    """What an error says of itself, or its kind."""
    return str(error) or type(error).__name__


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (RFC 9110: seconds or a date)."""
    try:
        if value := headers.get("retry-after-ms"):
            return max(0.0, float(value) / 1000)
        if not (value := headers.get("retry-after")):
            return None
        if value.strip().replace(".", "", 1).isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None  # unreadable: as if it had not been said

"""The terminal client's connection: opens it, keeps it, opens it again. An importer of trio_websocket.

Carries frames between a socket and a `Talk` and decides nothing about them. A connection that ends, is
silent for too long or cannot be brought into step is opened anew, with growing pauses; the address is asked
for each time, since a service that was started again may listen elsewhere. Gives up, by setting `failure`,
where trying again is pointless: the first connection fails, the service refuses us, or `patience_s` is over.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

import trio
import trio_websocket

from supervisors.chat_talk import OutOfStep, Talk

CONNECT_S = 5.0  # for the connection; a phone on a bad network takes 3
HANDSHAKE_S = 12.0  # the service gives its store 8, and then says what is wrong
CLOSE_S = 0.5  # for the close handshake; a server that is gone does not answer it
PING_S = 20.0  # how often a silent service is asked for a sign of life
SILENCE_S = 50.0  # without any sign for this long the connection counts as dead: a laptop slept
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
MOST_BYTES = 64 * 1024 * 1024  # of one frame: above what the service sends
REFUSED = (401, 403, 404)  # of the handshake: the next one would be answered alike


class Unreachable(Exception):
    """There is no service to talk to; for the person."""


EXPECTED = (
    trio_websocket.HandshakeError,
    trio_websocket.ConnectionClosed,
    trio.BrokenResourceError,
    trio.TooSlowError,
    OSError,
    OutOfStep,
    Unreachable,
)
"""How connections fail; another one may not."""


class Changes:
    """Wakes everybody who waits for something new."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def tell(self) -> None:
        """Something is new."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Until something is new; look at the state before, not after, calling this."""
        await self._event.wait()


class Link:
    """Keeps a talk connected.

    Args:
        talk: whose frames it carries.
        address: the WebSocket's URL, asked for before every try. Raises Unreachable.
        changes: told when the connection comes or goes.
        conversation: the one to enter first: an id, `new`, or empty for the service's default.
        patience_s: how long to go on without a connection.
    """

    def __init__(
        self,
        talk: Talk,
        address: Callable[[], str],
        changes: Changes,
        *,
        conversation: str = "",
        patience_s: float = math.inf,
    ) -> None:
        self._talk = talk
        self._address = address
        self._changes = changes
        self._conversation = conversation
        self._patience_s = patience_s
        self._at = ""
        self.failure = ""
        """Why it gave up."""
        self.trouble = ""
        """Why there is no connection now; empty while there is one."""
        self.retry_at = 0.0
        """When the next try is due, on trio's clock."""

    async def run(self) -> None:
        """Connect, and again, until it gives up."""
        pause_s, since = FIRST_PAUSE_S, trio.current_time()
        while not self.failure:
            began = bool(self._talk.conversation)
            try:
                code, reason = await self._connect()
                self.trouble = reason or f"the connection ended, code {code}"
            except EXPECTED as error:
                code = 0
                self.trouble = words(error)
                if isinstance(error, trio_websocket.ConnectionRejected) and error.status_code in REFUSED:
                    self.failure = self.trouble
            if self._talk.in_step:
                pause_s, since = FIRST_PAUSE_S, trio.current_time()
            self._talk.closed(code)
            if self._talk.fatal is not None:
                self.failure = self._talk.fatal.error_message
            elif not (began or self._talk.conversation) or trio.current_time() - since > self._patience_s:
                self.failure = f"there is no connection to the service{self._at}: {self.trouble}"
            self.retry_at = trio.current_time() + pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads retries
            self._changes.tell()
            if not self.failure:
                await trio.sleep_until(self.retry_at)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _connect(self) -> tuple[int, str]:
        """One connection, to its end: close code and reason. Raises one of EXPECTED."""
        url = urlsplit(self._address())
        self._at = f" at {url.netloc.rpartition('@')[2]}"
        resource = url.path or "/"
        if not self._talk.conversation and self._conversation:
            resource += f"?conversation={self._conversation}"
        stream = await _open(url)
        try:
            async with trio.open_nursery() as nursery:
                # of the stream, the library's own clients leave the end to the garbage collector
                try:
                    return await self._converse(nursery, stream, url.netloc.rpartition("@")[2], resource)
                finally:
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            expected, rest = group.split(EXPECTED)
            if rest is not None or expected is None:
                raise
            error: BaseException = expected
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, nursery: trio.Nursery, stream: Stream, host: str, resource: str) -> tuple[int, str]:
        with trio.fail_after(HANDSHAKE_S):
            websocket = await trio_websocket.wrap_client_stream(
                nursery, stream, host, resource, max_message_size=MOST_BYTES, receive_buffer_size=65536
            )
        try:
            heard = [trio.current_time()]
            with trio.CancelScope() as scope:
                nursery.start_soon(self._send, websocket)
                nursery.start_soon(self._keep_alive, heard, scope)
                await self._read(websocket, heard)
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await websocket.aclose()
        closed = websocket.closed
        if scope.cancelled_caught or closed is None:
            return (1006, "no sign of life")
        return int(closed.code), closed.reason or ""

    async def _read(self, websocket: trio_websocket.WebSocketConnection, heard: list[float]) -> None:
        while self._talk.fatal is None:
            try:
                self._talk.receive(await websocket.get_message())
            except trio_websocket.ConnectionClosed:
                return
            heard[0] = trio.current_time()
            if self._talk.in_step:
                self.trouble = ""

    async def _send(self, websocket: trio_websocket.WebSocketConnection) -> None:
        while True:
            while self._talk.outgoing:
                frame = self._talk.outgoing.pop(0)
                try:
                    await websocket.send_message(json.dumps(frame))
                except trio_websocket.ConnectionClosed:
                    return  # the reader meets it too
            await self._changes.wait()

    async def _keep_alive(self, heard: list[float], connection: trio.CancelScope) -> None:
        while trio.current_time() - heard[0] < SILENCE_S:
            await trio.sleep(PING_S)
            if trio.current_time() - heard[0] >= PING_S:
                self._talk.outgoing.append({"type": "ping"})
                self._changes.tell()
        connection.cancel()


Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


async def _open(url: SplitResult) -> Stream:
    """A connection to where the URL points. Raises OSError, TooSlowError."""
    host, secure = url.hostname or "", url.scheme == "wss"
    port = url.port or (443 if secure else 80)
    with trio.fail_after(CONNECT_S):
        if secure:
            return await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
        return await trio.open_tcp_stream(host, port)


def words(error: BaseException) -> str:
    """Why a connection could not be made, for a person."""
    if isinstance(error, trio_websocket.ConnectionRejected):
        body = bytes(error.body or b"").decode("utf-8", "replace").strip()
        return f"the service refused the connection with {error.status_code}" + (f": {body[:200]}" if body else "")
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]  # one per address of the host
    reason = cause if isinstance(cause, OSError) else error
    return (isinstance(reason, OSError) and reason.strerror) or str(reason) or type(reason).__name__

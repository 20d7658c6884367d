"""Requests to an MCP server over HTTP, and what their answers mean. The one importer of httpx2.

The MCP package speaks the protocol over an HTTP client that it is given. This one stands between: what would
hang the package, end it without a word or fill the memory becomes an answer that fails one request, or ends
the connection with words for operators. Requests are bounded by whoever waits for them: there are no
time-outs here beside those for connecting and for notifications, which nobody waits for.

Nothing of a single request is raised, it is answered with an error. What ends the connection is raised by
`Exchange.watch`: `ServerEnded`, `Refused`, `Unusable`, `Older`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import mcp_types as types
import msgspec
import trio
from mcp.shared._httpx_utils import next_request_within_origin, redirect_location

from actors import mcp_tls
from actors.mcp_wire import LOST
from actors.server_endpoint import Endpoint
from actors.server_faults import Refused, ServerEnded, Unusable
from actors.server_refusal import refusal, status_words, unreachable

CONNECT_S = 10.0  # for TCP and TLS
TELLING = 64  # notifications, and answers to what the server asks, that it takes at a time; it may ask without end
NOTIFY_S = 5.0  # a notification that the server has not taken by then is given up
DELETE_S = 1.0  # to tell a server that its session is over
EXPLAINED = 64 * 1024  # bytes of an error's body that are read
EXPLAIN_S = 1.0  # and for so long
OVERSIZE = 4  # times the most that an answer may have: so far a longer one is followed to tell its size
SESSION = "mcp-session-id"

# They repeat URLs, messages and session ids; what they warn of is told here, in words for operators.
for _name in ("httpx2", "httpcore2", "mcp.client.streamable_http"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

log = logging.getLogger(__name__)

_Sending = Callable[[], Awaitable[httpx2.Response]]


class _Message(msgspec.Struct):
    """What is looked at of a message that is sent."""

    id: int | str | None = None
    method: str = ""


class _Awaited:
    """A request whose answer somebody waits for."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.forgotten = False


class Exchange(httpx2.AsyncClient):
    """An HTTP client for one server.

    Args:
        auth: adds what the server wants to see, and may ask for it elsewhere before. What it raises of
            `ServerEnded`, `Refused` and `Unusable` ends the connection.
        older: an older way is tried where `Older` is raised.
        apart: answers do not come with what they answer, but on a stream of their own.
    Raises: Unusable.
    """

    def __init__(
        self, endpoint: Endpoint, auth: httpx2.Auth | None, *, older: bool = False, apart: bool = False
    ) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=16)
        trusted, at = mcp_tls.own(endpoint), httpx2.URL(endpoint.url)
        place = f"https://{at.netloc.decode('ascii')}"
        super().__init__(
            auth=auth,
            headers={
                # A megabyte that unpacks to a gigabyte is of no use to anybody.
                "Accept-Encoding": "identity",
                "User-Agent": f"mcp-actors/{importlib.metadata.version('mcp-actors')}",
                **endpoint.headers,
            },
            verify=mcp_tls.elsewhere(endpoint),
            mounts={place: httpx2.AsyncHTTPTransport(verify=trusted, limits=limits)} if trusted is not None else {},
            trust_env=False,  # no proxies
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            limits=limits,
        )
        self.who = f"MCP server {endpoint.name!r} ({endpoint.shown})"
        self.session = ""
        """What the server calls this connection; empty: it keeps none."""
        self._endpoint = endpoint
        self._at = at
        self._older = older
        self._apart = apart
        self._settled = False
        self._ended = trio.Event()
        self._why: Exception | None = None
        self._doubt = trio.Event()
        self._awaited: dict[int | str, _Awaited] = {}
        self._telling: trio.Nursery | None = None
        self._places = trio.Semaphore(TELLING)

    async def watch(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Raise what ends the connection, as soon as it is known."""
        async with trio.open_nursery() as nursery:
            self._telling = nursery
            task_status.started()
            await self._ended.wait()
            raise self.over("ended")

    def over(self, words: str) -> Exception:
        """Why the connection is at its end; as far as nothing else is known, those words."""
        return self._why or ServerEnded(f"{self.who} {words}.")

    async def doubt(self) -> None:
        """Return once a connection was cut: then somebody should ask whether the server is still there."""
        await self._doubt.wait()
        self._doubt = trio.Event()

    def suspect(self) -> None:
        """A connection was cut."""
        self._doubt.set()

    def settle(self) -> None:
        """The handshake is done: from now on a failed request says little about the others."""
        self._settled = True

    def end(self, error: Exception) -> None:
        """The connection is of no use any more, and why."""
        self._why = self._why or error
        self._ended.set()

    def forget(self, request: int | str) -> None:
        """Nobody waits for that answer any more."""
        if awaited := self._awaited.get(request):
            awaited.forgotten = True
            awaited.scope.cancel()

    async def leave(self) -> None:
        """Tell the server that its session is over, if it keeps one and is there."""
        if not self.session or self._ended.is_set():
            return
        with trio.move_on_after(DELETE_S, shield=True):
            request = self.build_request("DELETE", self._endpoint.url, headers={SESSION: self.session})
            response = await self._answer(functools.partial(super().send, request))
            log.debug("%s was told of the end: %s", self.who, response and response.status_code)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send it and judge the answer; for the MCP package, which knows what to do with what comes back."""
        sending = functools.partial(super().send, request, **(options | {"stream": True, "follow_redirects": False}))
        if request.method != "POST":
            return await self._stream(request, sending)
        message = msgspec.json.decode(await request.aread(), type=_Message)
        if message.id is not None and message.method:
            return await self._request(request, message.id, message.method, sending)
        # Nobody waits for it: a server that does not take it must not hold up what comes after.
        if message.method == "notifications/initialized" or self._telling is None:
            await self._tell(sending)
        else:
            await self._places.acquire()
            self._telling.start_soon(self._tell_aside, sending)
        return httpx2.Response(202, request=request)

    async def _request(
        self, request: httpx2.Request, number: int | str, method: str, sending: _Sending
    ) -> httpx2.Response:
        awaited = self._awaited[number] = _Awaited()
        try:
            with awaited.scope:
                response = await self._answer(sending)
                if response is not None:
                    return await self._judged(response, request, number, method)
                if method == "initialize":
                    self.end(ServerEnded(f"{self.who} closed the connection without an answer."))
        finally:
            self._done(number, awaited)
        return _failed(request, number, LOST, "the connection was lost")

    def _done(self, number: int | str, awaited: _Awaited) -> None:
        if self._awaited.get(number) is awaited:
            del self._awaited[number]

    async def _tell_aside(self, sending: _Sending) -> None:
        try:
            await self._tell(sending)
        finally:
            self._places.release()

    async def _tell(self, sending: _Sending) -> None:
        with trio.move_on_after(NOTIFY_S):
            if response := await self._answer(sending):
                await response.aclose()
                self._look(response)

    async def _stream(self, request: httpx2.Request, sending: _Sending) -> httpx2.Response:
        response = await self._answer(sending)
        if response is None:
            raise httpx2.ReadError("the connection was lost", request=request)
        self._look(response)
        response.stream = Body(response.stream, self.suspect)
        return response

    async def _answer(self, sending: _Sending) -> httpx2.Response | None:
        """What came back; None: nothing did, the connection was lost, or is at its end."""
        try:
            return await sending()
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            at = error.request.url
            other = (at.host, at.port) != (self._at.host, self._at.port)
            self.end(unreachable(f"{at.host}, to which {self.who} leads," if other else self.who, error))
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            self.end(Unusable(f"{self.who} cannot be asked ({type(error).__name__}); correct `url`."))
        except httpx2.HTTPError as error:
            log.debug("a connection to %s was lost: %s", self.who, type(error).__name__)
            self.suspect()
        except (Refused, ServerEnded, Unusable) as error:  # of `auth`
            self.end(error)
        return None

    def _look(self, response: httpx2.Response) -> None:
        """See whether that answer, to whatever it was, ends the connection."""
        status = response.status_code
        if status == 401 and self._settled:
            self.end(Refused(f"{self.who} does not accept our authorization any more ({status_words(status)})."))
        elif status == 404 and SESSION in response.request.headers:
            self.end(ServerEnded(f"{self.who} has forgotten our session ({status_words(status)})."))

    async def _judged(
        self, response: httpx2.Response, request: httpx2.Request, number: int | str, method: str
    ) -> httpx2.Response:
        """The answer to a request as the package should see it."""
        if not self._apart and next_request_within_origin(response) is not None:
            return response  # the package follows it
        if not response.is_success:
            return await self._error(response, request, number, method)
        if method == "initialize":
            self.session = response.headers.get(SESSION, "")
        kind = _kind(response)
        if self._apart:
            await response.aclose()
            return httpx2.Response(202, request=request)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            why = "its answer is compressed, which was not asked for"
        elif kind == "text/event-stream":
            self._awaited[number] = awaited = _Awaited()
            response.stream = Body(response.stream, self.suspect, awaited, lambda: self._done(number, awaited))
            return response
        elif kind == "application/json":
            return await self._whole(response, request, number)
        elif response.status_code == 202:
            return response  # the package says that this is no answer
        else:
            why = f"it answered with {kind or 'something'}, which is not MCP"
        await response.aclose()
        if method == "initialize":
            self.end(Refused(f"{self.who}: {why}; is its `url` right?"))
        return _failed(request, number, types.INVALID_REQUEST, why)

    async def _whole(self, response: httpx2.Response, request: httpx2.Request, number: int | str) -> httpx2.Response:
        """A JSON answer, read here: the package would read without end, and take a cut for the end of everything."""
        chunks: list[bytes] = []
        size, cap = 0, self._endpoint.message_cap
        try:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size <= cap:
                    chunks.append(chunk)
                elif size > OVERSIZE * cap:
                    break
                else:
                    chunks.clear()
        except httpx2.HTTPError:
            self.suspect()
            return _failed(request, number, LOST, "the connection was lost during the answer")
        finally:
            await response.aclose()
        if size > cap:
            most = "more than" if size > OVERSIZE * cap else "its answer has"
            why = f"{most} {size} bytes, more than a message may have"
            return _failed(request, number, types.PARSE_ERROR, why)
        return _answered(request, response.status_code, b"".join(chunks), self.session)

    async def _error(
        self, response: httpx2.Response, request: httpx2.Request, number: int | str, method: str
    ) -> httpx2.Response:
        """An answer that is no success: the server's own error, or what its status says."""
        body, said = await self._beginning(response)
        kind, status = _kind(response), response.status_code
        self._look(response)
        # Of the newer era every status may carry an error of MCP; what asks for authorization is none.
        if kind == "application/json" and status != 401 and _is_error(body):
            return _answered(request, 400, body)
        if method == "initialize":
            self.end(self._refusal(response, said))
        elif self._settled and status == 404:
            self.end(ServerEnded(f"{self.who} is not there any more ({status_words(status, said)})."))
        return _failed(request, number, types.INTERNAL_ERROR, f"the server answered {status_words(status, said)}")

    async def check(self, response: httpx2.Response) -> None:
        """Raises Unusable or Refused, if that stream was refused."""
        if not response.is_success:
            _, said = await self._beginning(response)
            raise self._refusal(response, said)

    def _refusal(self, response: httpx2.Response, said: str) -> Exception:
        location = redirect_location(response)
        where = self._endpoint.clean(str(location)) if location else ""
        return refusal(self.who, response.status_code, said, where, older=self._older)

    async def _beginning(self, response: httpx2.Response) -> tuple[bytes, str]:
        """The first bytes of an error's body, as far as they come soon; and as text that may be shown."""
        found = b""
        with trio.move_on_after(EXPLAIN_S):
            try:
                async for chunk in response.aiter_raw():
                    found += chunk
                    if len(found) > EXPLAINED:
                        break
            except httpx2.HTTPError as error:
                log.debug("an error's body was cut: %s", type(error).__name__)
        await response.aclose()
        kind = _kind(response)
        shown = found.decode("utf-8", "replace") if kind == "text/plain" or "json" in kind else ""
        return found[:EXPLAINED], self._endpoint.clean(shown)


class Body(httpx2.AsyncByteStream):
    """What is left to read of an answer: known when it is cut, and given up when nobody waits for it.

    Args:
        cut: called when the connection was lost.
        awaited: who waits for it; None: it is nobody's answer.
        done: called when it is closed.
    """

    def __init__(
        self,
        body: Any,
        cut: Callable[[], None],
        awaited: _Awaited | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self._body = body
        self._cut = cut
        self._awaited = awaited or _Awaited()
        self._done = done
        self._chunks: AsyncIterator[bytes] = body.__aiter__()

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Its chunks."""
        return self

    async def __anext__(self) -> bytes:
        """The next one. Raises httpx2.TransportError."""
        with trio.CancelScope() as self._awaited.scope:
            if not self._awaited.forgotten:
                try:
                    return await self._chunks.__anext__()
                except httpx2.TransportError:
                    self._cut()
                    raise
        raise httpx2.SSEError("nobody waits for it any more")

    async def aclose(self) -> None:
        """Give up the connection, or give it back."""
        self._done()
        await self._body.aclose()


def _kind(response: httpx2.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()[:80]


def _is_error(body: bytes) -> bool:
    try:
        return isinstance(types.jsonrpc_message_adapter.validate_json(body, by_name=False), types.JSONRPCError)
    except ValueError:
        return False  # something else in JSON, or nothing of it


def _answered(request: httpx2.Request, status: int, body: bytes, session: str = "") -> httpx2.Response:
    headers = {"content-type": "application/json"} | ({SESSION: session} if session else {})
    return httpx2.Response(status, headers=headers, content=body, request=request)


def _failed(request: httpx2.Request, number: int | str, code: int, why: str) -> httpx2.Response:
    """What the package passes on as an error of that request."""
    error = {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": why}}
    return _answered(request, 400, msgspec.json.encode(error))

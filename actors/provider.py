"""HTTP to the providers; the one importer of httpx.

One long-lived client per provider, made at its first request and closed when the configuration no longer
has it and its last request ended. Every failure is a `Complaint`: an unusable setting before anything is
sent, a connection that fails, one that is not trusted, one that breaks. Bounds: connecting by
`connect_timeout`, bodies of errors and whole answers in bytes; silence is bounded by the caller.
"""

from __future__ import annotations

import importlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from email.utils import parsedate_to_datetime

import httpcore
import httpx
import trio

from actors.chunked import Torn
from actors.coding import CODINGS, Inflater, Unreadable
from actors.http1 import Body
from actors.poller import Poller, Sink
from actors.pool import Pool
from actors.raw_stream import Backend
from actors.sending import Sending
from actors.sse import MAX_EVENT
from actors.verdict import Complaint
from actors.warm import Warm
from protocol.errors import Code
from protocol.watcher import ClientOptions, Provider

MAX_ERROR_BODY = 64 * 1024  # bytes read of an error's body; its words are in the first of them
CLOSE_S = 1.0  # bound of closing a client; an idle TLS connection may wait for its peer's farewell


log = logging.getLogger(__name__)

# httpx's line per request repeats the URL with its query, where some gateways take their key; hpack's at DEBUG
# quote the headers.
for _name in ("httpx", "httpcore", "hpack"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Answer:
    """A response whose head has come."""

    def __init__(self, response: httpx.Response, poller: Poller) -> None:
        self.status = response.status_code
        self.content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self.after_s = _retry_after(response.headers)
        """Seconds that it asks us to wait before we ask again; None: it does not say."""
        self.again = response.headers.get("x-should-retry", "").strip().lower() != "false"
        """Asking again is not forbidden (OpenAI and those that copy it say so)."""
        codings = {coding.strip().lower() for coding in response.headers.get("content-encoding", "").split(",")}
        codings -= {"", "identity"}
        self._unread = "" if len(codings) < 2 and codings <= CODINGS else ", ".join(sorted(codings))[:50]
        self._inflater = Inflater() if codings else None
        self._poller = poller
        # Past httpx, where it may be: its way costs more than all else that is done with a delta.
        self._body: Body | None = None if codings else response.extensions.get("body")
        self._chunks = response.aiter_raw()

    @property
    def flows(self) -> bool:
        """It can be followed."""
        return self._body is not None

    async def follow(self, sink: Sink) -> bool:
        """Hand the rest of the body to the sink as it comes, until that wants no more; True: until its end.

        Many bodies are read by one task: the sink must be quick, and raise nothing. Raises Complaint as `read_some`.
        """
        if self._body is None:
            raise RuntimeError("only an answer that flows is followed")
        try:
            return await self._poller.follow(self._body, sink)
        except (Torn, OSError) as error:
            raise _torn(error) from error

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
            return await (anext(self._chunks) if self._body is None else self._body.read())
        except StopAsyncIteration:
            return b""
        except (httpx.HTTPError, httpx.StreamError, Torn, OSError, trio.ClosedResourceError) as error:
            raise _torn(error) from error

    async def read(self, most: int = MAX_EVENT) -> bytes:
        """The body, at most `most` bytes of it; what is past that is not read."""
        body = bytearray()
        while len(body) < most and (chunk := await self.read_some()):
            body += chunk
        return bytes(body[:most])

    async def leave(self) -> None:
        """Be done with the body, wherever it stands."""
        if self._body is not None:
            self._body.close()
            return
        # httpx's body is async generators within each other. One that is dropped half-way is finalised by
        # the garbage collector, outside of our task and with a warning; a read that is cancelled at its
        # first wait ends them all here. What is buffered until then is little.
        with trio.CancelScope() as scope, suppress(Complaint):
            scope.cancel()
            while await self._read_raw():
                pass


class Client:
    """One provider's connections."""

    def __init__(self, provider: Provider, poller: Poller) -> None:
        self._poller = poller
        self.settings = _settings(provider)
        self.users = 0
        self.retired = False
        self._options = options = provider.client
        with _setting("base_url"):
            url = httpx.URL(provider.base_url)
            self._url = url.copy_with(path=url.path.rstrip("/") + "/chat/completions")
        if options.http2:
            importlib.import_module("actors.http2")  # only where it is wanted: h2 is large
        with _setting("client.ca_file"):
            self._tls = _tls(options, url.scheme == "https")
        transport = httpx.AsyncHTTPTransport(
            http2=options.http2,
            trust_env=False,
            verify=self._tls,
            limits=httpx.Limits(
                max_connections=options.max_connections,
                max_keepalive_connections=options.max_keepalive_connections,
                keepalive_expiry=options.keepalive_expiry,
            ),
        )
        # httpx hands no such thing on; tests see that it is used.
        self._warm = Warm(options.keepalive_expiry, None if options.http2 else Backend())
        if options.http2:
            transport._pool._network_backend = self._warm
        else:
            transport._pool = Pool(
                ssl_context=self._tls,
                max_connections=options.max_connections,
                max_keepalive_connections=options.max_keepalive_connections,
                keepalive_expiry=options.keepalive_expiry,
                network_backend=self._warm,
            )
        self._http = httpx.AsyncClient(
            transport=transport,
            trust_env=False,
            timeout=httpx.Timeout(None, connect=options.connect_timeout, write=options.idle_timeout),
        )

    @asynccontextmanager
    async def ask(self, body: bytes, sending: Sending) -> AsyncIterator[Answer]:
        """Send one request, a JSON text; the answer's head has come when the block begins, all is closed when it ends.

        Raises: Complaint, with `retry` set where nothing of an answer came.
        """
        request = self._http.build_request("POST", self._url, content=body, headers=sending.headers)
        async with self._answered(request) as answer:
            yield answer

    @asynccontextmanager
    async def list_models(self, sending: Sending) -> AsyncIterator[Answer]:
        """`GET {base_url}/models`; else as `ask`."""
        url = self._url.copy_with(path=self._url.path.removesuffix("/chat/completions") + "/models")
        headers = {**sending.headers, "Accept": "application/json"}
        async with self._answered(self._http.build_request("GET", url, headers=headers)) as answer:
            yield answer

    @asynccontextmanager
    async def _answered(self, request: httpx.Request) -> AsyncIterator[Answer]:
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise Complaint(
                Code.LLM_NOT_CONFIGURED, "its address cannot be used", _words(error), hint="Check its base_url."
            ) from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _unreachable(error) from error
        except httpx.HTTPError as error:
            raise Complaint(
                Code.LLM_UNAVAILABLE, "the connection broke before an answer came", _words(error), retry=True
            ) from error
        answer = Answer(response, self._poller)
        try:
            yield answer
        finally:
            await answer.leave()
            with trio.CancelScope(shield=True):  # nothing in it waits for a peer
                await response.aclose()
            # It and its stream hold each other, and with them the request's body, until a collection comes by.
            response.stream = httpx.ByteStream(b"")

    async def warm(self) -> None:
        """Open connections that a request may soon need; that none can be is left to the request to say."""
        options, tls = self._options, self._url.scheme == "https"
        wanted = int(tls) if options.prewarm is None else options.prewarm
        if options.http2:
            wanted = min(wanted, 1)  # all requests share it
        context: ssl.SSLContext | None = None
        if tls:
            context = self._tls
            context.set_alpn_protocols(["http/1.1", "h2"] if options.http2 else ["http/1.1"])
        port = self._url.port or (443 if tls else 80)
        try:
            for _ in range(wanted - len(self._warm)):
                await self._warm.open(self._url.host, port, context, options.connect_timeout)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError, ValueError) as error:
            # ValueError: a name that is none (idna).
            log.info("no connection to %s could be opened ahead: %s", self._url.host, error)

    async def cool(self) -> None:
        """Close what was opened ahead and not taken in its time."""
        await self._warm.cool()

    async def close(self) -> None:
        """Close all connections; bounded, also when the caller is being cancelled."""
        with trio.move_on_after(CLOSE_S, shield=True):
            await self._http.aclose()
        with trio.move_on_after(CLOSE_S, shield=True):
            await self._warm.aclose()


class Clients:
    """The clients of all providers in use; close it at the end.

    Args:
        taken: called when the sinks of answers that are followed have taken something, once for all of them.
    """

    def __init__(self, taken: Callable[[], None]) -> None:
        self._clients: dict[str, Client] = {}
        self._retired: set[Client] = set()
        self._poller = Poller(taken)

    def __len__(self) -> int:
        return len(self._clients) + len(self._retired)

    @asynccontextmanager
    async def using(self, provider: Provider) -> AsyncIterator[Client]:
        """The provider's client, kept open for the block even if the configuration changes meanwhile."""
        old = self._clients.get(provider.name)
        fits = old is not None and old.settings == _settings(provider)
        client = old if old is not None and fits else Client(provider, self._poller)
        self._clients[provider.name] = client
        client.users += 1  # before anything is awaited: nobody closes what is counted
        try:
            if old is not None and not fits:
                await self._retire(old)
            yield client
        finally:
            client.users -= 1
            if client.retired and not client.users:
                self._retired.discard(client)
                await client.close()

    async def read(self, scope: trio.CancelScope) -> None:
        """Read the bodies that are followed, until the scope is cancelled."""
        with scope:
            await self._poller.run()

    async def warm(self, provider: Provider) -> None:
        """Have connections to it ready, for as long as idle ones are kept. Raises Complaint: it cannot be used."""
        async with self.using(provider) as client:
            await client.warm()
        await trio.sleep(provider.client.keepalive_expiry)
        await client.cool()

    async def keep(self, providers: Mapping[str, Provider]) -> None:
        """Retire the clients of providers that are gone or changed; each closes with its last request."""
        for name, client in list(self._clients.items()):
            if self._clients.get(name) is not client:
                continue  # replaced by a request while another was closing
            if name not in providers or _settings(providers[name]) != client.settings:
                del self._clients[name]
                await self._retire(client)

    async def close(self) -> None:
        """Close every client."""
        self._poller.close()
        clients = [*self._clients.values(), *self._retired]
        self._clients.clear()
        self._retired.clear()
        for client in clients:
            await client.close()

    async def _retire(self, client: Client) -> None:
        client.retired = True
        if client.users:
            self._retired.add(client)
        else:
            await client.close()


def _settings(provider: Provider) -> tuple[str, ClientOptions]:
    """What a client is made of; other changes of a provider need no new one."""
    return provider.base_url, provider.client


@contextmanager
def _setting(name: str) -> Iterator[None]:
    try:
        yield
    except (httpx.InvalidURL, OSError, ValueError) as error:
        # ssl.SSLError is an OSError. The value itself may be a secret's place: only the kind of error is told.
        raise Complaint(
            Code.LLM_NOT_CONFIGURED, f"its {name} cannot be used ({type(error).__name__})", hint=f"Check its {name}."
        ) from error


def _tls(options: ClientOptions, needed: bool) -> ssl.SSLContext:
    if options.ca_file:
        return ssl.create_default_context(cafile=options.ca_file)
    # Without trust_env httpx would not look at SSL_CERT_FILE; proxies stay ignored. Loading the
    # certificates takes tens of milliseconds, which plain HTTP can do without.
    return httpx.create_ssl_context(trust_env=True) if needed else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _unreachable(error: httpx.TransportError) -> Complaint:
    """No connection came about; where TLS failed, it says so: trying again will not help."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Complaint(
                Code.LLM_UNAVAILABLE,
                "its certificate is not trusted",
                cause.verify_message,
                hint="Check the provider's base_url and client.ca_file, and this machine's certificates.",
                retryable=False,
            )
        if isinstance(cause, ssl.SSLError):
            return Complaint(
                Code.LLM_UNAVAILABLE,
                "no encrypted connection came about",
                cause.reason or _words(error),
                hint="Check the provider's base_url: does it speak https there?",
                retryable=False,
            )
        cause = cause.__cause__ or cause.__context__
    return Complaint(Code.LLM_UNAVAILABLE, "it could not be reached", _words(error), retry=True)


def _torn(error: Exception) -> Complaint:
    return Complaint(
        Code.LLM_STREAM_BROKEN, "the connection broke in the middle of the answer", _words(error), retry=True
    )


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after(headers: httpx.Headers) -> float | None:
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

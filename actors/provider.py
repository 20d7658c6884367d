"""HTTP to the providers; the one importer of httpx, of which only addresses, cookies and trust are used.

One long-lived client per provider, made at its first request and closed when the configuration no longer
has it and its last request ended. Its requests go straight to httpcore's pool of connections. Every failure is a
`Complaint`: an unusable setting before anything is sent, a connection that fails, one that is not trusted, one that
breaks. Bounds: connecting by `connect_timeout`, sending by `idle_timeout`; silence is bounded by the caller.
"""

from __future__ import annotations

import importlib
import logging
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import httpcore
import httpx
import trio

from actors.answer import FAILURES, Answer, words
from actors.http1 import Asked, Form
from actors.poller import Poller
from actors.pool import Pool
from actors.raw_stream import Backend
from actors.sending import Sending
from actors.verdict import Complaint
from actors.warm import Warm
from protocol.errors import Code
from protocol.watcher import ClientOptions, Provider

CLOSE_S = 1.0  # bound of closing a client; an idle TLS connection may wait for its peer's farewell


log = logging.getLogger(__name__)

# httpx's line per request repeats the URL with its query, where some gateways take their key; hpack's at DEBUG
# quote the headers.
for _name in ("httpx", "httpcore", "hpack"):
    logging.getLogger(_name).setLevel(logging.WARNING)


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
        self._warm = Warm(options.keepalive_expiry, None if options.http2 else Backend())
        self._pool = (partial(httpcore.AsyncConnectionPool, http2=True) if options.http2 else Pool)(
            ssl_context=self._tls,
            max_connections=options.max_connections,
            max_keepalive_connections=options.max_keepalive_connections,
            keepalive_expiry=options.keepalive_expiry,
            network_backend=self._warm,
        )
        self._cookies = httpx.Cookies()
        self._fields = {"host": (b"Host", self._url.netloc), "connection": (b"Connection", b"keep-alive")}
        if self._url.username or self._url.password:
            user = b64encode(f"{self._url.username}:{self._url.password}".encode())
            self._fields["authorization"] = b"Authorization", b"Basic " + user
        self._asked = _on_the_wire(self._url)
        self._form: Form | None = None
        """Of requests with those headers, while no cookies are set."""
        self._form_headers: Mapping[str, str] = {}
        self._timeouts = {"connect": options.connect_timeout, "write": options.idle_timeout}

    async def ask(self, body: bytes, sending: Sending) -> Answer:
        """Send one request, a JSON text, and wait for the answer's head; the answer's block must follow.

        Raises: Complaint, with `retry` set where nothing of an answer came.
        """
        form = self._form
        if form is None or self._form_headers != sending.headers:
            form = Form(b"POST", self._asked, self._fields_with(sending.headers))
            # Cookies come and go by themselves.
            self._form, self._form_headers = None if len(self._cookies) else form, sending.headers
        return await self._answered(Asked(form, body, self._timeouts))

    async def list_models(self, sending: Sending) -> Answer:
        """`GET {base_url}/models`; else as `ask`."""
        url = self._url.copy_with(path=self._url.path.removesuffix("/chat/completions") + "/models")
        fields = self._fields_with({**sending.headers, "Accept": "application/json"})
        timeouts = {"timeout": self._timeouts}
        return await self._answered(httpcore.Request("GET", _on_the_wire(url), headers=fields, extensions=timeouts))

    def _fields_with(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        # By hand: httpx's way from a request to its transport and back takes as long as all else that is done with it.
        fields = dict(self._fields)
        for name, value in headers.items():
            if (lowered := name.lower()) != "authorization" or lowered not in fields:
                fields[lowered] = name.encode("ascii"), value.encode("ascii")
        if len(self._cookies):
            asked = httpx.Request("POST", self._url)
            with suppress(UnicodeEncodeError):  # they are what the provider set, and may be nothing that can be sent
                self._cookies.set_cookie_header(asked)
            if cookie := asked.headers.get("cookie"):
                fields.setdefault("cookie", (b"Cookie", cookie.encode("ascii")))
        return [*fields.values()]

    async def _answered(self, request: httpcore.Request) -> Answer:
        try:
            if not self._url.host:
                raise httpcore.UnsupportedProtocol("It names no host.")
            response = await self._pool.handle_async_request(request)
        except (httpcore.UnsupportedProtocol, UnicodeError) as error:  # UnicodeError: a name that is none (idna)
            raise Complaint(
                Code.LLM_NOT_CONFIGURED, "its address cannot be used", words(error), hint="Check its base_url."
            ) from error
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise _unreachable(error) from error
        except FAILURES as error:
            raise Complaint(
                Code.LLM_UNAVAILABLE, "the connection broke before an answer came", words(error), retry=True
            ) from error
        answer = Answer(response, self._poller)
        if answer.sets_cookies:
            came = httpx.Response(response.status, headers=response.headers, request=httpx.Request("GET", self._url))
            self._cookies.extract_cookies(came)
            self._form = None
        return answer

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
            await self._pool.aclose()
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

    def using(self, provider: Provider) -> _Use:
        """The provider's client, kept open for the block even if the configuration changes meanwhile."""
        return _Use(self, provider)

    async def take(self, provider: Provider) -> Client:
        """The provider's client, for one more user, who gives it back."""
        old = self._clients.get(provider.name)
        fits = old is not None and old.settings == _settings(provider)
        client = old if old is not None and fits else Client(provider, self._poller)
        self._clients[provider.name] = client
        client.users += 1  # before anything is awaited: nobody closes what is counted
        try:
            if old is not None and not fits:
                await self._retire(old)
        except BaseException:
            await self.give_back(client)
            raise
        return client

    async def give_back(self, client: Client) -> None:
        """One user less."""
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


class _Use:
    """A block of one user of a client."""

    # No generator: its frame would stand while an answer flows.
    __slots__ = ("_client", "_clients", "_provider")

    def __init__(self, clients: Clients, provider: Provider) -> None:
        self._clients = clients
        self._provider = provider
        self._client: Client | None = None

    async def __aenter__(self) -> Client:
        self._client = await self._clients.take(self._provider)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._clients.give_back(self._client)


def _settings(provider: Provider) -> tuple[str, ClientOptions]:
    """What a client is made of; other changes of a provider need no new one."""
    return provider.base_url, provider.client


def _on_the_wire(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


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


def _unreachable(error: httpcore.ConnectError | httpcore.ConnectTimeout) -> Complaint:
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
                cause.reason or words(error),
                hint="Check the provider's base_url: does it speak https there?",
                retryable=False,
            )
        cause = cause.__cause__ or cause.__context__
    return Complaint(Code.LLM_UNAVAILABLE, "it could not be reached", words(error), retry=True)

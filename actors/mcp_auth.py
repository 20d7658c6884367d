"""OAuth for an MCP server over HTTP: what is added to its requests, and what follows when it refuses one.

Around the MCP package's provider stands what a service needs: requests that have a valid token do not wait for each
other; a token that is refused before its time is refreshed before anybody is asked; people are asked only where
somebody waits for it, and not again once they said no; nothing secret gets into an error or the log.

What can fail: `Unauthorized`, until somebody acts, and `Refused`, for now; they end the connection. What is refused for
want of a wider permission alone, later, is only that one request.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

import httpx2
from mcp.client.auth import OAuthFlowError, OAuthRegistrationError
from mcp.client.auth.utils import extract_field_from_www_auth
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata
from pydantic import AnyUrl

from actors.consent import Consent
from actors.hidden import without
from actors.mcp_provider import Kept, Provider
from actors.redirect import HOST, PATH, Redirect, listen
from actors.server_endpoint import Endpoint
from actors.server_faults import Refused, Unauthorized, Unusable
from actors.token_file import TokenFile
from protocol.watcher import Authorization

BODY_BYTES = 256 * 1024  # of an answer of an authorization server; the largest have some ten thousand
QUOTED = 300  # characters of what an authorization server says
SECRET_MIN = 6  # as in server_command: shorter ones would only make texts unreadable
PAST = 1.0  # an end for a token that is refused before its own

_CHALLENGE = re.compile(r"\bBearer\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z_]{1,40}")  # RFC 6749, section 4.1.2.1
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

# It logs whole answers of authorization servers.
logging.getLogger("mcp.client.auth").setLevel(logging.CRITICAL + 1)

log = logging.getLogger(__name__)


class Authorizer(httpx2.Auth):
    """What one connection adds to its requests.

    Args:
        server: its name.
        url: its address.
        auth: how, every variable filled in; of type `asked`: as soon as the server wants it.
        file: where it is kept.
        consent: whom to ask.
    """

    def __init__(self, server: str, url: str, auth: Authorization, file: TokenFile, consent: Consent) -> None:
        self._server = server
        self._at = urlsplit(url)
        self._auth = auth
        self._consent = consent
        self._failure: Unusable | None = None
        self._redirect: Redirect | None = None
        self._page = ""
        self._provider = self._made(url, file)

    def _made(self, url: str, file: TokenFile) -> Provider:
        auth = self._auth
        if auth.type == "client_credentials":
            from actors.mcp_machine import machine  # see there

            return machine(url, auth, file)
        kept = Kept(file, _configured(auth))
        metadata = OAuthClientMetadata(client_name="mcp-actors", redirect_uris=[AnyUrl(f"http://{HOST}{PATH}")])
        provider = Provider(url, metadata, kept, self._show, self._answer, auth.client_metadata_url or None)
        provider.adopt(kept, auth)
        return provider

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """For the HTTP client. Raises Unusable, which Unauthorized is, and Refused."""
        context = self._provider.context
        await self._provider.begin()
        sent, refused = context.current_tokens, None
        # Not by the package's way, in which each request waits for the answers to those before it.
        if context.is_token_valid() or not context.can_refresh_token():
            if sent is not None and context.is_token_valid():
                request.headers["Authorization"] = f"Bearer {sent.access_token}"
            refused = yield request
            if not self._helps(refused):
                return
            if refused.status_code == 401 and context.current_tokens is sent and context.can_refresh_token():
                context.token_expiry_time = PAST
        flow = self._provider.async_auth_flow(request)
        tried = wider = False
        page: Redirect | None = None
        aside = ExitStack()
        try:
            aside.enter_context(self._consent.aside())
            needed = await flow.__anext__()
            while True:
                if needed is request and refused is not None and context.current_tokens is sent:
                    response = refused  # nothing is better than it was
                else:
                    if needed is request:
                        aside.close()
                        response = yield needed
                        aside.enter_context(self._consent.aside())
                    else:
                        self._permit(str(needed.url))
                        needed.headers["Accept-Encoding"] = "identity"
                        needed.headers["User-Agent"] = request.headers.get("User-Agent", "mcp-actors")
                        response = _bounded((yield needed))
                refused = None
                if needed is request and _refuses(response):
                    if tried:
                        raise OAuthFlowError(f"it answers {response.status_code} to what was just granted")
                    if not self._helps(response, anew=True):
                        return
                    tried, wider = True, response.status_code == 403
                    self._redirect = page = await self._opened(wider=wider)
                needed = await flow.asend(response)
        except StopAsyncIteration:
            return
        except (OAuthFlowError, Unusable, Refused, ValueError, OSError) as error:
            failed = self._explained(error)
        finally:
            aside.close()
            await flow.aclose()
            if page is not None:
                await page.aclose()
        if isinstance(failed, Unusable):
            self._failure = failed
        if wider and not self._consent.is_connecting:
            log.warning("%s", failed)
            yield request  # what the server says to it is the answer
            return
        if self._failure is not None and not self._auth.client_id:
            await self._provider.kept.keep(client=False)  # the registration may be what was wrong
        raise failed

    def _helps(self, response: httpx2.Response, *, anew: bool = False) -> bool:
        """Whether this is a refusal that something can be done about.

        Args:
            anew: a fresh token is not enough.
        """
        if not _refuses(response) or self._failure is not None:
            return False
        if self._auth.type == "client_credentials":
            return True
        if self._auth.type == "asked" and not _CHALLENGE.search(response.headers.get("www-authenticate", "")):
            return False
        return self._consent.possible or (not anew and self._provider.context.can_refresh_token())

    async def _opened(self, *, wider: bool) -> Redirect | None:
        """The page that the browser comes back to, if one will. Raises OSError.

        Args:
            wider: more is asked for than was granted.
        """
        self._provider.stepping_up = wider
        if self._auth.type == "client_credentials":
            return None
        context, port = self._provider.context, self._auth.redirect_port
        client = context.client_info
        registered = client is not None and not self._auth.client_id
        if not port and registered and client is not None and client.redirect_uris:
            port = client.redirect_uris[0].port or 0  # some take no other one
        try:
            page = await listen(port)
        except OSError:
            if self._auth.redirect_port or not registered:
                raise
            context.client_info = None
            page = await listen()
        context.client_metadata.redirect_uris = [AnyUrl(page.uri)]
        return page

    async def _show(self, url: str) -> None:
        self._permit(url)
        self._page = url

    async def _answer(self) -> AuthorizationCodeResult:
        if self._redirect is None:
            raise OAuthFlowError("no page waits for the answer")
        state = _state(self._page)
        landed = await self._consent.visit(self._page, partial(self._redirect.landed, state))
        if landed.error:
            word = landed.error if _WORD.fullmatch(landed.error) else "no code"
            raise OAuthFlowError(f"the authorization server did not allow it: {word}")
        return AuthorizationCodeResult(code=landed.code, state=landed.state, iss=landed.iss)

    def _permit(self, url: str) -> None:
        """Secrets go over TLS, and nobody outside sends us to addresses inside (OAuth 2.1, section 1.5)."""
        to = urlsplit(url)
        inside = to.hostname == self._at.hostname or (_is_loopback(to) and _is_loopback(self._at))
        if to.scheme != "https" and not (to.scheme == "http" and inside):
            raise OAuthFlowError("it leads to an address that is not https")

    def _explained(self, error: Exception) -> Unusable | Refused:
        """The error in words for operators, without secrets."""
        if isinstance(error, Unusable):
            return error
        who = f"MCP server {self._server!r} cannot be authorized"
        if isinstance(error, Refused):
            return Refused(f"{who} now: {error}")
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            return Refused(f"{who} now: no page can be opened for the answer ({reason}); see `auth.redirect_port`.")
        # What the package could not read it quotes, whatever is in it.
        opaque = not isinstance(error, OAuthFlowError) or (error.__cause__ or error.__context__) is not None
        text = "an answer was against the standard" if opaque else without(str(error), self._secrets())
        hint = (
            " If it takes no unknown clients, set `auth.client_id`."
            if isinstance(error, OAuthRegistrationError)
            else ""
        )
        return Unauthorized(f"{who}: {_CONTROLS.sub(' ', text)[:QUOTED]}.{hint}")

    def _secrets(self) -> list[str]:
        context, found = self._provider.context, {*self._provider.spoken, self._auth.client_secret, _state(self._page)}
        if context.current_tokens is not None:
            found |= {context.current_tokens.access_token, context.current_tokens.refresh_token or ""}
        if context.client_info is not None:
            found.add(context.client_info.client_secret or "")
        return sorted((value for value in found if len(value) >= SECRET_MIN), key=len, reverse=True)


def authorizer(endpoint: Endpoint, consent: Consent) -> Authorizer | None:
    """What is added to requests to that server; None: nothing."""
    if endpoint.auth is None:
        return None
    file = TokenFile(endpoint.state_dir, endpoint.name, endpoint.url)
    return Authorizer(endpoint.name, endpoint.url, endpoint.auth, file, consent)


def _configured(auth: Authorization) -> OAuthClientInformationFull | None:
    if not auth.client_id:
        return None
    return OAuthClientInformationFull(
        client_id=auth.client_id,
        client_secret=auth.client_secret or None,
        token_endpoint_auth_method=auth.token_endpoint_auth_method or (None if auth.client_secret else "none"),
        issuer=auth.issuer or None,
    )


class _Beginning(httpx2.AsyncByteStream):
    """A body as far as it is read: the rest of one that is too large is none of the standard's."""

    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Its chunks."""
        size = 0
        async for chunk in self._body:
            yield chunk[: BODY_BYTES - size]
            size += len(chunk)
            if size >= BODY_BYTES:
                return

    async def aclose(self) -> None:
        """Give up the connection, or give it back."""
        await self._body.aclose()


def _bounded(response: httpx2.Response) -> httpx2.Response:
    response.headers.pop("content-encoding", None)  # that was not asked for, and may unpack to anything
    response.stream = _Beginning(response.stream)
    return response


def _refuses(response: httpx2.Response) -> bool:
    if response.status_code == 403:
        return extract_field_from_www_auth(response, "error") == "insufficient_scope"
    return response.status_code == 401


def _state(page: str) -> str:
    return parse_qs(urlsplit(page).query).get("state", [""])[0]


def _is_loopback(address: SplitResult) -> bool:
    host = address.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

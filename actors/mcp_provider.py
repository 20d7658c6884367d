"""The MCP package's OAuth, with what it lacks: it forgets everything with its process but tokens and registration.

What it found out (tokens and when they end, the registration, the authorization server's addresses) is kept as one
record in a `TokenFile`, so that after a start a token is refreshed where it came from, and not asked for anew.
Configured scopes and a configured issuer are kept to, and a registration that does not say how to use its secret is
used as the standards say.

What can fail: what the package raises, and `Refused` where the authorization server cannot answer now.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.utils import issuers_match
from mcp.shared.auth import (
    OAuthClientInformationFull,
    OAuthMetadata,
    OAuthToken,
    ProtectedResourceMetadata,
)
from pydantic import BaseModel, ValidationError

from actors.server_faults import Refused
from actors.token_file import TokenFile
from protocol.watcher import Authorization

METHODS = ("client_secret_basic", "client_secret_post")  # the better one first

M = TypeVar("M", bound=BaseModel)


class Kept:
    """The package's `TokenStorage`.

    Args:
        file: where it is kept.
        ours: the client that is configured; None: there is none, and one is registered.
    """

    def __init__(self, file: TokenFile, ours: OAuthClientInformationFull | None) -> None:
        self.provider: OAuthClientProvider
        """Whose it is; set once, before anything else."""
        self.ours = ours
        """The client that is configured."""
        self._file = file

    async def restore(self) -> None:
        """Give the provider what was kept; what is not as it should be is left out."""
        context, record = self.provider.context, await self._file.load()
        client = self.ours or _model(OAuthClientInformationFull, record.get("client"))
        if client is not self.ours and client is not None and 0 < (client.client_secret_expires_at or 0) < time.time():
            client = None  # its secret is worth nothing any more
        context.client_info = client
        if client is None or client.client_id != record.get("client_id"):
            return  # the tokens were given to another client
        context.oauth_metadata = _model(OAuthMetadata, record.get("metadata"))
        context.protected_resource_metadata = _model(ProtectedResourceMetadata, record.get("resource"))
        context.auth_server_url = record["issuer"] if isinstance(record.get("issuer"), str) else None
        context.current_tokens = _model(OAuthToken, record.get("tokens"))
        until = record.get("expires_at")
        context.token_expiry_time = float(until) if isinstance(until, int | float) else None

    async def keep(self, *, client: bool = True) -> None:
        """Keep what the provider has now.

        Args:
            client: false: not what was registered for us.
        """
        context = self.provider.context
        record: dict[str, Any] = {"issuer": context.auth_server_url}
        if context.client_info is not None and client:
            record["client_id"] = context.client_info.client_id
            if self.ours is None:
                record["client"] = _plain(context.client_info)
        if context.current_tokens is not None:
            record["tokens"] = _plain(context.current_tokens)
            record["expires_at"] = context.token_expiry_time
        for name, found in (
            ("metadata", context.oauth_metadata),
            ("resource", context.protected_resource_metadata),
        ):
            if found is not None:
                record[name] = _plain(found)
        await self._file.save(record)

    # What the package asks for.

    async def get_tokens(self) -> OAuthToken | None:
        """As restored."""
        return self.provider.context.current_tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """The provider has them already, and all that belongs to them."""
        await self.keep()

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """As restored."""
        return self.provider.context.client_info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """As `set_tokens`."""
        await self.keep()


class Provider(OAuthClientProvider):
    """Somebody allows it in a browser."""

    kept: Kept
    auth: Authorization
    stepping_up = False
    """More is asked for than was granted."""

    def adopt(self, kept: Kept, auth: Authorization) -> None:
        """Say what the package's constructor has no place for; before anything else."""
        self.kept, self.auth = kept, auth
        self.spoken = set[str]()
        """Secrets that were used once and are kept nowhere."""
        kept.provider = self

    async def begin(self) -> None:
        """Know what was kept."""
        async with self.context.lock:
            if not self._initialized:
                await self._initialize()

    async def _initialize(self) -> None:
        await self.kept.restore()
        self._initialized = True

    def _select_authorization_server(self, advertised: list[str]) -> str:
        wanted = self.auth.issuer
        return next((server for server in advertised if wanted and issuers_match(server, wanted)), advertised[0])

    async def _perform_authorization(self) -> httpx2.Request:
        context, wanted = self.context, self.auth.issuer
        found, client = context.oauth_metadata, context.client_info
        if wanted and (found is None or not issuers_match(str(found.issuer), wanted)):
            raise OAuthFlowError("it leads to another authorization server than `auth.issuer` names")
        if self.auth.scopes and not self.stepping_up:
            context.client_metadata.scope = " ".join(self.auth.scopes)
        if client is not None and client.client_secret and client.token_endpoint_auth_method is None:
            # Where nothing is said it is the first: RFC 8414, section 2, and RFC 7591, section 2.
            offered = (found and found.token_endpoint_auth_methods_supported) or METHODS[:1]
            client.token_endpoint_auth_method = next((method for method in METHODS if method in offered), None)
        return await super()._perform_authorization()

    async def _exchange_token_authorization_code(self, auth_code: str, code_verifier: str) -> httpx2.Request:
        self.spoken |= {auth_code, code_verifier}
        return await super()._exchange_token_authorization_code(auth_code, code_verifier)

    async def _handle_refresh_response(self, response: httpx2.Response) -> bool:
        if response.status_code >= 500 or response.status_code == 429:
            # That says nothing about the token: nobody is to be asked because of it.
            raise Refused(f"the authorization server answered {response.status_code} when a token was to be refreshed")
        refreshed = await super()._handle_refresh_response(response)
        if not refreshed:
            await self.kept.keep()
        return refreshed


def _model(kind: type[M], found: object) -> M | None:
    try:
        return kind.model_validate(found) if found is not None else None
    except ValidationError:  # of an older version, or edited by hand
        return None


def _plain(model: BaseModel) -> dict[str, Any]:
    plain: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    return plain

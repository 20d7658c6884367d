"""An authorization server in the same trio run, and what it guards: an MCP server over HTTP.

It registers everybody, allows everything, and hands out tokens that are told from other text (`secret-...`); tests take
them back, have it answer wrongly, and look at what it was asked. `browse` is a user who agrees.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx

from tests.http_servers import Asked, Fault, HttpServer, Reply, http_server, status


@dataclass
class AuthServer:
    """A running one. Made by `guarded`."""

    at: HttpServer
    """Its own pages."""
    mcp: HttpServer
    """What it guards."""
    scope: str = "read"
    """That the guarded server wants for everything."""
    wider: dict[str, str] = field(default_factory=dict)
    """By tool: what a call of it needs beside that."""
    expires_in: int = 3600
    granted: dict[str, set[str]] = field(default_factory=dict)
    """Valid access tokens, and for what."""
    refreshable: set[str] = field(default_factory=set)
    """Valid refresh tokens."""
    grants: list[str] = field(default_factory=list)
    """What tokens were asked for with, in order."""
    clients: list[dict[str, Any]] = field(default_factory=list)
    """Who was registered."""
    authorized: list[dict[str, str]] = field(default_factory=list)
    """What users were asked to allow."""
    authorization: list[str] = field(default_factory=list)
    """Headers of that name of requests for tokens."""
    trouble: Fault | None = None
    """In place of any token."""
    iss: str | None = None
    """Sent along with a code."""
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    _number: int = 0

    @property
    def issuer(self) -> str:
        """Its name."""
        return self.at.url("")

    def open(self) -> None:
        """Put the pages where they belong."""
        self.at.pages = {
            "/.well-known/oauth-authorization-server": self._metadata,
            "/register": self._register,
            "/authorize": self._authorize,
            "/token": self._token,
        }
        self.mcp.pages["/.well-known/oauth-protected-resource/mcp"] = self._resource
        self.mcp.gate = self._gate

    def revoke(self) -> None:
        """No access token is good any more."""
        self.granted.clear()

    def secrets(self) -> set[str]:
        """All that must be nowhere but where it is kept."""
        return {
            f"secret-{kind}-{number}" for kind in ("code", "access", "refresh") for number in range(self._number + 1)
        }

    async def _metadata(self, _: Asked, reply: Reply) -> None:
        await reply.json(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "registration_endpoint": f"{self.issuer}/register",
                "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    async def _resource(self, _: Asked, reply: Reply) -> None:
        await reply.json({"resource": self.mcp.url(), "authorization_servers": [self.issuer]})

    async def _register(self, asked: Asked, reply: Reply) -> None:
        self.clients.append(asked.message)
        await reply.json(asked.message | {"client_id": f"client-{len(self.clients)}"}, 201)

    async def _authorize(self, asked: Asked, reply: Reply) -> None:
        query = dict(parse_qsl(urlsplit(asked.path).query))
        self.authorized.append(query)
        self._number += 1
        code = f"secret-code-{self._number}"
        self._codes[code] = query
        back = {"code": code, "state": query["state"]} | ({"iss": self.iss} if self.iss else {})
        await reply.whole(302, location=f"{query['redirect_uri']}?{urlencode(back)}")

    async def _token(self, asked: Asked, reply: Reply) -> None:
        form = asked.message
        self.grants.append(form["grant_type"])
        self.authorization.append(asked.headers.get("authorization", ""))
        if self.trouble is not None:
            await self.trouble(asked, reply)
            return
        scope = form.get("scope", "")
        match form["grant_type"]:
            case "authorization_code":
                query = self._codes.pop(form["code"])
                digest = hashlib.sha256(form["code_verifier"].encode()).digest()
                assert query["code_challenge"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
                assert query["redirect_uri"] == form["redirect_uri"]
                scope = query.get("scope", "")
            case "refresh_token":
                if form["refresh_token"] not in self.refreshable:
                    await reply.json({"error": "invalid_grant"}, 400)
                    return
                self.refreshable.discard(form["refresh_token"])
                scope = self.scope
        self._number += 1
        access, refresh = f"secret-access-{self._number}", f"secret-refresh-{self._number}"
        self.granted[access] = set(scope.split())
        answer = {"access_token": access, "token_type": "Bearer", "expires_in": self.expires_in, "scope": scope}
        if form["grant_type"] != "client_credentials":
            self.refreshable.add(refresh)
            answer["refresh_token"] = refresh
        await reply.json(answer)

    def _gate(self, asked: Asked) -> Fault | None:
        scheme, _, token = asked.headers.get("authorization", "").partition(" ")
        where = f'resource_metadata="{self.mcp.url("/.well-known/oauth-protected-resource/mcp")}"'
        if scheme != "Bearer" or token not in self.granted:
            return status(401, www_authenticate=f'Bearer scope="{self.scope}", {where}')
        tool = asked.message.get("params", {}).get("name", "") if asked.method == "tools/call" else ""
        if tool in self.wider and self.wider[tool] not in self.granted[token]:
            return status(
                403, www_authenticate=f'Bearer error="insufficient_scope", scope="{self.wider[tool]}", {where}'
            )
        return None


@asynccontextmanager
async def guarded(*, tls: ssl.SSLContext | None = None, **how: Any) -> AsyncIterator[AuthServer]:
    """An MCP server that nobody enters without its authorization server; the rest are fields of `AuthServer`.

    Args:
        tls: of the authorization server.
    """
    async with http_server(tls=tls) as at, http_server(modern=True) as mcp:
        made = AuthServer(at, mcp, **how)
        made.open()
        yield made


async def browse(url: str | None) -> httpx.Response:
    """What a browser does with a link when its user agrees to everything."""
    assert url is not None
    async with httpx.AsyncClient(follow_redirects=True, verify=False) as browser:  # noqa: S501 - of tests
        return await browser.get(url)

"""OAuth without a person: a server's tokens for a secret of ours (client credentials).

A module of its own, because the package's part of it loads a library for signatures that nobody else needs.
"""

from __future__ import annotations

from typing import Literal, cast

from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider

from actors.mcp_provider import Kept, Provider
from actors.token_file import TokenFile
from protocol.watcher import Authorization


class Machine(Provider, ClientCredentialsOAuthProvider):
    """Nobody is asked."""


def machine(url: str, auth: Authorization, file: TokenFile) -> Machine:
    """The provider for a server at that address."""
    kept = Kept(file, None)
    # one of two, or empty: as the rules of the servers file have it
    method = cast(
        Literal["client_secret_basic", "client_secret_post"], auth.token_endpoint_auth_method or "client_secret_basic"
    )
    scope = " ".join(auth.scopes) or None
    made = Machine(url, kept, auth.client_id, auth.client_secret, method, scope, auth.issuer)
    kept.ours = made._fixed_client_info  # there is no other way to that record
    made.adopt(kept, auth)
    return made

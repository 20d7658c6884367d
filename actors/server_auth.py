"""`auth` of an MCP server with a `url`: how it is written in the servers file, and what it means when it is used.

Pure. The names in it are OAuth's own. `${VAR}` stays as written until the server is connected; what cannot be
filled then raises `Unusable`. Values are never quoted in what is said about them: a secret may stand in any place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec

from actors.server_command import filled
from protocol.watcher import Authorization, McpServer

TYPES = ("oauth", "client_credentials", "none")
METHODS = ("client_secret_basic", "client_secret_post")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, appendix A.4


def authorization(value: object) -> Authorization:
    """The entry as it is used. Raises ValueError in words, without any value."""
    if not isinstance(value, dict):
        _wrong("must be an object")
    unknown = [key for key in value if key not in Authorization.__struct_fields__ and not key.startswith("_")]
    if unknown:
        _wrong(f"has a key that is not known: {unknown[0][:40]!r}")
    auth = Authorization(
        type=_choice(value, "type", TYPES, "oauth"),
        client_id=_text(value, "client_id"),
        client_secret=_text(value, "client_secret"),
        scopes=_scopes(value.get("scopes", [])),
        issuer=_address(value, "issuer", ("https", "http")),
        client_metadata_url=_address(value, "client_metadata_url", ("https",)),
        redirect_port=_port(value.get("redirect_port", 0)),
        token_endpoint_auth_method=_choice(value, "token_endpoint_auth_method", METHODS, ""),
    )
    if auth.client_secret and not auth.client_id:
        _wrong("client_secret is of no use without client_id")
    if auth.client_metadata_url and urlsplit(auth.client_metadata_url).path in ("", "/"):
        _wrong("client_metadata_url must name a document, with a path")
    if auth.type == "client_credentials":
        if not auth.client_id or not auth.client_secret:
            _wrong("client_credentials needs client_id and client_secret")
        if not auth.issuer:
            _wrong("client_credentials needs issuer: the authorization server that may see the secret, and no other")
    return auth


def final(server: McpServer, environ: Mapping[str, str]) -> Authorization | None:
    """What is done with that server, every variable filled in; None: nothing, whatever it asks for.

    Raises: Unusable.
    """
    auth = server.auth
    if auth is None:
        # Who sets the header by hand wants to know when it is refused.
        return None if any(name.lower() == "authorization" for name in server.headers) else Authorization(type="asked")
    if auth.type == "none":
        return None
    return msgspec.structs.replace(
        auth,
        client_id=filled(server.name, "auth.client_id", auth.client_id, environ),
        client_secret=filled(server.name, "auth.client_secret", auth.client_secret, environ),
    )


def _wrong(words: str) -> NoReturn:
    raise ValueError(words)


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    return value if isinstance(value, str) and value.strip() else _wrong(f"{key} must be text that is not empty")


def _choice(entry: dict[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or value not in (*choices, default):
        _wrong(f"{key} must be one of {', '.join(choices)}")
    return value


def _address(entry: dict[str, Any], key: str, schemes: tuple[str, ...]) -> str:
    text = _text(entry, key)
    try:
        good = not text or (urlsplit(text).scheme in schemes and bool(urlsplit(text).hostname))
    except ValueError:
        good = False
    return text if good else _wrong(f"{key} must be an address that begins with {schemes[0]}://")


def _scopes(value: object) -> list[str]:
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and _SCOPE.fullmatch(name) for name in names):
        _wrong("scopes must be a list of names, or one text of names with spaces between them")
    return list(names)


def _port(value: object) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535
    return value if isinstance(value, int) and good else _wrong("redirect_port must be a whole number from 0 to 65535")

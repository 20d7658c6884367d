"""From the configuration of an MCP server with a `url` to the endpoint that is spoken to.

Pure. `${VAR}` and `${VAR:-default}` in `url` and `headers` are filled from our environment; what cannot be
filled, and what is no URL or header, raises `Unusable` with what to do. What was filled in and what headers
hold are secrets: an endpoint shows itself without them, and takes them out of other texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from actors.server_auth import final
from actors.server_command import SECRET_MIN, filled
from actors.server_faults import Unusable
from actors.stdio import LINE_CAP, blacked_out
from protocol.watcher import Authorization, McpServer

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110: the name of a header
_OURS = frozenset(("host", "content-length", "transfer-encoding", "connection", "accept-encoding"))


@dataclass(frozen=True)
class Endpoint:
    """Where a server is found over HTTP. Everything is final: no variable is left to fill in."""

    name: str
    """The server's name, for errors."""
    url: str = field(repr=False)
    kind: str
    """`http`: streamable HTTP, `sse`: the older HTTP+SSE, `auto`: the first, or else the second."""
    headers: dict[str, str] = field(repr=False)
    """Sent with every request to it."""
    ca_file: str | None
    """Certificates that are trusted instead of this machine's."""
    shown: str
    """The URL without user, password, query and secrets."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Values that are blacked out in what is shown of what it says."""
    message_cap: int = LINE_CAP
    """Bytes that one message of it may have."""
    auth: Authorization | None = field(default=None, repr=False)
    """What is done when it wants to know who we are; None: nothing."""
    state_dir: str = ""
    """Where what it gives us for that is kept."""

    def clean(self, text: str) -> str:
        """The text with the secrets blacked out."""
        return blacked_out(text, self.secrets)

    def facts(self) -> dict[str, Any]:
        """For status, while it runs."""
        return {"url": self.shown}

    def ended(self) -> dict[str, Any]:
        """For status, at the end."""
        return {}

    def last_words(self) -> str:
        """It has none beside its answers."""
        return ""


def endpoint_of(server: McpServer, state_dir: str, environ: Mapping[str, str]) -> Endpoint:
    """The endpoint of a server with a `url`; `ca_file` is within the state directory unless absolute.

    Raises: Unusable.
    """
    who = f"MCP server {server.name!r}"
    url = filled(server.name, "url", server.url, environ)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or any(char.isspace() or not char.isprintable() for char in url):
        # Not quoted: it may be a secret that stands in the wrong place.
        raise Unusable(f"{who}: its `url` is no address of the form https://host/path; correct `url`.")
    headers = {key: filled(server.name, f"headers.{key}", value, environ) for key, value in server.headers.items()}
    for key, value in headers.items():
        if not _TOKEN.fullmatch(key) or key.lower() in _OURS:
            raise Unusable(f"{who}: {key[:64]!r} is no header that can be set; correct `headers`.")
        if not value.isascii() or any(char < " " or char == "\x7f" for char in value) or value != value.strip():
            raise Unusable(f"{who}: the value of its header {key} has characters that no header can have.")
    # Of `Bearer KEY` the key alone may be quoted somewhere.
    secrets = {part for value in headers.values() for part in (value, *value.split()[1:])}
    secrets |= {parts.password or "", parts.username or "", *(value for _, value in parse_qsl(parts.query))}
    secrets |= {
        value for name, value in environ.items() if f"${{{name}}}" in server.url or f"${{{name}:-" in server.url
    }
    auth = final(server, environ)
    if auth is not None:
        secrets.add(auth.client_secret)
    host = parts.netloc.rpartition("@")[2]  # is no secret, wherever it comes from
    hidden = {value for value in secrets if len(value) >= SECRET_MIN and value not in host}
    long = tuple(sorted(hidden, key=len, reverse=True))
    shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
    return Endpoint(
        name=server.name,
        url=url,
        kind=server.type,
        headers=headers,
        ca_file=os.path.join(state_dir, os.path.expanduser(server.ca_file)) if server.ca_file else None,
        shown=blacked_out(shown, long),
        secrets=long,
        message_cap=server.limits.line_bytes,
        auth=auth,
        state_dir=state_dir,
    )

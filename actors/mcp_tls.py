"""Whom the HTTP client of an MCP server trusts: for the server itself, and for where it sends us for authorization.

Reading certificates takes tens of milliseconds, and many servers are on this machine and need none: those for others
are read when the first of them is met. What can fail: `Unusable`, where the configured ones cannot be used; OSError of
the others, which fails the connection that they were for.
"""

from __future__ import annotations

import ssl

import httpx2

from actors.server_endpoint import Endpoint
from actors.server_faults import Unusable


class Elsewhere(ssl.SSLContext):
    """For everybody but the server: this machine's certificates, and the configured ones."""

    ca_file: str | None = None
    _read: ssl.SSLContext | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As any context's. Raises OSError."""
        if self._read is None:
            self._read = machines()
            if self.ca_file:
                self._read.load_verify_locations(self.ca_file)
        return self._read.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def machines() -> ssl.SSLContext:
    """This machine's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR. Raises OSError."""
    return httpx2.create_ssl_context(trust_env=True)


def elsewhere(endpoint: Endpoint) -> Elsewhere:
    """For whoever the server leads to."""
    context = Elsewhere(ssl.PROTOCOL_TLS_CLIENT)
    context.ca_file = endpoint.ca_file
    return context


def own(endpoint: Endpoint) -> ssl.SSLContext | None:
    """For the server; None: it is not spoken to over TLS. Raises Unusable."""
    if not endpoint.url.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=endpoint.ca_file) if endpoint.ca_file else machines()
    except OSError as error:  # ssl.SSLError is one
        what = f"its `ca_file` {endpoint.ca_file!r}" if endpoint.ca_file else "this machine's certificates"
        raise Unusable(f"MCP server {endpoint.name!r}: {what} cannot be used: {error}.") from error

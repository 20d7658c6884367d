"""What an MCP server's HTTP answers mean when they are no MCP, in words for operators.

Pure: statuses and texts in, typed errors out. `who` is the server with its address, without secrets; so is
what is quoted.
"""

from __future__ import annotations

import ssl
from http import HTTPStatus

from actors.server_faults import Older, Refused, ServerEnded, Unusable

QUOTED = 300  # characters of what a server says that are shown
TRY_LATER = frozenset((408, 425, 429))


def status_words(status: int, said: str = "") -> str:
    """`HTTP 503 Service Unavailable`, and the beginning of what was said with it."""
    try:
        words = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        words = f"HTTP {status}"  # one that nobody registered
    said = " ".join(said.split())
    return f"{words}: {said[:QUOTED]}{'…' * (len(said) > QUOTED)}" if said else words


def refusal(who: str, status: int, said: str, location: str = "", *, older: bool = False) -> Exception:
    """Why the handshake failed that was answered so.

    Args:
        location: where a redirect leads that was not followed.
        older: there is an older way that this may mean.
    Returns: Unusable, if trying again will not help; Older; else Refused.
    """
    words = status_words(status, said)
    if status == HTTPStatus.UNAUTHORIZED:
        return Unusable(f"{who} asks for authorization ({words}); set or correct its `headers` or `auth`.")
    if status == HTTPStatus.FORBIDDEN:
        return Unusable(f"{who} refuses us ({words}); what its `headers` name may not do this.")
    if 300 <= status < 400:
        where = f" to {location}" if location else ""
        return Unusable(f"{who} redirects{where} ({words}), which is not followed; if it is right, make it the `url`.")
    if 400 <= status < 500 and status not in TRY_LATER:
        if older:
            return Older(words)
        return Refused(f"{who} answered {words}; is its `url` right?")
    return Refused(f"{who} answered {words}.")


def unreachable(who: str, error: BaseException) -> Exception:
    """Why no connection came about. Returns: Unusable, if trying again will not help; else ServerEnded."""
    cause: BaseException | None = error
    words = ""
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unusable(
                f"{who} has a certificate that is not trusted ({cause.verify_message}); correct `url` or `ca_file`, "
                "or this machine's certificates."
            )
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or type(cause).__name__
            return Unusable(f"{who}: no encrypted connection came about ({reason}); does it speak https there?")
        if isinstance(cause, OSError) and cause.strerror:
            words = cause.strerror
        # One attempt for each address of a name: they fail for the same reason, or the first says enough.
        attempts = cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
        cause = attempts[0] if attempts else cause.__cause__ or cause.__context__
    return ServerEnded(f"{who} cannot be reached: {words or str(error) or type(error).__name__}.")

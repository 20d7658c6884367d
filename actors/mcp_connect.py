"""The way to a connection with an MCP server: by which carrier, in which era, with what we can be asked for.

Imported in a thread by the actor (0.6 s, 35 MB). What can fail: `Refused` and `Unusable` (no common version),
and whatever ends the connection later, `ServerEnded` above all.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import mcp_types as types
from mcp import Client, MCPError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, KNOWN_PROTOCOL_VERSIONS
from pydantic import FileUrl, ValidationError

from actors.consent import Consent
from actors.mcp_asking import Asking
from actors.mcp_auth import Authorizer, authorizer
from actors.mcp_client import Connected
from actors.mcp_http import Http
from actors.mcp_pipe import Pipe
from actors.mcp_sse import Sse
from actors.mcp_wire import Carrier, Wire
from actors.server_endpoint import Endpoint
from actors.server_faults import Older, Refused, Unusable
from actors.server_link import Link
from actors.server_requests import ServerRequests

PROBE_S = 4.0  # a server that is merely slow to start answers within this; the handshake works after it too

log = logging.getLogger(__name__)


class Era(NamedTuple):
    """Which versions of the protocol are tried."""

    legacy: bool = False
    """The older handshake at once."""
    remembered: bool = False
    """That was found out before, not configured."""
    forced: str = ""
    """The only version that may be spoken; empty: any."""


@asynccontextmanager
async def connect(
    name: str,
    link: Link,
    *,
    era: Era,
    probe_s: float,
    changed: Callable[[], None],
    updated: Callable[[str], None],
    logged: Callable[[str, str, object], None],
    requests: ServerRequests,
    result_cap: int,
    elicitation: bool = True,
    sampling: bool = True,
    roots: Sequence[str] = (),
    consent: Consent | None = None,
) -> AsyncIterator[Connected]:
    """Shake hands over the process's pipes, or over HTTP. No deadline in here.

    Args:
        era: which versions are tried.
        probe_s: seconds for the newer one, at most PROBE_S, before the older is tried.
        changed: called whenever the server says that one of its lists changed.
        result_cap: bytes of a result's text that are passed on.
        updated: called with the address of each resource that the server says has changed.
        logged: called with level, logger (or nothing) and data of each message that the server logs.
        requests: where what the server asks of us is asked.
        elicitation: it may ask the user; what is false here and below, it is told that we cannot do.
        sampling: it may have a model asked, with tools of its own.
        roots: file URIs that it is told it may work in, when it asks.
        consent: whom an endpoint's authorization is asked of; None: it goes without.
    Raises: Refused or Unusable, in an exception group.
    """

    async def on_message(message: object) -> None:
        if isinstance(
            message,
            types.ToolListChangedNotification
            | types.ResourceListChangedNotification
            | types.PromptListChangedNotification,
        ):
            changed()
        elif isinstance(message, types.ElicitCompleteNotification):
            requests.visited(message.params.elicitation_id)
        elif isinstance(message, types.ResourceUpdatedNotification):
            updated(str(message.params.uri))

    asking = Asking(requests)
    options: dict[str, Any] = {
        "message_handler": on_message,
        "elicitation_callback": asking.elicit if elicitation else None,
        "sampling_callback": asking.sample if sampling else None,
        "sampling_capabilities": types.SamplingCapability(tools=types.SamplingToolsCapability()),
        "list_roots_callback": _roots(roots) if roots else None,
        "client_info": types.Implementation(name="mcp-actors", version=importlib.metadata.version("mcp-actors")),
        "cache": None,  # lists are asked for when they changed, and then anew
    }
    auth = authorizer(link, consent) if isinstance(link, Endpoint) and consent is not None else None
    retreat = False
    try:
        async with _shaken(name, _carrier(link, auth), era, probe_s, link.clean, logged, consent, options) as (
            client,
            wire,
        ):
            yield Connected(name, client, wire, asking, result_cap)
    except* Older as group:
        log.info("MCP server %r is asked in the way before streamable HTTP: %s", name, _first(group))
        retreat = True
    if retreat and isinstance(link, Endpoint):
        async with _shaken(name, Sse(link, auth), era, probe_s, link.clean, logged, consent, options) as (client, wire):
            yield Connected(name, client, wire, asking, result_cap)


def _carrier(link: Link, auth: Authorizer | None) -> Carrier:
    if not isinstance(link, Endpoint):
        return Pipe(link)
    return Sse(link, auth) if link.kind == "sse" else Http(link, auth)


@asynccontextmanager
async def _shaken(
    name: str,
    carrier: Carrier,
    era: Era,
    probe_s: float,
    clean: Callable[[str], str],
    logged: Callable[[str, str, object], None],
    consent: Consent | None,
    options: dict[str, Any],
) -> AsyncIterator[tuple[Client, Wire]]:
    """Shake hands by one way. Raises as `connect`."""
    version = era.forced
    if version and version not in KNOWN_PROTOCOL_VERSIONS:
        known = ", ".join(KNOWN_PROTOCOL_VERSIONS)
        raise Unusable(f"MCP server {name!r}: version {version} of the protocol is not known here, only {known}.")
    older = era.legacy or version in HANDSHAKE_PROTOCOL_VERSIONS or carrier.transport == "sse"
    wire = Wire(carrier, min(probe_s, PROBE_S), version, clean, logged)
    if consent is not None:
        consent.probe(wire.paused)
    client = Client(wire.open(), mode="legacy" if older else "auto", **options)
    entered = False
    try:
        async with client:
            if version and client.protocol_version != version:
                raise Unusable(
                    f"MCP server {name!r} speaks version {client.protocol_version} of the protocol, and `protocol` "
                    f"allows only {version}."
                )
            entered = True
            carrier.settle()
            yield client, wire
    except* (MCPError, ValidationError, RuntimeError) as group:
        if entered:
            raise
        first = _first(group)
        # A RuntimeError of the handshake: the server insists on a version that the package does not know.
        versions = isinstance(first, RuntimeError) or getattr(first, "code", 0) == types.UNSUPPORTED_PROTOCOL_VERSION
        words = f"MCP server {name!r} refused the handshake: {first}"[:500]
        if not versions:
            raise Refused(words) from first
        words = f"{words}; known here are {', '.join(KNOWN_PROTOCOL_VERSIONS)}"
        # What was remembered of it may be over: then it is asked anew.
        raise (Refused(words) if era.remembered else Unusable(words)) from first


def _roots(uris: Sequence[str]) -> Callable[[object], Awaitable[types.ListRootsResult]]:
    async def roots(_: object) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl(uri)) for uri in uris])

    return roots


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group

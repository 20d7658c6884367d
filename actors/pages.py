"""What the gateway's port answers to plain HTTP: health, readiness, status, metrics, schema and the chat page.

Only GET and HEAD. `/status` and `/metrics` are for operators: they are answered while the listener is loopback-only.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import os
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec
import trio

from actors import metrics, rest
from actors.front import Front
from actors.http import Head, response
from actors.provider_key import missing_key
from protocol.client import schema
from protocol.errors import Fault
from protocol.gateway import GetFigures
from protocol.mail import MailError
from protocol.writer import ListUnfinished

FIGURES_S = 2.0  # for another front to say what it has counted
READY_S = 2.0  # for the store to answer a readiness probe
DOWN = ("restarting", "parked")  # states of the tree's actors
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


async def answer(front: Front, head: Head) -> bytes:
    """The whole response to a request that is no WebSocket handshake."""
    cors = shared_with(front, head)
    if rest.concerns(head):
        code, found = await rest.answer(front, head)
        return response(code, found, JSON, headers=cors, head_only=head.method == "HEAD")
    if head.method not in ("GET", "HEAD"):
        return response(405, b"only GET is understood here\n", TEXT, headers=[("Allow", "GET, HEAD"), *cors])
    status, body, content_type, headers = await _page(front, head)
    return response(status, body, content_type, headers=[*headers, *cors], head_only=head.method == "HEAD")


def shared_with(front: Front, head: Head) -> list[tuple[str, str]]:
    """CORS headers for a page whose origin was let in (https://fetch.spec.whatwg.org/#http-cors-protocol)."""
    origin = head.header("origin")
    if origin is None:
        return []
    headers = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
    if front.snapshot.websocket.allow_credentials:
        headers.append(("Access-Control-Allow-Credentials", "true"))
    return [*headers, ("Cross-Origin-Resource-Policy", "cross-origin")]


Page = tuple[int, bytes, str, list[tuple[str, str]]]


async def _page(front: Front, head: Head) -> Page:
    match head.path:
        case "/":
            return chat_page(front.snapshot.websocket.endpoint)
        case "/healthz":
            return 200, b"ok\n", TEXT, []
        case "/readyz":
            return await _ready(front)
        case "/status":
            if not front.loopback:
                return 403, b"the status is for operators of this machine\n", TEXT, []
            return await _status(front)
        case "/metrics":
            if not front.loopback:
                return 403, b"the metrics are for operators of this machine\n", TEXT, []
            return await _metrics(front)
        case "/schema":
            return 200, msgspec.json.format(msgspec.json.encode(schema())), JSON, []
        case front.snapshot.websocket.endpoint:
            return 426, b"this is a WebSocket endpoint\n", TEXT, [("Upgrade", "websocket")]
        case _:
            return 404, b"there is no such page; try / or /status\n", TEXT, []


async def _status(front: Front) -> Page:
    try:
        return 200, await front.status(), JSON, []
    except MailError as error:
        return 503, f"the supervisor does not say how its parts are: {error}\n".encode(), TEXT, []


async def _metrics(front: Front) -> Page:
    try:
        tree = metrics.tree_of(await front.status())
    except MailError as error:
        return 503, f"the supervisor does not say how its parts are: {error}\n".encode(), TEXT, []
    found = [*metrics.of_tree(tree), *front.figures()]

    async def ask(path: str) -> None:
        with suppress(MailError, Fault):  # one that is being restarted has nothing to say
            found.extend(await front.ctx.ref(path).ask(GetFigures(), within=FIGURES_S))

    async with trio.open_nursery() as asking:
        for path in metrics.gateways(tree):
            if path != front.ctx.path:
                asking.start_soon(ask, path)
    return 200, metrics.render(found).encode(), metrics.CONTENT_TYPE, []


async def _ready(front: Front) -> Page:
    reasons, lines = list[str](), list[str]()
    if not front.taking:
        reasons.append("the service is shutting down")
    try:
        await front.writer.ask(ListUnfinished(), within=READY_S)
    except (MailError, Fault) as error:
        reasons.append(f"the store does not answer: {error}")
    try:
        parts = await _all_parts(front)
    except MailError as error:
        lines.append(f"the supervisor does not say how its parts are: {error}")
    else:
        reasons += [str(part.facts["trouble"]) for part in parts if part.facts.get("trouble")]  # a full disk is read
        lines += _of_parts(parts)
    body = {"ready": not reasons, "reasons": reasons, "notes": [*lines, *_of_configuration(front)]}
    return (503 if reasons else 200), msgspec.json.encode(body), JSON, []


def _of_parts(parts: list[Part]) -> list[str]:
    """What an operator should know of the parts although turns are taken."""
    lines = [f"{part.path} is down: {part.last_error or part.state}" for part in down(parts)]
    lines += [f"{part.path} (pid {part.pid}) does not answer" for part in parts if not part.answers]
    resting = (part.facts.get("resting") for part in parts)
    lines += [f"providers that failed and are left alone for a while: {names}" for names in resting if names]
    lines += [
        f"{part.path} failed too often and is left alone for a while: {part.facts.get('last_failure')}"
        for part in parts
        if part.facts.get("breaker") == "open"
    ]
    return lines


def _of_configuration(front: Front) -> list[str]:
    """What is wrong with the configuration, and the address that it names."""
    lines = [front.listening.trouble, missing_key(front.snapshot)]
    return [*filter(None, lines), *front.snapshot.problems]


class Part(msgspec.Struct, frozen=True):
    """What is read here of the supervisor tree's record; the root's path is empty."""

    path: str = ""
    kind: str = ""
    state: str = ""
    last_error: str = ""
    pid: int = 0
    answers: bool = True
    facts: dict[str, Any] = {}
    children: list[Part] = []


_parts = msgspec.json.Decoder(Part)


async def _all_parts(front: Front) -> list[Part]:
    """The tree, flat, by path. Raises MailError."""
    found, waiting = list[Part](), [_parts.decode(await front.status())]
    while waiting:
        part = waiting.pop()
        waiting.extend(part.children)
        found.append(part)
    return sorted(found, key=lambda part: part.path)


def down(parts: list[Part]) -> list[Part]:
    """The actors that are not there; also those that fell before the front was there."""
    return [part for part in parts if part.kind != "group" and part.state in DOWN]


@cache
def _template() -> str:
    return importlib.resources.files("actors").joinpath("page.html").read_text("utf-8")


def chat_page(endpoint: str) -> Page:
    """The chat page, with a content security policy that lets only its own script and style run."""
    page = _template().replace("{{endpoint}}", html.escape(endpoint, quote=True))
    nonce = base64.b64encode(os.urandom(12)).decode()
    page = page.replace("{{nonce}}", nonce)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self' ws: wss:; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return 200, page.encode(), "text/html; charset=utf-8", [("Content-Security-Policy", policy)]

"""The configuration by HTTP/1.1 on a Unix socket, for scripts and for the model's own configuration tool.

    GET  /config[?path=llm.active]                       -> {"version": 12, "config": {...}}
    POST /config    {"changes": {...}, "base_version"?: 12, "author"?: "cli"}  -> the same, when it is in force
    GET  /versions[?limit=20]                            -> [{"version", "at", "author", "changed": [...]}, ...]
    POST /rollback  {"version": 11, "author"?: "cli"}    -> as POST /config; version 0: the reference defaults
    POST /restart   {"path": "mcp/demo"}                 -> {"path", "state", "last_error"} of that part of the service

Every request needs `Authorization: Bearer TOKEN`. With the tool's token the author is always `tool`: only what a
model may change of itself is taken (permission.py), and nothing is rolled back or restarted. Errors are answered
with their status and {"error_code", "error_message", "hint", "retryable"}: 400 INVALID_MESSAGE or CONFIG_INVALID
(names the keys), 401 UNAUTHORIZED, 403 FORBIDDEN, 404 NOT_FOUND, 409 CONFIG_CONFLICT, 413 MESSAGE_TOO_LARGE, 503
when the service is too busy. One request per connection.

What strangers send ends in an answer; nothing they do ends the caller.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from typing import Any, NamedTuple

import msgspec
import trio

from actors.config_access import TOOL, Access
from actors.http import BadRequest, Head, read_body, read_head, response
from protocol.errors import Code, Fault
from protocol.mail import MailError, Ref
from protocol.reporter import ReporterMessage, RestartPart
from protocol.watcher import ConfigView, GetConfig, ListVersions, Rollback, SetConfig, WatcherMessage

READ_S = 5.0  # for head and body each: both come from this machine
ASK_S = 25.0  # an editor may be at the file; below what clients wait
LINGER_S = 1.0  # for who asked to read the answer and close
MOST_BYTES = 1024 * 1024  # of a request's body; the file itself may have a quarter of that
MOST_AT_A_TIME = 16  # connections; more wait in the kernel
ACCEPT_PAUSE_S = 0.1  # while there are no descriptors left

STATUS = {
    Code.INVALID_MESSAGE: 400,
    Code.CONFIG_INVALID: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.CONFIG_CONFLICT: 409,
    Code.MESSAGE_TOO_LARGE: 413,
    Code.OVERLOADED: 503,
}

HINT = "There are GET and POST /config, GET /versions, POST /rollback and POST /restart, with JSON bodies."

log = logging.getLogger(__name__)


class Change(msgspec.Struct, frozen=True):
    """Body of POST /config."""

    changes: dict[str, Any]
    base_version: int | None = None
    author: str = "api"


class Part(msgspec.Struct, frozen=True):
    """Body of POST /restart."""

    path: str


class Back(msgspec.Struct, frozen=True):
    """Body of POST /rollback."""

    version: int
    author: str = "api"


class Asked(NamedTuple):
    """Who knows the answers."""

    watcher: Ref[WatcherMessage]
    reporter: Ref[ReporterMessage]


async def serve(access: Access, watcher: Ref[WatcherMessage], reporter: Ref[ReporterMessage]) -> None:
    """Answer for ever."""
    limit = trio.Semaphore(MOST_AT_A_TIME)
    async with trio.open_nursery() as nursery:
        while True:
            await limit.acquire()
            try:
                stream = await access.listener.accept()
            except OSError as error:
                limit.release()
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("no connection to the configuration can be taken: %s", os.strerror(error.errno))
                await trio.sleep(ACCEPT_PAUSE_S)  # others must give theirs back first
                continue
            nursery.start_soon(_connection, stream, access, Asked(watcher, reporter), limit)


async def _connection(stream: trio.SocketStream, access: Access, asked: Asked, limit: trio.Semaphore) -> None:
    try:
        async with stream:
            with trio.move_on_after(2 * READ_S + ASK_S):
                if (answer := await _answer(stream, access, asked)) is not None:
                    await stream.send_all(answer)
                    await stream.send_eof()
            # What is closed with bytes unread is reset, and the answer lost with it.
            with trio.move_on_after(LINGER_S):
                while await stream.receive_some(MOST_BYTES):
                    pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # whoever asked is gone
    except Exception:  # boundary: no request may end the watcher
        log.exception("a request to the configuration's socket failed")
    finally:
        limit.release()


async def _answer(stream: trio.SocketStream, access: Access, asked: Asked) -> bytes | None:
    try:
        head = await read_head(stream, within=READ_S)
        if head is None:
            return None
        role = access.role(head.header("authorization"))
        if role is None:
            raise Fault(Code.UNAUTHORIZED, hint="The token is made anew with every start of the service.")
        body = await read_body(stream, head, within=READ_S, limit=MOST_BYTES)
        found = await _ask(head, body, role, asked)
    except BadRequest as error:
        code = Code.MESSAGE_TOO_LARGE if error.status == 413 else Code.INVALID_MESSAGE
        return _failed(error.status, Fault(code, error.text, hint=HINT))
    except Fault as fault:
        return _failed(STATUS.get(fault.code, 500), fault)
    except MailError as error:
        return _failed(503, Fault(Code.OVERLOADED, f"the configuration does not answer: {type(error).__name__}"))
    return response(200, msgspec.json.encode(found), "application/json")


def _failed(status: int, fault: Fault) -> bytes:
    return response(status, msgspec.json.encode(fault.body), "application/json")


async def _ask(head: Head, body: bytes, role: str, asked: Asked) -> object:
    watcher, reporter = asked
    match head.method, head.path:
        case "GET", "/config":
            return await watcher.ask(GetConfig(head.query.get("path")), within=ASK_S, again=True)
        case "POST", "/config":
            change = _decoded(body, Change)
            author = TOOL if role == TOOL else _author(change.author)
            return await _changed(watcher, SetConfig(change.changes, change.base_version, author))
        case "GET", "/versions":
            limit = head.query.get("limit", "20")
            if not re.fullmatch(r"[0-9]{1,6}", limit):
                raise Fault(Code.INVALID_MESSAGE, "limit must be a whole number", hint=HINT)
            return await watcher.ask(ListVersions(int(limit)), within=ASK_S, again=True)
        case "POST", "/rollback":
            back = _decoded(body, Back)
            if role == TOOL:
                raise Fault(Code.FORBIDDEN, "a model's tool may not roll the configuration back")
            return await _changed(watcher, Rollback(back.version, _author(back.author)))
        case "POST", "/restart":
            part = _decoded(body, Part)
            if role == TOOL:
                raise Fault(Code.FORBIDDEN, "a model's tool may not restart anything")
            return await reporter.ask(RestartPart(part.path), within=ASK_S + 1.0)
        case _, "/config" | "/versions" | "/rollback" | "/restart":
            raise BadRequest(405, f"{head.method} is not understood for {head.path}")
        case _:
            raise Fault(Code.NOT_FOUND, f"there is no {head.path[:100]}", hint=HINT)


async def _changed(watcher: Ref[WatcherMessage], change: SetConfig | Rollback) -> ConfigView:
    return await watcher.ask(change, within=ASK_S)


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault(Code.INVALID_MESSAGE, f"the body is not what is expected: {error}", hint=HINT) from None


def _author(author: str) -> str:
    if author in ("api", "cli") or re.fullmatch(r"client:[^\x00-\x1f\x7f]{1,200}", author):
        return author
    raise Fault(Code.INVALID_MESSAGE, "author must be api, cli or client:<owner>", hint=HINT)

"""The original backend's REST for sessions: list them, read a saved one, save a conversation.

`GET /sessions`, `GET /sessions/{saved_id}`, `POST /sessions/{conversation_id}/save?name=`. Errors are JSON with
the fields of an `error` frame.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from actors import saves
from actors.front import Front
from actors.http import Head
from protocol.client import LOCAL_OWNER, error_frame
from protocol.errors import Code, Fault
from protocol.mail import MailError

STATUS = {
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.SESSION_NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Code.INVALID_MESSAGE: HTTPStatus.BAD_REQUEST,
}
"""Of faults that are not 503."""


def concerns(head: Head) -> bool:
    """Whether a request is for here."""
    return head.path == "/sessions" or head.path.startswith("/sessions/")


async def answer(front: Front, head: Head) -> tuple[int, bytes]:
    """Status and JSON body."""
    try:
        return HTTPStatus.OK, await _body(front, head)
    except Fault as fault:
        status = STATUS.get(fault.code, HTTPStatus.SERVICE_UNAVAILABLE)
        return status, msgspec.json.encode(error_frame(fault.body))
    except MailError:
        body = error_frame(Fault(Code.STORAGE_UNAVAILABLE).body)
        return HTTPStatus.SERVICE_UNAVAILABLE, msgspec.json.encode(body)


async def _body(front: Front, head: Head) -> bytes:
    writer, snapshot = front.writer, front.snapshot
    match (head.method, head.path.strip("/").split("/")[1:]):
        case ("GET" | "HEAD", []):
            return await saves.rest_list(writer, snapshot, LOCAL_OWNER)
        case ("GET" | "HEAD", [saved_id]):
            return await saves.rest_read(writer, snapshot, LOCAL_OWNER, saved_id)
        case ("POST", [conversation, "save"]):
            name = head.query.get("name", "")
            return msgspec.json.encode(await saves.save(writer, snapshot, LOCAL_OWNER, conversation, name))
        case _:
            raise Fault(Code.NOT_FOUND, "There is no such page; GET /sessions lists what there is.")

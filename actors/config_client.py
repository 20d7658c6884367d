"""Talks with the running service's configuration from another process: HTTP on its Unix socket, synchronously.

Where the socket is and the operator's token stand in a file of the state directory while a service runs; what
can be asked is in config_http.py. No service is an answer (`None`), not an error: then whoever asks may write
the file himself. Once connected, an error is one: the outcome is not known.
"""

from __future__ import annotations

import http.client
import os
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from actors.config_access import FILE
from protocol.errors import Fault, FaultBody
from protocol.mail import Request
from protocol.reporter import PartState, RestartPart
from protocol.watcher import ConfigView, GetConfig, ListVersions, Rollback, SetConfig, VersionRow

ANSWER_S = 30.0  # the service waits for an editor to finish, and may be busy
R = TypeVar("R")


class Where(msgspec.Struct, frozen=True):
    """What the file says."""

    socket: str
    token: str
    pid: int


class _Connection(http.client.HTTPConnection):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self.sock = sock


class _Call(NamedTuple):
    method: str
    target: str
    body: object


class Service(NamedTuple):
    """A running service that has been reached."""

    where: Where

    def ask(self, asked: Request[R]) -> R:
        """One question. Raises Fault (the service's answer), ConnectionError, OSError."""
        call, kind = _call(asked)
        connection = _connect(self.where)
        if connection is None:
            raise ConnectionError("the service ended")
        try:
            body = None if call.body is None else msgspec.json.encode(call.body)
            headers = {"Authorization": f"Bearer {self.where.token}", "Content-Type": "application/json"}
            connection.request(call.method, call.target, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != HTTPStatus.OK:
                raise Fault.of(msgspec.json.decode(text, type=FaultBody))
            found: R = msgspec.json.decode(text, type=kind)
            return found
        except (http.client.HTTPException, msgspec.DecodeError) as error:
            raise ConnectionError(f"the service's answer cannot be read: {type(error).__name__}") from error
        finally:
            connection.close()


def find(state_dir: Path) -> Service | None:
    """The service that runs with that state directory; None: none, or it is this very process.

    Who lives in the service's own process writes the file under its lock: to wait for an answer could be to
    wait for oneself.
    """
    try:
        where = msgspec.json.decode((state_dir / FILE).read_bytes(), type=Where)
    except (OSError, msgspec.DecodeError):
        return None
    if where.pid == os.getpid():
        return None
    connection = _connect(where)
    if connection is None:
        return None
    connection.close()
    return Service(where)


def _connect(where: Where) -> _Connection | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(ANSWER_S)
    try:
        sock.connect(where.socket)
    except OSError:  # left behind by a service that was killed
        sock.close()
        return None
    return _Connection(sock)


def _call(asked: Request[Any]) -> tuple[_Call, Any]:
    match asked:
        case GetConfig(path=path):
            return _Call("GET", f"/config?{urlencode({'path': path})}" if path else "/config", None), ConfigView
        case ListVersions(limit=limit):
            return _Call("GET", f"/versions?limit={limit}", None), list[VersionRow]
        case SetConfig(changes=changes, base_version=base, author=author):
            body = {"changes": changes, "base_version": base, "author": author}
            return _Call("POST", "/config", body), ConfigView
        case Rollback(version=version, author=author):
            return _Call("POST", "/rollback", {"version": version, "author": author}), ConfigView
        case RestartPart(path=path):
            return _Call("POST", "/restart", {"path": path}), PartState
        case _:
            raise TypeError(f"{type(asked).__name__} cannot be asked from outside")

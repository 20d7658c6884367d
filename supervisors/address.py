"""Where the service listens: binding the configured address, and saying in the state directory what it is.

A service manager may have bound it for us (`LISTEN_FDS`); then that counts, whatever is configured. What can
fail: an address that cannot be bound, or must not be, is `CannotStart` with what to do about it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import trio

from protocol.watcher import Snapshot
from supervisors.systemd import passed_sockets

log = logging.getLogger("supervisors.main")

INSTANCE = "service.json"  # in the state directory while the service runs: pid and address
BACKLOG = 4096


class CannotStart(Exception):
    """Why the service does not start, for the operator; no traceback."""


async def listen(snapshot: Snapshot) -> list[trio.SocketListener]:
    """The listeners of the configured address, or those that a service manager passed on. Raises CannotStart."""
    websocket = snapshot.websocket
    if not is_loopback(websocket.host) and not websocket.allow_unauthenticated:
        raise CannotStart(
            f"{websocket.host} can be reached from other machines, and nobody is asked who they are; listen on "
            "127.0.0.1 behind a proxy that does, or set chat.websocket.allow_unauthenticated: true"
        )
    try:
        passed = [trio.SocketListener(trio.socket.from_stdlib_socket(one)) for one in passed_sockets(os.environ)]
    except ValueError as error:
        raise CannotStart(str(error)) from error
    for listener in passed:
        host = listener.socket.getsockname()[0]
        if not is_loopback(host) and not websocket.allow_unauthenticated:
            raise CannotStart(
                f"the passed socket listens on {host}, which can be reached from other machines, and nobody is asked "
                "who they are; set chat.websocket.allow_unauthenticated: true if a proxy does"
            )
    if passed:
        return passed
    try:
        return await trio.open_tcp_listeners(websocket.port, host=websocket.host, backlog=BACKLOG)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        raise CannotStart(
            f"cannot listen on {websocket.host}:{websocket.port}: {getattr(error, 'strerror', None) or error}; "
            "choose another port with --port (0: any free one)"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether a host is this machine only."""
    loopback: bool = importlib.import_module("actors.http").is_loopback(host)
    return loopback


def shown(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def url(listeners: list[trio.SocketListener], endpoint: str) -> str:
    """Of the WebSocket."""
    host, port = listeners[0].socket.getsockname()[:2]
    return f"ws://{shown(host)}:{port}{endpoint}"


@contextlib.contextmanager
def published(state: Path, listeners: list[trio.SocketListener], endpoint: str) -> Iterator[None]:
    """While it runs, `actors-main status` and `chat` find the service by a file in the state directory."""
    host, port = listeners[0].socket.getsockname()[:2]
    publish(state, pid=os.getpid(), host=shown(host), port=port, endpoint=endpoint)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a read-only directory; a stale file is recognised by its pid
            (state / INSTANCE).unlink(missing_ok=True)


def publish(state: Path, **said: str | int) -> None:
    """Write where the service listens; what is not said now stays as it was said last."""
    path, known = state / INSTANCE, {}
    if "pid" not in said:
        with contextlib.suppress(OSError, ValueError):  # there is no such file: told below, if it cannot be made
            known = json.loads(path.read_bytes())
    try:
        path.write_text(json.dumps({**known, **said}) + "\n")
    except OSError as error:
        log.warning("`actors-main status` and `chat` will not find this service: %s", error)

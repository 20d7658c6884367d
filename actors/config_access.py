"""The door to the configuration for other processes of the same user: a Unix socket and who may do what by it.

The socket is in a directory of its own (0700) under the user's runtime directory, since a path of a socket has at
most 107 bytes and a state directory may be deep. Two tokens, made anew in every run: the operator's stands in
the state directory (`config_socket.json`, 0600), the model's own tool's in a file beside the socket (0600), whose
path is `Snapshot.config_access`. All of it goes with its owner; what killed services left is removed by the next.

Fails with OSError where nothing of that can be made; the service runs without it then.
"""

from __future__ import annotations

import errno
import hmac
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from actors import files

FILE = "config_socket.json"  # in the state directory: socket, token, pid
PREFIX = "mcp-actors-config-"
SOCKET = "config.sock"
TOOL_FILE = "tool.json"  # beside the socket: socket, token
LONGEST_PATH = 107  # bytes of a socket's path: unix(7)
BACKLOG = 64
STARTED_S = 60.0  # a directory that is younger may belong to a service that does not listen yet
TOKEN_BYTES = 32

OPERATOR = "operator"
TOOL = "tool"


class Access:
    """The open door."""

    def __init__(self, listener: trio.SocketListener, tool_file: Path, tokens: dict[str, str]) -> None:
        self.listener = listener
        self.tool_file = tool_file
        """Absolute path of the file for the model's own tool."""
        self._tokens = tokens

    def role(self, authorization: str | None) -> str | None:
        """Whose token that header holds: `operator` or `tool`; None: nobody's."""
        scheme, _, token = (authorization or "").partition(" ")
        found = None
        for role, wanted in self._tokens.items():
            if hmac.compare_digest(token.strip().encode(), wanted.encode()) and scheme.lower() == "bearer":
                found = role
        return found


@asynccontextmanager
async def opened(state_dir: Path) -> AsyncIterator[Access]:
    """Open the door, and close it at the end. Raises OSError."""
    folder = _folder()
    _sweep(folder.parent)
    try:
        tokens = {role: secrets.token_urlsafe(TOKEN_BYTES) for role in (OPERATOR, TOOL)}
        path = folder / SOCKET
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        with sock:
            await sock.bind(os.fspath(path))
            sock.listen(BACKLOG)
            tool = {"socket": str(path), "token": tokens[TOOL]}
            files.replace(folder / TOOL_FILE, msgspec.json.encode(tool).decode())
            mine = {"socket": str(path), "token": tokens[OPERATOR], "pid": os.getpid()}
            (state_dir / FILE).unlink(missing_ok=True)  # a new file has the permissions of a new file
            files.replace(state_dir / FILE, msgspec.json.encode(mine).decode())
            try:
                yield Access(trio.SocketListener(sock), folder / TOOL_FILE, tokens)
            finally:
                (state_dir / FILE).unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    """A new directory, 0700, in which a socket can be bound. Raises OSError."""
    last: OSError = OSError("there is no directory for sockets")
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp is safe
        if not parent:
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
        except OSError as error:
            last = error
            continue
        if len(os.fsencode(folder / SOCKET)) <= LONGEST_PATH:
            return folder
        folder.rmdir()
    raise last


def _sweep(parent: Path) -> None:
    """Remove what killed services left there: directories of ours in which nobody listens any more."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it goes by itself right now, or is not ours
            at = folder.lstat()
            old = time.time() - at.st_mtime > STARTED_S
            if old and stat.S_ISDIR(at.st_mode) and at.st_uid == os.getuid() and not _listens(folder / SOCKET):
                shutil.rmtree(folder, ignore_errors=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        return sock.connect_ex(os.fspath(path)) in (0, errno.EAGAIN)  # or its backlog is full

"""The door to the configuration for other processes of the same user: a Unix socket and who may do what by it.

The socket is in a directory of its own (0700) under the user's runtime directory, since a path of a socket has at
most 107 bytes and a state directory may be deep. Two tokens, made anew in every run: the operator's stands in
the state directory (`config_socket.json`, 0600), the model's own tool's in a file beside the socket (0600), whose
path is `Snapshot.config_access`. All of it goes with its owner; what a killed service left is removed by the next.

Fails with OSError where nothing of that can be made; the service runs without it then.
"""

from __future__ import annotations

import hmac
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from actors import files

FILE = "config_socket.json"  # in the state directory: socket, token, pid
PREFIX = "mcp-actors-"
SOCKET = "config.sock"
TOOL_FILE = "tool.json"  # beside the socket: socket, token
LONGEST_PATH = 107  # bytes of a socket's path: unix(7)
BACKLOG = 64
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
    _sweep(state_dir / FILE)
    folder = _folder()
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


def _sweep(file: Path) -> None:
    """Remove the directory that a killed service with this state directory left."""
    try:
        folder = Path(msgspec.json.decode(file.read_bytes())["socket"]).parent
        if folder.name.startswith(PREFIX) and folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, msgspec.DecodeError, TypeError, KeyError):
        return  # nothing is left, or it is not ours

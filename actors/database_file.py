"""The database file as the operating system sees it: who owns it, whether it is there, how large it is.

One process owns a file, by a lock on `<file>.lock`, which the system releases when the process ends in any
way. The lock file itself stays: removing it would let two owners lock two different files of that name.
`Unusable` is raised where only an operator can help; its text names the file and what to do.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from tempfile import TemporaryFile

ROOM_BYTES = 2**20  # free space with which writing is tried again after a full disk


class Unusable(Exception):
    """The file cannot be had; says why and what to do."""


def lock(path: str) -> int:
    """Own the database: answers the descriptor that holds the lock until it is closed. Raises: Unusable."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Unusable(_unwritable(path, error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Unusable(
            f"{path} is in use by another running service (process {owner or 'unknown'}). "
            "Stop that one, or give this one a --state directory of its own."
        ) from error
    except OSError as error:  # a file system without locks
        os.close(descriptor)
        raise Unusable(f"{path}.lock cannot be locked: {error.strerror}. Use a local file system.") from error
    with suppress(OSError):  # the number is only for the message above: a full disk must not matter here
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def make(path: str) -> None:
    """Make the file where there is none, and see that it can be written. Raises: Unusable.

    What people said is theirs: neither it nor what is made beside it later is for others to read.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise Unusable(_unwritable(path, error)) from error


def size(path: str) -> int:
    """Bytes; 0 where there is no such file."""
    try:
        return os.stat(path).st_size
    except OSError:  # not there (yet, or any more)
        return 0


def _unwritable(path: str, error: OSError) -> str:
    reason = "its directory is a file" if isinstance(error, FileExistsError) else error.strerror
    return f"{path} cannot be opened for writing: {reason}. Check its directory, or name another db_path."


def has_room(path: str) -> bool:
    """Whether there is space for so much more in its directory. Takes it for a moment: a quota shows in no figure."""
    try:
        with TemporaryFile(dir=os.path.dirname(path)) as room:
            os.posix_fallocate(room.fileno(), 0, ROOM_BYTES)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # else the database will say what is wrong
    return True

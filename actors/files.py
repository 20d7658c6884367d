"""Files of the configuration: read whole and bounded, replaced atomically, watched by their marks.

Knows nothing of what is in them. Follows symlinks: a link stays a link, its target is read and replaced.
Only regular files are read (a FIFO would wait for ever). Fails with OSError, or with `Unreadable` for what
is there and cannot be a text of ours.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

MOST_BYTES = 256 * 1024  # a large configuration has 20 KiB; reading a text of this size takes a second or two

Mark = tuple[int, ...]
"""Differs whenever a file may have changed."""


class Unreadable(Exception):
    """The file is there and is not a text that can be read; says why, without its name."""


def mark(path: Path) -> Mark | None:
    """The mark of what is at `path` now (behind symlinks); None when nothing is there or may be seen."""
    try:
        at = path.stat()
    except OSError:
        return None
    return (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


def read(path: Path) -> str:
    """The text of a regular file. Raises OSError or Unreadable."""
    # O_NONBLOCK: opening a FIFO returns at once, and is refused by its type.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unreadable("is not a regular file")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Unreadable(f"is larger than {MOST_BYTES // 1024} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"is not UTF-8 text (line {line})") from None


def replace(path: Path, text: str) -> None:
    """Put a new text at `path` so that everyone sees the old or the new one, whole, after a crash too.

    The permissions of a file that is there are kept; a new one is readable by its owner only. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mode = 0o600
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(fd, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.replace(name, target)
    except BaseException:
        # Whatever ended this (a full disk, Ctrl-C): the half-made file goes, the old one stands.
        os.unlink(name)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in that folder survive a power cut. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

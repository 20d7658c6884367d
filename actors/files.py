"""Files of the configuration: read whole and bounded, replaced atomically, watched by their marks.

Knows nothing of what is in them. Follows symlinks: a link stays a link, its target is read and replaced.
Only regular files are read (a FIFO would wait for ever). Fails with OSError, with `Unreadable` for what
is there and cannot be a text of ours, or with `Changed` where somebody else was faster.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MOST_SWAPS = 100  # of files or links that are changed faster than they can be looked at
MOST_BYTES = 256 * 1024  # a large configuration has 20 KiB; reading a text of this size takes a second or two

Mark = tuple[int, ...]
"""Differs whenever a file may have changed."""


class Unreadable(Exception):
    """The file is there and is not a text that can be read; says why, without its name."""


class Changed(Exception):
    """The file is not what it was when it was read; nothing was done to it."""


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


def replace(path: Path, text: str, *, durable: bool = True) -> None:
    """Put a new text at `path` so that everyone sees the old or the new one, whole, after a crash too.

    The permissions of a file that is there are kept; a new one is readable by its owner only. Raises OSError.
    Args:
        durable: false: after a power cut the file may be empty, and nobody waits for the disk.
    """
    target = real(path)
    with _made(target, text, durable=durable) as name:
        os.replace(name, target)


def exchange(path: Path, text: str, expected: str | None, *, aside: Path | None = None) -> None:
    """As `replace`, but the edit that somebody makes at the same time is never lost.

    The new file and the old one change places in one step; then the old one is looked at, and put back if it
    is not the expected one. Where the file system cannot do that, it is looked at just before.
    Args:
        expected: the text that was read; None: there was no file.
        aside: keep the old file under this name (in the same directory), whatever it holds; then nothing
            is expected of it.
    Raises: Changed, OSError.
    """
    target = real(path)
    with _made(target, text) as name:
        new = Path(name)
        if expected is None and aside is None:
            try:
                os.link(new, target)
            except FileExistsError:
                raise Changed from None
        elif aside is not None:
            _put_aside(new, target, aside)
        elif not _swap(new, target):
            if not _is(target, expected):
                raise Changed
            os.replace(new, target)
        elif not _is(new, expected) or real(path) != target:
            _give_back(new, target, text)
            raise Changed


def real(path: Path) -> Path:
    """What `path` is behind all links. Raises OSError, for a link that is swapped all the time too."""
    for _ in range(MOST_SWAPS):
        try:
            return Path(os.path.realpath(path))
        except OSError as error:
            if error.errno != errno.EINVAL:  # it was a link when it was looked at, and none when it was read
                raise
    return Path(os.path.realpath(path))


def _put_aside(new: Path, target: Path, aside: Path) -> None:
    if _swap(new, target):
        os.rename(new, aside)
    else:
        os.link(target, aside)
        os.replace(new, target)


def _give_back(new: Path, target: Path, ours: str) -> None:
    """Put the edit back that was found where the old file was expected.

    What was edited while ours was in place is newer still, and goes in its place in turn; and so on.
    """
    placed: Mark | None = None
    for _ in range(MOST_SWAPS):
        newer = mark(new)
        if not _swap(new, target):
            return
        if _is(new, ours) or (placed is not None and _same_file(mark(new), placed)):
            return
        placed = newer


def _same_file(one: Mark | None, other: Mark) -> bool:
    # Without the time of the last change of the inode: a rename counts as one.
    return one is not None and one[:-1] == other[:-1]


def _is(path: Path, expected: str | None) -> bool:
    try:
        return read(path) == expected
    except (OSError, Unreadable):
        return False


@contextmanager
def _made(target: Path, text: str, *, durable: bool = True) -> Iterator[str]:
    """A file with that text beside `target`, safe on disk; what is left of it at the end is removed."""
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
            if durable:
                os.fsync(fd)
        yield name
    finally:
        # Whatever ended this (a full disk, Ctrl-C): the half-made file goes; after a swap it is the old one.
        Path(name).unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


AT_FDCWD = -100  # linux/fcntl.h
RENAME_EXCHANGE = 2  # linux/fs.h


@cache
def _renameat2() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function


def _swap(one: Path, other: Path) -> bool:
    """Let two files change places in one step; False: it cannot be done here. Raises OSError."""
    function = _renameat2()
    if function is None:
        return False
    if function(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):  # this file system, or this kernel, knows no exchange
        return False
    if code == errno.ENOENT:
        raise Changed
    raise OSError(code, os.strerror(code), str(other))


def sync_folder(folder: Path) -> None:
    """Make renames in that folder survive a power cut. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""What can fail in the store, in words for operators, and which error of the driver means which of it.

One of four: `Busy` (another program holds the file), `Full` (the disk), `Unavailable` (any other trouble of the
moment), `Fatal` (a restart cannot help; the text names the file and what to do).
"""

from __future__ import annotations

import apsw

from actors.database_file import Unusable
from actors.schema import Unfit


class StoreError(Exception):
    """The store could not do it; nothing of it was done. The text is for operators."""


class Busy(StoreError):
    """Another program holds the database; the same may succeed in a moment."""


class Full(StoreError):
    """No space is left; reading goes on."""


class Unavailable(StoreError):
    """The system below failed in another way that may pass."""


class Fatal(StoreError):
    """The file cannot be used; only an operator can help."""


REMEDIES: dict[type[apsw.Error], str] = {
    apsw.NotADBError: "is not a SQLite database. Nothing was changed. Put a backup in its place, "
    "or move it away to start with an empty one.",
    apsw.CorruptError: "is damaged. Nothing was changed. Put a backup in its place, or save what is readable "
    "with `sqlite3 FILE .recover`; move the file away to start with an empty one.",
    apsw.ReadOnlyError: "cannot be written. Check its owner and mode, and that the file system is not read-only.",
    apsw.CantOpenError: "cannot be opened. Check that its directory is there and may be written.",
    apsw.PermissionsError: "may not be used. Check its owner and mode.",
}
"""What an operator reads, after the file's name; these do not pass by themselves."""


def translated(error: apsw.Error, path: str) -> StoreError | None:
    """The store's error for the driver's; None when it concerns only what was being written."""
    code = getattr(error, "extendedresult", 0)
    if isinstance(error, apsw.BusyError | apsw.LockedError | apsw.ProtocolError):
        return Busy(f"{path} is held by another program ({error}).")
    if isinstance(error, apsw.FullError) or code == apsw.SQLITE_IOERR_WRITE:
        return Full(f"No space is left for {path}. Free some; nothing needs to be restarted.")
    for kind, remedy in REMEDIES.items():
        if isinstance(error, kind):
            return Fatal(f"{path} {remedy}")
    if isinstance(error, apsw.IOError | apsw.NoMemError | apsw.InterruptError | apsw.AbortError):
        return Unavailable(f"{path}: {type(error).__name__}: {error}")
    return None


class Errors:
    """A block whose errors of the driver are the store's."""

    # No generator: that takes as long as a statement, for each commit.
    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        match error:
            case Unfit():
                raise Fatal(f"{self._path} {error}") from error
            case Unusable():
                raise Fatal(str(error)) from error
            case apsw.Error():
                ours = translated(error, self._path)
                raise ours or Unavailable(f"{self._path}: {type(error).__name__}: {error}") from error

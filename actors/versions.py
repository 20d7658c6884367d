"""The history of the runtime file: one small JSON file per version, the last 200, in a directory of their own.

A version holds what differs from the reference defaults, without secrets and metadata. Each is written in one
step, so a crash leaves it or not (a power cut may take the last); nothing is ever changed. What cannot be read
(edited by hand, another program's file) is not there. Fails with OSError where it writes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from actors import files
from protocol.watcher import VersionRow

FOLDER = "config_history"
KEPT = 200  # versions
MOST_KEYS = 50  # named in a row


class Version(msgspec.Struct, frozen=True):
    """One version."""

    version: int
    at: str
    """RFC 3339, UTC."""
    author: str
    changed: list[str]
    over: dict[str, Any]
    """What differs from the reference defaults."""


def made(version: int, author: str, changed: list[str], over: dict[str, Any]) -> Version:
    """A version of this moment."""
    if len(changed) > MOST_KEYS:
        changed = [*changed[:MOST_KEYS], "..."]
    return Version(version, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", author, changed, over)


def row(version: Version) -> VersionRow:
    """The version without its content."""
    return VersionRow(version.version, version.at, version.author, version.changed)


class History:
    """The versions of one state directory.

    Args:
        state_dir: in which the directory is made, with the first version.
    """

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER

    def newest(self) -> Version | None:
        """The latest that can be read."""
        for number in reversed(self._numbers()):
            if (found := self.get(number)) is not None:
                return found
        return None

    def get(self, version: int) -> Version | None:
        """One version; None: it is not kept."""
        try:
            found = msgspec.json.decode(files.read(self._path(version)), type=Version)
        except (OSError, files.Unreadable, msgspec.DecodeError):
            return None
        return found if found.version == version else None

    def add(self, new: Version) -> None:
        """Write one, and drop what is older than the last 200. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = msgspec.json.format(msgspec.json.encode(new)).decode() + "\n"
        # An edit comes into force without waiting for the disk on account of its history.
        files.replace(self._path(new.version), text, durable=False)
        for old in self._numbers()[:-KEPT]:
            self._path(old).unlink(missing_ok=True)

    def rows(self, limit: int) -> list[VersionRow]:
        """The latest, newest first."""
        found = (self.get(number) for number in reversed(self._numbers()[-KEPT:]))
        kept = [version for version in found if version is not None][: max(limit, 0)]
        return [row(version) for version in kept]

    def _path(self, version: int) -> Path:
        return self.folder / f"{version:08}.json"

    def _numbers(self) -> list[int]:
        try:
            return sorted(int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdecimal())
        except OSError:  # a folder that may not be read
            return []

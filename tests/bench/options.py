"""What the command line says of how a table is measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple


class Options(NamedTuple):
    """The same for all tables; each takes what it needs."""

    repetitions: int = 5
    """Interleaved: each subject once, then each again."""
    seconds: float = 5.0
    """That one run is measured."""
    only: tuple[str, ...] = ()
    """Subjects; empty: all that are installed."""
    loads: tuple[str, ...] = ()
    """Of the table `relay`, by name; empty: the usual ones."""
    small: bool = False
    """Few of everything: whether it works, not how fast it is."""
    profile: Path | None = None
    """A directory for profiles of our service, taken in a run of its own."""
    svg: Path | None = None
    """A file for a picture, where the table has one."""

    def of(self, whole: int, small: int) -> int:
        """A size of this table."""
        return small if self.small else whole

    def say(self, progress: str) -> None:
        """To who waits."""
        print(progress, file=sys.stderr, flush=True)  # noqa: T201 - a command's output

"""Which fronts may write, and what: the decisions about claims, free of I/O.

One `Fence` belongs to the writer's slot. It knows the service's run, who of its fronts is gone, and who lived when
the store was opened; what conversations are claimed is in the rows. A front that is gone may still have messages on
their way: each of them must be refused, also where the conversation is nobody's by now. The empty id (one process,
one front) is refused nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from protocol.claim import parsed
from protocol.errors import Code, Fault


class Fence:
    """Who is gone.

    Args:
        run: of this start of the service; empty where one process is all: every claim found is of an earlier run.
        living: ids of the fronts that live while the store is opened; None: all of this run, as far as known.
    """

    def __init__(self, run: str = "", living: Collection[str] | None = None) -> None:
        self.run = run
        self._living = living
        self._gone: dict[str, int] = {}
        """By role, the last life that has ended."""

    def shut(self, front: str) -> None:
        """It is gone, and all its earlier lives."""
        found = parsed(front)
        if found is not None:
            self._gone[found.role] = max(found.life, self._gone.get(found.role, 0))

    def is_gone(self, front: str) -> bool:
        """It may write nothing any more."""
        found = parsed(front)
        return found is None or found.run != self.run or found.life <= self._gone.get(found.role, 0)

    def was_left(self, front: str) -> bool:
        """A claim of it that is found when the store is opened is void."""
        return self.is_gone(front) or (self._living is not None and front not in self._living)

    def refuses(self, front: str, holder: str) -> Fault | None:
        """Why that front may not write into a conversation of that holder (empty: nobody's); None: it may."""
        if not front or (holder in ("", front) and not self.is_gone(front)):
            return None
        return moved()


def moved() -> Fault:
    """What a front is answered that has lost a conversation."""
    return Fault(Code.MOVED)

"""What a request asks, along all its ways, kept only as long as it may have to be asked again.

A long conversation is large, and an answer flows for minutes: once something of the answer was shown no try and no
fallback follows, and what was sent is let go of. Nothing here sends. Fails as `route` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.route import route
from protocol.streamer import Complete
from protocol.watcher import Llm, Provider


class Question:
    """One request's.

    Args:
        llm: the configuration that it keeps to its end.
    """

    __slots__ = ("_asked", "body", "ways")

    def __init__(self, request: Complete, llm: Llm) -> None:
        self._asked: tuple[Complete, Llm] | None = request, llm
        self.ways: Sequence[tuple[Provider, Complete]] = ()
        """The providers to be asked until one answers, each with the request in its form."""
        self.body = b""
        """As it is sent on the present way."""

    def find(self) -> None:
        """Find its ways, once. Raises Fault."""
        if self._asked is not None:
            self.ways, self._asked = route(*self._asked), None

    def let_go(self) -> None:
        """It is not asked again."""
        self.ways, self.body = (), b""

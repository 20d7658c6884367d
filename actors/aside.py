"""A request to the model beside the turns: its whole answer, for somebody who does not watch it come.

Its pieces come to the gateway like all others and are gathered here. Given up (its asker is cancelled), the request is
closed at the provider. Fails with the request's own typed error, or LLM_STREAM_BROKEN where its streamer died.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from actors.front import Front
from protocol.errors import Code, Fault
from protocol.mail import Ref
from protocol.streamer import Cancel, Complete, Failed, Finished, Piece, Text

TEXT_MAX = 4 * 1024 * 1024  # characters; a model that does not stop is stopped


class Aside:
    """One such request; gathers what comes for it."""

    def __init__(self) -> None:
        self.end: Finished | Fault | None = None
        self.ended = trio.Event()
        self._texts: list[str] = []
        self._chars = 0

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts)

    def add(self, piece: Piece) -> None:
        """A piece came."""
        match piece:
            case Text():
                self._texts.append(piece.text)
                self._chars += len(piece.text)
                if self._chars > TEXT_MAX:
                    self._finish(Fault(Code.LLM_REJECTED, f"The answer has more than {TEXT_MAX} characters."))
            case Finished():
                self._finish(piece)
            case Failed():
                self._finish(Fault.of(piece.fault))
            case _:
                pass  # thinking: the answer is wanted, not how it came about

    def lose(self, reason: str) -> None:
        """Nothing more comes for it."""
        self._finish(Fault(Code.LLM_STREAM_BROKEN, reason))

    def _finish(self, end: Finished | Fault) -> None:
        if self.end is None:
            self.end = end
            self.ended.set()


async def answer(front: Front, complete: Complete) -> tuple[str, Finished]:
    """Ask the model, and wait for the end of its answer. Raises Fault.

    Args:
        complete: its number and address are filled in here.
    """
    streamer: Ref[Any] = front.streamer
    number = front.next_request()
    aside = front.asides[number] = Aside()
    try:
        if not streamer.offer(msgspec.structs.replace(complete, request=number, to=front.ctx.path)):
            raise Fault(Code.OVERLOADED, "Too many answers are running.")
        await aside.ended.wait()
    finally:
        del front.asides[number]
        if not isinstance(aside.end, Finished):
            streamer.offer(Cancel(to=front.ctx.path, request=number))
    if not isinstance(aside.end, Finished):
        raise aside.end if aside.end is not None else Fault(Code.INTERNAL)
    return aside.text, aside.end

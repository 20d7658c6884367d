"""One client's socket as the front keeps it: in which conversation it is, how far it has read, what it is told.

It reads the logs of turns (`actors.turnlog`) and writes frames into its outbox as long as the peer keeps up; the front
tells it when there is more. Every operation is synchronous. What can fail is writing a frame, which is the caller's to
catch; a peer that is gone fails nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from actors.dialect import Speaker
from actors.outbox import Outbox
from actors.turnlog import TurnLog, frame_of, spoken
from actors.wire import Wire
from protocol.client import ServerFrame, encode

if TYPE_CHECKING:
    from actors.front import Conversation

HOLD_S = 1.0  # for a client that comes to say where it was: a round trip on a slow network


class Socket:
    """One client's socket: where it is in which conversation, and its outbox."""

    __slots__ = (
        "_gathers",
        "_pumped_at",
        "close",
        "conversation",
        "follows",
        "headed",
        "held",
        "index",
        "log",
        "number",
        "outbox",
        "paused",
        "quiet",
        "seen",
        "speaker",
        "wire",
    )

    def __init__(self, number: int, outbox: Outbox, close: Callable[[int, str], None]) -> None:
        self.number = number
        self.outbox = outbox
        self.close = close
        """Ask the connection to end with that close code and reason."""
        self.wire: Wire | None = None
        """Once the handshake is over: what knows when the peer was last heard."""
        self.speaker: Speaker | None = None
        """Of the older dialect, once the client has used it."""
        self.conversation: Conversation | None = None
        self.log: TurnLog | None = None
        self.index = 0
        self.headed = True
        """The `turn_started` of `log` has been written."""
        self.quiet = False
        """Of `log` only whole frames are written, no text."""
        self.paused = False
        """A replay is being prepared; live frames wait in their logs."""
        self.seen: tuple[int, int] | None = None
        """Turn and seq that the client has seen of a turn that has no log here yet."""
        self.held: object = None
        """While it is set: the client has just come and may say where it was; live frames wait in their logs."""
        self.follows: dict[tuple[str, str], None] = {}
        """Servers and addresses of resources that it is told the changes of."""
        self._pumped_at = -math.inf
        self._gathers = False
        """Text waits for the time of its frame."""
        outbox.on_room = self.pump

    def let_go(self) -> None:
        """It is over: of what it knows nothing knows it any more, so that all of it is freed at once."""
        self.outbox.on_room = None
        self.close = _closed

    def tell(self, frame: ServerFrame) -> None:
        """Write a frame that concerns this socket only."""
        self.outbox.write(frame_of(encode(frame)) if self.speaker is None else spoken(self.speaker, frame))

    def notice(self, data: bytes) -> None:
        """Write a notice, unless the socket is behind: notices are not worth memory."""
        if not self.outbox.full and self.speaker is None:
            self.outbox.write(data)

    def _begin(self, log: TurnLog) -> None:
        self.headed = True
        if self.speaker is None:
            self.outbox.write(log.head)
        elif log.started is not None:
            self.outbox.write(spoken(self.speaker, log.started))

    def place(self, log: TurnLog, index: int, *, headed: bool, quiet: bool = False) -> None:
        """Read on from there. `quiet`: of this log without text."""
        self.log, self.index, self.headed, self.quiet = log, index, headed, quiet

    def hold(self) -> None:
        """Write nothing of the logs for HOLD_S, or until `release`.

        What was written before a client can say where it was would come twice.
        """
        self.held = object()
        self.outbox.after(HOLD_S, self._held_for, self.held)

    def _held_for(self, mine: object) -> None:
        if self.held is mine:
            self.release()

    def release(self) -> None:
        """The client has said where it was, or that it was nowhere."""
        if self.held is not None:
            self.held = None
            self.pump()

    @property
    def behind(self) -> bool:
        """Its log has more than it has read."""
        return self.log is not None and self.index < self.log.seq

    def pump(self) -> None:
        """Write what the logs have, as long as the peer keeps up."""
        outbox = self.outbox
        if self.paused or self.held is not None or (outbox.frame_s and self._waits(outbox.frame_s)):
            return
        while (current := self.log) is not None and not outbox.full:
            if not self.headed:
                self._begin(current)
            if self.index < len(current.entries):
                data, self.index = current.frames(self.index, text=not self.quiet, speaker=self.speaker)
                outbox.write(data)
            if self.index < len(current.entries):
                continue
            if not current.finished or current.next is None:
                return
            self._go_on(current.next)

    def _waits(self, frame_s: float) -> bool:
        """Only text has come, and it is not time for a frame of it yet: then there will be one."""
        log, now = self.log, trio.current_time()
        if log is None or log.finished or not self.behind or type(log.entries[-1]) is bytes:
            return False
        left = self._pumped_at + frame_s - now
        if left <= 0:
            self._pumped_at = now
            return False
        if not self._gathers:
            self._gathers = True
            self.outbox.after(left, Socket._gathered, self)
        return True

    def _gathered(self) -> None:
        self._gathers, self._pumped_at = False, -math.inf
        self.pump()

    def _go_on(self, log: TurnLog) -> None:
        """Read the next log; one that was taken up where it stood from where the client had read it."""
        seen, self.seen = self.seen, None
        known = seen is not None and seen[0] == log.turn and seen[1] <= log.seq
        self.place(log, seen[1] if known and seen is not None else 0, headed=known)


def _closed(code: int, reason: str) -> None:
    """It is closed already."""

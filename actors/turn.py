"""The decisions of a conversation's turns, free of I/O, time and text.

Theory of operation. One `Turns` per session holds which turn runs, in which phase, and which messages wait.
Every method is something that happened; it returns the effects (`actors/effects.py`) to be performed, in
order. The shell (`actors/session.py`) performs them and reports back by calling the next method. Nothing here
waits, so every interleaving of commits, pieces, stops, crashes and drains is a sequence of calls that a test can
write down.

    IDLE --said--> COMMITTING --committed--> ASKING --finished(no calls)--> CLOSING --closed--> IDLE
                                                |  ^                           ^
                                 finished(calls)|  |last call_ended            | stop, failed, drain: from anywhere
                                                v  |
                                   JOURNALING --journaled--> CALLING ----------+

The commit of the user's message and the first request to the model run at once; nothing of the turn is
shown before the commit (`Start`). Messages are committed one after the other, since turn ids must reach
the disk in order. A message that was acknowledged always gets a turn with an end, even if the store fails
when its time comes. A turn whose actor died is asked again while nothing of it was shown; after that it
ends `interrupted`. One that waits for nothing but approvals goes on waiting, in another session or another
process: it is suspended when the service stops. What belongs here: order and outcomes. What it refuses to
know: messages' contents, logs, sockets, SQL.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from actors.effects import (
    Ask,
    Close,
    Commit,
    Drop,
    Effect,
    Journal,
    Refuse,
    Resume,
    RunCalls,
    Start,
    Suspend,
    TellQueued,
    TellRepeated,
)
from protocol.client import MAX_QUEUED
from protocol.errors import Code, Fault, FaultBody
from protocol.session import Say

ASKS = 3  # how often a turn that has shown nothing is asked, when the actor that ran it dies
NO_STORE = (Code.STORAGE_FULL, Code.STORAGE_UNAVAILABLE)  # faults that the next commit would meet too


class Phase(Enum):
    """Where the running turn is."""

    COMMITTING = "committing"  # its message, or its start, is on its way to disk; the model is asked already
    ASKING = "asking"
    JOURNALING = "journaling"  # the model's answer and the intents of its calls are on their way to disk
    CALLING = "calling"
    CLOSING = "closing"


@dataclass(slots=True)
class Current:
    """The running turn."""

    turn: int
    phase: Phase
    max_hops: int
    """Tool rounds that it may make; as configured when it began."""
    say: Say | None = None
    """Whose message began it; None after a restart of the session."""
    acknowledged: bool = False
    """The message is on disk: it waited before. What is being committed is only that it runs now."""
    hop: int = 1
    rounds: int = 0
    """Tool rounds made."""
    asks: int = 1
    calls: frozenset[str] = frozenset()
    ending: tuple[str, FaultBody | None] | None = None
    """Ordered to end before it was on disk."""


@dataclass(slots=True)
class Waiting:
    """A message behind the running turn."""

    turn: int
    say: Say | None
    """None after a restart of the session."""
    sent: bool = False
    """Its commit was ordered."""
    committed: bool = False


def _fault(code: Code, detail: str = "") -> FaultBody:
    return Fault(code, detail).body


class Turns:
    """Decides. `max_tool_hops` may be changed, for turns that begin after that; `draining` once set stays."""

    __slots__ = ("current", "draining", "last_turn", "max_tool_hops", "waiting")

    def __init__(self, last_turn: int, max_tool_hops: int) -> None:
        self.last_turn = last_turn
        self.max_tool_hops = max_tool_hops
        self.current: Current | None = None
        self.waiting: list[Waiting] = []
        self.draining = False

    # What clients say.

    def said(self, say: Say) -> list[Effect]:
        """A user's message arrived."""
        if self.draining:
            return [Refuse(say.client, say.echo, _fault(Code.SHUTTING_DOWN), say)]
        if self.current is None and not self.waiting:
            self.last_turn += 1
            self.current = Current(self.last_turn, Phase.COMMITTING, self.max_tool_hops, say)
            return [Commit(self.last_turn, say, queued=False), Ask(self.last_turn, 1)]
        if len(self.waiting) >= MAX_QUEUED:
            detail = f"{MAX_QUEUED} messages wait already in this conversation."
            return [Refuse(say.client, say.echo, _fault(Code.OVERLOADED, detail), say)]
        self.last_turn += 1
        self.waiting.append(Waiting(self.last_turn, say))
        return self._commit_next()

    def said_again(self, turn: int, say: Say) -> bool:
        """The message of that turn came once more. True: it is not on disk yet, and its commit will answer this one."""
        current = self.current
        if current is not None and current.turn == turn and current.phase is Phase.COMMITTING:
            if not current.acknowledged:
                current.say = say
            return not current.acknowledged
        waiting = next((w for w in self.waiting if w.turn == turn and not w.committed), None)
        if waiting is not None:
            waiting.say = say
        return waiting is not None

    def stop(self, client: int, echo: str | None, turn: int | None) -> list[Effect]:
        """A client wants the running turn to end."""
        current = self.current
        if current is None or (turn is not None and turn != current.turn):
            which = f"Turn {turn} is not running." if turn is not None else ""
            return [Refuse(client, echo, _fault(Code.TURN_NOT_RUNNING, which))]
        return self._end("stopped", None)

    def drain(self, *, now: bool) -> list[Effect]:
        """The service stops: no new turns; with `now` the running one is cut off."""
        self.draining = True
        if not now or self.current is None:
            return []
        return self._end("interrupted", _fault(Code.SHUTTING_DOWN, "The service was stopped before the answer ended."))

    # What the store says.

    def committed(self, turn: int) -> list[Effect]:
        """The message (or the start of a queued turn) is on disk."""
        current = self.current
        if current is not None and current.turn == turn and current.phase is Phase.COMMITTING:
            if current.ending is not None:
                return [*self._show_end(current, *current.ending), *self._commit_next()]
            current.phase = Phase.ASKING
            return [Start(turn), *self._commit_next()]
        for place, waiting in enumerate(self.waiting):
            if waiting.turn == turn and waiting.say is not None and not waiting.committed:
                waiting.committed = True
                return [TellQueued(turn, waiting.say, place + 1), *self._commit_next(), *self._next()]
        return []

    def repeated(self, turn: int, known: int) -> list[Effect]:
        """The message was on disk before, as turn `known`; the turn that was tried for it never was."""
        say = self._forget(turn)
        if say is None:
            return []
        return [Drop(turn), TellRepeated(known, say), *self._commit_next(), *self._next()]

    def commit_failed(self, turn: int, fault: FaultBody) -> list[Effect]:
        """It could not be stored. A message is refused, and so are those behind it where there is no store.

        The start of a queued turn, which was acknowledged, is shown and ends as failed.
        """
        current = self.current
        if current is not None and current.turn == turn and current.acknowledged and current.phase is Phase.COMMITTING:
            return [Drop(turn), *self._show_end(current, *(current.ending or ("failed", fault)))]
        refused = [self._forget(turn)]
        if refused[0] is None:
            return []
        if fault.code in NO_STORE:
            refused += [self._forget(waiting.turn) for waiting in tuple(self.waiting) if not waiting.committed]
        told = [Refuse(say.client, say.echo, fault, say) for say in refused if say is not None]
        return [Drop(turn), *told, *self._commit_next(), *self._next()]

    def _show_end(self, current: Current, outcome: str, fault: FaultBody | None) -> list[Effect]:
        current.phase = Phase.CLOSING
        return [Start(current.turn), Close(current.turn, outcome, fault)]

    def _commit_next(self) -> list[Effect]:
        """Order the next commit of a message, if none is on its way: the store takes ids only in order."""
        current = self.current
        if current is not None and current.phase is Phase.COMMITTING and not current.acknowledged:
            return []
        for waiting in self.waiting:
            if waiting.sent and not waiting.committed:
                return []
            if not waiting.committed and waiting.say is not None:
                waiting.sent = True
                return [Commit(waiting.turn, waiting.say, queued=True)]
        return []

    def _forget(self, turn: int) -> Say | None:
        if self.current is not None and self.current.turn == turn and self.current.phase is Phase.COMMITTING:
            say, self.current = self.current.say, None
            return say
        for waiting in self.waiting:
            if waiting.turn == turn and not waiting.committed:
                self.waiting.remove(waiting)
                return waiting.say
        return None

    def journaled(self, turn: int) -> list[Effect]:
        """The answer and the intents of its calls are on disk."""
        if not self._is(turn, Phase.JOURNALING):
            return []
        self._now.phase = Phase.CALLING
        return [RunCalls(turn)]

    def closed(self, turn: int) -> list[Effect]:
        """The turn's last frame was shown."""
        if not self._is(turn, Phase.CLOSING):
            return []
        self.current = None
        return self._next()

    # What the model and the tools say.

    def finished(self, turn: int, calls: Sequence[str]) -> list[Effect]:
        """The request ended well; `calls` are the ids of the calls it asks for."""
        if not self._is(turn, Phase.ASKING):
            return []
        current = self._now
        if not calls:
            return self._end("completed", None)
        if current.rounds >= current.max_hops:
            detail = f"The model asked for tools more than {current.max_hops} times in one turn."
            return self._end("failed", _fault(Code.TOOL_HOPS_EXCEEDED, detail))
        current.rounds += 1
        current.phase = Phase.JOURNALING
        current.calls = frozenset(calls)
        return [Journal(turn)]

    def failed(self, turn: int, fault: FaultBody) -> list[Effect]:
        """The request, or storing its answer, ended with a typed error."""
        if not (self._is(turn, Phase.ASKING) or self._is(turn, Phase.JOURNALING)):
            return []
        return self._end("failed", fault)

    def lost(self, turn: int, reason: str, *, shown: bool) -> list[Effect]:
        """The actor that ran the request died; `shown`: something of the turn may have been seen."""
        if not self._is(turn, Phase.ASKING):
            return []
        current = self._now
        if not shown and current.asks < ASKS:
            current.asks += 1
            return [Drop(turn), Ask(turn, current.hop)]
        return self._end("interrupted", _fault(Code.LLM_STREAM_BROKEN, reason))

    def call_ended(self, turn: int, call: str) -> list[Effect]:
        """A tool call has its outcome."""
        if not self._is(turn, Phase.CALLING):
            return []
        current = self._now
        current.calls -= {call}
        if current.calls:
            return []
        current.hop += 1
        current.phase = Phase.ASKING
        return [Ask(turn, current.hop)]

    def suspend(self, waiting: Collection[str]) -> list[Effect]:
        """Of the running turn's calls these wait for a person: if all do, and the service stops, it is let go of."""
        current = self.current
        if not self.draining or current is None or current.phase is not Phase.CALLING or current.calls - set(waiting):
            return []
        self.current = None
        return [Suspend(current.turn)]

    # After a restart of the session.

    def adopt_waiting(self, turn: int, calls: Collection[str], *, attached: bool, hop: int) -> list[Effect]:
        """A turn that waited for nothing but a person's approval of these calls: it goes on waiting."""
        self.current = Current(turn, Phase.CALLING, self.max_tool_hops, hop=hop, rounds=hop, calls=frozenset(calls))
        self.last_turn = max(self.last_turn, turn)
        return [*([] if attached else [Start(turn)]), RunCalls(turn)]

    def adopt(self, turn: int, *, attached: bool, shown: bool, hop: int, asks: int = 0) -> list[Effect]:
        """A turn that ran when the last incarnation died: asked again while nothing was shown (`ASKS`), else closed."""
        self.current = Current(turn, Phase.ASKING, self.max_tool_hops, hop=hop, asks=asks + 1)
        self.last_turn = max(self.last_turn, turn)
        begin: list[Effect] = [Drop(turn)] if attached else [Start(turn)]
        if not shown and asks < ASKS:
            return [*begin, Ask(turn, hop)]
        reason = "The conversation's session failed while the answer came."
        return [*begin, *self._end("interrupted", _fault(Code.INTERNAL, reason))]

    def adopt_queued(self, turn: int) -> None:
        """A turn that waited on disk; `resume_queue` starts the first."""
        self.waiting.append(Waiting(turn, None, sent=True, committed=True))
        self.last_turn = max(self.last_turn, turn)

    def has(self, turn: int) -> bool:
        """It runs or waits here."""
        return (self.current is not None and self.current.turn == turn) or any(w.turn == turn for w in self.waiting)

    def place(self, turn: int) -> int | None:
        """Its place among those that wait, from 1; None: it does not."""
        return next((place for place, waiting in enumerate(self.waiting, 1) if waiting.turn == turn), None)

    def resume_queue(self) -> list[Effect]:
        """Start what waits, if nothing runs."""
        return self._next()

    # Inside.

    @property
    def _now(self) -> Current:
        if self.current is None:
            raise RuntimeError("no turn runs")  # every caller has asked _is first
        return self.current

    def _is(self, turn: int, phase: Phase) -> bool:
        return self.current is not None and self.current.turn == turn and self.current.phase is phase

    def _end(self, outcome: str, fault: FaultBody | None) -> list[Effect]:
        current = self._now
        match current.phase:
            case Phase.CLOSING:
                return []
            case Phase.COMMITTING:
                current.ending = current.ending or (outcome, fault)
                return [Drop(current.turn)]
            case _:
                current.phase = Phase.CLOSING
                return [Drop(current.turn), Close(current.turn, outcome, fault)]

    def _next(self) -> list[Effect]:
        if self.current is not None or not self.waiting or not self.waiting[0].committed or self.draining:
            return []
        first = self.waiting.pop(0)
        self.current = Current(first.turn, Phase.COMMITTING, self.max_tool_hops, first.say, acknowledged=True)
        return [Resume(first.turn), Ask(first.turn, 1)]

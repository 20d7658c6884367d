"""What a session is told to do by the decisions of its turns (`actors/turn.py`): data, for `actors/session.py`.

Each says what is reported back when it is done. Nothing in here fails or waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import FaultBody
from protocol.session import Say


@dataclass(frozen=True)
class Commit:
    """Store the user's message; report committed, repeated or commit_failed."""

    turn: int
    say: Say
    queued: bool


@dataclass(frozen=True)
class Resume:
    """Store that a queued turn runs now; report committed or commit_failed."""

    turn: int


@dataclass(frozen=True)
class Ask:
    """Ask the model; report finished, failed or lost. `hop` counts from 1."""

    turn: int
    hop: int


@dataclass(frozen=True)
class Drop:
    """Cancel the turn's request and its running calls; report nothing of them."""

    turn: int


@dataclass(frozen=True)
class Start:
    """The turn is on disk: show it (turn_started), and everything of it from now on."""

    turn: int


@dataclass(frozen=True)
class TellQueued:
    """Acknowledge to the asking client that its message waits."""

    turn: int
    say: Say
    position: int


@dataclass(frozen=True)
class TellRepeated:
    """The message was known already: tell the asking client where its turn is."""

    turn: int
    say: Say


@dataclass(frozen=True)
class Refuse:
    """Answer a command with an error."""

    client: int
    echo: str | None
    fault: FaultBody
    say: Say | None = None
    """The message that is answered by this, if it was one."""


@dataclass(frozen=True)
class Journal:
    """Store the answer and the intents of its calls; report journaled or failed."""

    turn: int


@dataclass(frozen=True)
class RunCalls:
    """Make the journaled calls in parallel; report call_ended for each."""

    turn: int


@dataclass(frozen=True)
class Suspend:
    """Let go of the turn as it stands in the journal: it waits for a person, and others will take it up."""

    turn: int


@dataclass(frozen=True)
class Close:
    """Store and show the end of the turn; report closed."""

    turn: int
    outcome: str
    fault: FaultBody | None = None


Effect = (
    Commit | Resume | Ask | Drop | Start | TellQueued | TellRepeated | Refuse | Journal | RunCalls | Suspend | Close
)

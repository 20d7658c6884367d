"""What every node of the running tree has, actor or group: a state, a past, errors, and the words for them.

`Member` is bookkeeping only. `Slot` (an actor's place) and `Branch` (a group's supervisor) add the tasks.
Nothing here waits, except for an end that someone else brings about.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from protocol.spec import Child, Group, Parked, Status
from supervisors.restart import BLANK, Decision, Outcome, Policy, Verdict

if TYPE_CHECKING:
    from supervisors.branch import Branch
    from supervisors.supervisor import Tree

E = TypeVar("E", bound=BaseException)

OURS = ("actors", "protocol", "supervisors")
TEXT_LIMIT = 500  # characters of an error in status and in a line of the log; a traceback has all of it


class Member(ABC):
    """One child of a running group, as its supervisor sees it."""

    __slots__ = (
        "_ended",
        "alive",
        "began_at",
        "due_at",
        "gated",
        "incarnation",
        "last_error",
        "last_error_at",
        "parent",
        "past",
        "path",
        "policy",
        "ready_at",
        "settled",
        "spec",
        "status",
        "tree",
    )

    def __init__(self, tree: Tree, spec: Child | Group, path: str, parent: Branch | None) -> None:
        self.tree = tree
        self.spec = spec
        self.path = path
        self.parent = parent
        self.policy = Policy.of(spec)
        self.past = BLANK
        self.status = Status.PLANNED
        self.incarnation = 0
        self.alive = False
        self.settled = False
        """Its start is over (ready, parked or done): the next one may start."""
        self.gated = False
        """It starts only after all before it in the group are settled."""
        self.due_at: float | None = None
        """Trio time of its next start; None: no start is planned."""
        self.began_at = 0.0
        self.ready_at: float | None = None
        self.last_error = ""
        self.last_error_at: datetime | None = None
        self._ended: trio.Event | None = None

    @property
    def ended(self) -> trio.Event:
        """Set when the present incarnation has ended. There is one only where somebody waits: there are many actors."""
        if self._ended is None:
            self._ended = trio.Event()
        return self._ended

    def _has_ended(self) -> None:
        if self._ended is not None:
            self._ended.set()

    @property
    def log(self) -> logging.Logger:
        """Of its path; asked for where something is logged only, since a logger is kept for ever by its name."""
        return logging.getLogger(".".join(["actors", *self.path.split("/")]) if self.path else "actors")

    @property
    def ready_s(self) -> float | None:
        """Seconds since it was ready; None if this incarnation never was."""
        return None if self.ready_at is None else trio.current_time() - self.ready_at

    def turn(self, status: Status) -> None:
        """Enter a state, and tell who waits for changes."""
        self.status = status
        self.tree.note_change()

    def plan(self, at: float, *, gated: bool, fresh: bool = False) -> None:
        """To be started at a time; `fresh` forgets its past."""
        self.due_at, self.gated = at, gated
        if gated:
            self.settled = False
        if fresh:
            self.past = BLANK

    def remember(self, error: Exception) -> None:
        """Keep an error's text for status."""
        self.last_error = describe(error)
        self.last_error_at = datetime.now(UTC)

    @abstractmethod
    def begin(self) -> None:
        """Start an incarnation in its own task."""

    @abstractmethod
    async def end(self, *, final: bool, why: str = "") -> None:
        """End the incarnation in order, bounded; `final` closes the mailbox for good."""

    @abstractmethod
    def shut(self) -> None:
        """Take no mail: parked."""


def leaf(error: E) -> E:
    """The error itself: groups of one are unwrapped."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = cast(E, error.exceptions[0])  # a group of Exceptions has no others
    return error


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group and of those within it; the error itself where it is none."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def cancelled(error: BaseException) -> bool:
    """It is a cancellation, and nothing else."""
    return all(isinstance(one, trio.Cancelled) for one in leaves(error))


def describe(error: BaseException) -> str:
    """One line: type and text; the parts of a group in brackets."""
    error = leaf(error)
    if isinstance(error, BaseExceptionGroup):
        text = f"{len(error.exceptions)} errors ({'; '.join(describe(e) for e in error.exceptions)})"
    else:
        lines = str(error).strip().splitlines()[:1]
        named = [] if isinstance(error, Parked) and lines else [type(error).__name__]  # Parked's is a sentence already
        text = ": ".join(named + lines)
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


def explained(error: BaseException) -> bool:
    """Whether its text tells all that there is to know: it is of a type of ours, made for those who read the log.

    Anything else may be a mistake in the code, and needs its traceback.
    """
    return all(type(one).__module__.partition(".")[0] in OURS for one in leaves(error))


def outcome_of(error: Exception | None) -> Outcome:
    """How an incarnation ended, from what it raised."""
    if error is None:
        return Outcome.DONE
    parked = [one for one in leaves(error) if isinstance(one, Parked)]
    if not parked:
        return Outcome.FAILED
    return Outcome.HOPELESS if all(one.retry for one in parked) else Outcome.REFUSED


def consequence(decision: Decision, group: str) -> str:
    """What happens next, in words for the log."""
    match decision.verdict:
        case Verdict.RESTART if decision.delay_s == 0:
            return "started again at once"
        case Verdict.RESTART:
            return f"started again in {decision.delay_s:.2g} s (failure {decision.past.streak} in a row)"
        case Verdict.PARK if decision.delay_s == float("inf"):
            return "parked: it stays down until it is restarted by hand"
        case Verdict.PARK:
            return f"parked: next try in {decision.delay_s:g} s"
        case Verdict.ESCALATE:
            return f"it failed too often: {group} fails as a whole"
        case Verdict.STOP:
            return "not started again"

"""Whose a conversation is where several fronts run: ids of fronts, and who of them is gone.

Each conversation is one front's at a time. The store writes down whose (`protocol.writer`: `Enter` takes the claim
where nobody has it), refuses what another writes into it, and gives it free when its front lets go of it or dies.

An id is `RUN:ROLE#LIFE`: a start of the service, a process of it, and one life of that process, counted from 1; it
is never used twice. A life begins only after the one before has ended, so one that is gone takes all before it
along. An empty id stands for the only front of a service that has one: it claims nothing, and all is its own.
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.spec import Down, Up

FRONTS = "fronts"  # the root's group of these processes: `fronts/front1`


class FrontId(NamedTuple):
    """The parts of an id."""

    run: str
    """Of one start of the service; holds no colon."""
    role: str
    """Of the process; also the first word of its actors' paths."""
    life: int
    """The incarnation of the process, from 1."""

    def __str__(self) -> str:
        return f"{self.run}:{self.role}#{self.life}"


def parsed(front: str) -> FrontId | None:
    """The parts of an id; None for what is none."""
    run, _, rest = front.partition(":")
    role, _, life = rest.rpartition("#")
    return FrontId(run, role, int(life)) if role and life.isdecimal() else None


def role_of(front: str) -> str:
    """The role in an id; empty for what is none."""
    found = parsed(front)
    return found.role if found is not None else ""


def gone(run: str, event: Down | Up) -> str:
    """The id of the last life of a front's process that has ended, as the root says; empty where it says other things.

    Args:
        event: of any path; `fronts/ROLE` (or `ROLE`) is such a process. That a life is up says that those before ended.
    """
    group, _, role = event.path.rpartition("/")
    if group not in ("", FRONTS) or not role.startswith("front"):
        return ""
    life = event.incarnation if isinstance(event, Down) else event.incarnation - 1
    return str(FrontId(run, role, life)) if life > 0 else ""

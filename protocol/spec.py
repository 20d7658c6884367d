"""What the tree is written in: children, groups, limits; and what an actor sees of its supervisor.

Data only. `supervisors/supervisor.py` gives it life. An actor is
`async def run(box: Mailbox[M], ctx: Context) -> None`, named here by a dotted string.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
import trio

from protocol.mail import Mailbox, Ref


class Restart(Enum):
    """When an ended child is started again."""

    PERMANENT = "permanent"  # always
    TRANSIENT = "transient"  # after an error only
    TEMPORARY = "temporary"  # never


class Strategy(Enum):
    """Who is restarted with a failed child."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"  # it and those started after it


class OnLimit(Enum):
    """What happens when a child fails more often than its intensity allows."""

    ESCALATE = "escalate"  # its group fails as a whole, and the group's supervisor decides
    PARK = "park"  # it stays down, is retried slowly, its askers get errors; red in status


class Status(IntEnum):
    """Life of a slot, in order: `>= RUNNING and < STOPPED` means alive."""

    PLANNED = 0
    STARTING = 1
    RUNNING = 2
    DRAINING = 3
    RESTARTING = 4
    PARKED = 5
    STOPPED = 6


@dataclass(frozen=True)
class Backoff:
    """Delays between restarts. The first restart is at once; a healthy time resets the count."""

    first_s: float = 0.05
    """Delay before the second restart."""
    factor: float = 2.0
    cap_s: float = 30.0
    jitter: float = 0.2
    """A delay is multiplied by a random number in 1 +- jitter."""
    healthy_s: float = 5.0
    """After this long without a failure the count starts again."""


@dataclass(frozen=True)
class Intensity:
    """At most `restarts` within `period_s`; past it `OnLimit` decides."""

    restarts: int = 5
    period_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Child:
    """One actor of the tree."""

    name: str
    """Last part of its path; unique in its group."""
    run: str | Actor
    """The actor function: `package.module:function` in the product, the function itself in tests."""
    restart: Restart = Restart.PERMANENT
    mailbox: int = 256
    """How many messages may wait."""
    redeliver: bool = False
    """A cast in hand when an incarnation dies is given to the next one, once: for messages that may come twice."""
    shutdown_s: float = 5.0
    """How long a drained stop may take before it is cancelled."""
    backoff: Backoff = Backoff()
    intensity: Intensity = Intensity()
    on_limit: OnLimit = OnLimit.ESCALATE
    park_s: float = 300.0
    """Seconds between slow retries of a parked child; `inf` for never."""
    keep: str | Keep = ""
    """Dotted name of an async context manager factory `(KeepContext) -> ACM[object]`: what the slot keeps
    across incarnations (`ctx.kept`). Entered before the first incarnation, left after the final stop."""
    start_s: float = 300.0
    """How long an incarnation may take to be ready before it counts as failed."""
    gate: bool = True
    """It starts only when all before it in the group are ready, parked or done; else as soon as the group does."""
    args: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Given to the actor as `ctx.args`."""


@dataclass(frozen=True)
class Group:
    """A supervisor and its children, started in order, stopped in reverse."""

    name: str
    children: tuple[Child | Group, ...] = ()
    strategy: Strategy = Strategy.ONE_FOR_ONE
    on_limit: OnLimit = OnLimit.ESCALATE
    intensity: Intensity = Intensity()
    backoff: Backoff = Backoff()
    gate: bool = True
    """As of a child."""
    dynamic: bool = False
    """Children are added and removed while it runs (`ctx.start_child`)."""
    runs: str = ""
    """What its children run, `package.module:function`: imported when it starts, so that the first need not wait."""


class Down(msgspec.Struct, frozen=True, tag=True):
    """To a watcher: an actor ended."""

    path: str
    incarnation: int
    """Which incarnation ended, from 1."""
    reason: str
    """Type and text of the error; empty for a normal end."""
    retry_in_ms: int | None
    """When it is started again; None: it is not (stopped, or parked without retry)."""
    parked: bool


class Up(msgspec.Struct, frozen=True, tag=True):
    """To a watcher: an actor is ready (again)."""

    path: str
    incarnation: int
    """Which incarnation is ready, from 1."""


class Parked(Exception):
    """Raised by an actor that knows a restart cannot help (a missing command, a corrupt file): park at once.

    Args:
        text: why.
        retry: false: somebody said no; it is not tried again by itself, only by hand.
    """

    def __init__(self, text: str = "", *, retry: bool = True) -> None:
        super().__init__(text)
        self.retry = retry


class KeepContext(Protocol):
    """What an object that a slot keeps sees of the supervisor."""

    @property
    def path(self) -> str:
        """Address of the slot, e.g. `front/gateway`."""
        ...

    @property
    def args(self) -> Mapping[str, Any]:
        """The child's `args`."""
        ...

    def ref(self, path: str) -> Ref[Any]:
        """A reference to any address; it may come and go."""
        ...

    def report(self, **facts: str | int | float | bool | None) -> None:
        """Facts for the status tree that outlive incarnations; None removes one."""
        ...

    def start_child(self, group: str, child: Child) -> None:
        """As `Context.start_child`."""
        ...

    def stop_child(self, path: str) -> None:
        """As `Context.stop_child`."""
        ...


class Context(Protocol):
    """What an actor sees of its supervisor."""

    @property
    def path(self) -> str:
        """Own address, e.g. `mcp/demo`."""
        ...

    @property
    def incarnation(self) -> int:
        """1 for the first start of the slot, one more per restart."""
        ...

    @property
    def args(self) -> Mapping[str, Any]:
        """The child's `args`."""
        ...

    @property
    def kept(self) -> Any:
        """What the slot keeps across incarnations; the actor knows its type."""
        ...

    @property
    def tasks(self) -> trio.Nursery:
        """For what goes on beside the actor: it is cancelled when the actor returns, and ends with it."""
        ...

    def ref(self, path: str) -> Ref[Any]:
        """A reference to any address; it may come and go."""
        ...

    def ready(self) -> None:
        """Started: the next child of the group may start. Implied by the first look into the mailbox."""
        ...

    def watch(self, prefix: str = "") -> None:
        """Down and Up of every actor whose path starts with `prefix` are offered to own mailbox, until own end.

        One with a `*` in it is a shell pattern for the whole path.
        """
        ...

    def report(self, **facts: str | int | float | bool | None) -> None:
        """Facts for the status tree; replaces those of the same name; None removes one."""
        ...

    def report_live(self, facts: Callable[[], Mapping[str, str | int | float | bool]]) -> None:
        """Facts that change too often to be reported each time: whoever looks at the status tree asks for them.

        They win over those of `report`. It must not wait or raise.
        """
        ...

    def start_child(self, group: str, child: Child) -> None:
        """Add a child to a dynamic group; nothing happens if one of that name is there and not stopped."""
        ...

    def stop_child(self, path: str) -> None:
        """Stop (drained) and remove a child of a dynamic group, in the background."""
        ...


Actor = Callable[[Mailbox[Any], Context], Awaitable[None]]
Keep = Callable[[KeepContext], AbstractAsyncContextManager[object]]

"""The tree with its live numbers: made by the supervisor, sent as JSON, printed for people.

`Node` is the record (msgspec encodes it), `render` the text a stranger reads at night: states in words, `!`
before what needs attention, what happened, and when it is tried again. Nothing here waits or fails; memory
is read from /proc and simply missing elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import msgspec
import trio

from protocol.spec import Status
from supervisors.branch import Branch
from supervisors.member import Member
from supervisors.slot import Slot

if TYPE_CHECKING:
    from supervisors.supervisor import Tree

LAG_WINDOW_S = 10.0  # the worst of the last one to two windows is reported
BEAT_S = 0.2  # between two looks: a stretch of busy loop that is longer is seen for certain, a shorter one by chance
WORDS = {
    Status.PLANNED: "planned",
    Status.STARTING: "starting",
    Status.RUNNING: "running",
    Status.DRAINING: "draining",
    Status.RESTARTING: "restarting",
    Status.PARKED: "parked",
    Status.STOPPED: "stopped",
}
ALARMING = {"restarting", "parked"}
PROCESSES = ("supervisors.process:run", "supervisors.isolated:run")  # what runs in the slot of one
LONG = 60  # characters of a fact that has a line of its own
BUSY_S = 1.0  # mail that waits longer than this is shown
MOST_SHOWN = 50  # members of one group: of thousands of sessions the ones that something is the matter with, and some


class Mail(msgspec.Struct, frozen=True):
    """A mailbox in numbers; counters since its slot was made."""

    depth: int
    """Messages that wait."""
    limit: int
    """How many may wait."""
    oldest_s: float
    """Age of the one at the head, seconds."""
    in_flight: int
    """Asks taken and not answered yet."""
    taken: int
    """Messages handed to the actor."""
    refused: int
    """Not taken: full."""
    dead: int
    """Not taken: closed, parked or stopped."""
    lost: int
    """Asks that ended Gone because the actor died with them in hand."""


class Node(msgspec.Struct, frozen=True):
    """One actor or group."""

    name: str
    """Last part of the path."""
    path: str
    """Address; empty for the root."""
    kind: str
    """`actor`, `group`, or `process`: a child that has a tree of its own."""
    state: str
    """planned, starting, running, draining, restarting, parked or stopped."""
    pid: int
    """The process it lives in."""
    incarnation: int
    """From 1; 0 before the first start."""
    restarts: int
    """Starts after the first."""
    uptime_s: float | None
    """Since this incarnation began; None when none is alive."""
    retry_in_s: float | None
    """Until the next start that is planned."""
    last_error: str
    """One line; empty if there was none."""
    last_error_at: str
    """RFC 3339, UTC; empty if there was none."""
    mailbox: Mail | None = None
    """Of actors."""
    facts: dict[str, str | int | float | bool] = {}
    """What the actor reports of itself."""
    children: list[Node] = []
    """Of groups, in start order."""
    rss_bytes: int | None = None
    """Memory of the process; on the root of a process only."""
    loop_lag_ms: float | None = None
    """How late the loop came to what was due, at worst, lately; on the root of a process only."""
    dead_letters: int | None = None
    """Messages to addresses that nobody has; on the root of a process only."""
    answers: bool = True
    """False: a process that runs and did not say in time how its parts are."""


class LoopLag:
    """How late the loop comes to what is due, looked at once in a while: what a socket waits that has something then.

    An instrument of trio's sees each round of the loop, and takes a fifth of a short one.
    """

    def __init__(self) -> None:
        self._window = trio.current_time()
        self._worst = self._worst_before = 0.0

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            due = trio.current_time() + BEAT_S
            await trio.sleep_until(due)
            self.came(due, trio.current_time())

    def came(self, due: float, now: float) -> None:
        """What was due then was come to now."""
        self._worst = max(self._worst, now - due)
        if now - self._window > LAG_WINDOW_S:
            self._window, self._worst, self._worst_before = now, 0.0, self._worst

    @property
    def worst_ms(self) -> float:
        """The worst of the last one to two windows, milliseconds; the system's own rounding is up to one of them."""
        return round(max(self._worst, self._worst_before) * 1000, 3)


def rss_bytes() -> int | None:
    """Resident memory of this process; None where /proc is missing."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # not Linux
        return None


def of_tree(root: Branch, lag: LoopLag, dead_letters: int) -> Node:
    """The record of a whole tree, with the numbers of its process on the root."""
    node = of_member(root)
    return msgspec.structs.replace(node, rss_bytes=rss_bytes(), loop_lag_ms=lag.worst_ms, dead_letters=dead_letters)


def of_member(member: Member) -> Node:
    """The record of one actor or group and all below it."""
    now = trio.current_time()
    at, due = member.last_error_at, member.due_at
    if due is None and member.parent is not None and member.parent.status is Status.PARKED:
        due = member.parent.due_at  # it comes back with its group
    node = Node(
        name=member.spec.name,
        path=member.path,
        kind="group" if isinstance(member, Branch) else "actor",
        state=WORDS[member.status],
        pid=os.getpid(),
        incarnation=member.incarnation,
        restarts=max(0, member.incarnation - 1),
        uptime_s=round(now - member.began_at, 3) if member.alive else None,
        retry_in_s=round(max(0.0, due - now), 3) if due is not None and not member.alive else None,
        last_error=member.last_error,
        last_error_at=at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at is not None else "",
    )
    if isinstance(member, Branch):
        return msgspec.structs.replace(node, children=_of_members(member))
    if isinstance(member, Slot):
        return msgspec.structs.replace(node, mailbox=_mail(member), facts=member.known)
    return node


def _of_members(group: Branch) -> list[Node]:
    """The records of a group's members; of many, all that are not shown are one, so that the whole can be read."""
    members = group.members
    if len(members) <= MOST_SHOWN:
        return [of_member(member) for member in members]
    places = sorted(range(len(members)), key=lambda place: _calm(members[place]))
    shown = [of_member(members[place]) for place in sorted(places[:MOST_SHOWN])]
    others = [members[place] for place in places[MOST_SHOWN:]]
    mails = [_mail(other) for other in others if isinstance(other, Slot)]
    sums = {name: sum(getattr(mail, name) for mail in mails) for name in Mail.__struct_fields__}
    sums["oldest_s"] = max((mail.oldest_s for mail in mails), default=0.0)
    rest = msgspec.structs.replace(
        of_member(others[0]),
        name=f"and {len(others)} others",
        path=f"{group.path}/*",
        restarts=sum(max(0, other.incarnation - 1) for other in others),
        uptime_s=None,
        mailbox=Mail(**sums),
        facts={},
        children=[],
    )
    return [*shown, rest]


def _calm(member: Member) -> bool:
    """Nothing is the matter with it."""
    waits = isinstance(member, Slot) and member.box.depth > 0
    return member.status is Status.RUNNING and member.incarnation <= 1 and not member.last_error and not waits


class Process(Protocol):
    """What the slot of a process keeps."""

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None between two."""
        ...

    async def report(self, within: float) -> Node | None:
        """Its status tree; None when it does not answer in that many seconds, or none runs."""
        ...


async def with_processes(tree: Tree, within: float) -> Node:
    """The tree of this process and of all below it, with their numbers; all are asked at once.

    Args:
        within: seconds for each to answer; what does not is shown without its parts.
    """
    parts: dict[str, tuple[int | None, Node | None]] = {}

    async def ask(path: str, process: Process) -> None:
        parts[path] = process.pid, await process.report(within)

    async with trio.open_nursery() as nursery:
        for path, slot in tree.slots.items():
            if slot.spec.run in PROCESSES and slot.kept is not None:
                nursery.start_soon(ask, path, cast(Process, slot.kept))  # that actor keeps nothing else
    return _joined(tree.status(), parts)


def _joined(node: Node, parts: Mapping[str, tuple[int | None, Node | None]]) -> Node:
    children = [_joined(child, parts) for child in node.children]
    if node.path not in parts:
        return msgspec.structs.replace(node, children=children)
    pid, part = parts[node.path]
    facts = {name: fact for name, fact in node.facts.items() if name not in ("pid", "rss_mb", "lag_ms")}
    node = msgspec.structs.replace(node, kind="process", pid=pid or 0, facts=facts)
    if part is None:
        return msgspec.structs.replace(node, answers=not (pid and node.state == "running"))
    return msgspec.structs.replace(
        node,
        children=part.children,
        rss_bytes=part.rss_bytes,
        loop_lag_ms=part.loop_lag_ms,
        dead_letters=part.dead_letters,
    )


def _mail(slot: Slot) -> Mail:
    box, counted = slot.box, slot.box.counters
    return Mail(
        depth=box.depth,
        limit=box.limit,
        oldest_s=round(box.oldest_s, 3),
        in_flight=box.in_flight,
        taken=counted.taken,
        refused=counted.refused,
        dead=counted.dead,
        lost=counted.lost,
    )


def age(seconds: float) -> str:
    """A duration for people: `450ms`, `7.2s`, `3m12s`, `5h02m`, `3d04h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def render(node: Node) -> str:
    """The tree as text for a terminal; ends with a line break."""
    return "\n".join(_harmless(line) for line in _lines(node, "", "")) + "\n"


def _harmless(line: str) -> str:
    """One line, whatever strangers wrote into it: servers name their tools, and say why they end."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line)


def _lines(node: Node, first: str, rest: str) -> Iterator[str]:
    mark = "! " if node.state in ALARMING or not node.answers or node.facts.get("trouble") else ""
    yield f"{first}{mark}{node.name}  {', '.join(_words(node))}"
    bar = "│ " if node.children else "  "
    for line in _notes(node):
        yield f"{rest}{bar}  {line}"
    for child in node.children:
        last = child is node.children[-1]
        yield from _lines(child, f"{rest}{'└─ ' if last else '├─ '}", f"{rest}{'   ' if last else '│  '}")


def _words(node: Node) -> Iterator[str]:
    yield node.state if node.uptime_s is None else f"{node.state} for {age(node.uptime_s)}"
    if node.retry_in_s is not None:
        yield f"next try in {age(node.retry_in_s)}" if node.retry_in_s else "next try now"
    elif node.state == "parked" and node.kind != "group":
        yield "no next try planned: restart it by hand"
    if node.restarts:
        yield f"{node.restarts} restart{'s' if node.restarts > 1 else ''}"
    if not node.answers:
        yield f"pid {node.pid}, does not answer"
    if node.rss_bytes is not None:
        yield f"pid {node.pid}, {node.rss_bytes / 1e6:.0f} MB"
    if node.loop_lag_ms is not None:
        yield f"loop lag {node.loop_lag_ms:.1f} ms"
    if node.dead_letters:
        yield f"{node.dead_letters} dead letters"
    if node.mailbox is not None:
        yield from _mail_words(node.mailbox)


def _mail_words(mail: Mail) -> Iterator[str]:
    yield f"{mail.taken} taken"
    if mail.depth:
        yield f"{mail.depth} of {mail.limit} waiting"
    if mail.oldest_s > BUSY_S:
        yield f"oldest {age(mail.oldest_s)}"
    for count, word in (
        (mail.in_flight, "in hand"),
        (mail.refused, "refused (full)"),
        (mail.dead, "dead letters"),
        (mail.lost, "lost in crashes"),
    ):
        if count:
            yield f"{count} {word}"


def _notes(node: Node) -> Iterator[str]:
    if node.last_error:
        yield f"last error {node.last_error_at}: {node.last_error}"
    facts = sorted(node.facts.items(), key=lambda fact: (fact[0] != "state", fact[0]))
    # what is a sentence has a line of its own
    texts = {name: value for name, value in facts if isinstance(value, str) and (" " in value or len(value) > LONG)}
    if short := "  ".join(f"{name}={value}" for name, value in facts if name not in texts):
        yield short
    for name, text in texts.items():
        yield f"{name}: {text}"

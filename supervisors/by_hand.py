"""A part of the service restarted by hand, in whichever of its processes it lives.

`restart` stops and starts one actor, group or process and says how it is then; one that is parked is started
too. What can fail: nobody has that path, or the process that has it does not answer in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

import trio

from protocol.errors import Code, Fault
from protocol.reporter import PartState
from protocol.spec import Status
from supervisors.status import PROCESSES, Node
from supervisors.supervisor import Tree
from supervisors.tree import role_of

WITHIN_S = 25.0  # below what who asks waits; a server takes up to five seconds to stop, a process longer
SHOWN = 20  # paths that are named to who asked for one that is not there
CARRIERS = ("watcher", "reporter")
"""They carry the order and its answer, and would cut both off."""


class Process(Protocol):
    """What the slot of a process keeps."""

    async def restart(self, path: str, within: float) -> PartState | None:
        """As `restart`; None: it has no such part, or none runs. Raises Fault."""
        ...


async def restart(tree: Tree, path: str, within: float = WITHIN_S) -> PartState | None:
    """Restart what has that path in this tree, or in a process below it; None: nobody has it. Raises Fault."""
    if path in CARRIERS:
        raise Fault(Code.FORBIDDEN, f"{path} passes this order on and cannot be restarted by it.")
    if path and (path in tree.slots or path in tree.branches):
        with trio.move_on_after(within):
            await tree.restart(path)
        member = tree.slots.get(path) or tree.branches[path]
        return PartState(path, member.status.name.lower(), member.last_error if member.status is Status.PARKED else "")
    for slot in tuple(tree.slots.values()):
        if slot.spec.run in PROCESSES and slot.spec.name == role_of(path) and slot.kept is not None:
            return await cast(Process, slot.kept).restart(path, within)  # that actor keeps nothing else
    return None


def unknown(path: str, tree: Node) -> Fault:
    """What is said to who asked for a path that nobody has."""
    paths = [found for found in dict.fromkeys(_paths(tree)) if found not in CARRIERS]
    near = [found for found in paths if found.partition("/")[0] == path.partition("/")[0]] or paths
    more = ", ..." if len(near) > SHOWN else ""
    return Fault(
        Code.NOT_FOUND,
        f"There is no part {path!r}; there are: {', '.join(near[:SHOWN])}{more}.",
        hint="`actors-main status` shows all parts.",
    )


def _paths(node: Node) -> Iterator[str]:
    if node.path:
        yield node.path
    for child in node.children:
        yield from _paths(child)

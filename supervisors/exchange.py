"""Mail across processes: finds the port to the process that has an address, and brings in what comes from others.

(skeleton: signatures are final, bodies follow)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from protocol.mail import Inlet
from protocol.spec import Down, Up
from supervisors.port import Control, Port
from supervisors.supervisor import Tree


def role_of(path: str) -> str:
    """The role that has an address: the first component of its path."""
    return path.partition("/")[0]


class Exchange:
    """The post office of one process.

    Args:
        role: own role.
        incarnation: of this process in its role, from 1.
        addresses: Unix socket path by role; roles that are connected to on first use. May be replaced later
            (attribute `addresses`), in a worker once Boot came.
        place: the role that has an address; default: the path's first component. May be replaced later.
        vocabulary: how bodies are decoded; default: the product's.
    """

    def __init__(
        self,
        role: str,
        incarnation: int = 1,
        *,
        addresses: Mapping[str, str] | None = None,
        place: Callable[[str], str] = role_of,
        vocabulary: object = None,
    ) -> None:
        self.role = role
        self.incarnation = incarnation
        self.addresses: Mapping[str, str] = addresses or {}
        self.place = place

    def attach(self, tree: Tree) -> None:
        """This process's tree is there: from now on Hello is said, and mail comes in. Called by `running`."""
        raise AssertionError("skeleton")

    def inlet(self, path: str) -> Inlet | None:
        """The sending side to an address of another process; None when nobody has it. Called by `Tree.mailbox`."""
        raise AssertionError("skeleton")

    def told(self, event: Down | Up) -> None:
        """An actor here ended or is ready: every peer is told. Called by `Tree.announce`."""
        raise AssertionError("skeleton")

    async def serve(
        self,
        stream: trio.abc.Stream,
        *,
        control: Control | None = None,
        task_status: trio.TaskStatus[Port] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run a port on one end of a socketpair until it ends; closes the stream. `started` gives the Port at once.

        Mail goes through it as soon as the peer said Hello; control items go both ways from the beginning.
        Raises nothing for what the peer does.
        """
        raise AssertionError("skeleton")

    async def run(
        self,
        listener: trio.SocketListener | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept ports (Unix socket; not closed here) and connect to `addresses` where needed, until cancelled."""
        raise AssertionError("skeleton")

    async def flush(self) -> None:
        """Wait until all that is queued on all ports was given to the kernel; for an ordered end, with a deadline."""
        raise AssertionError("skeleton")

"""One connection between two processes: two tasks that carry mail, answers, events and control items.

(skeleton: signatures are final, bodies follow)
"""

from __future__ import annotations

from typing import Any, Protocol

import trio

from protocol.frames import ControlItem, Item
from protocol.reply import Reply


class Control(Protocol):
    """Who gets the control items of a port that leads to the process that started us, or that we started."""

    def control(self, port: Port, item: ControlItem) -> None:
        """One control item came. Called in the port's reading task: must not wait; what it raises ends the port."""
        ...


class Port:
    """One connection; made by `Exchange.serve`.

    Attributes:
        role, incarnation: the peer's, from its Hello; "" and 0 before.
    """

    role: str
    incarnation: int

    def tell(self, item: Item) -> None:
        """Queue an item that is no mail; never waits. Leaves with the frame of this scheduler tick."""
        raise AssertionError("skeleton")

    async def flush(self) -> None:
        """Wait until all that is queued was given to the kernel, or the port has ended."""
        raise AssertionError("skeleton")

    def close(self) -> None:
        """End the port now; what is queued is lost."""
        raise AssertionError("skeleton")

    async def up(self) -> None:
        """Wait until the peer has said Hello (it takes mail). Raises Gone if the port ends before."""
        raise AssertionError("skeleton")

    def put(self, to: str, message: object, reply: Reply | None, waits: bool) -> bool:
        """Mail for the peer; as `Mailbox.put`."""
        raise AssertionError("skeleton")


__all__ = ["Any", "Control", "Port", "trio"]

"""The sending side of a mailbox, as a reference sees it, wherever the mailbox is.

Used through `protocol.mail`, which hands these names on. `Mailbox` is one in this process; for one in another
process `supervisors.peer` has its own. Nothing here waits or fails; who implements it says what can.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from protocol.reply import Reply


class Counters(msgspec.Struct, gc=False):
    """What a mailbox has seen since its slot was made."""

    taken: int = 0
    """Messages handed to the actor."""
    refused: int = 0
    """Messages not taken because the mailbox was full."""
    dead: int = 0
    """Messages to a closed mailbox (dead letters)."""
    lost: int = 0
    """Asks that ended `Gone` because the actor died with them in hand."""


class Inlet(Protocol):
    """The sending side of a mailbox, here (`Mailbox`) or in another process; used through a Ref."""

    @property
    def closed(self) -> bool:
        """Nobody takes messages, or nobody can be reached; a Ref looks the address up again."""
        ...

    @property
    def depth(self) -> int:
        """Messages that wait, or are under way; `limit` while nothing is taken."""
        ...

    @property
    def limit(self) -> int:
        """How many may."""
        ...

    @property
    def counters(self) -> Counters:
        """What it has seen; of another process, all mail to it."""
        ...

    def put(self, message: object, reply: Reply | None = None, waits: bool = False) -> bool:
        """Take a message without waiting; False: not taken, counted.

        Args:
            waits: the sender has waited for room, and would go on to: a full mailbox may not drop it later.
        """
        ...

    def nudge(self) -> None:
        """Set the actor's wake flag; without effect across processes."""
        ...

    async def wait_for_room(self) -> None:
        """Wait until a message may be taken, or until it closes."""
        ...


class Directory(Protocol):
    """Where references find mailboxes by path."""

    def mailbox(self, path: str, *, letter: bool = True) -> Inlet | None:
        """The mailbox of a slot, or None when there is no such slot: a dead letter, if there is one for it."""
        ...

"""The door: holds the sockets that clients connect to, for all fronts; they are the root's, and outlive each front.

Fronts inherit them. When the configured address changes each front asks here, over a Unix socket, and gets the
new listeners as descriptors: the first who asks has them bound, the others get the same. What the root holds of
the old address is closed then; a front serves its own copy on until what was queued in it is done.

Args: `held` (`Held`), `socket`: a bound and listening Unix socket (SOCK_SEQPACKET), which stays the caller's.
What can fail: an address that cannot be bound is the asker's answer; the old one stays in force.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from array import array
from collections.abc import Callable, Iterator, Sequence

import msgspec
import trio

from protocol.door import MOST_BYTES, MOST_LISTENERS, DoorMessage, OpenDoor, Opened
from protocol.mail import Mailbox
from protocol.spec import Context

log = logging.getLogger("supervisors.door")

BACKLOG = 4096
ANSWER_S = 5.0  # for one connection; its peer is a front of ours


class Held:
    """The listeners in force, and what was asked for when they were bound.

    Args:
        listeners: bound and listening.
        moved: told host and port of others that take their place.
    """

    def __init__(
        self, host: str, port: int, listeners: Sequence[trio.SocketListener], moved: Callable[[str, int], None]
    ) -> None:
        self.asked = (host, port)
        self.listeners = list(listeners)
        self.moved = moved

    def descriptors(self) -> list[int]:
        """To be inherited or passed on."""
        return [listener.socket.fileno() for listener in self.listeners]

    async def open(self, host: str, port: int) -> None:
        """Hold that address instead, if it is another one. Raises OSError, ValueError."""
        if (host, port) == self.asked:
            return
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
        old, self.listeners, self.asked = self.listeners, listeners, (host, port)
        for listener in old:
            listener.socket.close()  # of the root only: fronts have their own
        bound_host, bound_port = listeners[0].socket.getsockname()[:2]
        self.moved(bound_host, bound_port)

    def close(self) -> None:
        """Hold nothing any more."""
        for listener in self.listeners:
            listener.socket.close()


async def run(box: Mailbox[DoorMessage], ctx: Context) -> None:
    """The actor."""
    held: Held = ctx.args["held"]
    asked = trio.socket.from_stdlib_socket(ctx.args["socket"])
    one = trio.Lock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, asked, held, one, nursery)
        async for _ in box:
            pass  # nudges: nothing to do
        nursery.cancel_scope.cancel()


async def accept(asked: trio.socket.SocketType, held: Held, one: trio.Lock, nursery: trio.Nursery) -> None:
    """Take connections, for ever."""
    while True:
        peer, _ = await asked.accept()
        nursery.start_soon(answer, peer, held, one)


async def answer(peer: trio.socket.SocketType, held: Held, one: trio.Lock) -> None:
    """One question."""
    with peer, trio.move_on_after(ANSWER_S):
        try:
            wanted = msgspec.json.decode(await peer.recv(MOST_BYTES), type=OpenDoor)
            async with one:
                said = await opened(held, wanted)
                passed = [] if said.trouble else held.descriptors()[:MOST_LISTENERS]
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", passed))] if passed else []
                await peer.sendmsg([msgspec.json.encode(said)], ancillary)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("a front asked for listeners and got none: %s", error)


async def opened(held: Held, wanted: OpenDoor) -> Opened:
    """The answer to a question."""
    try:
        await held.open(wanted.host, wanted.port)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        return Opened(str(getattr(error, "strerror", None) or error) or type(error).__name__)
    return Opened()


@contextlib.contextmanager
def bound(path: str) -> Iterator[socket.socket]:
    """The door's socket at that path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as made:
        made.bind(path)
        made.listen(BACKLOG)
        made.setblocking(False)
        yield made


__all__ = ["Held", "bound", "run"]

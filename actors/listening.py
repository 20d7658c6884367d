"""Where the gateway listens, and moving it while it runs: the new listener is open before the old one ends.

Sockets that came through the old listener stay; connections that the kernel had accepted for it are served
for `OVERLAP_S` more. What cannot be bound, or must not be, leaves everything as it is, and says why.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from actors.http import is_loopback
from protocol.watcher import WebSocket

log = logging.getLogger("actors.gateway")

OVERLAP_S = 2.0  # the old listener serves on for so long: what was queued in it, and who just looked it up
BACKLOG = 4096

Handler = Callable[[trio.SocketStream], Awaitable[object]]
Source = Callable[[str, int], Awaitable[list[trio.SocketListener]]]


async def bind(host: str, port: int) -> list[trio.SocketListener]:
    """Listeners of that address, bound here. Raises OSError, ValueError (a name that cannot be one)."""
    return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)


class Listening:
    """The listeners in force.

    Args:
        nursery: where connections run; outlives every listener.
        handler: serves one connection, never raises.
        moved: told the new host and port.
        source: gives the listeners of a host and port. Raises OSError, ValueError.
    """

    def __init__(
        self, nursery: trio.Nursery, handler: Handler, moved: Callable[[str, int], None], source: Source
    ) -> None:
        self._nursery = nursery
        self._source = source
        self._handler = handler
        self._moved = moved
        self._scope = trio.CancelScope()
        self.loopback = True
        """Only this machine can connect."""
        self.trouble = ""
        """Why the configured address is not the one in force; empty if it is."""

    def begin(self, listeners: Sequence[trio.SocketListener], *, loopback: bool) -> None:
        """Serve these from now on."""
        self.loopback = loopback
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._serve, listeners, self._scope)

    async def _serve(self, listeners: Sequence[trio.SocketListener], scope: trio.CancelScope) -> None:
        with scope:
            await trio.serve_listeners(self._handler, list(listeners), handler_nursery=self._nursery)

    def end(self) -> None:
        """Take no more connections; those that wait are for others that listen on the same sockets."""
        self._scope.cancel()

    async def move(self, websocket: WebSocket) -> None:
        """Listen where the configuration says now."""
        loopback = is_loopback(websocket.host)
        if not loopback and not websocket.allow_unauthenticated:
            self._refuse(f"{websocket.host} can be reached from other machines, and nobody is asked who they are")
            return
        try:
            listeners = await self._source(websocket.host, websocket.port)
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            reason = getattr(error, "strerror", None) or error
            self._refuse(f"cannot listen on {websocket.host}:{websocket.port}: {reason}")
            return
        old, self.trouble = self._scope, ""
        self.begin(listeners, loopback=loopback)
        host, port = listeners[0].socket.getsockname()[:2]
        log.info("listening on %s:%d now; the old address ends in %g s, its sockets stay", host, port, OVERLAP_S)
        self._moved(host, port)
        try:
            await trio.sleep(OVERLAP_S)
        finally:
            old.cancel()

    def _refuse(self, reason: str) -> None:
        self.trouble = f"{reason}; the old address stays in force"
        log.error("chat.websocket: %s", self.trouble)

"""Which resources of a server are followed, for whom: kept over its incarnations, told on as they change.

Knows no MCP: what follows one resource is a function of the connection. Each followed one is a task of the
incarnation; the first gateway that wants it starts it, the last that does not ends it, and a new incarnation follows
all again, and says that they may have changed. What a server says is passed on a few times a second at most, however
often it says so. What can fail: the first `add` of a resource, with the server's `Fault`; later refusals are logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from actors.server_faults import ServerEnded
from protocol.errors import Code, Fault

MOST = 64  # followed of one server; each may be a connection of its own
UNFOLLOW_S = 5.0  # for a server to be told that nobody wants it any more
TELL_PAUSE_S = 0.2  # between two times that changes are told

Kept = dict[str, set[str]]
"""Gateways, by the address of the resource."""


class Connection(Protocol):
    """To the server."""

    async def follow_resource(self, uri: str, began: Callable[[], None], updated: Callable[[], None]) -> None:
        """Until cancelled. Raises Fault, ServerEnded."""

    async def unfollow_resource(self, uri: str) -> None:
        """After that."""


log = logging.getLogger(__name__)


@dataclass
class _Followed:
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    settled: trio.Event = field(default_factory=trio.Event)
    """It has begun, or was refused."""
    ended: trio.Event = field(default_factory=trio.Event)
    """The server knows that nobody wants it any more."""
    refusal: Fault | None = None


class Subscriptions:
    """Those of one incarnation.

    Args:
        kept: outlives it.
        tell: passes on to a gateway that a resource has changed.
    """

    def __init__(self, server: str, kept: Kept, tell: Callable[[str, str], None]) -> None:
        self._server = server
        self._kept = kept
        self._tell = tell
        self._followed: dict[str, _Followed] = {}
        self._changed: set[str] = set()
        self._news = trio.Event()
        self._ending: dict[str, _Followed] = {}
        self._nursery: trio.Nursery | None = None
        self._connection: Connection | None = None

    async def run(
        self, connection: Connection, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Follow all that is wanted, and tell, until cancelled; `add` may be called once it has started."""
        async with trio.open_nursery() as nursery:
            self._nursery, self._connection = nursery, connection
            for uri in tuple(self._kept):
                self._begin(uri, again=True)
            task_status.started()
            while True:
                await self._news.wait()
                self._news = trio.Event()
                changed, self._changed = self._changed, set()
                for uri in sorted(changed):
                    for gateway in sorted(self._kept.get(uri, ())):
                        self._tell(gateway, uri)
                await trio.sleep(TELL_PAUSE_S)

    async def add(self, uri: str, gateway: str) -> bool:
        """The gateway wants it; returns once the server agrees. Raises Fault."""
        followed = self._followed.get(uri)
        if followed is None:
            if len(self._followed) >= MOST:
                raise Fault(Code.OVERLOADED, f"{MOST} resources of MCP server {self._server!r} are followed already.")
            followed = self._begin(uri)
        self._kept.setdefault(uri, set()).add(gateway)
        try:
            await followed.settled.wait()
        except trio.Cancelled:
            self.remove(uri, gateway)  # who asked has been told that it failed
            raise
        if followed.refusal is not None:
            self.remove(uri, gateway)
            raise followed.refusal
        return True

    def remove(self, uri: str, gateway: str) -> None:
        """The gateway does not want it any more."""
        gateways = self._kept.get(uri, set())
        gateways.discard(gateway)
        if not gateways:
            self._kept.pop(uri, None)
            if (followed := self._followed.pop(uri, None)) is not None:
                self._ending[uri] = followed
                followed.scope.cancel()

    def forget(self, gateway: str) -> None:
        """Its process is gone."""
        for uri in [uri for uri, gateways in self._kept.items() if gateway in gateways]:
            self.remove(uri, gateway)

    def updated(self, uri: str) -> None:
        """The server says that it changed; it may be part of one that is followed."""
        changed = {uri} & self._kept.keys() or {wanted for wanted in self._kept if uri.startswith(wanted)}
        if changed:
            self._changed |= changed
            self._news.set()

    def _begin(self, uri: str, *, again: bool = False) -> _Followed:
        followed = self._followed[uri] = _Followed()
        if self._nursery is None or self._connection is None:
            raise RuntimeError("there is no connection yet")  # callers wait for it
        self._nursery.start_soon(self._run, uri, followed, self._connection, again)
        return followed

    async def _run(self, uri: str, followed: _Followed, connection: Connection, again: bool) -> None:
        def began() -> None:
            followed.settled.set()
            if again:
                self.updated(uri)  # nobody knows what happened since the last incarnation

        if (before := self._ending.get(uri)) is not None:
            await before.ended.wait()  # or the server would be told of the end after the beginning
        try:
            with followed.scope:
                await connection.follow_resource(uri, began, partial(self.updated, uri))
            with trio.move_on_after(UNFOLLOW_S):
                await connection.unfollow_resource(uri)
        except ServerEnded:  # the next incarnation follows what has been agreed
            followed.refusal = Fault(Code.MCP_SERVER_UNAVAILABLE, f"MCP server {self._server!r} ended.")
        except Fault as fault:
            log.info("MCP server %r does not tell of %s: %s", self._server, uri, fault.body.text)
            followed.refusal = fault
            self._kept.pop(uri, None)
        finally:
            followed.settled.set()
            followed.ended.set()
            for table in (self._followed, self._ending):
                if table.get(uri) is followed:
                    del table[uri]

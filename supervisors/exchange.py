"""Mail across processes: finds the port to the process that has an address, and brings in what comes from others.

One per process, beside its tree. Peers are known by role; `place` says which role has a path. A port comes to be
in three ways: on a socketpair (`serve`), by a connection that we take, or by one that we make (`run`) when mail
wants to go to a role in `addresses`, and again whenever it is lost. One port per peer carries our mail, so that
order is kept. When two processes connect to each other at the same time, the connection of the one with the
smaller role name stays; a socketpair always does.

What can fail: connections, and that is mended here. When a peer's port ends, watchers are told `Down` of all its
actors; its next Hello brings `Up`. What it means for mail under way is said in `supervisors.port`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Protocol

import trio

from protocol.frames import Hello, Leaving, Left, Told
from protocol.mail import Inlet, Mailbox
from protocol.packing import BadFrame
from protocol.spec import Down, Up
from protocol.vocabulary import Message, Vocabulary
from supervisors.peer import Peer, RemoteInlet
from supervisors.port import Control, Port

log = logging.getLogger("supervisors.exchange")

HELLO_S = 10.0  # for who connects to say who it is; it does so first of all
AGAIN_S = 0.005  # before the second try to connect; doubles up to AGAIN_CAP_S
AGAIN_CAP_S = 1.0
CROWDED_S = 0.1  # before connections are taken again, where descriptors had run out
CROWDED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
ENDED = "its process ended"


class Home(Protocol):
    """The tree of this process, as far as mail from abroad is concerned."""

    def house(self, path: str) -> Mailbox[Any] | None:
        """The mailbox of a slot; None, counted, when there is none."""
        ...

    def up(self) -> list[Up]:
        """The actors that are ready."""
        ...

    def announce_abroad(self, event: Down | Up) -> None:
        """Tell the watchers here what happened to an actor in another process."""
        ...


def role_of(path: str) -> str:
    """The role that has an address: the first word of its path."""
    return path.partition("/")[0]


class Exchange:
    """The post office of one process.

    Args:
        role: own role.
        incarnation: of this process in its role, from 1.
        addresses: Unix socket by role, of those that we may connect to. May be replaced later.
        place: the role that has a path; default: its first word.
        vocabulary: union of the messages that are understood; None: the product's.
        homely: paths that every process has for itself; nobody is told of them. Others call them ROLE//PATH.
    """

    def __init__(
        self,
        role: str,
        incarnation: int = 1,
        *,
        addresses: Mapping[str, str] | None = None,
        place: Callable[[str], str] = role_of,
        vocabulary: object = None,
        homely: Collection[str] = ("logs",),
    ) -> None:
        self.role = role
        self.incarnation = incarnation
        self.addresses: Mapping[str, str] = addresses or {}
        self.place = place
        self.vocabulary = Vocabulary(Message if vocabulary is None else vocabulary)
        self.peers: dict[str, Peer] = {}
        """By role; those that were ever there or wanted."""
        self.ports: set[Port] = set()
        """All that run."""
        self._homely = homely
        self._below: set[str] = set()
        self._tree: Home | None = None
        self._nursery: trio.Nursery | None = None
        self._connecting: set[str] = set()

    # For the tree: it is an `Abroad`.

    def attach(self, tree: Home) -> None:
        """The tree is there: peers are told that we take mail."""
        self._tree = tree
        for port in self.ports:
            if port.opened_by is not None:
                self._greet(port)

    def inlet(self, path: str) -> Inlet | None:
        """The sending side to an address of another process; None when no process has it."""
        role = self.place(path)
        if role == self.role:
            return None
        peer = self.peers.get(role)
        if peer is None:
            if role not in self.addresses:
                return None
            peer = self._peer(role)
        return None if peer.closed else RemoteInlet(peer, path)

    def relay(self, role: str) -> None:
        """A process below this one, which knows no other: what it says to others and of its actors is passed on, and
        what others tell of theirs is to it."""
        self._below.add(role)

    def inlet_at(self, role: str, path: str) -> Inlet:
        """The sending side to an address of the process that has that role, whichever role the address has."""
        return RemoteInlet(self._peer(role), path)

    def told(self, event: Down | Up) -> None:
        """An actor of ours ended or is ready: peers are told."""
        if self._public(event.path):
            for port in self.ports:
                if port.greeted:
                    port.tell(Told(event))

    def _public(self, path: str) -> bool:
        return path not in self._homely and "/sessions/" not in path

    # Ports.

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
        port = Port(stream, self, control=control)
        task_status.started(port)
        await self._live(port)

    async def run(
        self,
        listener: trio.SocketListener | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take connections (the listener stays open at the end) and make those that are wanted, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                for peer in self.peers.values():
                    self._want(peer)
                task_status.started()
                if listener is not None:
                    await self.accept(listener)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._connecting.clear()

    async def flush(self) -> None:
        """Wait until what is queued on all ports was given to the kernel; a peer may be stuck: give it a deadline."""
        for port in list(self.ports):
            await port.flush()

    async def _live(self, port: Port, hello_within: float = float("inf")) -> None:
        self.ports.add(port)
        if port.opened_by is not None:
            self._greet(port)
        await port.serve(hello_within=hello_within)

    async def accept(self, listener: trio.SocketListener) -> None:
        """Take connections until the listener is closed, and see them to their ends. Beside `run(None)`."""
        async with trio.open_nursery() as nursery:
            await self._accept(listener, nursery)

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return  # by whoever gave it: who connects now waits for the next process of this role
            except OSError as error:
                if error.errno not in CROWDED:
                    raise
                log.warning("no connection can be taken: %s", error)
                await trio.sleep(CROWDED_S)
                continue
            nursery.start_soon(self._live, Port(stream, self, opened_by=None), HELLO_S, name="port, taken")

    def keep(self, *roles: str) -> None:
        """Be connected to these at any time, also before there is mail for them: their events are wanted."""
        for role in roles:
            peer = self._peer(role)
            peer.known = True
            self._want(peer)

    def _want(self, peer: Peer) -> None:
        wanted = peer.known or peer.waiting
        if wanted and self._nursery is not None and peer.role in self.addresses and peer.role not in self._connecting:
            self._connecting.add(peer.role)
            # a port that somebody else runs may end when `run` has ended, and does not know it yet
            with suppress(RuntimeError):
                self._nursery.start_soon(self._connect, peer, self._nursery, name=f"connects to {peer.role}")

    async def _connect(self, peer: Peer, nursery: trio.Nursery) -> None:
        """Keep a connection to that role, as long as there is an address."""
        pause = AGAIN_S
        while peer.role in self.addresses:
            if peer.port is not None or not (peer.known or peer.waiting):
                pause = AGAIN_S
                await peer.changed.wait()
                continue
            try:
                stream = await trio.open_unix_socket(self.addresses[peer.role])
            except OSError as error:
                log.debug("no connection to %s: %s", peer.role, error)
            else:
                port = peer.attempt = Port(stream, self, opened_by=self.role)
                nursery.start_soon(self._live, port, name=f"port to {peer.role}")
                await port.done.wait()
            await trio.sleep(pause)
            pause = min(pause * 2, AGAIN_CAP_S)
        self._connecting.discard(peer.role)

    # For ports: it is their `Desk`.

    def house(self, path: str) -> Inlet | None:
        """A mailbox of this process; where there are processes below it, which know no others, of any."""
        role, _, homely = path.partition("//")
        if homely and role in self._below:
            return self.inlet_at(role, path)
        if homely in self._homely and role == self.role:
            path = homely
        found = self._tree.house(path) if self._tree is not None else None
        return self.inlet(path) if found is None and self._below else found

    def greeted(self, port: Port, hello: Hello) -> None:
        """The peer takes mail: from now on ours goes there, unless another port is to be kept. Raises BadFrame."""
        peer = self._expected(port, hello)
        opened_by = port.opened_by = hello.role if port.opened_by is None else port.opened_by
        for other in (peer.port, peer.attempt):
            # What is refused here is closed at the other end by the same rule, or is not known there any more.
            same = other is peer.attempt or (other is not None and other.incarnation == hello.incarnation)
            if other is not None and other is not port and same and (other.opened_by or "") < opened_by:
                port.close()
                return
        if peer.attempt is not None and peer.attempt is not port:
            peer.attempt.close()
        peer.attempt = None
        port.role, port.incarnation = hello.role, hello.incarnation
        self._greet(port)
        port.actors = {up.path: up.incarnation for up in hello.up}
        self._switch(peer, port)
        if hello.role in self._below:
            for known in self.peers.values():
                if known.port is not None and known.role not in self._below:
                    for path, incarnation in known.port.actors.items():
                        port.tell(Told(Up(path, incarnation)))

    def _expected(self, port: Port, hello: Hello) -> Peer:
        if port.role:
            raise BadFrame("a second Hello")
        if hello.role == self.role:
            raise BadFrame(f"it says that it is {self.role}, as we are")
        for peer in self.peers.values():
            if peer.attempt is port and peer.role != hello.role:
                raise BadFrame(f"it says that it is {hello.role} where {peer.role} was expected")
        return self._peer(hello.role)

    def _peer(self, role: str) -> Peer:
        if role not in self.peers:
            self.peers[role] = Peer(role, lambda: role in self.addresses, self._want)
        return self.peers[role]

    def _greet(self, port: Port) -> None:
        if self._tree is not None and not port.greeted:
            port.greeted = True
            up = [event for event in self._tree.up() if self._public(event.path)]
            port.tell(Hello(self.role, self.incarnation, up))

    def heard(self, port: Port, event: Down | Up) -> None:
        """What a peer tells of its actors; watchers here are told."""
        if isinstance(event, Up):
            port.actors[event.path] = event.incarnation
        else:
            port.actors.pop(event.path, None)
        peer = self.peers.get(port.role)
        if peer is not None and peer.port is port:
            self._announce(port.role, event)
        if port.role in self._below:
            self.told(event)

    def _announce(self, role: str, event: Down | Up) -> None:
        """An actor of that role ended or is ready: watchers here are told, and the processes below."""
        if self._tree is not None:
            self._tree.announce_abroad(event)
        if role not in self._below:
            for port in self.ports:
                if port.greeted and port.role in self._below:
                    port.tell(Told(event))

    def leaves(self, port: Port) -> None:
        """The peer takes no more mail there: ours waits for who has its role next, and nothing is down meanwhile."""
        port.leaving = True
        port.done.set()
        peer = self.peers.get(port.role)
        if peer is not None and peer.port is port:
            peer.switch(self._second(port.role))
            self._want(peer)
        port.tell(Left())

    async def leave(self, within: float) -> None:
        """Take no more mail from others: they are told, and what they sent before they knew is here at the end.

        Args:
            within: seconds for them to say that they know; one that hangs may lose what it sends.
        """
        peers = [port for port in self.ports if port.greeted and port.opened_by != ""]
        for port in peers:
            port.tell(Leaving())
        with trio.move_on_after(within):
            for port in peers:
                await port.left.wait()

    def more(self, port: Port) -> None:
        """The port takes more mail than before."""
        peer = self.peers.get(port.role)
        if peer is not None and peer.port is port:
            peer.go_on()

    def ended(self, port: Port) -> None:
        """The port is no more."""
        self.ports.discard(port)
        for peer in self.peers.values():
            if peer.attempt is port:
                peer.attempt = None
            if peer.port is port:
                self._switch(peer, self._second(peer.role))
                self._want(peer)
            elif port.leaving and peer.role == port.role and peer.port is None:
                self._down(port)  # nobody has taken its place yet

    def _second(self, role: str) -> Port | None:
        """Another process of that role, which should have been replaced by the one that is gone."""
        others = [port for port in self.ports if port.role == role and not port.leaving]
        return max(others, key=lambda port: port.incarnation, default=None)

    def _switch(self, peer: Peer, port: Port | None) -> None:
        """From now on that port is the peer's; watchers are told what was up there and what is up here."""
        before = peer.port
        peer.switch(port)
        if before is not None:
            self._down(before)
        for path, incarnation in port.actors.items() if port is not None else ():
            self._announce(peer.role, Up(path, incarnation))

    def _down(self, port: Port) -> None:
        for path, incarnation in port.actors.items():
            self._announce(port.role, Down(path, incarnation, ENDED, None, parked=False))

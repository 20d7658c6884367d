"""One connection between two processes: a reading and a writing task that carry mail, events and control items.

What is queued after a pause leaves at once; all that follows within the same scheduler tick leaves as one frame. What
came in one frame is handled at once, by `supervisors.inbound` and `supervisors.outbound`, without a task or a cancel
scope per message.

May assume that the exchange knows the peer (`Desk`). What can fail: the connection, or a peer that sends what is
no frame. Then the port ends: who waits for an answer over it gets `Gone`, what was under way is lost, and nothing
else notices. The exchange connects anew.
"""

from __future__ import annotations

import logging
import time
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import trio

from protocol.frames import (
    Answered,
    Asked,
    Cast,
    ControlItem,
    Credit,
    Dropped,
    Faulted,
    Full,
    Hello,
    Item,
    Leaving,
    Left,
    Missed,
    Room,
    Told,
)
from protocol.mail import Inlet
from protocol.packing import BadFrame, Flow, Packer, Unpacker
from protocol.reply import Gone
from protocol.spec import Down, Up
from protocol.vocabulary import Vocabulary
from supervisors.direct import Direct
from supervisors.inbound import Inbound
from supervisors.outbound import Outbound

log = logging.getLogger("supervisors.port")

PAUSE_S = 0.0002  # without writing, after which the next item does not wait for others to come along
CHUNK = 65536  # bytes of one read: some frames of a busy tick, one part of a large item


class Control(Protocol):
    """Who gets the control items of a port that leads to the process that started us, or that we started."""

    def control(self, port: Port, item: ControlItem) -> None:
        """One control item came. Called in the port's reading task: must not wait; what it raises ends the port."""
        ...


class Desk(Protocol):
    """What a port sees of the exchange that it belongs to."""

    @property
    def vocabulary(self) -> Vocabulary:
        """How bodies are read."""
        ...

    def house(self, path: str) -> Inlet | None:
        """A mailbox of this process."""
        ...

    def greeted(self, port: Port, hello: Hello) -> None:
        """The peer takes mail. Raises BadFrame if it is not who it should be; may close the port."""
        ...

    def heard(self, port: Port, event: Down | Up) -> None:
        """What the peer tells of its actors."""
        ...

    def leaves(self, port: Port) -> None:
        """The peer takes no more mail."""
        ...

    def more(self, port: Port) -> None:
        """The port takes more mail than before."""
        ...

    def ended(self, port: Port) -> None:
        """The port is no more."""
        ...


class Port:
    """One connection; made by the exchange.

    Args:
        stream: closed at the end.
        desk: of the exchange.
        opened_by: the role that connected; empty for a socketpair, None: the peer, which is not known yet.
        control: gets control items; None: who sends one does not know the protocol.
    """

    def __init__(
        self, stream: trio.abc.Stream, desk: Desk, *, opened_by: str | None = "", control: Control | None = None
    ) -> None:
        self.role = ""
        """The peer's, once it has said Hello."""
        self.incarnation = 0
        """The peer's."""
        self.opened_by = opened_by
        self.leaving = False
        """The peer takes no more mail here."""
        self.done = trio.Event()
        """It is of no more use for our mail: the peer takes none, or the port has ended."""
        self.left = trio.Event()
        """The peer sends no more mail here, or the port has ended."""
        self.actors: dict[str, int] = {}
        """The peer's actors that are ready, with their incarnations."""
        self.greeted = False
        """We have said Hello."""
        self._stream = Direct(stream) if isinstance(stream, trio.SocketStream) else stream
        self._desk = desk
        self._control = control
        self._packer = Packer()
        self._flow = Flow()
        self.mail = Outbound(self._packer, self._flow, desk.vocabulary, self._wake, partial(desk.more, self))
        """Messages to the peer's actors."""
        self._inbound = Inbound(self._packer, self._flow, desk.vocabulary, self._wake, self._rouse, desk.house)
        self._scope = trio.CancelScope()
        self._direct = self._stream if isinstance(self._stream, Direct) else None
        self._writer: trio.lowlevel.Task | None = None
        self._rest: memoryview | None = None
        """Of a frame that the kernel has not taken all of."""
        self._wrote_at = 0.0
        self._writing = False
        self._flushed = trio.lowlevel.ParkingLot()
        self._up = trio.Event()
        self._ended = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            Cast: self._inbound.cast,
            Asked: self._inbound.asked,
            Dropped: self._inbound.dropped,
            Answered: self.mail.answered,
            Faulted: self.mail.faulted,
            Missed: self.mail.missed,
            Credit: self.mail.credited,
            Full: self.mail.held,
            Room: self.mail.freed,
            Hello: self._hello,
            Told: self._told,
            Leaving: lambda _: desk.leaves(self),
            Left: lambda _: self.left.set(),
            **dict.fromkeys(typing.get_args(ControlItem), self._controlled),
        }

    # Its life.

    async def serve(self, *, hello_within: float = float("inf")) -> None:
        """Carry what comes and goes, until either side ends it. Closes the stream.

        Args:
            hello_within: seconds within which the peer must say Hello.
        """
        self._scope.deadline = trio.current_time() + hello_within
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._inbound.nursery = nursery
                    nursery.start_soon(self._write, name="port writes")
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self._end()
            await trio.aclose_forcefully(self._stream)

    def close(self) -> None:
        """End it now; what is queued is lost."""
        self._scope.cancel()

    async def up(self) -> None:
        """Wait until the peer has said Hello. Raises Gone if the port ends before."""
        await self._up.wait()
        if not self.role:
            raise Gone("the port ended")

    def _end(self) -> None:
        self._ended = True
        self.done.set()
        self.left.set()
        self.mail.end()
        self._inbound.end()
        self._up.set()
        self._flushed.unpark_all()
        self._desk.ended(self)

    # Out.

    def tell(self, item: Item) -> None:
        """Queue an item that is no mail; never waits. Raises what msgspec raises for what it cannot encode."""
        if not self._ended:
            self._packer.add(item)
            self._wake()

    async def flush(self) -> None:
        """Wait until all that is queued was given to the kernel, or the port has ended."""
        while not self._ended and (self._packer or self._writing):
            await self._flushed.park()

    def _wake(self) -> None:
        if self._writer is not None and not self._write_now():
            self._rouse()

    def _rouse(self) -> None:
        if self._writer is not None:
            task, self._writer = self._writer, None
            trio.lowlevel.reschedule(task)

    def _write_now(self) -> bool:
        """Write what is queued without the task, which waits for something; False: it is needed after all."""
        now = time.perf_counter()
        if self._direct is None or now - self._wrote_at < PAUSE_S:
            return False
        self._wrote_at = now
        frames = self._frames()
        if frames is None:
            return True
        try:
            written = self._direct.send_some(frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            written = 0  # the task meets it too
        if written < len(frames):
            self._writing, self._rest = True, memoryview(frames)[written:]
        return self._rest is None and not self._packer

    def _frames(self) -> bytearray | None:
        if credit := self._flow.due(alone=not self._packer):
            self._packer.add(credit)
        return self._packer.take()

    async def _write(self) -> None:
        try:
            while True:
                rest, self._rest = self._rest, None
                frames = self._frames() if rest is None else rest
                if frames is None:
                    self._flushed.unpark_all()
                    await self._queued()
                else:
                    self._writing = True
                    await self._stream.send_all(frames)
                    self._writing = False
                    self._wrote_at = time.perf_counter()
                    if self._packer:
                        await trio.lowlevel.checkpoint()  # a large item is under way, and others want to go on
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The peer is gone. What it said before is still there to be read; the reader ends the port.
            self._writing = False

    async def _queued(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    # In.

    async def _read(self) -> None:
        unpacker = Unpacker()
        try:
            while data := await self._stream.receive_some(CHUNK):
                for items in unpacker.feed(data):
                    for item in items:
                        self._handlers[type(item)](item)
            if unpacker.torn:
                log.warning("%s ended within a frame", self)
        except BadFrame as error:
            log.error("%s is closed: %s", self, error)  # noqa: TRY400 - it says all that there is to know
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone, or we are
        except Exception:  # the boundary: a mistake in handling one item ends this port, not the process
            log.exception("%s is closed: an item could not be handled", self)

    def _hello(self, item: Hello) -> None:
        self._scope.deadline = float("inf")
        self._desk.greeted(self, item)
        self._up.set()

    def _told(self, item: Told) -> None:
        self._desk.heard(self, item.event)

    def _controlled(self, item: ControlItem) -> None:
        if self._control is None:
            raise BadFrame(f"{type(item).__name__} on a port that is for mail")
        self._control.control(self, item)

    def __str__(self) -> str:
        return f"the port to {self.role or self.opened_by or 'a process that has not said who it is'}"

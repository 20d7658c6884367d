"""What the process at the other end of a port wants of our actors: its messages, and the answers to them.

A message goes straight into its mailbox, without a task or a wait of its own. One that waits for room (`send`)
is put before a full mailbox, one task per such mailbox brings in all that is there, and the peer is told to send
no more to that address: so mailboxes are as bounded as they are at home, and none holds up another.

What can fail: a body that is not understood fails that message only, and is logged.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial

import trio

from protocol.errors import Code, Fault
from protocol.frames import Answered, Asked, Cast, Dropped, Faulted, Full, Item, Missed, Room
from protocol.mail import Inlet
from protocol.packing import BadFrame, Flow, Packer, TooLarge
from protocol.reply import Reply
from protocol.vocabulary import Unspeakable, Vocabulary, encoded
from supervisors.outbound import MISSES

log = logging.getLogger("supervisors.port")


class Inbound:
    """The receiving side of one port.

    Args:
        packer, flow: of the port.
        wake: called when something was packed.
        credit: called when enough came that the peer should be given credit, once all that came with it is handled.
        house: finds a mailbox of this process.
    """

    nursery: trio.Nursery
    """The port's; set when it runs."""

    def __init__(
        self,
        packer: Packer,
        flow: Flow,
        vocabulary: Vocabulary,
        wake: Callable[[], None],
        credit: Callable[[], None],
        house: Callable[[str], Inlet | None],
    ) -> None:
        self._packer = packer
        self._flow = flow
        self._vocabulary = vocabulary
        self._wake = wake
        self._credit = credit
        self._house = house
        self._open: dict[int, Reply] = {}
        self._before: dict[str, deque[object]] = {}

    def cast(self, item: Cast) -> None:
        """A message that is not answered."""
        self._arrived()
        box = self._house(item.to)
        if box is None:
            return
        before = self._before.get(item.to)
        if before is not None and not item.waits:
            box.counters.refused += 1  # those before it in line do not fit either
            return
        try:
            message = self._vocabulary.decode(item.body)
        except Unspeakable as error:
            log.error("%s got %s", item.to, error)  # noqa: TRY400 - it says all that there is to know
            return
        if before is not None:
            before.append(message)
        elif item.waits and box.depth >= box.limit and not box.closed:
            self._before[item.to] = deque((message,))
            self._tell(Full(item.to))
            self.nursery.start_soon(self._bring_in, item.to, name=f"mail waits before {item.to}")
        else:
            box.put(message)

    async def _bring_in(self, to: str) -> None:
        before = self._before[to]
        while before and (box := self._house(to)) is not None:
            await box.wait_for_room()
            while before and (box.depth < box.limit or box.closed):
                box.put(before.popleft())
        del self._before[to]
        self._tell(Room(to))

    def asked(self, item: Asked) -> None:
        """A message that is answered. Raises BadFrame."""
        self._arrived()
        if item.id in self._open:
            raise BadFrame(f"a second ask of number {item.id}")
        box = self._house(item.to)
        if box is None or box.closed:
            if box is not None:
                box.counters.dead += 1
            self._tell(Missed(item.id, "gone", item.to))
            return
        try:
            message = self._vocabulary.decode(item.body)
        except Unspeakable as error:
            log.error("%s got %s", item.to, error)  # noqa: TRY400 - it says all that there is to know
            self._tell(Faulted(item.id, Fault(Code.INTERNAL).body))
            return
        reply = Reply()
        if item.to in self._before:
            box.counters.refused += 1
        elif box.put(message, reply):
            self._open[item.id] = reply
            reply.when_closed(partial(self._answer, item.id))
            return
        self._tell(Missed(item.id, "overloaded", item.to))

    def dropped(self, item: Dropped) -> None:
        """The asker gave up."""
        if (reply := self._open.get(item.id)) is not None:
            reply.give_up()

    def _answer(self, number: int, reply: Reply) -> None:
        del self._open[number]
        if not reply.answered:
            return  # nobody waits for it: the asker gave up, or the port has ended
        error = reply.error
        if error is None:
            try:
                body = encoded(reply.value)
                self._packer.add(Answered(number, memoryview(body)), size=len(body))
            except (Unspeakable, TooLarge) as trouble:
                error = Fault(Code.MESSAGE_TOO_LARGE, f"The answer cannot be passed on: {trouble}.")
            except TypeError as trouble:  # a mistake of the actor, which has gone on
                error = trouble
        if error is not None:
            self._packer.add(_no_answer(number, error))
        self._wake()

    def end(self) -> None:
        """The port has ended: nobody waits for answers, and what waits before a mailbox is lost."""
        for reply in list(self._open.values()):
            reply.give_up()
        self._before.clear()

    def _arrived(self) -> None:
        if self._flow.arrived():
            self._credit()

    def _tell(self, item: Item) -> None:
        self._packer.add(item)
        self._wake()


def _no_answer(number: int, error: Exception) -> Faulted | Missed:
    if isinstance(error, Fault):
        return Faulted(number, error.body)
    for how, kind in MISSES.items():
        if isinstance(error, kind):
            return Missed(number, how, str(error))
    log.error("an answer that is none: %r", error, exc_info=error)
    return Faulted(number, Fault(Code.INTERNAL).body)

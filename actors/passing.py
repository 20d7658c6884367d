"""Which front serves a connection: before it is a WebSocket, and later, when its client moves to another conversation.

The store says whose the conversation is. Where that is another front that is there, it gets the connection; where
it is not, its conversations are nobody's in a moment, so the store is asked again, at most for `SETTLE_S`. If even
then nobody listens where it should, its death was told to nobody, so it is told here. What was passed on once is
not passed on before its client has moved.

A WebSocket moves between two messages: it is read no more, and what the client has sent behind the message that
wants it elsewhere goes along unhandled, and so does what it has not taken yet of what was written to it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from actors import entering
from actors.entering import Place
from actors.front import Front
from actors.handover import Passage, Passed
from actors.http import Head
from actors.outbox import Outbox
from actors.wire import Wire
from protocol.errors import Code, Fault
from protocol.mail import MailError
from protocol.writer import FrontGone

log = logging.getLogger("actors.gateway")

SETTLE_S = 10.0  # for a dead front's conversations to be nobody's; the root notices in tens of milliseconds
PAUSE_S = 0.02  # before the store is asked again, twice as long each time
PAUSE_MOST_S = 0.5


@dataclass(slots=True)
class Line:
    """A connection that is a WebSocket, and what it is made of."""

    front: Front
    stream: trio.SocketStream
    head: bytes
    """Of the request that it began with, for another front; empty where there is none."""
    outbox: Outbox
    wire: Wire
    gone: bool = False
    """Another front has it."""


class Patience:
    """How long, and at what pace, the store is asked again."""

    def __init__(self) -> None:
        self._until = trio.current_time() + SETTLE_S
        self._pause = PAUSE_S

    async def wait(self) -> bool:
        """Wait a while; answers whether it makes sense to go on."""
        await trio.sleep(self._pause)
        self._pause = min(2 * self._pause, PAUSE_MOST_S)
        return trio.current_time() < self._until


async def settle(
    front: Front, stream: trio.SocketStream, head: Head, owner: str, passed: Passed | None
) -> Place | Fault | MailError | None:
    """Where the client is to be, here; None where another front has the connection now; else why that is nowhere."""
    wanted = passed.conversation if passed is not None else head.query.get("conversation", "")
    writer, default, patience = front.writer, front.snapshot.service.default_session, Patience()
    while True:
        try:
            # a front that leaves takes nothing more; what it still has, it serves
            place = await entering.place(writer, "" if front.leaving else front.id, owner, wanted, default)
        except (MailError, Fault) as error:
            return error
        holder = place.entered.front
        if holder == front.id:
            told = Fault.of(passed.unknown) if passed is not None and passed.unknown is not None else None
            return place._replace(unknown=place.unknown or told)
        if not holder:
            return Fault(Code.MOVED)
        if passed is None and (passage := await _reach(front, holder)) is not None:
            unknown = place.unknown.body if place.unknown is not None else None
            found = Passed(head.raw, place.entered.conversation, unknown)
            if await _give(passage, stream, found):
                return None
        if not await patience.wait() and not await bury(front, holder):
            return Fault(Code.MOVED)


async def bury(front: Front, other: str) -> bool:
    """Tell the store of a death that nobody has told; False where that front may live, or the store does not answer."""
    if front.handover is None or not await front.handover.nobody_is(other):
        return False
    log.warning("%s has ended, and nobody has said so", other)
    try:
        await front.writer.ask(FrontGone(other), within=SETTLE_S, again=True)
    except (MailError, Fault) as error:
        log.warning("the store was not told: %s", error)
        return False
    return True


async def _reach(front: Front, holder: str) -> Passage | None:
    return await front.handover.reach(holder) if front.handover is not None else None


async def _give(passage: Passage, stream: trio.SocketStream, passed: Passed) -> bool:
    try:
        await passage.give(stream, passed)
    except OSError as error:
        log.warning("a connection could not be passed on: %s", error)
        return False
    finally:
        passage.close()
    return True


async def move(line: Line, frame: str, elsewhere: entering.Elsewhere, follows: list[tuple[str, str]]) -> bool:
    """Pass the WebSocket on, to where `frame` is handled next; False where that front is not there.

    Args:
        follows: servers and addresses of resources that its client is told the changes of.
    """
    passage = await _reach(line.front, elsewhere.entered.front)
    if passage is None:
        return False
    wire, outbox = line.wire, line.outbox
    wire.halt()
    if wire.closing or wire.peer_closing or wire.ended or wire.refused or outbox.broken:
        passage.close()
        return True  # it is at its end
    found = Passed(
        line.head,
        elsewhere.entered.conversation,
        frame=elsewhere.frame or frame,
        rest=wire.untaken,
        unsent=outbox.release(),
        follows=follows,
        frame_s=outbox.frame_s,
    )
    line.gone = True  # if it cannot be given now, it is lost: the client comes again
    await _give(passage, line.stream, found)
    return True

"""What a front does because it is not alone: it takes up what others have left, and says at once what they must know.

Beside the gateway's loop, on what front keeps. A front that is alone only takes up, once, what an earlier run of the
service left. What can fail: the store, which is asked again; what others left is looked for now and then anyway.
"""

from __future__ import annotations

import logging
from typing import Any

import trio

from actors.durable import has_moved
from actors.front import Front
from protocol.claim import gone, parsed
from protocol.errors import Fault
from protocol.mail import MailError, Ref
from protocol.spec import Down
from protocol.writer import AppendDeltas, Delta, FrontGone, TakeUnfinished

log = logging.getLogger("actors.gateway")

ASK_S = 30.0  # for the store to say what is left
MARK_S = 10.0  # for the store to take a mark before it is sent again
LOOK_S = 25.0  # how often is looked for what was left without a word
SOON_S = 1.0  # after a death it is looked twice: who has reaped the process may tell the store later than us


def has_died(front: Front, down: Down) -> None:
    """The supervisor says that some actor ended: it may be another front."""
    own = parsed(front.id)
    if own is not None and (other := gone(own.run, down)):
        front.gone.append(other)
        front.bereaved.set()


def banished(front: Front) -> None:
    """The store takes this front for dead: others have its conversations, or will have them in a moment."""
    for conversation in tuple(front.conversations.values()):
        front.evict(conversation)


async def tell_shown(front: Front) -> None:
    """Tell the store at once of turns that begin to show something: they are not asked again if this front dies."""
    writer: Ref[Any] = front.writer
    while True:
        await front.shows.wait()
        front.shows = trio.Event()
        shown, front.shown = front.shown, []
        marks = [Delta(one.conversation, one.turn, max(1, one.hop), one.seq, "", "") for one in shown]
        try:
            await writer.ask(AppendDeltas(marks, front.id), within=MARK_S, again=True)
        except (MailError, Fault) as error:
            if has_moved(error):
                banished(front)
            else:
                log.warning("the store was not told that %d turns show something: %s", len(marks), error)


async def take_up_unfinished(front: Front) -> None:
    """Start sessions for messages that were acknowledged and that nobody runs.

    An earlier run of the service has left them, or another front that died or let go of them.
    """
    while True:
        dead, front.gone = front.gone, []
        front.bereaved = trio.Event()
        await _take_up(front, dead)
        if not front.id:
            return
        with trio.move_on_after(SOON_S if dead else LOOK_S):
            await front.bereaved.wait()


async def _take_up(front: Front, dead: list[str]) -> None:
    writer: Ref[Any] = front.writer
    try:
        for other in dead:  # the store may not have heard of it yet
            await writer.ask(FrontGone(other), within=ASK_S, again=True)
        if not front.taking:
            return
        left = await writer.ask(TakeUnfinished(front.id), within=ASK_S, again=True)
    except (MailError, Fault) as error:
        log.warning("messages that nobody runs could not be listed: %s", error)
        front.gone += dead
        return
    for item in left:
        front.session(front.conversation(item.conversation, item.owner)).nudge()

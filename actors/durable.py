"""Asking the store on a client's behalf: how long, how often, and what its failure means to the client.

Used by sessions. Every operation of the store is idempotent, so what got no answer is sent again.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import trio

from actors import transcript
from protocol.client import ServerFrame, TurnStarted, error_frame
from protocol.errors import Code, Fault, FaultBody
from protocol.mail import MailError, Ref
from protocol.writer import Append, Closed, LoadHistory, UserEvent

log = logging.getLogger("actors.session")

COMMIT_S = 10.0  # after this long without an acknowledgement the client is told that the store is not there
INSIST_S = 600.0  # how long an operation that was not acknowledged in time is tried again
PAUSE_S = 1.0  # between those tries: a full disk answers at once


def storage_fault(error: Exception) -> FaultBody:
    """What a client is told when the store did not answer, or answered with an error."""
    if isinstance(error, Fault):
        return error.body
    return Fault(Code.STORAGE_UNAVAILABLE).body


def has_moved(error: Exception) -> bool:
    """The conversation is another front's: nothing more may be written of it here."""
    return isinstance(error, Fault) and error.code is Code.MOVED


async def insist(writer: Ref[Any], *appends: Append) -> None:
    """Store them in order, however long the store is away, within reason: an outcome must not be lost."""
    give_up, waiting, level = trio.current_time() + INSIST_S, list(appends), logging.WARNING
    while waiting and trio.current_time() < give_up:
        append = waiting[0]
        try:
            await writer.ask(append, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            if has_moved(error):
                return  # whose it is now has closed the turn
            log.log(level, "turn %d of %s is not stored yet: %s", append.turn, append.conversation, error)
            level = logging.DEBUG  # said once: with thousands of conversations the log would be full of it
            await trio.sleep(PAUSE_S)
        else:
            waiting.pop(0)
    if not waiting:
        log.info("turn %d of %s is stored now", appends[-1].turn, appends[-1].conversation)
    for append in waiting:
        log.error("turn %d of %s could not be stored: %s is given up", append.turn, append.conversation, append.key)


async def known_turn(
    writer: Ref[Any], owner: str, conversation: str, turn: int, echo: str | None
) -> list[ServerFrame] | UserEvent:
    """A turn that this session does not run: the frames that tell of it, or its beginning where it has no end.

    The frames are `turn_started` with that request_id and the closing ones, or the store's error. Without an end
    is a turn whose commit was taken for failed, and came true later.
    """
    load = LoadHistory(owner, conversation, after=turn - 1, limit=1)
    try:
        history = await writer.ask(load, within=COMMIT_S, again=True)
    except (MailError, Fault) as error:
        return [error_frame(storage_fault(error), request_id=echo)]
    events = [stored.event for stored in history.events]
    if events and isinstance(events[0], UserEvent) and not any(isinstance(event, Closed) for event in events):
        return events[0]
    frames = transcript.replay(turn, events, None)
    return [msgspec.structs.replace(f, request_id=echo) if isinstance(f, TurnStarted) else f for f in frames]

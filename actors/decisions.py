"""Waiting for what a person decides: opened in the store, then looked for there whenever something is told of it.

What is told may be lost, so it is looked for now and then too; its time is counted here as well, since the store looks
seldom. The store may be away for a while: only what it refuses for good is a `Fault`. Cancelled, the row stays open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import trio

from actors.durable import COMMIT_S, PAUSE_S, has_moved
from actors.front import Front
from protocol.errors import Fault
from protocol.mail import MailError, Ref, Request
from protocol.pending import Decided, DecidePending, OpenPending, Pending, ReadPending

LOOK_S = 15.0  # between two looks at what the gateway should have told

log = logging.getLogger("actors.session")


async def until_settled(front: Front, opening: OpenPending, opened: Callable[[], None] = lambda: None) -> Pending:
    """Open it, and wait until it is settled, by whom or whatever. Raises Fault, MOVED among them.

    Args:
        opened: called when somebody must be waited for.
    """
    writer: Ref[Any] = front.writer
    name = opening.pending.id
    front.waits[name] = trio.Event()
    try:
        found: Pending = await persistently(writer, opening)
        if found.state == "open":
            opened()
        while found.state == "open":
            with trio.move_on_after(max(0.0, min(LOOK_S, found.expires_at - time.time()))):
                await front.waits[name].wait()
            front.waits[name] = trio.Event()
            if found.expires_at <= time.time():
                expiring = DecidePending(name, [found.owner], found.kind, "expired", key=name)
                decided: Decided = await persistently(writer, expiring)
                found = decided.pending
            else:
                found = await persistently(writer, ReadPending(name))
        return found
    finally:
        front.waits.pop(name, None)


async def persistently(writer: Ref[Any], request: Request[Any]) -> Any:
    """The store's answer, however long it is away. Raises Fault where it refuses for good."""
    while True:
        try:
            return await writer.ask(request, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            if isinstance(error, Fault) and (has_moved(error) or not error.body.retryable):
                raise
            log.warning("what a person is asked waits for the store: %s", error)
        await trio.sleep(PAUSE_S)

"""Keeps the log of its process as the configuration says: level, format, levels of single modules, JSON.

A process starts its log before its actors; this one follows the changes. Where the process logs in its own
way (a test, a program around the service) it leaves that alone. A fragile leaf: while it is down the log goes
on as it is. Fails with `Gone` when there is no watcher yet, and is then started again.
"""

from __future__ import annotations

import logging
import os

from actors.log_output import configure
from protocol.logs import LogsMessage
from protocol.mail import Mailbox
from protocol.spec import Context
from protocol.watcher import Configured, Logging, Subscribe

WATCHER = "watcher"

log = logging.getLogger(__name__)


async def run(box: Mailbox[LogsMessage], ctx: Context) -> None:
    """The actor. `address` of its arguments is what it is called by other processes. Raises Gone."""
    ctx.ready()  # nobody waits for a log that is there already
    await ctx.ref(WATCHER).send(Subscribe(to=ctx.args.get("address", ctx.path)))
    before: Logging | None = None
    async for message in box:
        match message:
            case Configured(snapshot=snapshot):
                # Every time, for what must be hidden may have changed with any part of it.
                ours = configure(snapshot, os.environ)
                if ours and before is not None and before != snapshot.logging:
                    log.info("logging as configured: %s", summary(snapshot.logging))
                before = snapshot.logging
                ctx.report(level=before.level if ours else None, form=_form(before) if ours else None)
            case _:
                pass  # a nudge: nothing to do


def summary(logging_: Logging) -> str:
    """What is configured, in a few words."""
    modules = [f"{name}: {level}" for name, level in sorted(logging_.modules.items())]
    return ", ".join([f"level {logging_.level}", *modules, _form(logging_)])


def _form(logging_: Logging) -> str:
    return "JSON lines" if logging_.json else "text"

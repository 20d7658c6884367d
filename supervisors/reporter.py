"""The reporter: answers whoever asks how the service is, whichever process he is in.

Lives in the tree of the root process. Args: `status`, an async function that gives the whole tree as JSON, and
`restart`, one that restarts a part of it by its path, or raises `Fault`; both bound their own waits. What can fail:
`status`; the asker gets `Gone`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from protocol.errors import Code, Fault
from protocol.mail import Mailbox
from protocol.reply import Reply
from protocol.reporter import GetStatus, PartState, ReporterMessage, RestartPart
from protocol.spec import Context


async def run(box: Mailbox[ReporterMessage], ctx: Context) -> None:
    """The actor."""
    status = ctx.args["status"]
    async with trio.open_nursery() as nursery:
        async for message in box:
            match message:
                case GetStatus():
                    box.reply(await status())
                case RestartPart(path=path):
                    nursery.start_soon(_restart, box, ctx.args["restart"], path, box.reply_slot)
                case _:
                    pass  # a nudge: nothing to do
        nursery.cancel_scope.cancel()


async def _restart(
    box: Mailbox[ReporterMessage], restart: Callable[[str], Awaitable[PartState]], path: str, reply: Reply | None
) -> None:
    try:
        box.settle(reply, await restart(path))
    except (Fault, LookupError) as error:  # LookupError: it went meanwhile
        box.settle(reply, error if isinstance(error, Fault) else Fault(Code.NOT_FOUND, str(error)))

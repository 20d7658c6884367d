"""The reporter: answers whoever asks how the service is, whichever process he is in.

Lives in the tree of the root process. Args: `status`, an async function that gives the whole tree as JSON; it
bounds its own waits (a process that does not answer is shown as such). What can fail: it; the asker gets `Gone`.
"""

from __future__ import annotations

from protocol.mail import Mailbox
from protocol.reporter import GetStatus, ReporterMessage
from protocol.spec import Context


async def run(box: Mailbox[ReporterMessage], ctx: Context) -> None:
    """The actor."""
    status = ctx.args["status"]
    async for message in box:
        match message:
            case GetStatus():
                box.reply(await status())
            case _:
                pass  # a nudge: nothing to do

"""Which of a server's resources are available: each is read once, a few at a time, and that is all.

What a server lists is what it would like to have; a file may be gone, a database down. Bounded in number and
time, so that a server with a million resources, or one that never answers, costs little. Knows no MCP: it is
given a function that reads. What can fail is only what that function raises beside `Fault`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from protocol.errors import Fault
from protocol.mcp_server import ResourceContent

CHECKED = 50  # resources of one server; later ones of its list are not offered
AT_ONCE = 4  # a server that does one thing at a time must still find time for a tool call
EACH_S = 5.0  # to read one; a slower one is of no use in a conversation

log = logging.getLogger(__name__)

Read = Callable[[str], Awaitable[list[ResourceContent]]]


async def available(server: str, uris: Sequence[str], read: Read) -> frozenset[str]:
    """Those of the first CHECKED that can be read and hold something.

    Args:
        server: its name, for the log.
        read: reads one, or raises Fault; called in several tasks.
    """
    found: set[str] = set()
    waiting = list(dict.fromkeys(uris))[:CHECKED][::-1]
    log.debug("→ Resources: checking availability of %d resources of MCP server %r", len(waiting), server)

    async def work() -> None:
        while waiting:
            uri = waiting.pop()
            why = f"it was not read within {EACH_S:g} s"
            with trio.move_on_after(EACH_S):
                try:
                    why = "" if await read(uri) else "it is empty"
                except Fault as fault:
                    why = fault.body.text
            if why:
                log.debug("resource %s of MCP server %r is not available: %s", uri, server, why)
            else:
                found.add(uri)

    async with trio.open_nursery() as nursery:
        for _ in range(min(AT_ONCE, len(waiting))):
            nursery.start_soon(work)
    log.debug("← Resources: %d resources of MCP server %r are available", len(found), server)
    return frozenset(found)

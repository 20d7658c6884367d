"""Tells every socket that what the servers offer has changed: once for all that changes at about the same time."""

from __future__ import annotations

import trio

from actors.front import Front
from protocol.client import ToolsChanged

TOGETHER_S = 0.5  # what changes within that is told at once: a start of ten servers is one notice or two


async def tell_changes(front: Front) -> None:
    """Until cancelled."""
    told = dict(front.catalogues)
    while True:
        await front.tools_changed.wait()
        await trio.sleep(TOGETHER_S)
        now = dict(front.catalogues)
        changed = sorted(name for name in told.keys() | now.keys() if told.get(name) != now.get(name))
        told = now
        if changed:
            front.announce(ToolsChanged(changed))

"""What the gateway's mailbox understands: what comes up from below. Sockets do not go through it."""

from __future__ import annotations

from protocol.mail import Nudge, Request
from protocol.mcp_server import Catalogue, ToolProgress
from protocol.spec import Down, Up
from protocol.streamer import Pieces
from protocol.watcher import Configured


class StopTaking(Request[int], frozen=True, tag=True):
    """Drain: no new turns from now on; answered with the number of turns cut off, once none runs.

    Turns that still run after `grace_s` seconds end as `interrupted`.
    """

    grace_s: float


GatewayMessage = Pieces | ToolProgress | Catalogue | Configured | Down | Up | StopTaking | Nudge

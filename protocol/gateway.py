"""What the gateway's mailbox understands: what comes up from below. Sockets do not go through it."""

from __future__ import annotations

import msgspec

from protocol.mail import Nudge, Request
from protocol.mcp_server import (
    Catalogue,
    RequestEnded,
    ResourceUpdated,
    Resting,
    SamplingRequest,
    ToolProgress,
    UrlVisited,
    UserQuestion,
)
from protocol.pending import PendingOpened, PendingSettled
from protocol.spec import Down, Up
from protocol.streamer import Pieces
from protocol.watcher import Configured


class StopTaking(Request[int], frozen=True, tag=True):
    """Drain: no new turns from now on; answered with the number of turns cut off, once none runs.

    Turns that still run after `grace_s` seconds end as `interrupted`.
    """

    grace_s: float
    replaced: bool = False
    """Another front takes its place: conversations are let go of as their turns end, and their sockets closed."""


class Figure(msgspec.Struct, frozen=True):
    """One number of `/metrics`."""

    name: str
    """Of `actors.metrics.TABLE`."""
    value: float
    labels: dict[str, str]
    """Names of the configuration, and words of ours; nothing of conversations or owners."""


class GetFigures(Request[list[Figure]], frozen=True, tag=True):
    """Ask: what this front has counted since its process began, and how much there is now."""


GatewayMessage = (
    Pieces
    | ToolProgress
    | Catalogue
    | Resting
    | ResourceUpdated
    | UserQuestion
    | SamplingRequest
    | RequestEnded
    | UrlVisited
    | PendingOpened
    | PendingSettled
    | Configured
    | Down
    | Up
    | StopTaking
    | GetFigures
    | Nudge
)

"""How the definitions of tools are kept as they were first seen: between the actor of a server and the writer.

What a tool says of itself goes to the model, and decides which rules hold for it; a server that changes it later
changes what somebody agreed to. So each is pinned at first sight, and a changed one is offered only when an operator
has approved it (a `protocol.pending.Pending` without a turn, whose `asker` is the server's actor).
"""

from __future__ import annotations

import msgspec

from protocol.mail import Request
from protocol.pending import Pending


class Checked(msgspec.Struct, frozen=True):
    """Which tools may be offered."""

    quarantined: list[str]
    """Names of those that may not, until somebody agrees."""
    changed: list[str] = []
    """Names of those that were pinned anew, since nobody need agree."""
    news: list[Pending] = []
    """Approvals that were opened or cancelled by this."""


class CheckTools(Request[Checked], frozen=True, tag=True):
    """Compare what a server lists with what is pinned; what is new is pinned now."""

    server: str
    source: str
    """Digest of how the server is started or reached: from another source all is new."""
    tools: dict[str, str]
    """By name: the definition, as canonical JSON text."""
    to: str
    """Address that is told `PinningChanged`, and `PendingSettled` of what is asked."""
    mode: str = "ask"
    """`chat.tools.pinning`, set by the writer: `ask`; `allow`: what changed is pinned anew; `off`: nothing is kept."""


class OnlyServers(Request[list[Pending]], frozen=True, tag=True):
    """There are no others any more: cancel the approvals of changes of their tools; answers which those were."""

    servers: list[str]


class PinningChanged(msgspec.Struct, frozen=True, tag=True):
    """Event: `chat.tools.pinning` is another; ask again."""

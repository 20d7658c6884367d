"""What the reporter understands: it stands beside the supervisor of the whole service, says how all parts are, and
has one of them restarted for an operator."""

from __future__ import annotations

import msgspec

from protocol.mail import Nudge, Request


class GetStatus(Request[bytes], frozen=True, tag=True):
    """Ask: the tree of all processes and actors with its live numbers, as JSON (`supervisors.status.Node`)."""


class PartState(msgspec.Struct, frozen=True):
    """How a part is after it was restarted."""

    path: str
    state: str
    """As in the status tree."""
    last_error: str = ""
    """Why it is parked again."""


class RestartPart(Request[PartState], frozen=True, tag=True):
    """Ask: stop that actor, group or process and start it anew, also one that is parked. Faults: NOT_FOUND (names what
    there is), FORBIDDEN (a part that carries this order), OVERLOADED (its process does not answer)."""

    path: str


ReporterMessage = GetStatus | RestartPart | Nudge
"""All that it takes."""

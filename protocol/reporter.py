"""What the reporter understands: it stands beside the supervisor of the whole service and says how all parts are."""

from __future__ import annotations

from protocol.mail import Nudge, Request


class GetStatus(Request[bytes], frozen=True, tag=True):
    """Ask: the tree of all processes and actors with its live numbers, as JSON (`supervisors.status.Node`)."""


ReporterMessage = GetStatus | Nudge
"""All that it takes."""

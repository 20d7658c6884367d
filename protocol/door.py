"""What the door is asked, over its Unix socket: the descriptors of the address that clients connect to.

One request and one answer per connection, a JSON object each; the answer's descriptors come with it (SCM_RIGHTS).
Its mailbox takes nothing but nudges.
"""

from __future__ import annotations

import msgspec

from protocol.mail import Nudge

MOST_BYTES = 4096  # of a request or an answer
MOST_LISTENERS = 64  # a name may stand for several addresses


class OpenDoor(msgspec.Struct, frozen=True, tag=True):
    """Be reachable there from now on; where that is so already, nothing changes."""

    host: str
    port: int


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The answer; with the listening sockets, or with why there are none: then the old address stays in force."""

    trouble: str = ""


DoorMessage = Nudge
"""All that its mailbox takes."""

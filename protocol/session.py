"""What a session understands: its clients' commands. What the model does it reads from the turn's log.

Everything that comes back to one client goes to the `client` named in the command; everything that all
should see goes through the turn's log.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.mail import Nudge

GENERATED = "~"  # begins a request_id that we made; never shown to clients
GENERATED_CHARS = 33  # of such a one: the mark and 32 hex digits


def generated(token: str) -> str:
    """A request_id for a message whose client gave none."""
    return GENERATED + token


def echo_of(request_id: str) -> str | None:
    """The client's own request_id, None for one that we made."""
    return None if len(request_id) == GENERATED_CHARS and request_id.startswith(GENERATED) else request_id


class Say(msgspec.Struct, frozen=True, tag=True):
    """A user's message."""

    client: int
    """Which socket; gets `turn_started`/`message_queued` with its request_id, or the error."""
    request_id: str
    """Never empty; made by the gateway where the client gave none."""
    echo: str | None
    """The client's own request_id, echoed."""
    content: Any
    """Text, or a list of parts."""
    streaming: bool | None
    """None: as configured."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the running turn."""

    client: int
    echo: str | None
    turn: int | None
    """Only if this turn runs; None: whichever."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """The service stops: no new turn. `now`: the running one ends as `interrupted`."""

    now: bool


SessionMessage = Say | Stop | Drain | Nudge

"""What the actor of the logs understands: the configuration. Nobody asks it anything."""

from __future__ import annotations

from protocol.mail import Nudge
from protocol.watcher import Configured

LogsMessage = Configured | Nudge

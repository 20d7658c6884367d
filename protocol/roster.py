"""The roster's actor hears configurations and keeps one actor per configured MCP server; nobody talks to it."""

from __future__ import annotations

from protocol.mail import Nudge
from protocol.watcher import Configured

RosterMessage = Configured | Nudge

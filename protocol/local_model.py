"""The local model's actor runs a child process and tells the watcher its address; nobody talks to it."""

from __future__ import annotations

from protocol.mail import Nudge

LocalModelMessage = Nudge

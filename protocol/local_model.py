"""What the local model's actor understands: the configuration, and the watcher's comings and goings.

It runs a child process and tells the watcher its address; nobody asks it anything.
"""

from __future__ import annotations

from protocol.mail import Nudge
from protocol.spec import Down, Up
from protocol.watcher import Configured

LocalModelMessage = Configured | Down | Up | Nudge

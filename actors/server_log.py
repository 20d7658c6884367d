"""What MCP servers log, passed on to our log as `actors.mcp.<server>`.

A server is a stranger: its lines are bounded in length and in number, stay one line each, and the values that
its configuration gave to it are blacked out. Levels are ours (`settings.logLevel`); MCP has three more, which
count as the next one of ours. Nothing in here fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import trio

LINE = 2000  # characters of one message
BURST = 100  # messages at once, and then
PER_S = 10.0  # messages per second: whoever says more is not read anyway

TO_MCP = {"DEBUG": "debug", "INFO": "info", "WARNING": "warning", "ERROR": "error", "CRITICAL": "critical"}
"""Our level as the level that a server is asked for."""
_OURS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emergency": logging.CRITICAL,
}


class ServerLog:
    """One server's way into our log.

    Args:
        server: its name.
        level: ours; what is below is dropped, also where the server does not know how to.
        clean: takes out of a text what must not be shown.
    """

    def __init__(self, server: str, level: str, clean: Callable[[str], str]) -> None:
        self.level = level
        self._log = logging.getLogger(f"actors.mcp.{server}")
        self._clean = clean
        self._room = float(BURST)
        self._at = trio.current_time()
        self._dropped = 0

    def take(self, level: str, logger: str, data: object) -> None:
        """One message of the server: its level in MCP's words, its logger or nothing, any JSON value."""
        number = _OURS.get(level, logging.INFO)
        if number < logging.getLevelNamesMapping()[self.level] or not self._log.isEnabledFor(number):
            return
        now = trio.current_time()
        self._room = min(float(BURST), self._room + (now - self._at) * PER_S)
        self._at = now
        if self._room < 1:
            self._dropped += 1
            return
        self._room -= 1
        if self._dropped:
            self._log.warning("(%d messages of this server were not passed on: it logs too much)", self._dropped)
            self._dropped = 0
        text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
        # Not cut before it is cleaned: the beginning of a secret would be left.
        text = self._clean(f"[{logger}] {text}" if logger else text)
        # Without line ends and control characters no message can look like a line of ours.
        text = "".join(char if char.isprintable() else " " for char in text[: LINE + 1])
        self._log.log(number, "%s", text[:LINE] + ("…" if len(text) > LINE else ""))

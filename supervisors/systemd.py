"""What a service manager that speaks systemd's protocols gives and wants: sockets, readiness, signs of life.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3). Nothing happens where the variables are missing.
What can fail: a manager that does not listen is logged once per message and changes nothing else.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

import trio

log = logging.getLogger("supervisors.systemd")

FIRST = 3  # the first descriptor that is passed on
HALF = 0.5  # of the watchdog's time between two signs of life, as its manual advises


def passed_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The stream sockets that the manager has opened for us, listening; the variables are removed, as is due.

    Raises ValueError when what is passed is no listening TCP socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found: list[socket.socket] = []
    for number in range(FIRST, FIRST + int(count)):
        os.set_inheritable(number, False)
        try:
            one = socket.socket(fileno=number)
        except OSError as error:
            raise ValueError(f"descriptor {number}, passed by LISTEN_FDS, is no socket: {error.strerror}") from error
        found.append(one)
        listening = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM or not listening:
            raise ValueError(f"descriptor {number}, passed by LISTEN_FDS, is no listening TCP socket")
        one.setblocking(False)
    return found


class Manager:
    """Who wants to know how we are; nobody, where NOTIFY_SOCKET is missing."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        pid, within = environ.get("WATCHDOG_PID", str(os.getpid())), environ.get("WATCHDOG_USEC", "")
        ours = pid == str(os.getpid()) and within.isdigit() and bool(self._address)
        self.every_s = int(within) / 1e6 * HALF if ours else None
        """How often a sign of life is wanted; None: not at all."""

    def tell(self, *assignments: str) -> None:
        """Send e.g. `READY=1`."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
                one.setblocking(False)
                one.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            log.warning("the service manager could not be told %s: %s", assignments[0], error)

    async def keep_alive(self) -> None:
        """Give signs of life, for ever, if they are wanted. A loop that hangs gives none."""
        while self.every_s:
            self.tell("WATCHDOG=1")
            await trio.sleep(self.every_s)

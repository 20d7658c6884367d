"""The leash of a worker: when its parent lets go of the control socket, it ends at once, with all below it.

A thread waits for the hang-up, so that a loop that is busy or blocked ends too: it needs only a moment of the
interpreter. What the process was doing is not finished; whatever must survive is on disk by then. A parent
that is killed lets go of the socket in the same moment.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from typing import NoReturn

from supervisors.orphans import kill_all

EXIT_LET_GO = 71  # seen by nobody, as a rule: the parent is gone


def put_on(control: socket.socket) -> None:
    """End this process as soon as the other end of that socket is closed by all who had it."""
    # A duplicate of its own: the loop may close its descriptor, whose number is somebody else's then.
    threading.Thread(target=_wait, args=(os.dup(control.fileno()),), name="leash", daemon=True).start()


def _wait(descriptor: int) -> None:
    try:
        poll = select.poll()
        poll.register(descriptor, 0)  # a hang-up is always told, what can be read never: it may be much
        poll.poll()
    finally:
        end()


def end() -> NoReturn:
    """End this process now, and everything below it; from any thread."""
    try:
        sys.addaudithook(_start_nothing)
        kill_all()
    finally:
        os._exit(EXIT_LET_GO)


def _start_nothing(event: str, _: tuple[object, ...]) -> None:
    # An actor whose child has just been killed would start it again.
    if event == "subprocess.Popen":
        raise PermissionError("this process is ending")

"""Asks the root for the listening sockets of an address; they come as descriptors over its Unix socket.

For a front in a process of its own: sockets that clients connect to are the root's, so that a dying front takes
no connection with it that waits to be accepted. What can fail: the address cannot be bound, or the root does
not answer within `ANSWER_S`; then nothing has changed.
"""

from __future__ import annotations

import socket
from array import array

import msgspec
import trio

from protocol.door import MOST_BYTES, MOST_LISTENERS, OpenDoor, Opened

ANSWER_S = 5.0  # for the root to bind an address; looking a name up may take a while


async def ring(path: str, host: str, port: int) -> list[trio.SocketListener]:
    """Listeners of that address. Raises OSError, saying why there are none."""
    with trio.move_on_after(ANSWER_S):
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as asking:
            await asking.connect(path)
            await asking.send(msgspec.json.encode(OpenDoor(host, port)))
            room = socket.CMSG_SPACE(MOST_LISTENERS * array("i").itemsize)
            data, ancillary, _, _ = await asking.recvmsg(MOST_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        found = [socket.socket(fileno=number) for number in numbers(ancillary)]
        try:
            answer = msgspec.json.decode(data, type=Opened)
        except msgspec.MsgspecError as error:
            for one in found:
                one.close()
            raise OSError("the root gave no answer") from error
        if answer.trouble:
            raise OSError(0, answer.trouble)
        return [listener(one) for one in found]
    raise OSError(0, f"the root did not answer within {ANSWER_S:g} s")


def listener(one: socket.socket) -> trio.SocketListener:
    """A bound and listening socket as trio takes connections from it."""
    one.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(one))


def numbers(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came along."""
    found = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)

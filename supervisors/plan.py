"""What a process of the service is told at its birth: `Plan` by the tree that starts it, `Orders` on the wire.

Data only, shared by the parent (`supervisors.process`) and the new process (`supervisors.worker`). Orders go
first over the control socket, as one frame with one `Boot`, before anything else: so they can be read before
a loop runs. What can fail: orders that are not understood (another version) are `OrdersUnclear`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from protocol.frames import MOST, Boot, ControlItem

EXIT_FAILED = 70  # EX_SOFTWARE of sysexits.h: a core part kept failing
EXIT_UNUSABLE = 78  # EX_CONFIG: it cannot be built from its orders; a restart would find the same
NOTHING: Mapping[str, Any] = MappingProxyType({})

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Plan:
    """One process: its role, what it is given, and its limits. Mappings and functions in it are read at each start."""

    role: str
    """First word of the paths of its actors; can be read in `ps`."""
    make: str = "supervisors.tree:part"
    """Dotted name of a function `(role: str, args: Mapping[str, Any]) -> Group`, called in the process."""
    args: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """Given to it; only what msgpack can hold. Two keys are added there: `fds` and `exchange`, the process's own."""
    fds: Mapping[str, int] = field(default_factory=lambda: NOTHING)
    """Descriptors that it inherits, by name; they stay the parent's too."""
    snapshot: Callable[[], object] | None = None
    """Gives the configuration (`protocol.watcher.Snapshot`) by which it logs until it follows the watcher itself."""
    place: str = "supervisors.tree:role_of"
    """Dotted name of the function that says which role has a path."""
    vocabulary: str = ""
    """Dotted name of the union of the messages that it understands; empty: the product's."""
    rss_limit: int | None = None
    """Bytes of memory at which it is replaced."""
    start_s: float = 60.0
    """How long it may take to be ready."""
    grace_s: float = 20.0
    """How long an ordered stop may take before it is ended."""
    quiet_s: float = 0.0
    """Of that, how long what runs in it (its actors' fact `running`) may go on before anything is stopped."""
    ping_s: float = 1.0
    """Between two pings."""
    ping_limit_s: float = 10.0
    """How long it may answer none."""


class Orders(msgspec.Struct, frozen=True):
    """`Boot.args`."""

    make: str
    args: dict[str, Any]
    fds: dict[str, int]
    addresses: dict[str, str]
    """Unix sockets by role."""
    listener: int | None
    """Descriptor of the Unix socket on which it takes ports."""
    place: str
    vocabulary: str
    snapshot: Any = None


class OrdersUnclear(Exception):
    """The first frame holds no orders."""


def framed(item: ControlItem) -> bytes:
    """One item as a frame of its own, for where no port is."""
    body = msgspec.msgpack.encode([item])
    return _LENGTH.pack(len(body)) + body


def read_orders(control: socket.socket) -> tuple[Boot, Orders]:
    """Read exactly one frame, waiting for it. Raises OrdersUnclear; EOFError when the parent is gone."""
    (size,) = _LENGTH.unpack(_exactly(control, _LENGTH.size))
    if size > MOST:
        raise OrdersUnclear(f"{size} bytes")
    try:
        (boot,) = msgspec.msgpack.decode(_exactly(control, size), type=list[Boot])
        return boot, msgspec.convert(boot.args, Orders)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: not one item
        raise OrdersUnclear(str(error)) from error


def _exactly(control: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := control.recv(size - len(data))):
            raise EOFError
        data += part
    return bytes(data)

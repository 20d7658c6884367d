"""What processes say to each other on a port: the items of frames.

A port carries mail (casts, asks and what comes of them), the flow of it, what happens to actors, and, where it
leads to the process that started us or that we started, control items. `protocol.packing` makes frames of items
and items of frames. Bodies are bytes here: who delivers a message decodes it (`protocol.vocabulary`), so one
that cannot be decoded spoils no frame.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.errors import FaultBody
from protocol.reporter import PartState
from protocol.spec import Down, Up

MOST = 64 * 1024 * 1024  # bytes of the body of one item

# Mail. `body` is a message or an answer in msgpack; where it was unpacked, a part of what was received.


class Cast(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A message that is not answered."""

    to: str
    waits: bool
    """The sender waits for room (`send`); else it is dropped by a full mailbox (`offer`)."""
    body: memoryview


class Asked(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A message that is answered by exactly one of Answered, Faulted and Missed, unless it is Dropped."""

    id: int
    """Chosen by the asker; unique on this port."""
    to: str
    body: memoryview


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """The answer."""

    id: int
    body: memoryview


class Faulted(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The actor answered with a fault."""

    id: int
    fault: FaultBody


class Missed(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Nobody answers."""

    id: int
    how: str
    """`gone`, `overloaded` or `too_slow`"""
    text: str


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The asker gave up."""

    id: int


# The flow.


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """So many messages (casts and asks) are no longer under way: as many more may be sent."""

    count: int


class Full(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Messages wait before that mailbox: no more to it until Room."""

    to: str


class Room(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """That mailbox takes messages again."""

    to: str


class Part(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Some bytes of a large item."""

    data: memoryview
    last: bool


# What peers know of each other.


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The first item of mail on every port: that process takes mail."""

    role: str
    incarnation: int
    up: list[Up]
    """Its actors that are ready."""


class Told(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """An actor of that process ended or is ready."""

    event: Down | Up


class Leaving(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """That process takes no more mail here: whoever has its role next does. What was asked is still answered."""


class Left(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """The answer to Leaving: nothing more comes on this port."""


# Between a process and the one that started it; only on a port that was made for it.


class Boot(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """To a new process, first: what it is."""

    role: str
    incarnation: int
    args: dict[str, Any]


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """From a process: its part of the tree runs."""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """To a process: say that you live."""

    n: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """The answer to Ping."""

    n: int
    lag_ms: float
    """Longest stretch in which its loop did not look at I/O, lately."""
    rss_bytes: int
    cpu_s: float
    """CPU time used so far."""


class Report(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """To a process: your part of the status tree."""

    id: int


class Reported(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """The answer to Report."""

    id: int
    node: msgspec.Raw
    """A `supervisors.status.Node`, in msgpack."""


class Restart(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """To a process: restart that part of yours."""

    id: int
    path: str


class Restarted(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """The answer to Restart."""

    id: int
    part: PartState | None
    """None: there is no such part."""


class Drain(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """To a process: take nothing new, end what runs."""


class Quit(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """To a process: stop in order."""

    quiet_s: float = 0.0
    """How long what runs in it may go on before."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """From a process, last: why it ends by itself."""

    reason: str


ControlItem = Boot | Ready | Ping | Pong | Report | Reported | Restart | Restarted | Drain | Quit | Failed
Item = (
    Cast
    | Asked
    | Answered
    | Faulted
    | Missed
    | Dropped
    | Credit
    | Full
    | Room
    | Part
    | Hello
    | Told
    | Leaving
    | Left
    | Boot
    | Ready
    | Ping
    | Pong
    | Report
    | Reported
    | Restart
    | Restarted
    | Drain
    | Quit
    | Failed
)

"""Entering a conversation, where it may be another front's.

The store says whose it is, and makes it the asker's where it was nobody's. Whoever is told of another front passes
the client's connection on to that one, or asks again in a while: a front that has died has its conversations no
longer, as soon as the store was told.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import msgspec

from protocol.client import MAX_ID_CHARS, Hello
from protocol.errors import Code, Fault
from protocol.mail import Ref
from protocol.writer import Enter, Entered

# For the store to say which conversation it is. Clients give their handshake, which waits for it, 10 s: they are told.
ANSWER_S = 8.0


class Elsewhere(Exception):
    """The conversation that a client wants is another front's.

    Args:
        entered: which one, and whose.
        frame: what the client is to be taken to have said; None: what it said.
    """

    def __init__(self, entered: Entered, frame: str | None = None) -> None:
        super().__init__(entered.conversation)
        self.entered = entered
        self.frame = frame


class Place(NamedTuple):
    """Where a client is to be."""

    entered: Entered
    unknown: Fault | None = None
    """What it is to be told: the one that it named is not there."""


async def enter(writer: Ref[Any], front: str, owner: str, wanted: str) -> Entered:
    """Enter that conversation. Raises NOT_FOUND, and what the store cannot do (MailError, Fault)."""
    if len(wanted) > MAX_ID_CHARS:
        raise Fault(Code.NOT_FOUND, "There is no conversation of that id.")
    ask = Enter(owner=owner, wanted=wanted, fresh_id=secrets.token_hex(16), front=front)
    return await writer.ask(ask, within=ANSWER_S, again=True)


async def place(writer: Ref[Any], front: str, owner: str, wanted: str, default: str) -> Place:
    """Enter that conversation, or the default one where there is none of that id. Raises as `enter`."""
    try:
        return Place(await enter(writer, front, owner, wanted or default))
    except Fault as fault:
        if fault.code is not Code.NOT_FOUND:
            raise
        return Place(await enter(writer, front, owner, default), fault)


def hello(conversation: str, request_id: str | None) -> str:
    """The frame of a client that wants to go to that conversation."""
    return msgspec.json.encode(Hello(conversation_id=conversation, request_id=request_id)).decode()


def is_elsewhere(entered: Entered, front: str) -> bool:
    """Whether it is another front's."""
    return entered.front not in ("", front)

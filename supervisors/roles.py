"""In a process of the service: its part of the tree, by its role, with the sockets that it inherited.

Named by `supervisors.placement` in what it orders, and imported in every process: so it imports only what each of
them needs. What can fail: descriptors that are no sockets, with OSError; then the process cannot be built.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any

import trio

from protocol.claim import FrontId
from protocol.spec import Group
from supervisors import tree
from supervisors.exchange import Exchange

BACK = ("store", "llm", "mcp")  # in start order; stopped after the fronts, in reverse
FIRST_S = 1.5  # for the parts that clients need to be there before MCP servers are started
LOOK_S = 0.02  # between two looks whether they are
GATEWAY = "/gateway"


def part(role: str, args: Mapping[str, Any]) -> Group:
    """Its part of the tree. Raises OSError."""
    if "gateway" in args:
        args["exchange"].keep(*BACK)  # what they offer, and whether they are up, is shown to clients
        listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=number)))
            for name, number in sorted(args["fds"].items())
            if name.startswith("tcp")
        ]
        given = dict(args["gateway"])
        door_path = given.pop("door")
        gateway = {
            **given,
            "listeners": listeners,
            "moved": _nobody,
            "front": str(FrontId(given.pop("run"), role, args["incarnation"])),
            "source": partial(importlib.import_module("actors.doorbell").ring, door_path),
        }
        return tree.part(role, {"gateway": gateway})
    if role == "mcp":
        apart = importlib.import_module("supervisors.isolated").apart
        others = partial(others_first, args["exchange"])
        return tree.part(role, {"roster": {"apart": apart(args["exchange"]), "first": others}})
    return tree.part(role, args)


async def others_first(exchange: Exchange) -> None:
    """Until a front is there, or for FIRST_S: servers, and what they need here, take the cores that a start needs."""
    with trio.move_on_after(FIRST_S):
        while not any(path.endswith(GATEWAY) for port in exchange.ports for path in port.actors):  # noqa: ASYNC110 - once
            await trio.sleep(LOOK_S)


def _nobody(host: str, port: int) -> None:
    """The root knows."""

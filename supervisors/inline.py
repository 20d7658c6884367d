"""The service in one process: all of the tree, for tests and tiny machines, and where everything shares one fate."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from protocol.reporter import PartState
from protocol.watcher import Snapshot
from supervisors import by_hand
from supervisors.address import is_loopback, listen, publish, published, shown, url
from supervisors.service import Stop, live
from supervisors.supervisor import Tree
from supervisors.systemd import Manager
from supervisors.tree import product


@dataclass(frozen=True)
class Start:
    """What a service starts with."""

    state: Path
    """The state directory, absolute."""
    overrides: dict[str, Any]
    """Of the configuration, by the command line."""
    snapshot: Snapshot
    """The configuration at the start."""
    said: object
    """What the first reading did to the files; told by the watcher, which reports all problems."""
    environment: list[str]
    """What is wrong with the `.env` files; likewise."""

    @property
    def watcher(self) -> dict[str, Any]:
        """Args of the watcher."""
        told = {"said": self.said, "environment": self.environment, "renamed": self.renamed}
        return {"state_dir": str(self.state), "overrides": self.overrides, **told}

    @property
    def writer(self) -> dict[str, Any]:
        """Args of the writer."""
        storage = self.snapshot.storage
        return {"path": str((self.state / storage.db_path).resolve()), "type": storage.type}

    @property
    def local(self) -> dict[str, Any]:
        """Args of the local model's actor."""
        return {"state_dir": str(self.state)}

    def moved(self, host: str, port: int) -> None:
        """The service listens there now."""
        publish(self.state, host=shown(host), port=port)

    def renamed(self, endpoint: str) -> None:
        """That is the path of the WebSocket now."""
        publish(self.state, endpoint=endpoint)


async def serve(start: Start) -> int:
    """Run the service until a signal comes or it gives up. Returns the exit code. Raises CannotStart."""
    listeners = await listen(start.snapshot)
    endpoint = start.snapshot.websocket.endpoint
    trees: list[Tree] = []

    async def status_json() -> bytes:
        return msgspec.json.encode(trees[0].status()) if trees else b"{}"

    async def restart(path: str) -> PartState:
        tree = trees[0]  # who asks is a part of it
        part = await by_hand.restart(tree, path)
        if part is None:
            raise by_hand.unknown(path, tree.status())
        return part

    spec = product(
        watcher=start.watcher,
        writer=start.writer,
        local=start.local,
        gateway={
            "listeners": listeners,
            "loopback": is_loopback(start.snapshot.websocket.host),
            "moved": start.moved,
        },
        reporter={"status": status_json, "restart": restart},
    )
    stop = Stop(start.snapshot.drain_s)
    try:
        # the handlers come first: a signal during the start must not cut it off half-way
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop.obey, signals)
                with published(start.state, listeners, endpoint):
                    code = await live(spec, trees, stop, url(listeners, endpoint), Manager(os.environ))
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            await listener.aclose()
    return code

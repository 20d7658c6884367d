"""The service as several processes: a root that owns the addresses, and under it one process per role.

The root runs the supervisor, the configuration's watcher and the door; `store`, `llm` and `mcp` are one process
each, `front` is as many as there are cores. Each is a child of the root's tree like any actor. Sockets of the
roles are in a directory of this run, 0700, with a short path; the state directory says where.

What can fail: a process; its supervisor starts it again, and the others wait for it or tell their clients.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from protocol.reporter import PartState
from protocol.spec import Backoff, Child, Group, Intensity, OnLimit
from supervisors import by_hand, door, orphans, tree
from supervisors.address import is_loopback, listen, published, url
from supervisors.exchange import Exchange
from supervisors.inline import Start
from supervisors.plan import Plan
from supervisors.process import child
from supervisors.roles import BACK
from supervisors.service import Stop, live
from supervisors.status import with_processes
from supervisors.succession import Succession
from supervisors.supervisor import Tree
from supervisors.systemd import Manager

log = logging.getLogger("supervisors.main")

PREFIX = "mcp-actors-run-"  # of the directory of a run
MB = 2**20
RSS_LIMITS = {"store": 2048 * MB, "llm": 2048 * MB, "mcp": 2048 * MB, "front": 2048 * MB}
"""Many times what a role needs: past it something leaks, and a restart in order is better than the kernel's kill."""
OFTEN = Intensity(restarts=20, period_s=10.0)
PARK_S = 10.0  # between two tries of a front that keeps failing
SOON = Backoff(cap_s=0.5)  # a start takes longer than the pause before it; who dies too often is told by its intensity
REPORT_S = 1.0  # for a process to say how its part is
QUIET_S = {"llm": 60.0}  # of that, for answers that its successor cannot go on with
GRACE_S = {"store": 20.0, "llm": 75.0, "mcp": 20.0, "front": 20.0}  # for an ordered stop of each


async def serve(start: Start, fronts: int) -> int:
    """Run the service until a signal comes or it gives up. Returns the exit code. Raises CannotStart."""
    listeners = await listen(start.snapshot)
    endpoint = start.snapshot.websocket.endpoint
    trees: list[Tree] = []
    orphans.adopt(workers_only=True)
    stop = Stop(start.snapshot.drain_s)
    try:
        with runtime_directory(start.state) as folder, door.bound(str(folder / "door")) as asked:
            held = door.Held(start.snapshot.websocket.host, start.snapshot.websocket.port, listeners, start.moved)
            roles = [*BACK, *(f"front{number}" for number in range(1, fronts + 1))]
            exchange = Exchange("root", addresses={r: str(folder / r) for r in roles}, place=tree.role_of)
            run = Run(start, folder, held, exchange, trees, fronts)
            spec = run.spec(asked)
            succession = Succession(trees, run.successor, start.snapshot.drain_s, fronts, run.nonce)
            with (
                trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
                trio.open_signal_receiver(signal.SIGHUP) as renewals,
            ):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stop.obey, signals)
                    nursery.start_soon(succession.obey, renewals)
                    await nursery.start(exchange.run, None)
                    nursery.start_soon(orphans.reap)
                    with published(start.state, listeners, endpoint):
                        code = await live(spec, trees, stop, url(listeners, endpoint), Manager(os.environ), exchange)
                    nursery.cancel_scope.cancel()
        await orphans.end_all()
    finally:
        for listener in listeners:
            await listener.aclose()
    return code


class Run:
    """What the processes of one run of the service share.

    Args:
        folder: of the roles' sockets.
        held: the listeners for clients.
        trees: gets the root's tree when it runs.
        fronts: how many.
    """

    def __init__(
        self, start: Start, folder: Path, held: door.Held, exchange: Exchange, trees: list[Tree], fronts: int
    ) -> None:
        self.start = start
        self.folder = folder
        self.held = held
        self.exchange = exchange
        self.trees = trees
        self.nonce = secrets.token_hex(4)
        self.fronts = [f"front{number}" for number in range(1, fronts + 1)]

    def spec(self, asked: socket.socket) -> Group:
        """The root's tree."""
        args: Mapping[str, dict[str, Any]] = {
            "store": {"writer": {**self.start.writer, "run": self.nonce}},
            "llm": {"local": self.start.local},
            "mcp": {},
        }
        return tree.service(
            watcher=self.start.watcher,
            reporter={"status": self.status_json, "restart": self.restart},
            back=[self.process(role, args[role]) for role in BACK],
            fronts=[self.front(role) for role in self.fronts],
            door={"held": self.held, "socket": asked},
        )

    def process(self, role: str, args: Mapping[str, Any], fds: Mapping[str, int] | None = None) -> Child:
        """One process as a child of the root's tree."""
        kind = role.rstrip("0123456789")
        plan = Plan(
            role=role,
            make="supervisors.roles:part",
            args=args,
            fds=fds or {},
            snapshot=lambda: self.start.snapshot,
            rss_limit=RSS_LIMITS[kind],
            grace_s=GRACE_S[kind],
            quiet_s=QUIET_S.get(kind, 0.0),
        )
        # one of several fronts that keeps failing must not end the others; without a back role there is no service
        limit = OnLimit.PARK if kind == "front" else OnLimit.ESCALATE
        return child(plan, self.exchange, intensity=OFTEN, backoff=SOON, gate=False, on_limit=limit, park_s=PARK_S)

    def front(self, role: str) -> Child:
        """A process that clients talk to."""
        gateway = {
            "loopback": is_loopback(self.held.listeners[0].socket.getsockname()[0]),
            "door": str(self.folder / "door"),
            "run": self.nonce,
            "handover": str(self.folder / "{role}.{life}"),
        }
        return self.process(role, {"gateway": gateway}, Descriptors(self.held))

    def successor(self, role: str) -> Child:
        """A front's process that was not there at the start."""
        self.exchange.addresses = {**self.exchange.addresses, role: str(self.folder / role)}
        return self.front(role)

    async def status_json(self) -> bytes:
        """The tree of all processes."""
        if not self.trees:
            return b"{}"
        return msgspec.json.encode(await with_processes(self.trees[0], REPORT_S))

    async def restart(self, path: str) -> PartState:
        """Restart a part of whichever process. Raises Fault."""
        tree = self.trees[0]  # who asks is a part of it
        part = await by_hand.restart(tree, path)
        if part is None:
            raise by_hand.unknown(path, await with_processes(tree, REPORT_S))
        return part


class Descriptors(Mapping[str, int]):
    """The descriptors of the listeners that are held at the time."""

    def __init__(self, held: door.Held) -> None:
        self._held = held

    def __getitem__(self, name: str) -> int:
        return self._held.descriptors()[int(name.removeprefix("tcp"))]

    def __iter__(self) -> Iterator[str]:
        return (f"tcp{index}" for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._held.listeners)


def remove_last(state: Path) -> None:
    """Remove the directory of a run that was killed; the state directory is held by us, so that run is over."""
    try:
        last = Path((state / "runtime").read_text().strip())
    except OSError:
        return  # there is none
    if last.parent == Path(tempfile.gettempdir()) and last.name.startswith(PREFIX):
        shutil.rmtree(last, ignore_errors=True)


@contextlib.contextmanager
def runtime_directory(state: Path) -> Iterator[Path]:
    """A directory for the sockets of this run; its path is short, as sockets need it, and stands in the state."""
    remove_last(state)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # 0700
    try:
        with contextlib.suppress(OSError):  # a read-only directory: nobody else needs to know
            (state / "runtime").write_text(f"{folder}\n")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (state / "runtime").unlink(missing_ok=True)

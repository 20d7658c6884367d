"""A running watcher with one subscriber, on real files, for every test that needs one.

async with house(tmp_path / "state") as watched:
    watched.write(port(8001))
    await watched.until(has_port(8001))
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from actors.configuration import RUNTIME
from protocol.mail import Mailbox
from protocol.spec import Backoff, Child, Context, Group, Intensity, OnLimit
from protocol.watcher import Configured, ConfigView, GetSnapshot, SetConfig, Snapshot, Subscribe
from supervisors.supervisor import Tree, running


class House:
    """A running watcher with one subscriber that notes what it is told."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.told: list[Snapshot] = []
        self.tree: Tree
        self._changed = trio.Condition()

    async def subscriber(self, box: Mailbox[Any], ctx: Context) -> None:
        ctx.ref("watcher").offer(Subscribe(ctx.path))
        async for message in box:
            if isinstance(message, Configured):
                async with self._changed:
                    self.told.append(message.snapshot)
                    self._changed.notify_all()

    async def until(self, wanted: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait until the last snapshot told is as wanted."""
        async with self._changed:
            while not (self.told and wanted(self.told[-1])):
                await self._changed.wait()
            return self.told[-1]

    async def ask(self) -> Snapshot:
        """The snapshot in force."""
        return await self.tree.ref("watcher").ask(GetSnapshot(), within=5)

    async def set(self, changes: dict[str, Any], base_version: int | None = None, author: str = "api") -> ConfigView:
        """Change the configuration. Raises Fault."""
        return await self.tree.ref("watcher").ask(SetConfig(changes, base_version, author), within=15)

    def write(self, text: str) -> None:
        """Edit the runtime file in place."""
        (self.state / RUNTIME).write_text(text, "utf-8")

    def replace(self, text: str) -> None:
        """Replace the runtime file as editors do."""
        (self.state / "edited").write_text(text, "utf-8")
        os.replace(self.state / "edited", self.state / RUNTIME)


@asynccontextmanager
async def house(state: Path, overrides: dict[str, Any] | None = None) -> AsyncIterator[House]:
    made = House(state)
    watcher = Child(
        "watcher",
        "actors.watcher:run",
        keep="actors.watcher:keep",
        args={"state_dir": str(state), "overrides": overrides or {}},
        backoff=Backoff(first_s=0.01),
        intensity=Intensity(restarts=100),
        on_limit=OnLimit.PARK,
    )
    async with running(Group("root", (watcher, Child("subscriber", made.subscriber)))) as tree:
        made.tree = tree
        yield made


def port(number: int) -> str:
    return f"chat: {{websocket: {{port: {number}}}}}\n"


def has_port(number: int) -> Callable[[Snapshot], bool]:
    return lambda snapshot: snapshot.websocket.port == number


def has_version(version: int) -> Callable[[Snapshot], bool]:
    return lambda snapshot: snapshot.version == version

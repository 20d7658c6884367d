"""Several fronts over one store, in the test's own trio run: the product's parts, each front with a port of its own.

async with several(tmp_path, say("hello")) as fronts, fronts[0].client() as client, fronts[1].client() as other:
    ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from protocol.claim import FrontId
from protocol.spec import Group
from protocol.writer import FrontGone
from supervisors import tree as parts
from supervisors.supervisor import Tree, running
from tests.fakes import FakeProvider, Reply
from tests.service import Service, prepare

RUN = "run"


class OneOf(Service):
    """A front of several."""

    role = ""

    @property
    def id(self) -> str:
        """Its first life's."""
        return str(FrontId(RUN, self.role, 1))

    @property
    def front(self) -> Any:
        """What its gateway's slot keeps."""
        return self.tree.slots[f"{self.role}/gateway"].kept

    async def is_gone(self) -> None:
        """The store is told that it died; it has not."""
        await self.ref("store/writer").ask(FrontGone(self.id), within=10.0)

    async def dies(self) -> None:
        """Its connections end, and the store is told; what it runs goes on to write, in vain."""
        self.leave_quietly()
        await self.is_gone()

    def leave_quietly(self) -> None:
        """Its connections end, and nobody is told."""
        self.tree.slots[f"{self.role}/gateway"].close_keep()


@asynccontextmanager
async def several(
    folder: Path,
    *replies: Reply,
    count: int = 2,
    settings: Mapping[str, Any] | None = None,
    servers: Mapping[str, Any] | None = None,
) -> AsyncIterator[list[OneOf]]:
    """That many fronts, ready to take turns; arguments as `tests.service.service`, and no server is waited for."""
    state = folder / "state"
    async with FakeProvider(*replies) as provider:
        prepare(state, provider, settings or {}, servers or {})
        trees: list[Tree] = []

        async def status_json() -> bytes:
            return msgspec.json.encode(trees[0].status())

        found: list[tuple[str, trio.SocketListener]] = []
        for number in range(1, count + 1):
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            found.append((f"front{number}", listener))
        watcher = {"state_dir": str(state), "overrides": {}}
        writer = {"path": str(state / "chat_history.db"), "type": "auto_persist", "run": RUN, "living": None}
        fronts = [
            parts.front(
                role,
                {
                    "listeners": [listener],
                    "loopback": True,
                    "moved": lambda _, __: None,
                    "front": str(FrontId(RUN, role, 1)),
                    "handover": str(state / "{role}"),
                },
            )
            for role, listener in found
        ]
        head = parts.head(watcher, {"status": status_json})
        tools = parts.servers({}) if servers else ()
        spec = Group("several", (*head, parts.store(writer), parts.llm({"state_dir": str(state)}), *tools, *fronts))
        async with running(spec) as tree:
            trees.append(tree)
            houses: list[OneOf] = []
            for role, listener in found:
                house = OneOf(tree, provider, listener.socket.getsockname()[1], state)
                house.role = role
                houses.append(house)
            yield houses

"""A front's successor takes its place when it is ready, and only then."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from protocol.gateway import StopTaking
from protocol.mail import Mailbox, Request
from protocol.spec import Child, Context, Group, Parked, Status
from protocol.writer import Done, FrontGone
from supervisors.process import Replace
from supervisors.succession import Succession, number
from supervisors.supervisor import Tree, running


class House:
    """A root's tree whose processes are plain actors."""

    def __init__(self) -> None:
        self.drained: list[str] = []
        self.gone: list[str] = []
        self.hopeless: set[str] = set()
        self.trees: list[Tree] = []
        self.succession = Succession(self.trees, self.front, 5.0, 2, "run")

    def front(self, role: str) -> Child:
        return Child(role, self.process)

    async def process(self, box: Mailbox[Any], ctx: Context) -> None:
        if ctx.path.rpartition("/")[2] in self.hopeless:
            raise Parked("it cannot be built")
        async for message in box:
            if isinstance(message, Replace):
                box.reply("it is as it is")

    async def gateway(self, box: Mailbox[Request[int]], ctx: Context) -> None:
        async for message in box:
            assert isinstance(message, StopTaking)
            assert message.replaced
            self.drained.append(ctx.path)
            box.reply(0)

    async def writer(self, box: Mailbox[Request[Done]], ctx: Context) -> None:
        async for message in box:
            assert isinstance(message, FrontGone)
            self.gone.append(message.front)
            box.reply(Done())

    def tree(self) -> Group:
        gateways = (Group(role, (Child("gateway", self.gateway),)) for role in ("front1", "front2"))
        back = (Child(role, self.process) for role in ("store", "llm", "mcp"))
        writer = Child("store/writer", self.writer)
        return Group(
            "root",
            (*back, writer, *gateways, Group("fronts", (self.front("front1"), self.front("front2")), dynamic=True)),
        )


async def test_all_are_replaced_and_what_cannot_be_is_said(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    async with running(house.tree()) as tree:
        house.trees.append(tree)
        await tree.reached("fronts/front2", Status.RUNNING)
        await house.succession.replace_all(tree)
        assert sorted(house.drained) == ["front1/gateway", "front2/gateway"]
        assert {path for path in tree.slots if path.startswith("fronts/")} == {"fronts/front3", "fronts/front4"}
        assert sorted(house.gone) == ["run:front1#1", "run:front2#1"]
        assert tree.slots["store"].incarnation == tree.slots["mcp"].incarnation == 2
        assert tree.slots["llm"].incarnation == 1, "it replaces its process itself"
        assert "llm keeps its process: it is as it is" in caplog.text


async def test_one_that_does_not_get_ready_leaves_the_old_one(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.hopeless = {"front3"}
    async with running(house.tree()) as tree:
        await tree.reached("fronts/front2", Status.RUNNING)
        await house.succession.replace_all(tree)
        await tree.until(lambda: "fronts/front3" not in tree.slots)
        assert house.drained == ["front2/gateway"]
        assert {path for path in tree.slots if path.startswith("fronts/")} == {"fronts/front1", "fronts/front4"}
        assert tree.slots["fronts/front1"].incarnation == 1
        assert "front1 stays, its successor did not get ready: it cannot be built" in caplog.text


async def test_signals_ask_for_one_after_the_other() -> None:
    house = House()
    send, receive = trio.open_memory_channel[int](2)
    async with running(house.tree()) as tree, trio.open_nursery() as nursery:
        nursery.start_soon(house.succession.obey, receive)
        await send.send(1)  # before there is a tree: nothing to replace
        house.trees.append(tree)
        await send.send(1)
        await tree.until(lambda: {"fronts/front3", "fronts/front4"} <= set(tree.slots))
        nursery.cancel_scope.cancel()


def test_fronts_are_counted() -> None:
    assert [number(role) for role in ("front1", "front12", "front")] == [1, 12, 0]

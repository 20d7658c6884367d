from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from actors import server_subscriptions
from actors.server_subscriptions import Kept, Subscriptions
from protocol.errors import Code, Fault

REFUSED = "x://refused"


class Server:
    """What a server was asked to do, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.updated: dict[str, Callable[[], None]] = {}

    async def follow_resource(self, uri: str, began: Callable[[], None], updated: Callable[[], None]) -> None:
        self.asked.append(f"+{uri}")
        if uri == REFUSED:
            raise Fault(Code.NOT_FOUND, "no")
        self.updated[uri] = updated
        began()
        await trio.sleep_forever()

    async def unfollow_resource(self, uri: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(f"-{uri}")


class Told:
    """What gateways were told."""

    def __init__(self) -> None:
        self.all: list[str] = []

    def tell(self, gateway: str, uri: str) -> None:
        self.all.append(f"{gateway} {uri}")


@asynccontextmanager
async def running(server: Server, told: Told, kept: Kept) -> AsyncIterator[Subscriptions]:
    subscriptions = Subscriptions("odd", kept, told.tell)
    async with trio.open_nursery() as nursery:
        await nursery.start(subscriptions.run, server)
        yield subscriptions
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_the_first_who_wants_a_resource_begins_and_the_last_ends() -> None:
    server, told = Server(), Told()
    async with running(server, told, {}) as subscriptions:
        assert await subscriptions.add("x://a", "one")
        assert await subscriptions.add("x://a", "two")
        server.updated["x://a"]()
        server.updated["x://a"]()
        subscriptions.updated("x://a/part")  # of one that is followed
        subscriptions.updated("x://b")
        await trio.sleep(1)
        assert told.all == ["one x://a", "two x://a"]
        subscriptions.remove("x://a", "one")
        await trio.sleep(1)
        assert server.asked == ["+x://a"]
        subscriptions.forget("two")
        await trio.sleep(1)
        assert server.asked == ["+x://a", "-x://a"]


@pytest.mark.autojump
async def test_an_end_and_a_new_beginning_keep_their_order() -> None:
    server, told, kept = Server(), Told(), Kept()
    async with running(server, told, kept) as subscriptions:
        await subscriptions.add("x://a", "one")
        subscriptions.remove("x://a", "one")
        await subscriptions.add("x://a", "one")
        assert server.asked == ["+x://a", "-x://a", "+x://a"]
    assert kept == {"x://a": {"one"}}


@pytest.mark.autojump
async def test_a_new_incarnation_follows_all_again_and_says_that_they_may_have_changed() -> None:
    server, told, kept = Server(), Told(), {"x://a": {"one"}, REFUSED: {"one"}}
    async with running(server, told, kept):
        await trio.sleep(1)
    assert sorted(server.asked) == sorted([f"+{REFUSED}", "+x://a"])
    assert told.all == ["one x://a"]
    assert kept == {"x://a": {"one"}}


@pytest.mark.autojump
async def test_refusals_and_too_many_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_subscriptions, "MOST", 1)
    kept = Kept()
    async with running(Server(), Told(), kept) as subscriptions:
        with pytest.raises(Fault, match="no") as caught:
            await subscriptions.add(REFUSED, "one")
        assert (caught.value.code, kept) == (Code.NOT_FOUND, {})
        await subscriptions.add("x://a", "one")
        with pytest.raises(Fault) as caught:
            await subscriptions.add("x://b", "one")
        assert caught.value.code is Code.OVERLOADED

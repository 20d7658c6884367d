"""What comes and goes leaves nothing behind that only the garbage collector frees: it looks at all rarely in a front.

Counted with the collector switched off, after turns of every kind; each cycle is shown by the types that are in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.cycles import circles, unreachable
from tests.fakes import Cut, Script, ask_tool, say
from tests.fakes import fail as failing
from tests.service import LIGHT, Service, connected, front_of, service

ROUNDS = 5
ADD = ask_tool("add", {"a": 1, "b": 2})


def by_last_message(body: Any) -> Any:
    """The model does what it is told."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return say("done")
    match last["content"]:
        case "add":
            return ADD
        case "fail":
            return failing(400)
        case "break off":
            return Script(("so", Cut()))
        case "go wrong":
            return Script(("so", {"error": {"message": "the model fell over", "code": 502}}))
        case _:
            return say("some", "words", "of", "answer")


Kind = Callable[[Service], Awaitable[None]]


def says(*messages: str) -> Kind:
    """A client that comes, says that, and goes when it is answered."""

    async def kind(s: Service) -> None:
        async with s.client("?conversation=new") as client:
            for message in messages:
                await client.say(message)

    return kind


async def stopped(s: Service) -> None:
    async with s.client("?conversation=new") as client:
        await client.send("user_message", message="long")
        await client.send("stop")
        await client.until("turn_finished")


async def approved(s: Service) -> None:
    async with s.client("?conversation=new") as client:
        await client.send("user_message", message="add")
        asked = (await client.until("approval_request"))[-1]
        await client.send("approve", approval_id=asked["approval_id"], decision="once")
        await client.until("turn_finished")


async def gone_wrong(s: Service) -> None:
    async with s.client("?conversation=new") as client:
        assert (await client.say("go wrong"))[-1]["outcome"] == "failed"


async def two_look_back(s: Service) -> None:
    async with s.client("?conversation=new") as one:
        await one.say("hi")
        async with s.client(f"?conversation={one.conversation}") as other:
            await one.send("user_message", message="and")
            await other.send("user_message", message="I too")
            for client in (one, other):
                await client.until("turn_finished", turn=3)
                await client.send("resume", turn=1, seq=0)
                await client.send("history", request_id="back")
                await client.until("history", request_id="back")


async def nonsense(s: Service) -> None:
    async with s.client() as client:
        await client.websocket.send_message("{")
        await client.until("error")
        await client.websocket.send_message(b"binary")
        await client.until("error")
        await client.send("get_history", conversation_id="nobody's", request_id="1")
        await client.until("error")


async def reset(s: Service) -> None:
    async with s.client("?conversation=new") as client:
        await client.send("user_message", message="long")
        await client.until("turn_started")
        await trio.aclose_forcefully(client.websocket._stream)


async def pages(s: Service) -> None:
    for path in ("/", "/healthz", "/metrics", "/nothing", "/api/conversations"):
        await s.get(path)


KINDS: dict[str, Kind] = {
    "chat": says("hi", "again"),
    "stopped": stopped,
    "tool": says("add"),
    "approved": approved,
    "failed": says("fail"),
    "broken off": says("break off"),
    "gone wrong": gone_wrong,
    "two look back": two_look_back,
    "nonsense": nonsense,
    "reset": reset,
    "pages": pages,
}
ASK = {"chat": {"tools": {"policy": {"demo/add": "ask"}}}}


@pytest.mark.parametrize("name", KINDS)
async def test_nothing_is_left_in_cycles(tmp_path: Path, name: str) -> None:
    servers = LIGHT if name in ("tool", "approved") else {}
    async with service(tmp_path, by_last_message, servers=servers, settings=ASK if name == "approved" else {}) as s:
        if servers:
            await connected(s, "demo")

        async def rounds() -> None:
            for _ in range(ROUNDS):
                await KINDS[name](s)
            await trio.testing.wait_all_tasks_blocked(0.05)
            front_of(s).retire(-1.0)
            await trio.testing.wait_all_tasks_blocked(0.05)

        await rounds()  # what is made once is made
        with unreachable() as found:
            await rounds()
        left = circles(found)
    assert not left

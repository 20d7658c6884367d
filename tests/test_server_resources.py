from __future__ import annotations

import pytest
import trio

from actors.server_resources import AT_ONCE, CHECKED, EACH_S, available
from protocol.errors import Code, Fault
from protocol.mcp_server import ResourceContent

HELD = [ResourceContent("", "", 1, text="x")]


@pytest.mark.autojump
async def test_only_what_can_be_read_and_holds_something_is_available() -> None:
    async def read(uri: str) -> list[ResourceContent]:
        match uri:
            case "gone":
                raise Fault(Code.NOT_FOUND)
            case "empty":
                return []
            case "slow":
                await trio.sleep(EACH_S * 2)  # virtual
        return HELD

    begun = trio.current_time()
    assert await available("x", ["slow", "good", "gone", "empty", "fine", "good"], read) == {"good", "fine"}
    assert trio.current_time() - begun == EACH_S


@pytest.mark.autojump
async def test_a_large_list_is_read_in_part_and_a_few_at_a_time() -> None:
    reading, most, seen = 0, 0, list[str]()

    async def read(uri: str) -> list[ResourceContent]:
        nonlocal reading, most
        seen.append(uri)
        reading += 1
        most = max(most, reading)
        await trio.sleep(0.1)  # virtual
        reading -= 1
        return HELD

    found = await available("x", [str(number) for number in range(1_000)], read)
    assert most == AT_ONCE
    assert sorted(seen, key=int) == [str(number) for number in range(CHECKED)]
    assert found == set(seen)
    assert await available("x", [], read) == frozenset()

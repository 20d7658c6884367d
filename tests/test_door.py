"""The address that clients connect to is held by the root: fronts get its listeners, and others on demand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from actors import doorbell
from protocol.spec import Child, Group
from supervisors import door
from supervisors.supervisor import running


@contextlib.asynccontextmanager
async def house(tmp_path: Path) -> AsyncIterator[tuple[door.Held, str, list[tuple[str, int]]]]:
    path, moved = str(tmp_path / "door"), list[tuple[str, int]]()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    held = door.Held("127.0.0.1", 0, listeners, lambda host, port: moved.append((host, port)))
    with door.bound(path) as asked:
        child = Child("door", "supervisors.door:run", args={"held": held, "socket": asked})
        try:
            async with running(Group("root", (child,))) as tree:
                tree.ref("door").nudge()
                yield held, path, moved
        finally:
            held.close()


async def echo_through(listener: trio.SocketListener, port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as client, await listener.accept() as served:
        await served.send_all(b"here")
        assert await client.receive_some(4) == b"here"


async def test_a_front_gets_the_listener_that_is_held_and_serves_it_on_after_a_move(tmp_path: Path) -> None:
    async with house(tmp_path) as (held, path, moved):
        port = held.listeners[0].socket.getsockname()[1]
        [mine] = await doorbell.ring(path, "127.0.0.1", 0)
        [others] = await doorbell.ring(path, "127.0.0.1", 0)
        async with mine, others:
            assert mine.socket.getsockname()[1] == others.socket.getsockname()[1] == port
            assert moved == []
            await echo_through(mine, port)
            [new] = await doorbell.ring(path, "localhost", 0)
            [same] = await doorbell.ring(path, "localhost", 0)
            async with new, same:
                assert same.socket.getsockname() == new.socket.getsockname()
                assert [p for _, p in moved] == [new.socket.getsockname()[1]]
                await echo_through(new, moved[0][1])
                # who had the old one serves what still comes there
                await echo_through(others, port)


async def test_an_address_that_cannot_be_bound_changes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as (held, path, moved):
        taken = held.listeners[0].socket.getsockname()[1]
        for host, port in (("127.0.0.1", taken), ("no such name", 1), ("203.0.113.1", 1)):
            with pytest.raises(OSError, match=r"\w"):
                await doorbell.ring(path, host, port)
        assert moved == []
        [mine] = await doorbell.ring(path, "127.0.0.1", 0)
        async with mine:
            await echo_through(mine, taken)


async def test_nobody_at_the_door_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="o such file"):
        await doorbell.ring(str(tmp_path / "nothing"), "127.0.0.1", 0)

"""What a socket costs on which nothing happens: one task, and few bytes. Counts, not times; the peers are plain."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from actors import client_socket
from tests.fakes import say
from tests.peer import upgrade
from tests.service import Service, front_of, service

SOCKETS = 60
MOST_BYTES = 11_000  # of Python's, each in a conversation of its own; it was 27,000 with a library's connection in it


def connect(s: Service, stack: ExitStack, count: int) -> None:
    for _ in range(count):
        one = stack.enter_context(socket.create_connection(("127.0.0.1", s.port)))
        one.sendall(upgrade(s.port, path="/ws/chat?conversation=new"))


async def settled(s: Service, count: int) -> None:
    """All are welcomed, and nothing is left to do for them."""
    while len(front_of(s).conversations) < count:
        await trio.testing.wait_all_tasks_blocked(0.01)
    while any(one.held for one in front_of(s).sockets.values()):
        await trio.testing.wait_all_tasks_blocked(0.01)
    await trio.testing.wait_all_tasks_blocked(0.05)


async def test_an_idle_socket_is_one_task_and_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_socket, "HOLD_S", 0.01)
    async with service(tmp_path, say("x")) as s:
        with ExitStack() as stack:
            connect(s, stack, 5)  # what is made once is made
            await settled(s, 5)
            tasks = trio.lowlevel.current_statistics().tasks_living
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            before = tracemalloc.get_traced_memory()[0]
            connect(s, stack, SOCKETS)
            await settled(s, SOCKETS + 5)
            gc.collect()
            assert trio.lowlevel.current_statistics().tasks_living - tasks == SOCKETS
            assert (tracemalloc.get_traced_memory()[0] - before) / SOCKETS < MOST_BYTES

"""What a socket costs, and an answer that is running: few tasks, and few bytes. Counts, not times; peers are plain."""

from __future__ import annotations

import gc
import json
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
STREAMS = 40
MOST_RUNNING_BYTES = 22_500  # of its socket, session, turn and connection to the provider; it was 33,800
MASK = b"\x01\x02\x03\x04"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BEGUN = b'data: {"choices": [{"index": 0, "delta": {"content": "begin "}}]}\n\n'
MOST_BYTES = 10_400  # of Python's, each in a conversation of its own; it was 27,000 with a library's connection in it


def connect(s: Service, stack: ExitStack, count: int) -> list[socket.socket]:
    clients: list[socket.socket] = []
    for _ in range(count):
        one = stack.enter_context(socket.create_connection(("127.0.0.1", s.port)))
        one.sendall(upgrade(s.port, path="/ws/chat?conversation=new"))
        clients.append(one)
    return clients


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


def speak(one: socket.socket, number: int) -> None:
    """A message to the model, in a masked frame."""
    text = json.dumps({"type": "user_message", "message": "hi", "request_id": f"r{number}"}).encode()
    masked = bytes(byte ^ MASK[place % 4] for place, byte in enumerate(text))
    one.sendall(b"\x81" + bytes((0x80 | len(text),)) + MASK + masked)


async def answered(listener: socket.socket, stack: ExitStack, count: int) -> None:
    """So many requests come, and their answers begin."""
    for _ in range(count):
        await trio.lowlevel.wait_readable(listener)
        one = stack.enter_context(listener.accept()[0])
        asked = b""
        while b"\r\n\r\n" not in asked or not asked.endswith(b"}"):
            await trio.lowlevel.wait_readable(one)
            asked += one.recv(65536)
        one.sendall(ANSWER + b"%x\r\n%b\r\n" % (len(BEGUN), BEGUN))


async def test_a_running_answer_is_a_sleeping_session_and_few_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "HOLD_S", 0.01)
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0), backlog=STREAMS) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        settings = {"llm": {"providers": {"fake": {"base_url": address, "client": {"prewarm": 0}}}}}
        async with service(tmp_path, say("x"), settings=settings) as s:

            async def begin(count: int) -> None:
                before = len(front_of(s).sockets)
                clients = connect(s, stack, count)
                await settled(s, before + count)
                for number, one in enumerate(clients):
                    speak(one, number)
                await answered(listener, stack, count)
                while sum(log.shown and log.attached for log in front_of(s).running()) < before + count:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                await trio.testing.wait_all_tasks_blocked(0.05)

            await begin(5)  # what is made once is made
            tasks = trio.lowlevel.current_statistics().tasks_living
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            before = tracemalloc.get_traced_memory()[0]
            await begin(STREAMS)
            gc.collect()
            assert trio.lowlevel.current_statistics().tasks_living - tasks == 2 * STREAMS
            assert (tracemalloc.get_traced_memory()[0] - before) / STREAMS < MOST_RUNNING_BYTES


class Spawned(trio.abc.Instrument):
    """The names of the tasks that began."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """One began."""
        self.names.append(task.name)


async def test_a_message_takes_no_task_to_be_stored_two_to_be_answered_and_one_for_its_end(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.say("what is made once is made")
        await trio.testing.wait_all_tasks_blocked(0.01)
        spawned = Spawned()
        trio.lowlevel.add_instrument(spawned)
        await client.say("and then")
        trio.lowlevel.remove_instrument(spawned)
    ours = sorted(name.partition(" ")[0] for name in spawned.names if not name.startswith(("tests.", "trio")))
    # whoever takes the mail answers, and another takes the mail; once more to end it, where it has flowed
    asked = [name for name in ours if name in ("request", "actors.streamer.Streamer.serve")]
    assert ours == ["actors.session.Session._store_end", *asked]
    assert len(asked) <= 2

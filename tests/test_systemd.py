"""Sockets from a service manager, and what it is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio

from supervisors.systemd import Manager, passed_sockets
from tests.forks import run

CHILD = """
import os
from supervisors.systemd import passed_sockets
os.dup2(0, 3)
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    for one in passed_sockets(os.environ):
        print(one.getsockname()[1], one.getblocking(), os.get_inheritable(one.fileno()), "LISTEN_FDS" in os.environ)
except ValueError as error:
    print(error)
"""


async def passed(given: socket.socket) -> str:
    done = await run(CHILD, stdin=given.fileno(), env={**os.environ, "LISTEN_FDS": "1"})
    assert done.code == 0, done.err
    return done.out.strip()


async def test_a_socket_that_the_manager_opened_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert await passed(given) == f"{given.getsockname()[1]} False False False"


async def test_what_is_no_listening_socket_is_said() -> None:
    with socket.socket() as given:
        assert await passed(given) == "descriptor 3, passed by LISTEN_FDS, is no listening TCP socket"


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}])
def test_sockets_of_others_are_not_touched(environ: dict[str, str]) -> None:
    assert passed_sockets(environ) == []
    assert environ == {}


@pytest.mark.autojump
async def test_the_manager_is_told_and_gets_signs_of_life(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asked:
        asked.bind(path)
        asked.setblocking(False)
        manager = Manager({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "10000000"})
        manager.tell("READY=1", "STATUS=here")
        assert asked.recv(100) == b"READY=1\nSTATUS=here"
        with trio.move_on_after(11):
            await manager.keep_alive()
        assert [asked.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3  # at 0, 5 and 10 s
        with pytest.raises(BlockingIOError):
            asked.recv(100)


async def test_without_a_manager_nothing_is_sent(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    nobody = Manager({"WATCHDOG_USEC": "10"})
    nobody.tell("READY=1")
    await nobody.keep_alive()
    assert Manager({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"}).every_s is None
    assert not caplog.records
    Manager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell("READY=1")
    assert "could not be told READY=1" in caplog.text

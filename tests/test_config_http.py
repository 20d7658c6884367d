"""The configuration's socket: who may ask what, each answer, and what strangers send."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import actors.watcher
from actors import config_access, config_http
from actors.config_access import FILE, PREFIX
from protocol.spec import Status
from protocol.watcher import GetSnapshot, SetLocalModel
from tests.watched import House, has_port, house, port


class Door:
    """The socket of a running watcher."""

    def __init__(self, watched: House, operator: dict[str, Any], tool: dict[str, Any]) -> None:
        self.watched = watched
        self.operator = operator
        self.tool = tool

    async def raw(self, request: bytes, *, end: bool = False) -> bytes:
        """Send bytes, and read to the end."""
        async with await trio.open_unix_socket(self.operator["socket"]) as stream:
            await stream.send_all(request)
            if end:
                await stream.send_eof()
            answer = b""
            while part := await stream.receive_some():
                answer += part
            return answer

    async def ask(self, method: str, target: str, body: object = None, token: str | None = None) -> tuple[int, Any]:
        """One request with the operator's token, or another: status and JSON."""
        text = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token or self.operator['token']}"
            f"\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        answer = await self.raw(head.encode() + text)
        head, _, found = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), json.loads(found)


def text_of(path: str) -> str:
    return Path(path).read_text()


@asynccontextmanager
async def door(state: Path) -> AsyncIterator[Door]:
    async with house(state) as watched:
        snapshot = await watched.until(lambda _: True)
        operator = json.loads((state / FILE).read_text())
        yield Door(watched, operator, json.loads(text_of(snapshot.config_access)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.watcher, "POLL_S", 0.02)
    monkeypatch.setattr(actors.watcher, "SETTLED_S", 0.02)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ("deep" * 40) / "state"  # no socket could be bound in here


async def test_the_door_is_the_users_own_and_goes_with_the_watcher(state: Path) -> None:
    async with door(state) as at:
        folder = Path(at.operator["socket"]).parent
        tool_file = Path((await at.watched.ask()).config_access)
        assert tool_file.parent == folder
        assert folder.name.startswith(PREFIX)
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, tool_file, state / FILE)}
        assert modes == {folder: 0o700, tool_file: 0o600, state / FILE: 0o600}
        assert at.operator["token"] != at.tool["token"]
        assert at.operator["pid"] == os.getpid()
        # No token is in a snapshot, and none in the status.
        said = repr(await at.watched.ask()) + repr(at.watched.tree.status())
        assert at.operator["token"] not in said
        assert at.tool["token"] not in said
    assert not folder.exists()
    assert not (state / FILE).exists()


async def test_what_killed_services_left_is_removed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with tempfile.TemporaryDirectory() as short:  # a test's own directory is too deep for sockets
        monkeypatch.setattr(tempfile, "tempdir", short)
        made = {name: Path(short, f"{PREFIX}{name}") for name in ("left", "empty", "young", "lives")}
        made["foreign"] = Path(short, "foreign")
        for folder in made.values():
            folder.mkdir()
        for name in ("left", "young", "foreign"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(made[name] / config_access.SOCKET))
        with socket.socket(socket.AF_UNIX) as alive:
            alive.bind(str(made["lives"] / config_access.SOCKET))
            alive.listen(1)
            for name in set(made) - {"young"}:
                os.utime(made[name], (0, 0))
            async with door(state):
                pass
            assert {name for name, folder in made.items() if folder.exists()} == {"young", "lives", "foreign"}


async def test_reading_and_changing(state: Path) -> None:
    async with door(state) as at:
        status, view = await at.ask("GET", "/config?path=llm.active")
        assert (status, view) == (200, {"version": 1, "config": {"llm": {"active": "openrouter"}}})
        body = {"changes": {"chat": {"websocket": {"port": 8001}}}, "base_version": 1, "author": "cli"}
        status, view = await at.ask("POST", "/config", body)
        assert (status, view["version"], view["config"]["chat"]["websocket"]["port"]) == (200, 2, 8001)
        # In force when it is answered.
        assert (await at.watched.ask()).websocket.port == 8001
        status, fault = await at.ask("POST", "/config", body)
        assert (status, fault["error_code"], fault["retryable"]) == (409, "CONFIG_CONFLICT", True)
        status, rows = await at.ask("GET", "/versions?limit=1")
        assert (status, [(row["version"], row["author"], row["changed"]) for row in rows]) == (
            200,
            [(2, "cli", ["chat.websocket.port"])],
        )
        status, view = await at.ask("POST", "/rollback", {"version": 1})
        assert (status, view["version"], view["config"]["chat"]["websocket"]["port"]) == (200, 3, 8000)


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code", "words"),
    [
        ("GET", "/config?path=nothing.here", None, 404, "NOT_FOUND", "nothing.here"),
        ("GET", "/else", None, 404, "NOT_FOUND", "/else"),
        ("DELETE", "/config", None, 405, "INVALID_MESSAGE", "DELETE"),
        ("GET", "/versions?limit=x", None, 400, "INVALID_MESSAGE", "limit"),
        ("POST", "/config", {"changes": 1}, 400, "INVALID_MESSAGE", "$.changes"),
        ("POST", "/config", {"changes": {}, "author": "tool"}, 400, "INVALID_MESSAGE", "author"),
        ("POST", "/config", {"changes": {}, "author": "client:"}, 400, "INVALID_MESSAGE", "author"),
        (
            "POST",
            "/config",
            {"changes": {"chat": {"websocket": {"port": "x"}}}},
            400,
            "CONFIG_INVALID",
            "websocket.port",
        ),
        ("POST", "/config", {"changes": {"caht": {}}}, 400, "CONFIG_INVALID", "is chat meant?"),
        ("POST", "/rollback", {"version": 77}, 404, "NOT_FOUND", "77"),
        ("POST", "/rollback", {"version": "1"}, 400, "INVALID_MESSAGE", "$.version"),
    ],
)
async def test_errors_say_what_is_wrong(
    state: Path, method: str, target: str, body: object, status: int, code: str, words: str
) -> None:
    async with door(state) as at:
        found, fault = await at.ask(method, target, body)
        assert (found, fault["error_code"]) == (status, code)
        assert words in fault["error_message"]
        assert set(fault) == {"error_code", "error_message", "hint", "retryable"}
        assert (await at.watched.ask()).version == 1


async def test_nobody_without_a_token(state: Path) -> None:
    async with door(state) as at:
        for token in ("wrong", "é", at.operator["token"][:-1]):
            assert (await at.ask("GET", "/config", token=token))[0] == 401
        answer = await at.raw(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"401" in answer
        assert b'"UNAUTHORIZED"' in answer
        basic = f"GET /config HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {at.operator['token']}\r\n\r\n"
        assert b" 401 " in await at.raw(basic.encode())


async def test_the_tool_changes_only_what_is_its_own(state: Path) -> None:
    async with door(state) as at:
        token = at.tool["token"]
        changes = {"llm": {"providers": {"openrouter": {"model": "m", "base_url": "https://evil.example"}}}}
        status, fault = await at.ask("POST", "/config", {"changes": changes}, token)
        assert (status, fault["error_code"]) == (403, "FORBIDDEN")
        assert "llm.providers.openrouter.base_url" in fault["error_message"]
        assert "model" not in fault["error_message"].replace("a model's tool", "")
        status, fault = await at.ask("POST", "/rollback", {"version": 1}, token)
        assert (status, fault["error_code"]) == (403, "FORBIDDEN")
        del changes["llm"]["providers"]["openrouter"]["base_url"]
        # Whoever it says it is: its token makes it the tool.
        status, view = await at.ask("POST", "/config", {"changes": changes, "author": "cli"}, token)
        assert (status, view["version"]) == (200, 2)
        assert (await at.ask("GET", "/config?path=llm.active", token=token))[0] == 200
        _, rows = await at.ask("GET", "/versions", token=token)
        assert [row["author"] for row in rows] == ["tool", "file"]


async def test_secrets_do_not_come_out(state: Path) -> None:
    async with door(state) as at:
        at.watched.write(
            "my_api_key: sk-planted-1\nllm: {providers: {openrouter: {token: sk-planted-2, client: {headers:"
            " {Subscription-Key: sk-planted-3, X-Title: seen}}}}}\nchat: {websocket: {port: 8001}}\n"
        )
        await at.watched.until(has_port(8001))
        _, view = await at.ask("GET", "/config")
        assert "seen" in repr(view)
        assert "planted" not in repr(view)
        # Not lost from the file by a save, and refused where a program would put one in.
        await at.ask("POST", "/config", {"changes": {"chat": {"websocket": {"port": 8002}}}})
        assert (state / "runtime_config.yaml").read_text().count("planted") == 3
        body = {"changes": {"llm": {"providers": {"openrouter": {"api_key": "sk-planted-4"}}}}}
        status, fault = await at.ask("POST", "/config", body)
        assert (status, fault["error_code"]) == (400, "CONFIG_INVALID")
        assert "planted" not in repr(fault)
        history = "".join(path.read_text() for path in (state / "config_history").iterdir())
        assert "planted" not in history


async def test_strangers_cannot_hurt(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_http, "READ_S", 0.1)
    async with door(state) as at:
        auth = f"Authorization: Bearer {at.operator['token']}\r\n"
        start = f"POST /config HTTP/1.1\r\nHost: x\r\n{auth}"
        for request, status in (
            (b"\x00\x01\x02\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 6000, 431),
            (b"GET", 408),
            (f"{start}Content-Length: 5\r\n\r\nab".encode(), 408),
            (f"{start}Content-Length: 4\r\n\r\n\xff{{[}}".encode("latin-1"), 400),
            (f"{start}Content-Length: {2**30}\r\n\r\n".encode() + b"x" * (config_http.MOST_BYTES + 1), 413),
            (f"{start}Content-Length: 40000\r\n\r\n".encode() + b"[" * 40000, 400),
            (f"{start}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(), 400),
        ):
            answer = await at.raw(request)
            assert answer.split(b" ")[1] == str(status).encode(), (request[:60], answer)
        chunked = f"{start}Transfer-Encoding: chunked\r\n\r\ne\r\n" + '{"changes": {}' + "\r\n1\r\n}\r\n0\r\n\r\n"
        assert b" 200 " in await at.raw(chunked.encode())
        cut = await at.raw(f"{start}Content-Length: 5\r\n\r\nab".encode(), end=True)
        assert b" 400 " in cut
        # Some connect and say nothing, some reset.
        silent = [socket.socket(socket.AF_UNIX) for _ in range(config_http.MOST_AT_A_TIME + 3)]
        for one in silent:
            one.connect(at.operator["socket"])
        for one in silent:
            one.close()
        assert (await at.ask("GET", "/config"))[0] == 200
        node = next(child for child in at.watched.tree.status().children if child.name == "watcher")
        assert node.restarts == 0


async def test_a_crash_of_the_watcher_keeps_the_door_and_its_tokens(state: Path) -> None:
    class Boom(Exception):
        pass

    async with door(state) as at:

        def boom(message: object) -> None:
            if isinstance(message, SetLocalModel):
                raise Boom

        at.watched.tree.tap("watcher", boom)
        at.watched.tree.ref("watcher").offer(SetLocalModel(None))
        await at.watched.tree.reached("watcher", Status.RUNNING, incarnation=2)
        assert (await at.ask("GET", "/config"))[0] == 200
        assert json.loads((state / FILE).read_text()) == at.operator
        at.watched.write(port(8005))
        await at.watched.until(has_port(8005))
        assert (await at.watched.tree.ref("watcher").ask(GetSnapshot(), within=5)).websocket.port == 8005


async def test_without_a_place_for_sockets_the_rest_works(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(config_access, "_folder", nowhere)
    async with house(state) as watched:
        assert (await watched.until(lambda _: True)).config_access == ""
        assert (await watched.set({"chat": {"websocket": {"port": 8001}}})).version == 2

"""What the port answers to plain HTTP: methods, readiness with its reasons, the operator's page, the chat page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from actors import pages
from protocol.spec import Status
from protocol.writer import ListUnfinished
from tests.fakes import Script, Stall, say
from tests.peer import nothing_left
from tests.service import Service, front_of, service

METHODS = ("POST", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW")


async def request(s: Service, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    return await s.raw(f"{method} {path} HTTP/1.1\r\nHost: localhost:{s.port}\r\n\r\n".encode())


async def readiness(s: Service) -> tuple[int, dict[str, Any]]:
    status, _, body = await s.get("/readyz")
    return status, json.loads(body)


async def test_only_get_and_head_and_head_is_get_without_its_body(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, nothing_left(s):
        for path in ("/", "/healthz", "/readyz", "/ws/chat", "/nothing"):
            for method in METHODS:
                status, headers, body = await request(s, method, path)
                assert (status, headers["allow"]) == (405, "GET, HEAD"), (method, path)
                assert body, (method, path)
        for path, expected in (("/", 200), ("/healthz", 200), ("/schema", 200), ("/ws/chat", 426), ("/nothing", 404)):
            got, head = await request(s, "GET", path), await request(s, "HEAD", path)
            assert (got[0], head[0], head[2]) == (expected, expected, b"")
            assert head[1]["content-length"] == got[1]["content-length"] == str(len(got[2]))
            assert (got[1]["cache-control"], got[1]["connection"]) == ("no-store", "close")
            assert got[1]["x-content-type-options"] == "nosniff"


async def test_readiness_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "READY_S", 0.1)
    async with service(tmp_path, say("x")) as s:
        assert await readiness(s) == (200, {"ready": True, "reasons": [], "notes": []})

        def dead(message: object) -> None:
            if type(message) is ListUnfinished:
                raise RuntimeError("no disk today")

        s.tree.tap("store/writer", dead)
        status, found = await readiness(s)
        assert (status, found["ready"]) == (503, False)
        assert "the store does not answer" in found["reasons"][0]
        s.tree.tap("store/writer", None)
        await s.tree.reached("store/writer", Status.RUNNING)
        front_of(s).taking = False
        status, found = await readiness(s)
        assert (status, found["reasons"]) == (503, ["the service is shutting down"])
        assert (await s.get("/healthz"))[0] == 200


async def test_parts_that_fell_before_the_front_was_there_are_named(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s:
        front = front_of(s)
        tree: dict[str, Any] = {
            "path": "",
            "kind": "group",
            "state": "running",
            "children": [
                {
                    "path": "llm",
                    "kind": "group",
                    "state": "running",
                    "children": [
                        {
                            "path": "llm/streamer",
                            "kind": "actor",
                            "state": "running",
                            "facts": {"resting": "groq open", "running": 1},
                        }
                    ],
                },
                {"path": "mcp/b", "kind": "actor", "state": "parked", "last_error": "its command is missing"},
                {"path": "mcp/a", "kind": "actor", "state": "restarting", "last_error": ""},
                {"path": "mcp/c", "kind": "actor", "state": "running", "last_error": "long ago"},
                {"path": "front2", "kind": "process", "state": "running", "pid": 77, "answers": False},
            ],
        }

        async def status() -> bytes:
            return msgspec.json.encode(tree)

        front.status = status
        notes = [
            "mcp/a is down: restarting",
            "mcp/b is down: its command is missing",
            "front2 (pid 77) does not answer",
            "providers that failed and are left alone for a while: groq open",
        ]
        assert await readiness(s) == (200, {"ready": True, "reasons": [], "notes": notes})
        # reading works on a full disk, so the store answers; no turn is taken
        writer = {
            "path": "store/writer",
            "kind": "actor",
            "state": "running",
            "facts": {"trouble": "No space is left."},
        }
        tree = {"children": [writer]}
        assert await readiness(s) == (503, {"ready": False, "reasons": ["No space is left."], "notes": []})
        tree = {}  # what is said of a tree that is not there yet
        assert await readiness(s) == (200, {"ready": True, "reasons": [], "notes": []})


async def test_a_key_that_is_missing_is_named_and_its_value_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"llm": {"providers": {"fake": {"api_key_env": "PLANTED_KEY"}}}}
    monkeypatch.setattr("actors.local_model.PACKAGES", ("no_such_package_here",))
    monkeypatch.delenv("PLANTED_KEY", raising=False)
    async with service(tmp_path, say("x"), settings=settings) as s:
        status, found = await readiness(s)
        assert (status, found["ready"]) == (200, True)
        assert "PLANTED_KEY" in found["notes"][0]
        monkeypatch.setenv("PLANTED_KEY", "sk-planted")
        assert (await readiness(s))[1]["notes"] == []
        for path in ("/", "/status", "/readyz", "/schema"):
            assert b"sk-planted" not in (await s.get(path))[2]


async def test_status_is_for_operators_of_this_machine(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s:
        front_of(s).listening.loopback = False
        assert (await s.get("/status"))[0] == (await s.get("/metrics"))[0] == 403
        assert (await s.raw(b"GET /healthz HTTP/1.1\r\nHost: chat.example\r\n\r\n"))[0] == 200
        front_of(s).listening.loopback = True
        assert json.loads((await s.get("/status"))[2])["children"]


async def test_a_page_that_fails_is_a_500_without_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with service(tmp_path, say("x")) as s, nothing_left(s):

        async def broken() -> bytes:
            raise ZeroDivisionError("inner words")

        front_of(s).status = broken
        status, _, body = await s.get("/status")
        assert status == 500
        assert b"inner words" not in body
        assert b"logged" in body
        assert "the page /status failed" in caplog.text


async def test_the_chat_page_runs_only_its_own_script(tmp_path: Path) -> None:
    settings = {"chat": {"websocket": {"endpoint": "/other/path"}}}
    async with service(tmp_path, say("x"), settings=settings) as s:
        _, headers, page = await s.get("/")
        _, _, again = await s.get("/")
        policy = headers["content-security-policy"]
        [nonce] = set(re.findall(r"'nonce-([^']+)'", policy))
        assert "default-src 'none'" in policy
        assert f'nonce="{nonce}"'.encode() in page
        assert nonce.encode() not in again
        assert b"/other/path" in page
        assert (await s.get("/other/path"))[0] == 426
        assert (await s.get("/ws/chat"))[0] == 404


async def test_pages_are_answered_while_a_turn_runs_and_while_one_peer_does_not_read(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items) as s, nothing_left(s), s.client() as c:
        await c.send("user_message", message="hi")
        await c.until("assistant_delta")
        async with await trio.open_tcp_stream("127.0.0.1", s.port) as deaf:
            await deaf.send_all(b"GET /schema HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for path in ("/", "/readyz", "/status"):
                assert (await s.get(path))[0] == 200
        gate.set()
        assert (await c.until("turn_finished"))[-1]["outcome"] == "completed"

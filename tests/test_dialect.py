"""Two dialects over one set of events: golden conversations, and clients written from the documents alone.

`python -m tests.test_dialect` writes tests/golden anew; read the difference before you keep it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket

from actors import dialect
from protocol.client import MAX_ID_CHARS, BadFrame, ClearHistory, UserMessage, decode
from tests.fakes import Script, ask_tool, fail, say, think
from tests.service import LIGHT, Service, service

GOLDEN = Path(__file__).parent / "golden"
REPLIES = (
    ask_tool("add", {"a": 2, "b": 40}, text=("Let me see. ",)),
    say("It is ", "42."),
    think("hm", then=("Fine.",)),
    fail(500, "out of order"),
    Script(("Half an",)).but(done=False),
)


def steady(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what differs from run to run: ids, times; runs of text joined."""
    text = json.dumps(frames)
    text = re.sub(r'"[0-9a-f]{32}"', '"ID"', text)
    text = re.sub(r'"[0-9a-f]{16}"', '"CALL"', text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text)
    text = re.sub(r'"elapsed_ms": \d+', '"elapsed_ms": 0', text)
    return joined(json.loads(text))


def joined(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How text is cut into deltas depends on timing: neighbours are one."""
    out: list[dict[str, Any]] = []
    for frame in frames:
        last = out[-1] if out else {}
        if frame.get("type") in ("assistant_delta", "thinking_delta") and last.get("type") == frame["type"]:
            out[-1] = {**frame, "text": last["text"] + frame["text"]}
        elif frame.get("status") == "chunk" and last.get("status") == "chunk":
            out[-1] = {**frame, "chunk": {**frame["chunk"], "data": last["chunk"]["data"] + frame["chunk"]["data"]}}
        else:
            out.append(frame)
    return out


class Talk:
    """A client that knows one document only: what it sends, and every frame that came."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection) -> None:
        self.websocket = websocket
        self.frames: list[dict[str, Any]] = []

    async def send(self, **frame: Any) -> None:
        await self.websocket.send_message(json.dumps(frame))

    async def until(self, **fields: Any) -> dict[str, Any]:
        while True:
            frame: dict[str, Any] = json.loads(await self.websocket.get_message())
            if frame.get("type") == "tools_changed":
                continue  # its server has only just come; when exactly is no part of the golden conversation
            self.frames.append(frame)
            if all(frame.get(key) == value for key, value in fields.items()):
                return frame


@asynccontextmanager
async def talk(s: Service, query: str = "") -> AsyncIterator[Talk]:
    async with trio_websocket.open_websocket_url(s.url + query) as websocket:
        yield Talk(websocket)


async def native(s: Service) -> list[dict[str, Any]]:
    async with talk(s) as t:
        await t.until(type="welcome")
        for number, text in enumerate(("2 + 40?", "thanks", "and now?", "again?")):
            await t.send(type="user_message", message=text, request_id=f"r{number}")
            await t.until(type="turn_finished")
        await t.send(type="clear_history", request_id="c")
        await t.until(type="session_cleared")
        return t.frames


async def action(s: Service) -> list[dict[str, Any]]:
    """As the older document says: the first frame has `action`; every request ends `completed` or `error`."""
    async with talk(s) as t:
        for number, text in enumerate(("2 + 40?", "thanks", "and now?", "again?")):
            await t.send(action="chat", request_id=f"r{number}", payload={"text": text})
            while (await t.until(request_id=f"r{number}"))["status"] not in ("completed", "error"):
                pass
        await t.send(action="clear_session", request_id="c")
        await t.until(request_id="c", status="completed")
        await t.send(action="dance", request_id="d")
        await t.until(request_id="d", status="error")
        return t.frames


DIALECTS = {"native": native, "action": action}


async def record(name: str, folder: Path) -> list[dict[str, Any]]:
    async with service(folder, *REPLIES, servers=LIGHT) as s:
        return steady(await DIALECTS[name](s))


@pytest.mark.parametrize("name", list(DIALECTS))
async def test_the_golden_conversation(name: str, tmp_path: Path) -> None:
    frames = await record(name, tmp_path)
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert frames == golden, "if this is wanted: python -m tests.test_dialect"


async def test_history_comes_first_to_a_client_of_the_older_dialect(tmp_path: Path) -> None:
    async with service(tmp_path, say("one"), say("two")) as s:
        async with talk(s, "?dialect=action") as t:
            await t.until(type="welcome")
            await t.send(action="chat", request_id="a", payload={"text": "first", "streaming": False})
            await t.until(status="completed")
            assert "init" not in [frame.get("status") for frame in t.frames]
        async with talk(s, "?dialect=action") as t:
            init = await t.until(status="init")
            assert init["chunk"]["type"] == "conversation_history"
            assert [(m["role"], m["content"]) for m in init["chunk"]["data"]] == [
                ("user", "first"),
                ("assistant", "one"),
            ]
            assert init["chunk"]["metadata"]["message_count"] == 2
        async with talk(s) as t:  # known from the first frame only
            await t.send(action="chat", request_id="b", payload={"text": "second"})
            await t.until(status="completed", request_id="b")
            statuses = [frame["status"] for frame in t.frames if "status" in frame]
            assert statuses[0] == "init"
            assert statuses[1:] == ["processing", "chunk", "completed"]


async def test_both_dialects_in_one_conversation(tmp_path: Path) -> None:
    async with service(tmp_path, say("zero"), say("hello")) as s, talk(s) as new:
        await new.until(type="welcome")
        await new.send(type="user_message", message="make it real")
        await new.until(type="turn_finished")
        async with talk(s, "?dialect=action") as old:
            await old.until(status="init")
            await new.send(type="user_message", message="hi", request_id="n")
            await old.until(status="completed")
            text = "".join(f["chunk"]["data"] for f in old.frames if f.get("status") == "chunk")
            assert text == "hello"
            await new.until(type="turn_finished")


async def test_a_native_client_is_not_taken_for_an_older_one(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, talk(s) as t:
        await t.until(type="welcome")
        await t.send(type="ping", action="chat")
        await t.until(type="pong")
        await t.send(action="chat", request_id="x", payload={"text": "too late"})
        assert (await t.until(type="error"))["error_code"] == "INVALID_MESSAGE"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("x", "INVALID_MESSAGE"),
        ("[]", "INVALID_MESSAGE"),
        ('{"action": "chat"}', "INVALID_MESSAGE"),
        ('{"action": "chat", "payload": {"text": 5}}', "INVALID_MESSAGE"),
        ('{"action": 5}', "INVALID_MESSAGE"),
        ('{"action": "dance"}', "UNKNOWN_TYPE"),
        ('{"action": "clear_session", "request_id": "%s"}' % ("x" * (MAX_ID_CHARS + 1)), "MESSAGE_TOO_LARGE"),
        ('{"action": "clear_session", "request_id": "\ud800"}', "INVALID_MESSAGE"),
    ],
)
def test_bad_frames(frame: str, code: str) -> None:
    with pytest.raises(BadFrame) as bad:
        dialect.decode(frame)
    assert bad.value.fault.code == code


@pytest.mark.parametrize("read", [dialect.decode, decode])
@pytest.mark.parametrize(
    "frame", ["%s", '{"action": 5, "type": 5, "x": %s}', '{"action": "chat", "payload": {"metadata": %s}}']
)
def test_a_frame_that_is_nested_too_deeply_is_a_bad_frame(read: Callable[[str], object], frame: str) -> None:
    with pytest.raises(BadFrame) as bad:
        read(frame % ("[" * 200_000 + "]" * 200_000))
    assert bad.value.fault.code == "INVALID_MESSAGE"


def test_good_frames() -> None:
    chat = '{"action": "chat", "request_id": "r", "payload": {"text": "hi", "streaming": false, "metadata": {"x": 1}}}'
    assert dialect.decode(chat) == UserMessage("hi", streaming=False, request_id="r")
    assert dialect.decode('{"action": "clear_session", "request_id": "r"}') == ClearHistory("r")


def write() -> None:
    """Write the golden files anew."""
    for name in DIALECTS:
        with tempfile.TemporaryDirectory() as folder:
            frames = trio.run(record, name, Path(folder))
        (GOLDEN / f"{name}.json").write_text(json.dumps(frames, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()

"""What each frame of a client does, seen from its socket: answers with its request_id, typed errors, order kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from actors.commands import LAST_TURN
from actors.store import Storage
from actors.store_errors import Unavailable
from protocol.client import HISTORY_PAGE, MAX_ID_CHARS, MAX_QUEUED, MAX_TEXT_CHARS
from protocol.writer import BeginTurn, LoadHistory
from tests.fakes import Script, Stall, say
from tests.service import LIGHT, Client, Frame, front_of, of_type, service, text_of


async def answer(client: Client, type: str, /, **fields: Any) -> list[Frame]:
    """All that comes for one frame."""
    await client.send(type, **fields)
    return await client.alive()


async def test_welcome_says_where_one_is_and_what_is_allowed(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        assert client.welcome["protocol"] == 1
        assert client.welcome["limits"]["max_text_chars"] == MAX_TEXT_CHARS
        assert client.welcome["limits"]["max_queued"] == MAX_QUEUED
        assert client.welcome["server"]["name"] == "mcp-actors"
        assert "running_turn" not in client.welcome
        [again] = await answer(client, "hello", request_id="h", client={"name": "test"}, token="t")
        assert again == {**client.welcome, "request_id": "h"}
        [refused] = await answer(client, "hello", frame_ms=2000)
        assert refused["error_code"] == "INVALID_MESSAGE"
        assert "frame_ms" in refused["error_message"]


async def test_a_client_may_ask_for_fewer_frames_of_text(tmp_path: Path) -> None:
    words = [f"{number} " for number in range(200)]
    async with service(tmp_path, say(*words)) as s, s.client() as client:
        await answer(client, "hello", frame_ms=1000)
        frames = await client.say("count")
        assert "".join(f["text"] for f in frames if f["type"] == "assistant_delta") == "".join(words)
        assert sum(f["type"] == "assistant_delta" for f in frames) < 100


async def test_hello_moves_to_another_conversation_or_says_that_there_is_none(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.say("one")
        first = client.conversation
        [cleared] = await answer(client, "clear_history")
        [welcome] = await answer(client, "hello", conversation_id=first, request_id="h")
        assert (welcome["conversation_id"], welcome["request_id"]) == (first, "h")
        frames = await client.say("two")
        assert frames[0]["turn"] == 2
        [fresh] = await answer(client, "hello", conversation_id="new")
        assert fresh["conversation_id"] not in (first, cleared["conversation_id"])
        for unknown in ("nope", "", "x" * (MAX_ID_CHARS + 1)):
            error, default = await answer(client, "hello", conversation_id=unknown, request_id="u")
            assert (error["error_code"], error["request_id"]) == ("NOT_FOUND", "u")
            assert default["conversation_id"] == first, "the one that was last entered or written to"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"message": ""}, "INVALID_MESSAGE"),
        ({"message": " \n\t"}, "INVALID_MESSAGE"),
        ({"message": []}, "INVALID_MESSAGE"),
        ({"message": [{"type": "text", "text": " "}, {"type": "text", "text": ""}]}, "INVALID_MESSAGE"),
        ({"message": [{"type": "sound", "text": "x"}]}, "INVALID_MESSAGE"),
        ({"message": None}, "INVALID_MESSAGE"),
        ({"message": "hi", "mode": "steer"}, "INVALID_MESSAGE"),
        ({"message": "hi", "streaming": "yes"}, "INVALID_MESSAGE"),
        ({"message": "x" * (MAX_TEXT_CHARS + 1)}, "MESSAGE_TOO_LARGE"),
        (
            {"message": [{"type": "text", "text": "x" * MAX_TEXT_CHARS}, {"type": "text", "text": "x"}]},
            "MESSAGE_TOO_LARGE",
        ),
    ],
)
async def test_messages_that_start_nothing(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        [error] = await answer(client, "user_message", request_id="r", **fields)
        assert (error["type"], error["error_code"], error["request_id"]) == ("error", code, "r")
        assert (await client.say("fine", request_id="r"))[-1]["turn"] == 1
        assert len(s.provider.requests) == 1


async def test_a_request_id_has_a_limit_too(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        [error] = await answer(client, "user_message", message="hi", request_id="r" * (MAX_ID_CHARS + 1))
        assert error["error_code"] == "MESSAGE_TOO_LARGE"


async def test_parts_reach_the_provider_as_they_were_meant(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    ]
    async with service(tmp_path, say("a cat")) as s, s.client() as client:
        frames = await client.say(parts)
        assert frames[0]["message"] == parts
        assert (await s.provider.request(1)).json["messages"][-1] == {"role": "user", "content": parts}
        [page] = await answer(client, "history")
        assert page["messages"][0]["content"] == parts


@pytest.mark.parametrize(
    "frame",
    [
        '{"type": "hello", "client": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "[" * 50_000,
        '{"a":' * 50_000,
    ],
    ids=["in a field", "arrays", "objects"],
)
async def test_a_frame_that_is_nested_too_deeply_is_refused_and_the_socket_stays(tmp_path: Path, frame: str) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.websocket.send_message(frame)
        [error] = await client.alive()
        assert error["error_code"] == "INVALID_MESSAGE"


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": HISTORY_PAGE + 1}, "limit"),
        ({"before": 0}, "before"),
        ({"before": "2"}, "before"),
    ],
)
async def test_history_names_the_field_that_is_wrong(tmp_path: Path, fields: dict[str, Any], at: str) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        [error] = await answer(client, "history", request_id="r", **fields)
        assert (error["error_code"], error["request_id"]) == ("INVALID_MESSAGE", "r")
        assert f"$.{at}" in error["error_message"]


async def test_any_number_is_a_position(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.say("hi")
        for before in (2, LAST_TURN, 10**30):
            [page] = await answer(client, "history", before=before, request_id="r")
            assert ([m["turn"] for m in page["messages"]], page["request_id"]) == ([1, 1], "r")
        [stop] = await answer(client, "stop", turn=10**30, request_id="s")
        assert (stop["error_code"], stop["request_id"]) == ("TURN_NOT_RUNNING", "s")


async def test_only_the_turn_that_was_meant_is_stopped(tmp_path: Path) -> None:
    async with service(tmp_path, Script(("a", Stall())), say("b")) as s, s.client() as client:
        await client.send("user_message", message="go")
        await client.until("assistant_delta")
        [error] = await answer(client, "stop", turn=7, request_id="s")
        assert (error["error_code"], error["request_id"]) == ("TURN_NOT_RUNNING", "s")
        await client.send("stop", turn=1)
        assert (await client.until("turn_finished"))[-1]["outcome"] == "stopped"


async def test_messages_sent_at_once_are_taken_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = trio.Event()
    query = Storage.query

    async def held(storage: Storage, message: Any, within: float) -> object:
        if isinstance(message, LoadHistory):
            await release.wait()
        return await query(storage, message, within)

    monkeypatch.setattr(Storage, "query", held)
    async with service(tmp_path, lambda asked: say(asked["messages"][-1]["content"])) as s, s.client() as client:
        for number in range(1, 9):
            await client.send("user_message", message=f"m{number}", request_id=f"r{number}")
        await client.alive()
        release.set()  # now the session has read the conversation, and finds all of them
        frames = await client.until("turn_finished", turn=8)
        assert of_type(frames, "error") == []
        acknowledged = [f["request_id"] for f in frames if f["type"] in ("turn_started", "message_queued")]
        assert acknowledged[0] == "r1"
        assert [f["request_id"] for f in of_type(frames, "turn_started")] == [f"r{number}" for number in range(1, 9)]
        assert [f["message"] for f in of_type(frames, "assistant_message")] == [f"m{number}" for number in range(1, 9)]


async def test_the_queue_is_bounded_and_what_was_refused_may_be_sent_again(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script((Stall(gate), *say("first").items)), say("x")) as s, s.client() as client:
        await client.send("user_message", message="go", request_id="r0")
        await client.until("turn_started")
        for number in range(1, MAX_QUEUED + 3):
            await client.send("user_message", message=f"m{number}", request_id=f"r{number}")
        frames = await client.until("message_queued", position=MAX_QUEUED)
        frames += await client.alive()
        assert [f["position"] for f in of_type(frames, "message_queued")] == list(range(1, MAX_QUEUED + 1))
        refused = [(f["error_code"], f["request_id"], f["retryable"]) for f in of_type(frames, "error")]
        assert refused == [("OVERLOADED", f"r{n}", True) for n in (MAX_QUEUED + 1, MAX_QUEUED + 2)]
        gate.set()
        await client.until("turn_finished", turn=MAX_QUEUED + 1)
        again = await client.say("again", request_id=f"r{MAX_QUEUED + 1}")
        assert again[-1]["outcome"] == "completed"


async def test_a_message_that_comes_again_before_it_is_stored_starts_one_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = trio.Event()
    commit = Storage.commit

    async def held(storage: Storage, operations: Any) -> list[object]:
        if any(isinstance(operation, BeginTurn) for operation in operations):
            await release.wait()
        return await commit(storage, operations)

    monkeypatch.setattr(Storage, "commit", held)
    async with service(tmp_path, say("once")) as s, s.client() as client:
        await client.send("user_message", message="hi", request_id="same")
        await s.provider.request(1)
        await client.send("user_message", message="hi", request_id="same")
        await client.alive()
        release.set()
        frames = await client.until("turn_finished")
        frames += await client.alive()
        assert {f["request_id"] for f in of_type(frames, "turn_started")} == {"same"}
        assert len(of_type(frames, "turn_finished")) == len(s.provider.requests) == 1
        assert text_of(frames) == "once"


async def test_without_the_store_the_answer_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = Storage.query

    async def failing(storage: Storage, message: Any, within: float) -> object:
        if isinstance(message, LoadHistory):
            raise Unavailable("scripted")
        return await query(storage, message, within)

    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.say("hi")
        monkeypatch.setattr(Storage, "query", failing)
        for word in ("history", "resume"):
            [error] = await answer(client, word, request_id="r")
            assert (error["error_code"], error["request_id"], error["retryable"]) == ("STORAGE_UNAVAILABLE", "r", True)
        monkeypatch.setattr(Storage, "query", query)
        assert text_of(await client.say("still there?")) == "x"


async def test_while_the_service_stops_nothing_new_is_begun(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        front_of(s).taking = False
        [error] = await answer(client, "user_message", message="hi", request_id="r")
        assert (error["error_code"], error["request_id"], error["retryable"]) == ("SHUTTING_DOWN", "r", True)
        assert front_of(s).conversations[client.conversation].unanswered == {}


async def test_arguments_that_cannot_be_sent_are_shown_as_written_and_refused(tmp_path: Path) -> None:
    def reply(asked: Any) -> Script:
        last = asked["messages"][-1]
        if last["role"] == "tool":
            return say(last["content"])
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "echo", "arguments": last["content"]}}
        return Script(({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]},))

    async with service(tmp_path, reply, servers=LIGHT) as s, s.client() as client:
        for arguments in ('{"text": "\\ud83d"}', "[" * 20_000, json.dumps({"text": "\U0001f600"})):
            frames = await client.say(arguments)
            assert frames[-1]["outcome"] == "completed"
            executing, ended = of_type(frames, "tool_execution")
            fine = arguments.endswith("}") and "\\ude00" in arguments
            assert executing["arguments"] == ({"text": "\U0001f600"} if fine else arguments)
            assert ended["status"] == ("completed" if fine else "failed")

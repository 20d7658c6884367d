"""What clients, upstreams, MCP servers and files can send: each with its typed error, and nothing lost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol.client import MAX_ID_CHARS, MAX_TEXT_CHARS
from tests.fakes import Cut, Reply, Script, Stall, Thought, fail, page, raw, say
from tests.mcp_house import ODD
from tests.peer import BINARY, TEXT, nothing_left, peer
from tests.service import LIGHT, Service, connected, front_of, of_type, service, text_of

DEEP = "[" * 200_000 + "]" * 200_000
HUGE = 10**30

FRAMES: dict[str, tuple[str, str, str]] = {
    # what it is: the frame, the code, a word of the message
    "nothing": ("", "INVALID_MESSAGE", "not JSON"),
    "no JSON": ("hello", "INVALID_MESSAGE", "not JSON"),
    "cut JSON": ('{"type":"ping"', "INVALID_MESSAGE", "not JSON"),
    "two objects": ('{"type":"ping"}{"type":"ping"}', "INVALID_MESSAGE", "not JSON"),
    "a byte order mark": ('\ufeff{"type":"ping"}', "INVALID_MESSAGE", "not JSON"),
    "a lone surrogate": ('{"type":"user_message","message":"\\ud800"}', "INVALID_MESSAGE", "not JSON"),
    "a number out of range": ('{"type":"hello","client":1e999}', "INVALID_MESSAGE", "$.client"),
    "a list": ("[]", "INVALID_MESSAGE", "object"),
    "null": ("null", "INVALID_MESSAGE", "object"),
    "a string": ('"ping"', "INVALID_MESSAGE", "object"),
    "no type": ("{}", "INVALID_MESSAGE", "`type`"),
    "a type of null": ('{"type":null}', "INVALID_MESSAGE", "`type`"),
    "a type of a number": ('{"type":5}', "INVALID_MESSAGE", "$.type"),
    "an unknown type": ('{"type":"dance"}', "UNKNOWN_TYPE", "'dance'"),
    "a type in capitals": ('{"type":"PING"}', "UNKNOWN_TYPE", "'PING'"),
    "a long type": (json.dumps({"type": "x" * 100_000}), "UNKNOWN_TYPE", "xxx"),
    "no message": ('{"type":"user_message"}', "INVALID_MESSAGE", "`message`"),
    "a message of a number": ('{"type":"user_message","message":5}', "INVALID_MESSAGE", "$.message"),
    "a message of null": ('{"type":"user_message","message":null}', "INVALID_MESSAGE", "$.message"),
    "an empty message": ('{"type":"user_message","message":""}', "INVALID_MESSAGE", "$.message"),
    "a message of blanks": ('{"type":"user_message","message":" \\n\\t"}', "INVALID_MESSAGE", "$.message"),
    "no parts": ('{"type":"user_message","message":[]}', "INVALID_MESSAGE", "$.message"),
    "empty parts": ('{"type":"user_message","message":[{"type":"text","text":""}]}', "INVALID_MESSAGE", "$.message"),
    "an odd part": ('{"type":"user_message","message":[{"type":"smell"}]}', "INVALID_MESSAGE", "$.message[0].type"),
    "an image of nothing": (
        '{"type":"user_message","message":[{"type":"image_url","image_url":{}}]}',
        "INVALID_MESSAGE",
        "$.message[0].image_url",
    ),
    "a mode of a list": ('{"type":"user_message","message":"x","mode":[]}', "INVALID_MESSAGE", "$.mode"),
    "an unknown mode": ('{"type":"user_message","message":"x","mode":"shout"}', "INVALID_MESSAGE", "$.mode"),
    "streaming as text": ('{"type":"user_message","message":"x","streaming":"yes"}', "INVALID_MESSAGE", "$.streaming"),
    "a request_id of a number": ('{"type":"ping","request_id":5}', "INVALID_MESSAGE", "$.request_id"),
    "a long request_id": (
        json.dumps({"type": "ping", "request_id": "x" * (MAX_ID_CHARS + 1)}),
        "MESSAGE_TOO_LARGE",
        "request_id",
    ),
    "a message too long": (
        json.dumps({"type": "user_message", "message": "x" * (MAX_TEXT_CHARS + 1)}),
        "MESSAGE_TOO_LARGE",
        str(MAX_TEXT_CHARS),
    ),
    "parts too long": (
        json.dumps({"type": "user_message", "message": [{"type": "text", "text": "x" * MAX_TEXT_CHARS}] * 2}),
        "MESSAGE_TOO_LARGE",
        str(MAX_TEXT_CHARS),
    ),
    "a position of text": ('{"type":"resume","turn":"1"}', "INVALID_MESSAGE", "$.turn"),
    "a page of none": ('{"type":"history","limit":0}', "INVALID_MESSAGE", "$.limit"),
    "a page too long": ('{"type":"history","limit":1000000}', "INVALID_MESSAGE", "$.limit"),
    "a page before all": ('{"type":"history","before":0}', "INVALID_MESSAGE", "$.before"),
    "a position without its seq": ('{"type":"hello","resume":{"turn":1}}', "INVALID_MESSAGE", "$.resume"),
    "something deep": (f'{{"type":"hello","client":{DEEP}}}', "INVALID_MESSAGE", "deep"),
    "something deep where nothing is wanted": (f'{{"type":"ping","x":{DEEP}}}', "INVALID_MESSAGE", "deep"),
}

FINE: list[dict[str, Any]] = [
    # odd, and answered as what they mean
    {"type": "history", "before": HUGE},
    {"type": "resume", "turn": HUGE},
    {"type": "resume", "turn": HUGE, "seq": HUGE},
    {"type": "resume", "turn": -HUGE, "seq": -HUGE},
    {"type": "resume", "turn": 0, "seq": 0},
    {"type": "resume", "seq": 5},
    {"type": "hello", "resume": {"turn": HUGE, "seq": -1}},
    {"type": "hello", "resume": {"turn": -1, "seq": HUGE}},
    {"type": "ping", "unknown": {"field": [1, 2.5, None]}, "request_id": "\x00 \x1b[31m ' \" 😀"},
    {"type": "ping", "request_id": ""},
]


def errors_logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]


async def test_frames_that_are_wrong_get_their_error_and_a_turn_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items, say("next")) as s, nothing_left(s):
        async with s.client() as client:
            await client.send("user_message", message="hi")
            await client.until("assistant_delta")
            for what, (frame, code, word) in FRAMES.items():
                await client.websocket.send_message(frame)
                error = await client.next()
                assert (error["type"], error.get("error_code")) == ("error", code), (what, error)
                assert word in error["error_message"], (what, error)
                assert len(error["error_message"]) < 500, what
                assert error["hint"], what
                assert error["retryable"] is False, what
            await client.websocket.send_message(b'{"type":"ping"}')
            binary = await client.next()
            assert (binary["error_code"], "text frames" in binary["error_message"]) == ("INVALID_MESSAGE", True)
            gate.set()
            frames = await client.until("turn_finished")
            assert (text_of(frames), frames[-1]["outcome"]) == ("b", "completed")
            assert (await client.say("again"))[-1]["outcome"] == "completed"
            asked = await s.provider.request(2)
            assert [m["content"] for m in asked.json["messages"][1:]] == ["hi", "ab", "again"]
        assert errors_logged(caplog) == []


async def test_types_that_come_later_are_unknown_and_not_promised(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        capabilities = client.welcome["capabilities"]
        later: dict[str, dict[str, Any]] = {
            "save_session": {"name": "x"},
            "call_tool": {"tool_name": "x"},
            "set_config": {"changes": {}},
            "regenerate": {"turn": 1},
        }
        for type_, fields in later.items():
            if type_ in capabilities:
                continue
            await client.send(type_, **fields, request_id="later")
            error = await client.next()
            assert (error["error_code"], error["request_id"]) == ("UNKNOWN_TYPE", "later")
            assert "capabilities" in error["hint"]


async def test_a_request_id_is_echoed_wherever_it_can_be_read(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        wrong: list[dict[str, Any]] = [
            {"type": "dance"},
            {"type": "user_message"},
            {"type": "user_message", "message": ""},
            {"type": "stop"},
            {"type": "history", "limit": -1},
            {"type": "history", "limit": "x"},
            {"type": "hello", "conversation_id": "nope"},
            {"type": "hello", "conversation_id": "x" * 5000},
        ]
        for frame in wrong:
            await client.send(**frame, request_id="mine")
            error, *more = await client.alive()
            assert (error["type"], error["request_id"]) == ("error", "mine"), frame
            assert [f["type"] for f in more] == (["welcome"] if frame["type"] == "hello" else []), frame


@pytest.mark.parametrize("frame", FINE, ids=lambda frame: json.dumps(frame)[:50])
async def test_numbers_and_ids_of_any_size_are_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, frame: dict[str, Any]
) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.say("one")
        await client.send(**frame)
        before = await client.alive()
        for answer in before:
            assert answer["type"] in (
                "history",
                "welcome",
                "pong",
                "error",
                "assistant_message",
                "turn_finished",
                "turn_started",
            )
            assert answer.get("error_code") in (None, "INVALID_MESSAGE", "NOT_FOUND"), answer
        assert (await client.say("two"))[-1]["turn"] == 2
        assert errors_logged(caplog) == []


async def test_too_many_messages_at_once_are_refused_and_none_is_half_taken(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items, say("c")) as s, s.client() as client:
        for number in range(100):
            await client.send("user_message", message=f"m{number}", request_id=str(number))
        answered: dict[str, str] = {}
        while len(answered) < 100:
            frame = await client.next()
            if frame["type"] in ("turn_started", "message_queued", "error"):
                answered.setdefault(frame["request_id"], frame["type"])
                assert frame.get("error_code") in (None, "OVERLOADED")
        taken = [number for number, answer in answered.items() if answer != "error"]
        assert 1 < len(taken) < 100
        gate.set()
        finished = 0
        while finished < len(taken):
            finished += (await client.next())["type"] == "turn_finished"
        said = [m["content"] for m in s.provider.requests[-1].json["messages"] if m["role"] == "user"]
        assert said == [f"m{number}" for number in taken]


# The upstream.

UPSTREAM: dict[str, tuple[Reply, str, str]] = {
    # what it does: the reply, the code, the text that is kept
    "garbage": (raw(b"\x00\xff\xfe garbage \r\n\r\n" * 50), "LLM_STREAM_BROKEN", ""),
    "garbage as events": (raw(b"data: \xff\xfe\n\ndata: {not json}\n\ndata: 5\n\n"), "LLM_STREAM_BROKEN", ""),
    "garbage after text": (Script(("half ", b"data: {not json}\n\n"), done=False), "LLM_STREAM_BROKEN", "half "),
    "a web page": (page("<html>Sign in</html>"), "LLM_UNAVAILABLE", ""),
    "a web page of an error": (page("<h1>502 Bad Gateway</h1>", 502), "LLM_UNAVAILABLE", ""),
    "nothing": (raw(), "LLM_STREAM_BROKEN", ""),
    "a redirect": (Script((b"",), 302, {"Location": "http://127.0.0.1:9/"}, done=False), "LLM_REJECTED", ""),
    "400": (fail(400, "max_tokens is too large"), "LLM_REJECTED", ""),
    "401": (fail(401), "LLM_AUTH_FAILED", ""),
    "403": (fail(403), "LLM_AUTH_FAILED", ""),
    "404": (fail(404), "LLM_REJECTED", ""),
    "429": (fail(429), "LLM_RATE_LIMITED", ""),
    "500": (fail(500), "LLM_UNAVAILABLE", ""),
    "529": (fail(529), "LLM_UNAVAILABLE", ""),
    "a context too long": (fail(400, "too long", code="context_length_exceeded"), "LLM_CONTEXT_TOO_LONG", ""),
    "an error as an event": (
        Script(("half ", {"error": {"message": "boom", "code": 500}})),
        "LLM_UNAVAILABLE",
        "half ",
    ),
    "a cut before the head": (Script(before_head=Cut()), "LLM_UNAVAILABLE", ""),
    "a cut in mid-stream": (Script(("half ", "an answ", Cut())), "LLM_STREAM_BROKEN", "half an answ"),
    "a reset in mid-stream": (Script(("half ", Cut(reset=True))), "LLM_STREAM_BROKEN", "half "),
    "an end without a finish": (Script(("half ",), done=False), "LLM_STREAM_BROKEN", "half "),
    "thoughts and a cut": (Script((Thought("hm"), Cut())), "LLM_STREAM_BROKEN", ""),
    "silence before the head": (Script(before_head=Stall()), "LLM_UNAVAILABLE", ""),
    "silence before the first token": (Script((Stall(),)), "LLM_UNAVAILABLE", ""),
    "silence in mid-stream": (Script(("half ", Stall())), "LLM_STREAM_BROKEN", "half "),
}


async def test_upstreams_that_fail_are_typed_and_the_next_message_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client_options = {"retries": 0, "first_token_timeout": 0.3, "idle_timeout": 0.3, "connect_timeout": 0.3}
    settings = {"llm": {"providers": {"fake": {"client": client_options}}}}
    replies = [reply for bad, _, _ in UPSTREAM.values() for reply in (bad, say("fine"))]
    async with service(tmp_path, *replies, settings=settings) as s, nothing_left(s), s.client() as client:
        for what, (_, code, text) in UPSTREAM.items():
            frames = await client.say(what)
            errors = of_type(frames, "error")
            assert [e["error_code"] for e in errors] == [code], (what, errors)
            assert errors[0]["hint"], what
            assert "Traceback" not in errors[0]["error_message"], what
            assert (frames[-1]["outcome"], frames[-1]["error"]["error_code"]) == ("failed", code), what
            kept = [(m["message"], m["status"]) for m in of_type(frames, "assistant_message")]
            assert kept == ([(text, "failed")] if text else []) or what == "thoughts and a cut", (what, kept)
            assert text_of(frames) == text, what
            assert (await client.say("and now?"))[-1]["outcome"] == "completed", what
        assert errors_logged(caplog) == []
        assert s.tree.slots["llm/streamer"].incarnation == 1
        history = [m["content"] for m in s.provider.requests[-1].json["messages"]]
        assert "half an answ" in history


async def test_nobody_listens_upstream(tmp_path: Path) -> None:
    settings = {"llm": {"providers": {"fake": {"base_url": "http://127.0.0.1:9/v1"}}}}
    async with service(tmp_path, settings=settings) as s, s.client() as client:
        frames = await client.say("hi")
        [error] = of_type(frames, "error")
        assert (error["error_code"], error["retryable"]) == ("LLM_UNAVAILABLE", True)
        assert "127.0.0.1:9" in error["error_message"]


# MCP servers.


def odd(mode: str, **more: Any) -> dict[str, Any]:
    return {"command": "python", "args": [ODD, mode], **more}


SERVERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    # what it does: its entry, what status says of it
    "missing": ({"command": "no-such-command-here"}, ["no-such-command-here", "PATH"]),
    "exits": (odd("exits"), ["exit code 4", "no config file found"]),
    "dies_idle": (odd("dies_idle"), ["exit code 5", "tired of waiting"]),
    "wrong_version": (odd("wrong_version"), ["version"]),
    "no_cwd": (odd("well", cwd="/no/such/folder"), ["/no/such/folder"]),
}


async def down(s: Service, name: str) -> Any:
    """The server's slot, once it is given up for now."""
    await s.tree.until(lambda: f"mcp/{name}" in s.tree.slots and s.tree.state(f"mcp/{name}").name == "PARKED")
    return s.tree.slots[f"mcp/{name}"]


async def test_servers_that_fail_are_told_and_those_that_work_are_offered(tmp_path: Path) -> None:
    settings = {"mcp": {"connection": {"max_reconnect_attempts": 1, "initial_reconnect_delay": 0.01}}}
    servers = {"silent": odd("silent"), "garbage": odd("garbage"), **LIGHT, **{n: e for n, (e, _) in SERVERS.items()}}
    replies = (say("fine"), say("still"))
    async with service(tmp_path, *replies, settings=settings) as s, s.client() as client:
        (s.state / "servers_config.json").write_text(json.dumps({"mcpServers": servers}))
        # turns are taken while servers hang and fail
        assert (await client.say("hi"))[-1]["outcome"] == "completed"
        for name, (_, says) in SERVERS.items():
            slot = await down(s, name)
            assert all(word in slot.last_error for word in says), (name, slot.last_error)
        await connected(s, "demo")
        await connected(s, "garbage")  # what a server prints beside its protocol is skipped
        status = (await s.get("/status"))[2].decode()
        ready = json.loads((await s.get("/readyz"))[2])
        assert ready["ready"] is True
        notes = "\n".join(ready["notes"])
        for name, (_, says) in SERVERS.items():
            assert all(word in notes for word in (f"mcp/{name} is down", *says)), notes
            assert says[0] in status
        told = {f["what"] for f in of_type([*client.seen, *await client.alive()], "degraded")}
        assert told >= {f"mcp/{name}" for name in SERVERS}
        assert (await client.say("and now?"))[-1]["outcome"] == "completed"
        offered = {tool["function"]["name"] for tool in s.provider.requests[-1].json["tools"]}
        assert "add" in offered
        assert front_of(s).merged.names()


# Files.


async def test_a_file_that_is_broken_while_the_service_runs_changes_nothing(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        for name, text, word in (
            ("runtime_config.yaml", "chat:\n\tservice: {}\n", "tab"),
            ("runtime_config.yaml", "chat: {service: {max_tool_hops: many}}\n", "max_tool_hops"),
            ("servers_config.json", '{"mcpServers": [', "servers_config.json"),
        ):
            (s.state / name).write_text(text)
            while not any(word in note for note in await notes(s)):  # noqa: ASYNC110 - nobody is told of a note
                await trio.sleep(0.02)  # between two looks at a page
            assert (s.state / name).read_text() == text
            assert (await client.say("hi"))[-1]["outcome"] == "completed"


async def notes(s: Service) -> list[str]:
    found: list[str] = json.loads((await s.get("/readyz"))[2])["notes"]
    return found


# All of it at once.


async def test_after_all_kinds_of_noise_a_turn_is_as_before(tmp_path: Path) -> None:
    async with service(tmp_path, say("fine")) as s, nothing_left(s):

        async def noise(number: int) -> None:
            frame, _, _ = list(FRAMES.values())[number % len(FRAMES)]
            async with peer(s, "?conversation=new") as p:
                await p.until("welcome")
                await p.frame(TEXT if number % 5 else BINARY, frame.encode("utf-8", "replace"))
                assert (await p.next())["type"] == "error"
                if number % 2:
                    p.reset()

        async with trio.open_nursery() as nursery:
            for number in range(len(FRAMES)):
                nursery.start_soon(noise, number)
            async with s.client() as client:
                assert (await client.say("hi"))[-1]["outcome"] == "completed"

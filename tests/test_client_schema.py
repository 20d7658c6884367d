"""The JSON Schema of the client contract is kept in the repository, current, and true of what is really sent.

Regenerate it after a change of the frames: `uv run python -m tests.test_client_schema`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import jsonschema  # type: ignore[import-untyped]  # no types are published for it
import msgspec
import pytest

from protocol import client
from protocol.client import ServerFrame
from tests.fakes import Script, Stall, ask_tool, fail, say, think
from tests.service import LIGHT, Frame, service

KEPT = Path(client.__file__).with_name("client.schema.json")
REGENERATE = "the frames have changed; regenerate it: uv run python -m tests.test_client_schema"


def current() -> str:
    """As it is kept."""
    return json.dumps(client.schema(), indent=1, sort_keys=True) + "\n"


def validator(side: str) -> Any:
    """Of frames that come from the `client` or the `server`."""
    schema = client.schema()
    return jsonschema.Draft202012Validator({"$defs": schema["$defs"], **schema["properties"][side]})


def check(frames: list[Frame]) -> None:
    """Each is a frame of the contract, to the letter: nothing missing, nothing that is not in it."""
    server = validator("server")
    for frame in frames:
        server.validate(frame)
        read = msgspec.convert(frame, ServerFrame)
        assert json.loads(client.encode(read)) == frame


def test_the_kept_schema_is_current() -> None:
    assert KEPT.read_text(encoding="utf-8") == current(), f"{KEPT.name}: {REGENERATE}"


def test_it_is_a_schema_and_names_every_frame() -> None:
    schema = client.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for side, union in (("client", client.ClientFrame), ("server", client.ServerFrame)):
        kinds = schema["properties"][side]["discriminator"]["mapping"]
        assert set(kinds) == {frame.__struct_config__.tag for frame in get_args(union)}


@pytest.mark.parametrize(
    ("frame", "fits"),
    [
        ({"type": "user_message", "message": "hi"}, True),
        ({"type": "user_message", "message": [{"type": "text", "text": "hi"}], "streaming": None, "more": 1}, True),
        ({"type": "user_message"}, False),
        ({"type": "user_message", "message": 7}, False),
        ({"type": "resume", "turn": 1, "seq": 2}, True),
        ({"type": "resume", "turn": "1"}, False),
        ({"type": "nothing_like_it"}, False),
    ],
)
def test_the_schema_and_the_service_agree_on_what_a_client_may_send(frame: Frame, fits: bool) -> None:
    assert validator("client").is_valid(frame) is fits
    try:
        client.decode(json.dumps(frame))
    except client.BadFrame:
        assert not fits
    else:
        assert fits


def test_every_frame_of_the_kept_kind_can_be_told_from_the_schema() -> None:
    with pytest.raises(AssertionError):
        check([{"type": "pong", "surprise": 1}])
    with pytest.raises(jsonschema.ValidationError):
        check([{"type": "assistant_delta", "turn": 1, "text": "no seq"}])


async def test_all_that_the_service_sends_is_in_the_contract(tmp_path: Path) -> None:
    replies = (
        think("hm", then=("let ", "me see")),
        ask_tool("add", {"a": 1, "b": 2}),
        say("three"),
        ask_tool("slow", {"steps": 3, "step_s": 0.15}),
        fail(429),
        Script(("half", Stall())),
        say("more"),
    )
    async with service(tmp_path, *replies, servers=LIGHT) as s, s.client() as c:
        await c.say("hi", request_id="r1")
        await c.say("1 + 2?")
        await c.say("slowly", streaming=False)
        await c.send("user_message", message="long")
        await c.until("assistant_delta")
        await c.send("user_message", message="next", request_id="r2")
        await c.until("message_queued")
        await c.send("stop")
        await c.until("turn_finished", turn=5)
        await c.send("stop", request_id="s")
        await c.send("nothing_like_it")
        for words in ({"type": "history"}, {"type": "resume"}, {"type": "resume", "turn": 2, "seq": 0}):
            await c.send(**words)
        await c.send("hello", request_id="h")
        await c.send("clear_history")
        await c.alive()
        check(c.seen)
        assert {frame["type"] for frame in c.seen} == {
            "welcome",
            "turn_started",
            "thinking_delta",
            "assistant_delta",
            "tool_execution",
            "assistant_message",
            "turn_finished",
            "message_queued",
            "error",
            "history",
            "session_cleared",
            "pong",
        }
        assert {frame["status"] for frame in c.seen if frame["type"] == "tool_execution"} == {
            "executing",
            "progress",
            "completed",
        }


if __name__ == "__main__":
    KEPT.write_text(current(), encoding="utf-8")

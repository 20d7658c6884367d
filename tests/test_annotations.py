"""What an answer refers to reaches the client in the places of the text that it sees, live and later."""

from __future__ import annotations

from pathlib import Path

from actors.annotations import annotations_of, moved
from protocol.writer import Event
from tests.fakes import Finish, Script, ask_tool, say
from tests.service import LIGHT, of_type, service
from tests.test_transcript import closed, hop, user


def test_indexes_are_those_of_the_joined_text() -> None:
    cited = {"type": "url_citation", "url_citation": {"url": "u", "start_index": 1, "end_index": 3}}
    flat = {"type": "file_citation", "index": 1, "start_index": 0, "end_index": True}
    events: list[Event] = [
        user(),
        hop(1, "Look: ", annotations=[cited]),
        hop(2, "there", annotations=[cited, flat]),
        closed(),
    ]
    assert annotations_of(events) == [
        cited,
        {"type": "url_citation", "url_citation": {"url": "u", "start_index": 7, "end_index": 9}},
        {"type": "file_citation", "index": 1, "start_index": 6, "end_index": True},
    ]
    assert moved({"deep": {"er": {"end_index": 1}}}, 2) == {"deep": {"er": {"end_index": 3}}}


async def test_annotations_and_who_answered_are_told_stored_and_replayed(tmp_path: Path) -> None:
    cited = {"type": "url_citation", "url_citation": {"url": "https://example.org", "start_index": 0, "end_index": 2}}
    chunk = {"choices": [{"index": 0, "delta": {"annotations": [cited]}}], "model": "fake-model"}
    replies = (ask_tool("add", {"a": 1, "b": 2}, text=("Well: ",)), Script(("It", " is 3.", chunk, Finish("stop"))))
    async with service(tmp_path, *replies, say("x"), servers=LIGHT) as s, s.client() as client:
        [message] = of_type(await client.say("1+2?"), "assistant_message")
        [found] = message["annotations"]
        place = found["url_citation"]
        assert message["message"][place["start_index"] : place["end_index"]] == "It"
        assert (message["provider"], message["model"]) == ("fake", "fake-model")
        await client.send("history")
        assert (await client.until("history"))[-1]["messages"][-1]["annotations"] == [found]
        await client.say("more")  # so that the first turn is told from the store
        await client.send("resume", turn=1, seq=0)
        frames = await client.until("turn_finished")
        assert of_type(frames, "assistant_message") == [message]
        # to the provider its own annotations go back as they came
        assert (await s.provider.request(3)).json["messages"][-2]["annotations"] == [cited]

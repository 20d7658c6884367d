"""What a message may hold: every limit and every bad part has its error, and text-only models are told words."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from actors.message_content import IMAGE_GONE, IMAGE_PAST, content_of, has_images, in_words, lightened, recent, refusal
from protocol.client import MAX_IMAGE_BYTES, MAX_PARTS, MAX_TEXT_CHARS, MAX_URL_CHARS, ImagePart, TextPart
from protocol.errors import Code, Fault
from protocol.writer import Event, UserEvent
from tests.fakes import Script, Stall, say
from tests.service import of_type, service
from tests.streaming import provider
from tests.test_dialect import talk
from tests.test_keys import change
from tests.test_transcript import closed, hop, user

PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


def image(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def said(*parts: dict[str, Any]) -> list[TextPart | ImagePart]:
    return msgspec.convert(list(parts), list[TextPart | ImagePart])


@pytest.mark.parametrize(
    "parts",
    [
        [text("look"), image("https://example.org/a.png?x=1#y")],
        [image("https://[::1]:8443/a", detail="high"), text("look")],
        [image(PIXEL)],
        [image(PIXEL.replace("image/png", "IMAGE/svg+xml;charset=utf-8"), detail="auto")],
    ],
)
def test_what_is_taken_stays_as_it_came(parts: list[dict[str, Any]]) -> None:
    content = content_of(said(*parts))
    assert content == parts
    assert has_images(content)
    assert content_of("just text") == "just text"
    assert content_of(said(text("a"), text(" "), image(PIXEL))) == [text("a"), image(PIXEL)]


WRONG: dict[str, tuple[list[dict[str, Any]], Code, str]] = {
    "plain http": ([image("http://example.org/a.png")], Code.INVALID_MESSAGE, "$.message[0].image_url.url"),
    "no scheme": ([text("x"), image("example.org/a.png")], Code.INVALID_MESSAGE, "$.message[1].image_url.url"),
    "no host": ([image("https:///a.png")], Code.INVALID_MESSAGE, "url"),
    "bad brackets": ([image("https://[::1/a.png")], Code.INVALID_MESSAGE, "url"),
    "a line break": ([image("https://example.org/a\n.png")], Code.INVALID_MESSAGE, "url"),
    "a file": ([image("file:///etc/passwd")], Code.INVALID_MESSAGE, "url"),
    "a script": ([image("javascript:alert(1)")], Code.INVALID_MESSAGE, "url"),
    "nothing": ([image("")], Code.INVALID_MESSAGE, "url"),
    "no image": ([image("data:text/html;base64,AAAA")], Code.INVALID_MESSAGE, "url"),
    "no base64": ([image("data:image/png,AAAA")], Code.INVALID_MESSAGE, "url"),
    "bad base64": ([image("data:image/png;base64,AA$A")], Code.INVALID_MESSAGE, "url"),
    "bad padding": ([image("data:image/png;base64,AAA")], Code.INVALID_MESSAGE, "url"),
    "not ASCII": ([image("data:image/png;base64,AAAä")], Code.INVALID_MESSAGE, "url"),
    "an empty image": ([image("data:image/png;base64,")], Code.INVALID_MESSAGE, "url"),
    "an odd detail": ([image(PIXEL, detail="very high")], Code.INVALID_MESSAGE, "$.message[0].image_url.detail"),
    "too many parts": ([text("x")] * (MAX_PARTS + 1), Code.MESSAGE_TOO_LARGE, "$.message"),
    "much text": ([text("x" * MAX_TEXT_CHARS), text("x"), image(PIXEL)], Code.MESSAGE_TOO_LARGE, str(MAX_TEXT_CHARS)),
    "a long address": ([image("https://x.org/" + "a" * MAX_URL_CHARS)], Code.MESSAGE_TOO_LARGE, str(MAX_URL_CHARS)),
    "much image": (
        [image("data:image/png;base64," + "A" * (MAX_IMAGE_BYTES // 2))] * 2,
        Code.MESSAGE_TOO_LARGE,
        str(MAX_IMAGE_BYTES),
    ),
    "no words and no image": ([text(" "), text("")], Code.INVALID_MESSAGE, "$.message"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    parts, code, word = WRONG[what]
    with pytest.raises(Fault) as refused:
        content_of(said(*parts))
    assert refused.value.code is code
    assert word in refused.value.body.text


def test_as_much_as_is_allowed_is_taken() -> None:
    begin = "data:image/png;base64,"
    room = (MAX_IMAGE_BYTES - len(begin)) // 4 * 4
    assert has_images(content_of(said(image(begin + "A" * room))))
    assert len(content_of(said(*[text("x")] * MAX_PARTS))) == MAX_PARTS


def test_a_model_that_reads_text_only_is_asked_nothing_with_images() -> None:
    blind = provider("http://127.0.0.1:1/v1", "blind", vision=False)
    sees = provider("http://127.0.0.1:1/v1", "sees")
    content = content_of(said(text("what"), image(PIXEL), text("is it")))
    fault = refusal(content, blind)
    assert fault is not None
    assert (fault.code, fault.body.retryable) == (Code.LLM_REJECTED, False)
    assert "blind" in fault.body.text
    assert refusal(content, sees) is refusal("text", blind) is refusal(content, None) is None
    assert refusal(content_of(said(text("a"), text("b"))), blind) is None
    assert in_words(content) == f"what\n{IMAGE_GONE}\nis it"
    assert in_words("text") == "text"


def test_the_oldest_images_are_told_as_words_where_all_are_too_large() -> None:
    def turn(number: int) -> list[Event]:
        return [user(number, [text(f"t{number}"), image(PIXEL)]), hop(1, "seen"), closed()]

    events = [event for number in (1, 2, 3) for event in turn(number)]
    assert lightened(events) == events
    assert lightened(events, len(PIXEL) * 3) == events
    two = lightened(events, len(PIXEL) * 2)
    assert two[1:] == events[1:]
    assert two[0] == user(1, f"t1\n{IMAGE_PAST}")
    assert [has_images(e.content) for e in lightened(events, 0) if isinstance(e, UserEvent)] == [False] * 3
    assert lightened([user(1, "x")], 0) == [user(1, "x")]


def test_the_oldest_turns_go_many_at_a_time() -> None:
    events: list[Event] = []
    lengths = []
    for turn in range(1, 40):
        events = recent([*events, user(turn, "x"), hop(1, "y")], 10, 5)
        lengths.append(len(events) // 2)
        assert events[-2] == user(turn, "x")
        assert isinstance(events[0], UserEvent)
    assert lengths == [*range(1, 16), *range(10, 16), *range(10, 16), *range(10, 16), *range(10, 16)][:39]


async def test_large_images_wait_in_bounds_and_make_small_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.messages.WAITING_BYTES", len(PIXEL) * 2)
    monkeypatch.setattr("actors.commands.SHOWN_BYTES", 1)
    gate = trio.Event()
    async with service(tmp_path, Script((Stall(gate),)) + say("x").items) as s, s.client() as client:
        for number in (1, 2, 3):
            await client.send("user_message", message=[image(PIXEL)], request_id=f"r{number}")
        [*_, error] = await client.until("error")
        assert (error["error_code"], error["request_id"], error["retryable"]) == ("OVERLOADED", "r3", True)
        gate.set()
        await client.until("turn_finished", turn=2)
        await client.say([image(PIXEL)], request_id="r3")
        await client.send("history")
        page = (await client.until("history"))[-1]
        assert ({m["turn"] for m in page["messages"]}, page["more"]) == ({3}, True)
        await client.send("history", before=3)
        page = (await client.until("history"))[-1]
        assert ({m["turn"] for m in page["messages"]}, page["more"]) == ({2}, True)


async def test_images_are_limited_kept_and_refused_by_a_provider_of_text_only(tmp_path: Path) -> None:
    gate = trio.Event()
    replies = (say("a cat"), Script((Stall(gate),)) + say("x").items, say("no eyes"))
    seen = [text("what is it?"), image(PIXEL)]
    async with service(tmp_path, *replies) as s, s.client() as client:
        limits = client.welcome["limits"]
        told = (limits["max_parts"], limits["max_image_bytes"], limits["max_url_chars"])
        assert told == (MAX_PARTS, MAX_IMAGE_BYTES, MAX_URL_CHARS)
        assert (await client.say(seen))[0]["message"] == seen
        assert (await s.provider.request(1)).json["messages"][-1]["content"] == seen

        # a message that waits, and whose provider is another one when its time comes
        await client.send("user_message", message="wait")
        await client.until("turn_started")
        await client.send("user_message", message=seen, request_id="r3")
        await client.until("message_queued")
        await change(s, client, {"llm": {"providers": {"fake": {"client": {"vision": False}}}}})
        gate.set()
        await client.until("turn_finished", turn=2)
        frames = await client.until("turn_finished")
        assert frames[0]["message"] == seen
        assert frames[-1]["outcome"] == "failed"
        assert frames[-1]["error"]["error_code"] == "LLM_REJECTED"
        assert len(s.provider.requests) == 2

        # and one that is refused at once: nothing of it is stored
        await client.send("user_message", message=seen, request_id="r4")
        [error] = await client.until("error")
        assert (error["error_code"], error["request_id"], error["retryable"]) == ("LLM_REJECTED", "r4", False)
        assert "text only" in error["error_message"]
        # what was taken before is known by its request_id
        again = await client.say(seen, request_id="r3")
        assert [f["type"] for f in again] == ["turn_started", "error", "turn_finished"]
        # what was seen before is told in words
        frames = await client.say("and now?", request_id="r4")
        assert of_type(frames, "assistant_message")[0]["message"] == "no eyes"
        asked = (await s.provider.request(3)).json["messages"]
        assert asked[1]["content"] == f"what is it?\n{IMAGE_GONE}"
        await client.send("history")
        page = (await client.until("history"))[-1]["messages"]
        assert [m["content"] for m in page if m["role"] == "user"] == [seen, "wait", seen, "and now?"]
        # clients of the older dialect know text only
        async with talk(s, "?dialect=action") as old:
            history = await old.until(status="init")
        assert history["chunk"]["data"][0]["content"] == "what is it?\n[image]"

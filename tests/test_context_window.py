"""What the context window promises of any conversation: what stays, what leaves first, and that it is said."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from actors import transcript
from actors.context_window import IMAGE_TOKENS, MESSAGE_TOKENS, Message, fit, room, size, tokens_of
from tests.fakes import fail, say
from tests.service import service
from tests.test_transcript import any_turn, refused

PROMPT = "You are."


def conversation(rng: random.Random, turns: int) -> list[Message]:
    events = [event for turn in range(1, turns + 1) for event in any_turn(rng, turn)]
    return transcript.for_model(rng.choice(["", PROMPT]), events, "p")


def cost(messages: list[Message]) -> int:
    return sum(map(size, messages))


ANY = given(rng=st.randoms(use_true_random=False), turns=st.integers(1, 6), most=st.integers(0, 250))


@ANY
def test_of_any_conversation_the_oldest_leaves_and_what_must_stay_stays(
    rng: random.Random, turns: int, most: int
) -> None:
    messages = conversation(rng, turns)
    told = fit(messages, most)
    assert refused(told.messages) == ""  # no tool call without its result, no result without its call
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    places = [next(place for place, m in enumerate(messages) if m is message) for message in told.messages]
    assert places == sorted(places)
    system = [0] if messages[0]["role"] == "system" else []
    assert places[: len(system)] == system
    assert users[-1] in places
    last_answer = [place for place, m in enumerate(messages) if m["role"] == "assistant" and place > users[-1]][-1:]
    assert {*last_answer} <= {*places}
    # beside these it is the newest part of the conversation, without holes
    rest = [place for place in places if place not in (*system, users[-1])]
    assert rest == [place for place in range(rest[0] if rest else 0, len(messages)) if place != users[-1]] * bool(rest)
    assert told.left_out == len(messages) - len(told.messages)
    assert told.turns == len(users) - len([m for m in told.messages if m["role"] == "user"])


@ANY
def test_it_fits_unless_even_the_least_does_not_and_no_more_leaves_than_must(
    rng: random.Random, turns: int, most: int
) -> None:
    messages = conversation(rng, turns)
    told, least = fit(messages, most), fit(messages, 0)
    if cost(told.messages) > most:
        assert told == least
    assert fit(messages, cost(messages)) == (messages, 0, 0)
    # the window that is one token too small for what was told tells less; with room for it, the same
    assert fit(messages, cost(told.messages)).messages == told.messages
    if told.messages != least.messages:
        assert len(fit(messages, cost(told.messages) - 1).messages) < len(told.messages)
    more = fit(messages, most + 20).messages
    assert all(any(message is m for m in more) for message in told.messages)


def test_turns_leave_before_rounds_of_the_running_turn() -> None:
    def call(number: int) -> list[Message]:
        asked = {"role": "assistant", "content": "", "tool_calls": [{"id": f"c{number}", "type": "function"}]}
        return [asked, {"role": "tool", "tool_call_id": f"c{number}", "content": "r" * 70}]

    old: list[Message] = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "o" * 350}]
    now: list[Message] = [{"role": "user", "content": "new"}, *call(1), *call(2), *call(3)]
    system: Message = {"role": "system", "content": PROMPT}
    messages = [system, *old, *now]
    assert fit(messages, cost(messages)).turns == 0
    assert fit(messages, cost(messages) - 1) == ([system, *now], 1, 2)
    assert fit(messages, cost([system, *now]) - 1) == ([system, now[0], *now[3:]], 1, 4)
    assert fit(messages, 1) == ([system, now[0], *now[5:]], 1, 6)


def test_sizes_are_estimated_from_bytes_and_images_cost_the_same_whatever_their_size() -> None:
    assert tokens_of("") == 0
    assert tokens_of("a") == 1
    assert tokens_of("x" * 700) == 200
    assert tokens_of("中" * 700) == 600
    assert tokens_of("\ud83d") == 1  # half of a pair, as some providers send
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    assert size({"role": "user", "content": [image]}) == IMAGE_TOKENS + MESSAGE_TOKENS
    both: list[Any] = [{"type": "text", "text": "x" * 70}, image]
    assert size({"role": "user", "content": both}) > IMAGE_TOKENS + 20
    raw = {"role": "assistant", "content": "", "reasoning_content": "x" * 700, "n": 1, "none": None}
    assert 200 < size(raw) < 220


def test_the_answer_and_the_tools_take_their_part_of_the_window() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    assert room(1000, {}, b"") == 1000
    assert room(1000, {"max_tokens": 300}, b"") == 700
    assert room(1000, {"max_tokens": 300, "max_completion_tokens": 400}, b"") == 600
    assert room(1000, {"max_tokens": 5000}, b"") == 500
    assert room(1000, {"max_tokens": "many"}, b"") == 1000
    assert 900 < room(1000, {}, msgspec.json.encode([tool])) < 1000


async def test_what_does_not_fit_is_not_sent_and_the_client_is_told(tmp_path: Path) -> None:
    settings = {"llm": {"providers": {"fake": {"client": {"context_tokens": 200}}}}}
    long = "word " * 70  # 100 tokens
    async with service(tmp_path, say("one"), say("two"), fail(400), settings=settings) as s, s.client() as client:
        assert "left_out" not in (await client.say(long))[0]
        frames = await client.say(long)
        assert frames[0]["left_out"] == {"turns": 1, "messages": 2}
        asked = (await s.provider.request(2)).json["messages"]
        assert [m["role"] for m in asked] == ["system", "user"]
        # what is too long by itself is sent all the same: the provider decides
        frames = await client.say("word " * 1000)
        assert frames[0]["left_out"] == {"turns": 2, "messages": 4}
        assert [m["role"] for m in (await s.provider.request(3)).json["messages"]] == ["system", "user"]
        # and it counts from the next turn on
        await client.send("history")
        assert len((await client.until("history"))[-1]["messages"]) == 5

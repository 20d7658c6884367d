"""Who is asked, in which order, and what a fallback gets to read."""

from __future__ import annotations

from typing import Any

import pytest

from actors.route import route
from protocol.errors import Code, Fault
from protocol.streamer import Complete
from protocol.watcher import Llm, Provider
from tests.streaming import provider

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "n"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b"},
        ],
        "reasoning_content": "hm",
        "annotations": [1],
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": {"sig": "x"}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "r"},
]
TOOLS = b'[{"type":"function","function":{"name":"f"}}]'


def asked(name: str = "", messages: list[dict[str, Any]] | None = None) -> Complete:
    return Complete(1, "front/gateway", name, "other-model", messages or MESSAGES, TOOLS, "c")


def llm(*fallbacks: str, **client: dict[str, Any]) -> Llm:
    providers: dict[str, Provider] = {
        name: provider("http://127.0.0.1:9/", name, **client.get(name, {})) for name in ("p", "q", "r")
    }
    return Llm("p", providers, list(fallbacks))


def names(*args: Any, **kwargs: Any) -> list[str]:
    return [one.name for one, _ in route(*args, **kwargs)]


def test_the_asked_one_first_then_the_fallbacks_each_once() -> None:
    assert names(asked(), llm()) == ["p"]
    assert names(asked(), llm("r", "q", "r", "gone")) == ["p", "r", "q"]
    assert names(asked("q"), llm("q", "r")) == ["q", "p", "r"]  # the turn stayed with a fallback
    assert names(asked("q"), llm("r")) == ["q", "r"]
    assert names(asked("q"), llm()) == ["q"]


def test_who_is_not_there_cannot_be_asked() -> None:
    for configuration, name in ((Llm("", {}), ""), (llm("q"), "gone")):
        with pytest.raises(Fault) as caught:
            route(asked(name), configuration)
        assert caught.value.code == Code.LLM_NOT_CONFIGURED


def test_a_fallback_gets_its_own_model_and_nothing_that_is_anothers() -> None:
    request = asked()
    (_, first), (_, second) = route(request, llm("q"))
    assert first is request
    assert (second.provider, second.model, second.tools, second.request) == ("q", "", TOOLS, 1)
    assert second.messages == [
        MESSAGES[0],
        MESSAGES[1],
        {
            "role": "assistant",
            "content": "ab",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        MESSAGES[3],
    ]


def test_who_cannot_see_is_not_shown_images_and_who_is_small_is_offered_no_tools() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.example/a.png"}}]}]
    blind = llm("q", "r", q={"vision": False}, r={"small": True})
    assert names(asked(messages=image), blind) == ["p", "r"]
    assert names(asked(), blind) == ["p", "q", "r"]
    assert route(asked(), blind)[2][1].tools == b""

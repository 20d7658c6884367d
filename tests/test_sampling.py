"""A server's request to the model in the words of `chat/completions`, its limits, and the answer in MCP's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actors.sampling import blocks_of, edited, limited, messages_of, provider_for, shown, stop_reason, tools_of
from protocol.errors import Fault
from protocol.mcp_server import SamplingRequest
from protocol.streamer import Finished, ToolCall
from protocol.watcher import ClientOptions, Llm, Provider

TEXT = {"type": "text", "text": "look"}
IMAGE = {"type": "image", "data": "aaaa", "mimeType": "image/png"}
TOOL = {"name": "add", "description": "Adds.", "inputSchema": {"type": "object"}}


def request(*messages: dict[str, Any], **fields: Any) -> SamplingRequest:
    return SamplingRequest("r", "s", "c", 1, list(messages), **{"max_tokens": 100, **fields})


def said(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def llm(**parameters: Any) -> Llm:
    one = Provider("one", "http://a", "big-1", None, parameters, ClientOptions())
    other = msgspec.structs.replace(one, name="other", model="Small-2")
    unused = msgspec.structs.replace(one, name="unused", model="tiny")
    return Llm("one", {"one": one, "other": other, "unused": unused}, ["other"])


def finished(*calls: ToolCall, reason: str = "stop") -> Finished:
    return Finished(1, reason, "m", list(calls), None, {})


def test_messages() -> None:
    asked = request(
        said("user", TEXT, TEXT),
        said("assistant", TEXT, {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}}),
        said("user", {"type": "tool_result", "toolUseId": "1", "content": [TEXT]}, TEXT),
        said("user", TEXT, IMAGE, {"type": "audio", "data": "bb", "mimeType": "audio/wav"}),
        {"role": "user", "content": TEXT},
        system_prompt="Be brief.",
    )
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    assert messages_of(asked) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "look\nlook"},
        {"role": "assistant", "content": "look", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "look"},
        {"role": "user", "content": "look"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}},
                {"type": "input_audio", "input_audio": {"data": "bb", "format": "wav"}},
            ],
        },
        {"role": "user", "content": "look"},
    ]
    for bad in (said("user", {"type": "video"}), said("user", {**IMAGE, "type": "audio"})):
        with pytest.raises(Fault, match="cannot be told"):
            messages_of(request(bad))
    with pytest.raises(Fault, match="cannot be told content of the type image"):
        messages_of(request(said("user", IMAGE)), vision=False)


def test_limits_count_for_whoever_may_answer() -> None:
    asked = request(max_tokens=100, temperature=0.0, stop=["!"], tools=[TOOL], tool_choice="required")
    for name, provider in limited(asked, llm(top_p=0.5, temperature=1, tools=["ours"]), 50).providers.items():
        assert provider.name == name
        assert provider.parameters == {
            "top_p": 0.5,
            "temperature": 0.0,
            "stop": ["!"],
            "max_tokens": 50,
            "tools": None,
            "tool_choice": "required",
        }
    few = request(max_tokens=7)
    assert limited(few, llm(max_tokens=5), 50).providers["one"].parameters["max_tokens"] == 5
    assert limited(few, llm(max_tokens=9), 50).providers["one"].parameters["max_tokens"] == 7
    assert limited(few, llm(max_completion_tokens=9), 50).providers["one"].parameters == {
        "max_completion_tokens": 7,
        "tools": None,
        "tool_choice": None,
    }
    assert limited(request(max_tokens=-1), llm(), 50).providers["one"].parameters["max_tokens"] == 1


def test_a_hint_chooses_among_those_that_are_in_use() -> None:
    assert provider_for(request(hints=["small"]), llm()) == "other"
    assert provider_for(request(hints=["tiny", "nothing", "big"]), llm()) == "one"
    assert provider_for(request(), llm()) == "one"


def test_what_its_approver_sees_and_may_change() -> None:
    asked = request(said("user", TEXT), tools=[TOOL], stop=["!"])
    assert shown(asked) == {"messages": asked.messages, "max_tokens": 100, "stop": ["!"], "tools": ["add"]}
    changes = {"system_prompt": "No.", "max_tokens": 3, "server": "another", "request": "another"}
    assert edited(asked, changes) == msgspec.structs.replace(asked, system_prompt="No.", max_tokens=3)
    assert edited(asked, {"messages": "what"}) == asked
    assert edited(asked, None) == asked


def test_the_answer() -> None:
    assert blocks_of("four", finished()) == [{"type": "text", "text": "four"}]
    assert blocks_of("", finished()) == [{"type": "text", "text": ""}]
    call = ToolCall("1", "add", '{"a": 1}')
    use = {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}}
    assert blocks_of("", finished(call)) == [use]
    assert blocks_of("so", finished(call)) == [{"type": "text", "text": "so"}, use]
    with pytest.raises(Fault, match="no JSON object"):
        blocks_of("", finished(ToolCall("1", "add", "[1]")))
    reasons = {"stop": "endTurn", "length": "maxTokens", "content_filter": "content_filter"}
    assert {reason: stop_reason(finished(reason=reason)) for reason in reasons} == reasons
    assert stop_reason(finished(call)) == "toolUse"
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert tools_of(request(tools=[TOOL])) == [{"type": "function", "function": function}]

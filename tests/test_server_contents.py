from __future__ import annotations

import base64

import pytest

from actors.server_contents import FRAME_BYTES, TooLarge, contents_of, prompt_of
from protocol.contents import Content
from protocol.mcp_server import FilledPrompt, PromptMessage, ResourceContent

PIXELS = base64.b64encode(bytes(100)).decode()


def test_text_and_other_data_are_told_apart() -> None:
    parts = [{"uri": "a://1", "mimeType": "text/plain", "text": "ä"}, {"uri": "a://2", "blob": PIXELS}]
    assert contents_of({"contents": parts}) == [
        ResourceContent("a://1", "text/plain", 2, text="ä"),
        ResourceContent("a://2", "", 100, data=PIXELS),
    ]


def test_what_is_too_large_is_cut_between_characters_or_left_out_with_its_size() -> None:
    parts = [{"uri": "1", "blob": PIXELS}, {"uri": "2", "text": "äää"}, {"uri": "3", "text": "more"}]
    assert contents_of({"contents": parts}, cap=5) == [
        ResourceContent("1", "", 100, cut=True),
        ResourceContent("2", "", 6, text="ää", cut=True),
        ResourceContent("3", "", 4, text="", cut=True),
    ]


@pytest.mark.parametrize("contents", [None, "x", [None, 1]])
def test_what_is_no_content_is_left_out(contents: object) -> None:
    assert contents_of({"contents": contents}) == []


def test_a_prompt_keeps_its_roles_and_blocks() -> None:
    block, content = {"type": "text", "text": "hello"}, Content("text", 5, text="hello")
    said = [{"role": "user", "content": block}, {"role": "assistant", "content": block}, {"role": "user"}]
    assert prompt_of({"description": "d", "messages": said}) == FilledPrompt(
        "d", [PromptMessage("user", content), PromptMessage("assistant", content)]
    )


def test_a_prompt_over_the_cap_is_refused_with_its_size() -> None:
    with pytest.raises(TooLarge, match="it has 1"):
        prompt_of({"messages": [{"role": "user", "content": {"type": "text", "text": "x" * 1_000}}]}, cap=100)


def test_what_is_too_large_for_a_frame_is_kept_where_it_can_be() -> None:
    kept: list[bytes] = []

    def keep(data: bytes, text: bool) -> str:
        kept.append(data)
        return f"{text} {len(kept)}"

    contents = [{"uri": "1", "text": "x" * (FRAME_BYTES + 1)}, {"uri": "2", "blob": PIXELS}]
    text, data = contents_of({"contents": contents}, keep=keep)
    assert (text.result_id, text.size, len(text.text or "")) == ("True 1", FRAME_BYTES + 1, FRAME_BYTES)
    assert (data.result_id, data.data) == ("False 2", None)
    assert kept == [b"x" * (FRAME_BYTES + 1), bytes(100)]
    block = {"type": "image", "data": "A" * FRAME_BYTES * 2, "mimeType": "image/png"}
    [message] = prompt_of({"messages": [{"role": "user", "content": block}]}, keep=keep).messages
    assert (message.content.result_id, message.content.data) == ("False 3", None)

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.tool_result import TEXT_CAP, bounded, outcome_of

PIXELS = base64.b64encode(bytes(1234)).decode()


def said(*blocks: dict[str, Any], **more: Any) -> str:
    return outcome_of({"content": list(blocks), **more}).text


def test_texts_are_joined() -> None:
    assert said({"type": "text", "text": "one"}, {"type": "text", "text": "two"}) == "one\ntwo"


def test_an_error_is_not_ok_and_keeps_its_text() -> None:
    outcome = outcome_of({"content": [{"type": "text", "text": "no such file"}], "isError": True})
    assert (outcome.ok, outcome.text) == (False, "no such file")


@pytest.mark.parametrize("content", [[], [{"type": "text", "text": " "}], None, "x", [None]])
def test_the_text_is_never_empty(content: Any) -> None:
    assert outcome_of({"content": content}).text == "(the tool returned nothing)"
    assert outcome_of({"content": content, "isError": True}).text == "(the tool failed and did not say why)"


def test_structured_content_is_the_text_when_there_is_none() -> None:
    outcome = outcome_of({"content": [], "structuredContent": {"sum": 3}})
    assert outcome.text == '{"sum":3}'
    assert outcome.structured == {"sum": 3}
    assert said({"type": "text", "text": "three"}, structuredContent={"sum": 3}) == "three"


def test_pictures_sound_and_files_are_named_and_not_included() -> None:
    text = said(
        {"type": "image", "data": PIXELS, "mimeType": "image/png"},
        {"type": "audio", "data": PIXELS, "mimeType": "audio/wav"},
        {"type": "resource", "resource": {"uri": "file:///a.bin", "blob": PIXELS, "mimeType": "application/zip"}},
        {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "inside"}},
        {"type": "resource_link", "uri": "file:///b", "name": "b"},
        {"type": "hologram"},
    )
    assert text.split("\n") == [
        "inside",
        "[image image/png, 1234 bytes]",
        "[audio audio/wav, 1234 bytes]",
        "[file file:///a.bin application/zip, 1234 bytes]",
        "[link file:///b b]",
        "[hologram that cannot be shown]",
    ]


def test_base64_within_text_is_replaced() -> None:
    assert said({"type": "text", "text": f"see data:image/png;base64,{PIXELS}."}) == "see [image/png, 1234 bytes]."


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    text = said({"type": "text", "text": "ä" * TEXT_CAP})
    assert text.endswith(f"[cut here: these are the first {TEXT_CAP} of {2 * TEXT_CAP} bytes]")
    assert len(text.encode()) < TEXT_CAP + 100


def test_large_structured_content_is_not_carried_along() -> None:
    outcome = outcome_of({"content": [], "structuredContent": {"x": "y" * TEXT_CAP}})
    assert outcome.structured is None
    assert "cut here" in outcome.text


@given(st.text(), st.integers(1, 50))
def test_a_bounded_text_begins_like_its_original(text: str, cap: int) -> None:
    whole = text.encode("utf-8", "replace")
    short = bounded(text, cap)
    assert short.encode().startswith(whole[: max(0, cap - 4)])
    assert ("cut here" in short) == (len(whole) > cap or "cut here" in text)

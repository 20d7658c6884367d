from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.server_contents import INLINE_BYTES
from actors.tool_result import PARTS, TEXT_CAP, bounded, outcome_of, refused

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
        "[image image/png, 1234 bytes]",
        "[audio audio/wav, 1234 bytes]",
        "[file file:///a.bin application/zip, 1234 bytes]",
        "inside",
        "[link file:///b b]",
        "[hologram that cannot be shown]",
    ]


def test_what_is_nearly_base64_is_read_in_a_moment() -> None:
    text = ";base64,data:x/" + "a" * 200_000  # for minutes, once
    assert said({"type": "text", "text": text}).startswith(text[:100])


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


class Kept:
    """What was kept, by id."""

    def __init__(self) -> None:
        self.all: dict[str, bytes] = {}

    def keep(self, data: bytes, text: bool) -> str:
        name = f"{'t' if text else 'b'}{len(self.all)}"
        self.all[name] = data
        return name


def test_plain_text_has_no_parts_and_is_kept_where_a_client_sees_its_beginning_only() -> None:
    kept = Kept()
    short = outcome_of({"content": [{"type": "text", "text": "x"}]}, keep=kept.keep)
    assert (short.contents, short.result_id, short.size) == ([], "", 0)
    whole = outcome_of({"content": [{"type": "text", "text": "ä" * 20_000}]}, keep=kept.keep)
    assert (whole.contents, whole.size, kept.all[whole.result_id]) == ([], 40_000, ("ä" * 20_000).encode())


def test_parts_are_carried_as_far_as_there_is_room_and_the_rest_is_kept() -> None:
    kept = Kept()
    large = base64.b64encode(bytes(INLINE_BYTES)).decode()
    blocks = [
        {"type": "image", "data": PIXELS, "mimeType": "image/png", "annotations": {"audience": ["user"]}},
        {"type": "image", "data": large, "mimeType": "image/png", "_meta": {"a": 1}},
        {"type": "resource", "resource": {"uri": "file:///a", "text": "y" * INLINE_BYTES, "_meta": {"b": 1}}},
        {"type": "audio", "data": "no base64!" * INLINE_BYTES, "mimeType": "audio/wav"},
    ]
    small, image, resource, broken = outcome_of({"content": blocks}, keep=kept.keep).contents
    assert (small.data, small.size, small.annotations) == (PIXELS, 1234, {"audience": ["user"]})
    assert (image.data, image.size, image.meta) == (None, INLINE_BYTES, {"a": 1})
    assert kept.all[image.result_id] == bytes(INLINE_BYTES)
    assert (resource.uri, resource.size, resource.meta) == ("file:///a", INLINE_BYTES, {"b": 1})
    assert (len(resource.text or ""), len(kept.all[resource.result_id])) == (1024, INLINE_BYTES)
    assert (broken.data, broken.result_id) == (None, "")
    nobody = outcome_of({"content": blocks}).contents
    assert [part.result_id for part in nobody] == ["", "", "", ""]


def test_large_structured_content_is_a_part_and_many_parts_are_bounded() -> None:
    kept = Kept()
    value = {"x": "y" * INLINE_BYTES}
    outcome = outcome_of({"content": [], "structuredContent": value}, keep=kept.keep)
    [part] = outcome.contents
    assert (outcome.structured, part.type, part.mime_type) == (None, "structured", "application/json")
    assert msgspec.json.decode(kept.all[part.result_id]) == value
    wordy = {"type": "image", "data": PIXELS, "_meta": {"a": "b" * 10_000}}
    many = outcome_of({"content": [wordy] * 1000}, keep=kept.keep)
    assert len(many.contents) == PARTS
    assert len(msgspec.json.encode(many.contents)) < 100_000
    assert many.text.endswith("[1000 parts in all]")


def test_a_broken_promise_fails_the_call_and_says_what_came() -> None:
    outcome = refused(outcome_of({"content": [{"type": "text", "text": "three"}]}), "it is no number - at `$.sum`")
    assert not outcome.ok
    assert "does not fit its output schema: it is no number - at `$.sum`" in outcome.text
    assert outcome.text.endswith("\nthree")


@given(st.text(), st.integers(1, 50))
def test_a_bounded_text_begins_like_its_original(text: str, cap: int) -> None:
    whole = text.encode("utf-8", "replace")
    short = bounded(text, cap)
    assert short.encode().startswith(whole[: max(0, cap - 4)])
    assert ("cut here" in short) == (len(whole) > cap or "cut here" in text)

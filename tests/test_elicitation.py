"""What a person may be asked, and which answers fit: each kind of field, at its limits."""

from __future__ import annotations

from typing import Any

import pytest

from actors.elicitation import SCHEMA_MAX, checked, refusal
from protocol.errors import Code, Fault


def form(*required: str, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required)}


TEXT = {"type": "string", "minLength": 2, "maxLength": 4}
COLOUR = {"type": "string", "enum": ["red", "blue"]}
TITLED = {"type": "string", "oneOf": [{"const": "r", "title": "Red"}, {"const": "b", "title": "Blue"}]}
LONG = "a@" + "." * 31_000 + " "  # for an hour, were it looked at
SEVERAL = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 2}
TITLED_SEVERAL = {"type": "array", "items": {"anyOf": [{"const": "a", "title": "A"}]}}


@pytest.mark.parametrize(
    ("field", "good", "bad", "why"),
    [
        (TEXT, ["ab", "abcd", "é😀"], ["a", "abcde", 5, True, ["ab"]], "characters|must be text"),
        ({"type": "string", "minLength": 1}, ["x" * 32_000], ["", "x" * 32_001], "1 to 32000 characters"),
        ({"type": "string", "format": "email"}, ["a@b.example"], ["a@b", "a b@c.d", "ab", LONG], "an e-mail address"),
        ({"type": "string", "format": "uri"}, ["https://a/b", "urn:a"], ["a/b", "http://[", ""], "a URI"),
        ({"type": "string", "format": "date"}, ["2026-02-28"], ["2026-02-30", "today"], "a date"),
        ({"type": "string", "format": "date-time"}, ["2026-02-28T10:00:00Z"], ["2026-02-28", "x"], "date and time"),
        ({"type": "integer", "minimum": 1, "maximum": 3}, [1, 3, 2.0], [0, 4, 1.5, True, "1"], "1 to 3|number"),
        ({"type": "number", "minimum": 0}, [0, 0.5], [-0.1, float("nan"), float("inf"), None], "or more|number|requ"),
        ({"type": "boolean"}, [True, False], [1, "true"], "true or false"),
        (COLOUR, ["red"], ["green", 1, ["red"]], "one of red, blue"),
        (TITLED, ["b"], ["Blue"], "one of r, b"),
        (SEVERAL, [["a"], ["c", "a"]], [[], ["a", "b", "c"], ["d"], "a", ["a", "a"], [1]], "of|twice"),
        (TITLED_SEVERAL, [[], ["a"]], [["A"]], "some of a"),
    ],
)
def test_a_field(field: dict[str, Any], good: list[Any], bad: list[Any], why: str) -> None:
    schema = form("it", it=field)
    assert refusal(schema, None) is None
    for value in good:
        assert checked(schema, {"it": value}) == {"it": value}
    for value in bad:
        with pytest.raises(Fault, match=why) as caught:
            checked(schema, {"it": value})
        assert caught.value.code is Code.INVALID_MESSAGE
        assert "The field 'it'" in caught.value.body.text


def test_what_is_left_out_takes_its_default_and_what_is_not_asked_for_is_refused() -> None:
    schema = form(
        "name",
        name={"type": "string", "default": "Ada"},
        age={"type": "integer"},
        level={"type": "integer", "default": "high"},  # a default of another type is none
        sure={"type": "boolean", "default": False},
    )
    assert checked(schema, {}) == {"name": "Ada", "sure": False}
    assert checked(schema, {"name": "Bob", "age": None}) == {"name": "Bob", "sure": False}
    with pytest.raises(Fault, match="'x' is not asked for"):
        checked(schema, {"x": 1})
    with pytest.raises(Fault, match="'level' is required"):
        checked({**schema, "required": ["level"]}, {})
    assert checked(form(), {}) == {}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (None, "neither"),
        ({}, "an object with at most"),
        ({"type": "array"}, "an object with at most"),
        (form(**{f"f{n}": TEXT for n in range(101)}), "at most 100 properties"),
        (form(it={"type": "object"}), "'it' is none of text"),
        (form(it={"type": "array", "items": {"type": "string"}}), "'it' is none of text"),
        (form(it={"type": ["string", "null"]}), "'it' is none of text"),
        (form(it="text"), "'it' is none of text"),
        (form(it={"type": "string", "description": "x" * SCHEMA_MAX}), "bytes"),
    ],
)
def test_a_form_that_nobody_could_be_shown(schema: dict[str, Any] | None, why: str) -> None:
    assert why in str(refusal(schema, None))


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "file:///etc/passwd", "//a/b", "https://", "https://a/ b", "http://[", "a" * 5000]
)
def test_an_address_that_is_not_shown(url: str) -> None:
    assert refusal(None, url)


def test_an_address() -> None:
    assert refusal(None, "https://a.example/b?c=d#e") is None
    assert refusal(None, "http://127.0.0.1:8000/") is None

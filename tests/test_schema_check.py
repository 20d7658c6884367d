from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.schema_check import mismatch

SUM: dict[str, Any] = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
DOUBLING = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2} for n in range(1, 60)} | {"d0": {"type": "null"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "required", "$ref", "items", "enum", "anyOf", "pattern"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"sum": 3}, ""),
        ({"sum": "three"}, "'three' is not of type 'integer' - at `$.sum`"),
        ({}, "'sum' is a required property - at `$`"),
        (None, "None is not of type 'object' - at `$`"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(value: object, why: str) -> None:
    assert mismatch(SUM, value) == why


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#"}, 1),
        ({"$ref": "https://example.com/schema"}, 1),
        ({"$defs": DOUBLING, "$ref": "#/$defs/d59"}, None),
        ({"type": "string", "pattern": "(a+)+$"}, "a" * 60 + "b"),
        ({"patternProperties": {"(a+)+$": {}}, "additionalProperties": False}, {"a" * 60 + "b": 1}),
        ({"type": "array", "items": {"enum": list(range(100_000))}}, [-1] * 20_000),
        ({"type": "array", "items": {"enum": [[0] * 1000] * 500}}, [[[0] * 999 + [1]]] * 200),
        ({"type": "array", "items": {"required": ["x"] * 100_000}}, [{}] * 20_000),
        ({"allOf": [{"items": {}}] * 5000}, [-1] * 20_000),
        ({"allOf": [{"additionalProperties": {}}] * 5000}, {str(n): 1 for n in range(20_000)}),
        ({"type": 7}, 3),
        ({"type": "array", "uniqueItems": True}, [{"a": 1}] * 5000),
        (SUM, {"sum": "x" * 600_000}),
    ],
)
def test_what_would_take_for_ever_or_makes_no_sense_fits(schema: dict[str, Any], value: object) -> None:
    assert mismatch(schema, value) == ""


def test_a_reason_is_short() -> None:
    assert len(mismatch({"type": "integer"}, "x" * 5000)) < 350


@given(st.dictionaries(st.sampled_from(["type", "properties", "allOf", "$defs", "const"]), JSON), JSON)
def test_no_schema_makes_it_raise(schema: dict[str, Any], value: object) -> None:
    assert isinstance(mismatch(schema, value), str)

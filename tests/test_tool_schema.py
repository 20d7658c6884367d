from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.tool_schema import repaired_page, repaired_schema, repaired_tool

GOOD: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"x": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"unused": {}},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "properties", "required", "name", "inputSchema"]), inner, max_size=5)
    ),
    max_leaves=10,
)


def test_a_good_schema_stays_verbatim() -> None:
    assert repaired_schema(GOOD) == GOOD


@pytest.mark.parametrize("bad", [None, {}, [], "object", True, {"type": "string"}, {"properties": []}])
def test_what_is_no_object_schema_becomes_one(bad: object) -> None:
    assert repaired_schema(bad) == {"type": "object", "properties": {}}


def test_what_was_good_of_a_bad_schema_stays() -> None:
    bad = {"type": ["object", "null"], "properties": {"x": True}, "required": "x", "$defs": {"a": {}}}
    assert repaired_schema(bad) == {"type": "object", "properties": {"x": True}, "$defs": {"a": {}}}


def test_a_tool_keeps_what_we_use() -> None:
    tool = {
        "name": "add",
        "title": "Add",
        "description": "adds",
        "inputSchema": GOOD,
        "outputSchema": {"type": "nonsense"},
        "annotations": {"readOnlyHint": True, "title": "T", "destructiveHint": "yes"},
        "icons": "none",
    }
    assert repaired_tool(tool) == {
        "name": "add",
        "title": "Add",
        "description": "adds",
        "inputSchema": GOOD,
        "annotations": {"readOnlyHint": True, "title": "T"},
    }


def test_one_bad_tool_does_not_hide_the_others() -> None:
    good = {"type": "object"}
    tools = [{"name": "a"}, None, {"name": ""}, {"name": "b", "inputSchema": good}]
    page = repaired_page({"tools": tools, "nextCursor": 7})
    assert [tool["name"] for tool in page.result["tools"]] == ["a", "b"]
    assert (page.left_out, page.mended) == (2, ["a"])
    assert "nextCursor" not in page.result


@given(JSON)
def test_any_schema_becomes_an_object_schema_and_a_fixed_point(schema: object) -> None:
    good = repaired_schema(schema)
    assert good["type"] == "object"
    assert isinstance(good["properties"], dict)
    assert repaired_schema(good) == good


@given(st.dictionaries(st.sampled_from(["tools", "nextCursor", "ttlMs"]), JSON))
def test_any_page_becomes_a_list_of_named_tools(page: dict[str, Any]) -> None:
    good = repaired_page(page)
    assert all(tool["name"] and tool["inputSchema"]["type"] == "object" for tool in good.result["tools"])

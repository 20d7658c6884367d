"""Repair of what servers say about their tools, so that one bad tool does not hide the good ones.

Pure: plain JSON values in and out. The MCP package validates a page of tools as a whole and rejects all of
it for one missing `inputSchema`; models' providers reject a whole request for one schema that is not an
object. A good schema comes out as it went in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")


def repaired_schema(schema: object) -> dict[str, Any]:
    """The schema of a tool's arguments as an object schema: `type: object` and `properties` are there."""
    if not isinstance(schema, dict):
        return {"type": "object", "properties": {}}
    good = dict(schema)
    if good.get("type") != "object":
        good["type"] = "object"
    if not isinstance(good.get("properties"), dict):
        good["properties"] = {}
    required = good.get("required", [])
    if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        del good["required"]
    return good


def repaired_tool(tool: object) -> dict[str, Any] | None:
    """The wire form of one tool with only what we use of it; None if it has no name to call it by.

    `outputSchema` goes too: the package would refuse a result that does not match it, while the model
    can well read such a result.
    """
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"]:
        return None
    good: dict[str, Any] = {"name": tool["name"], "inputSchema": repaired_schema(tool.get("inputSchema"))}
    for key in ("title", "description"):
        if isinstance(tool.get(key), str):
            good[key] = tool[key]
    said = tool.get("annotations")
    if isinstance(said, dict):
        hints: dict[str, Any] = {key: said[key] for key in _HINTS if isinstance(said.get(key), bool)}
        if isinstance(said.get("title"), str):
            hints["title"] = said["title"]
        good["annotations"] = hints
    return good


class Page(NamedTuple):
    """One page of tools, repaired."""

    result: dict[str, Any]
    """Of the `tools/list` request."""
    left_out: int
    """Tools that have no name."""
    mended: list[str]
    """Names of tools whose schema was none of an object."""


def repaired_page(page: dict[str, Any]) -> Page:
    """The result of one `tools/list` request, repaired."""
    said = page.get("tools")
    tools = said if isinstance(said, list) else []
    good = [(tool, repaired) for tool in tools if (repaired := repaired_tool(tool)) is not None]
    result = {**page, "tools": [repaired for _, repaired in good]}
    if not isinstance(result.get("nextCursor", ""), str):
        del result["nextCursor"]
    mended = [repaired["name"] for tool, repaired in good if _was_mended(tool.get("inputSchema"), repaired)]
    return Page(result, len(tools) - len(good), mended)


def _was_mended(schema: object, repaired: dict[str, Any]) -> bool:
    # `properties` may be missing: a tool without arguments is none that is wrong
    return not isinstance(schema, dict) or {"properties": {}, **schema} != repaired["inputSchema"]

"""Repair of what servers say about their tools, so that one bad tool does not hide the good ones.

Pure: plain JSON values in and out. The MCP package validates a page of tools as a whole and rejects all of
it for one missing `inputSchema`; models' providers reject a whole request for one schema that is not an
object. A good schema comes out as it went in. What must not pass through the package's validation goes beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

MOST_BYTES = 32 * 1024  # of a tool's icons and `_meta`, each: a picture may be in them, a film is not
ICONS_MOST = 8
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
    """The wire form of one tool with only what the package is to see of it; None if it has no name to call it by.

    `outputSchema` is not among it: the package would refuse a result that does not match it without saying what came.
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


class Beside(NamedTuple):
    """What a tool has beside that."""

    output_schema: dict[str, Any] | None
    icons: list[dict[str, Any]]
    meta: dict[str, Any]


def beside(tool: dict[str, Any]) -> Beside:
    """What a tool has beside what the package sees of it; what makes no sense, or is too large, is left out."""
    schema = tool.get("outputSchema")
    return Beside(schema if isinstance(schema, dict) else None, icons_of(tool), meta_of(tool))


def icons_of(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The icons of anything that has some, as they are."""
    said = item.get("icons")
    icons = [icon for icon in said if isinstance(icon, dict)][:ICONS_MOST] if isinstance(said, list) else []
    return icons if small(icons) else []


def meta_of(item: dict[str, Any]) -> dict[str, Any]:
    """The `_meta` of anything that has one, as it is."""
    said = item.get("_meta")
    return said if isinstance(said, dict) and small(said) else {}


def small(value: object) -> bool:
    """It may be carried along, and can be."""
    try:
        return len(msgspec.json.encode(value)) <= MOST_BYTES
    except (UnicodeError, RecursionError):
        return False  # it could be sent to nobody


class Page(NamedTuple):
    """One page of tools, repaired."""

    result: dict[str, Any]
    """Of the `tools/list` request."""
    left_out: int
    """Tools that have no name."""
    mended: list[str]
    """Names of tools whose schema was none of an object."""
    beside: dict[str, Beside]
    """By the tool's name."""


def repaired_page(page: dict[str, Any]) -> Page:
    """The result of one `tools/list` request, repaired."""
    said = page.get("tools")
    tools = said if isinstance(said, list) else []
    good = [(tool, repaired) for tool in tools if (repaired := repaired_tool(tool)) is not None]
    result = {**page, "tools": [repaired for _, repaired in good]}
    if not isinstance(result.get("nextCursor", ""), str):
        del result["nextCursor"]
    mended = [repaired["name"] for tool, repaired in good if _was_mended(tool.get("inputSchema"), repaired)]
    return Page(result, len(tools) - len(good), mended, {repaired["name"]: beside(tool) for tool, repaired in good})


def _was_mended(schema: object, repaired: dict[str, Any]) -> bool:
    # `properties` may be missing: a tool without arguments is none that is wrong
    return not isinstance(schema, dict) or {"properties": {}, **schema} != repaired["inputSchema"]

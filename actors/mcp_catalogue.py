"""What an MCP server offers, listed through the MCP package's client: tools, resources, templates, prompts.

Imported by `actors.mcp_client` only. Every list is walked to its end, within PAGES; tools must be listed, of the rest
what fails is only told. What can fail: `Refused`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import msgspec
from mcp import Client, MCPError
from pydantic import BaseModel, ValidationError

from actors.mcp_wire import Wire
from actors.server_faults import Refused
from actors.tool_schema import beside, icons_of, meta_of, small
from protocol.mcp_server import Catalogue, Prompt, Resource, ResourceTemplate, Tool

NAMES_MAX = 5  # of what is wrong, in a line for operators
NAME_MAX = 64  # characters of one of them
MOST_BYTES = 4 * 2**20  # of all that a server offers: a message between processes has an end
INSTRUCTIONS_MAX = 100_000  # characters; the model is told far fewer
PAGES = 100  # of one list; a server whose list never ends must not hold us


async def catalogue(server: str, client: Client, wire: Wire) -> tuple[Catalogue, list[str]]:
    """All that the server offers, and what could not be listed, a line each. Raises Refused, for the tools."""
    offers, problems = client.server_capabilities, list[str]()
    tools: list[types.Tool] = []
    resources: list[types.Resource] = []
    templates: list[types.ResourceTemplate] = []
    prompts: list[types.Prompt] = []

    async def tool_page(cursor: str | None) -> str | None:
        page = await client.list_tools(cursor=cursor)
        tools.extend(page.tools)
        return page.next_cursor

    async def resource_page(cursor: str | None) -> str | None:
        page = await client.list_resources(cursor=cursor)
        resources.extend(page.resources)
        return page.next_cursor

    async def template_page(cursor: str | None) -> str | None:
        page = await client.list_resource_templates(cursor=cursor)
        templates.extend(page.resource_templates)
        return page.next_cursor

    async def prompt_page(cursor: str | None) -> str | None:
        page = await client.list_prompts(cursor=cursor)
        prompts.extend(page.prompts)
        return page.next_cursor

    wire.bad_tools, wire.mended, wire.beside = 0, [], {}
    if offers.tools is not None and (problem := await _all_pages(tool_page)):
        raise Refused(f"MCP server {server!r} cannot list its tools: {problem}")
    if wire.bad_tools:
        problems.append(f"{wire.bad_tools} tools without a name were left out")
    if mended := wire.mended:
        some = ", ".join([*(name[:NAME_MAX] for name in mended[:NAMES_MAX]), *["..."] * (len(mended) > NAMES_MAX)])
        problems.append(f"{len(mended)} tools have a schema that is none of an object; it was repaired: {some}")
    if offers.resources is not None:
        if problem := await _all_pages(resource_page):
            problems.append(f"resources: {problem}")
        if problem := await _all_pages(template_page, optional=True):
            problems.append(f"resource templates: {problem}")
    if offers.prompts is not None and (problem := await _all_pages(prompt_page)):
        problems.append(f"prompts: {problem}")
    found = Catalogue(
        server=server,
        tools=[_tool(tool, wire) for tool in tools],
        resources=[_resource(wire_form(resource)) for resource in resources],
        prompts=[_prompt(wire_form(prompt)) for prompt in prompts],
        instructions=(client.instructions or "")[:INSTRUCTIONS_MAX],
        templates=[_template(wire_form(template)) for template in templates],
    )
    if len(msgspec.msgpack.encode(found)) > MOST_BYTES:
        problems.append("it has too much to tell: icons, `_meta` and output schemas were left out")
        found = _bare(found)
        if left_out := _cut(found):
            problems.append(f"{left_out} more of what it offers was left out: it has far too much to tell")
    return found, problems


def _cut(found: Catalogue) -> int:
    """Leave out what comes after MOST_BYTES, the tools last; how many that are."""
    left, left_out = MOST_BYTES - len(msgspec.msgpack.encode(found.instructions)), 0
    lists: list[list[Any]] = [found.tools, found.prompts, found.templates, found.resources]
    for items in lists:
        kept = 0
        for item in items:
            left -= len(msgspec.msgpack.encode(item))
            if left < 0:
                break
            kept += 1
        left_out += len(items) - kept
        del items[kept:]
    return left_out


def _bare(found: Catalogue) -> Catalogue:
    """Without what nobody needs to use it."""
    bare = msgspec.structs.replace
    return bare(
        found,
        tools=[bare(tool, output_schema=None, icons=[], meta={}) for tool in found.tools],
        resources=[bare(resource, icons=[], meta={}) for resource in found.resources],
        templates=[bare(template, icons=[], meta={}) for template in found.templates],
        prompts=[bare(prompt, icons=[], meta={}) for prompt in found.prompts],
    )


async def _all_pages(page: Callable[[str | None], Awaitable[str | None]], *, optional: bool = False) -> str:
    """Walk a list to its end; what went wrong, or an empty text.

    Args:
        optional: a server that knows no such list has nothing in it.
    """
    cursor: str | None = None
    for _ in range(PAGES):
        try:
            following = await page(cursor)
        except MCPError as error:
            return "" if optional and error.code == types.METHOD_NOT_FOUND else str(error)[:300]
        except ValidationError as error:
            return str(error)[:300]
        if not following or following == cursor:
            return ""
        cursor = following
    return f"the list does not end within {PAGES} pages"


def _tool(tool: types.Tool, wire: Wire) -> Tool:
    more = wire.beside.get(tool.name) or beside({})
    return Tool(
        name=tool.name,
        description=tool.description or tool.title or "",
        schema=tool.input_schema,
        annotations=wire_form(tool.annotations) if tool.annotations else {},
        title=tool.title or (tool.annotations.title if tool.annotations else None) or "",
        output_schema=more.output_schema,
        icons=more.icons,
        meta=more.meta,
    )


def _resource(item: dict[str, Any]) -> Resource:
    size = item.get("size")
    return Resource(
        uri=str(item.get("uri", "")),
        name=str(item.get("name", "")),
        description=str(item.get("description", "")),
        mime_type=str(item.get("mimeType", "")),
        title=str(item.get("title", "")),
        size=size if isinstance(size, int) else None,
        annotations=_annotations(item),
        icons=icons_of(item),
        meta=meta_of(item),
    )


def _template(item: dict[str, Any]) -> ResourceTemplate:
    return ResourceTemplate(
        uri_template=str(item.get("uriTemplate", "")),
        name=str(item.get("name", "")),
        description=str(item.get("description", "")),
        mime_type=str(item.get("mimeType", "")),
        title=str(item.get("title", "")),
        annotations=_annotations(item),
        icons=icons_of(item),
        meta=meta_of(item),
    )


def _prompt(item: dict[str, Any]) -> Prompt:
    return Prompt(
        name=str(item.get("name", "")),
        description=str(item.get("description", "")),
        arguments=item.get("arguments") or [],
        title=str(item.get("title", "")),
        icons=icons_of(item),
        meta=meta_of(item),
    )


def _annotations(item: dict[str, Any]) -> dict[str, Any]:
    said = item.get("annotations")
    return said if isinstance(said, dict) and small(said) else {}


def wire_form(model: BaseModel) -> dict[str, Any]:
    """A model of the package as plain JSON values."""
    plain: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return plain

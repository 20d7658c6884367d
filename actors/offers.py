"""What the servers offer, as clients are told it: lists in pages of less than a megabyte.

Pure: the gateway's catalogues in, frames out. A page continues after the key of its last item, so what comes and goes
between two pages shifts nothing. Faults: NOT_FOUND, for a server that is not there or offers nothing now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from actors.catalogue import Merged
from protocol.contract_tools import (
    ListPrompts,
    ListResources,
    ListTools,
    OfferedPrompt,
    OfferedResource,
    OfferedTemplate,
    OfferedTool,
    Prompts,
    QuarantinedTool,
    Resources,
    ToolPage,
)
from protocol.errors import Code, Fault
from protocol.mcp_server import Catalogue

PAGE_BYTES = 768 * 1024  # of a list: what client libraries take in one frame by default is a megabyte
SEPARATOR = "\n"  # in keys: no name or address has one

Catalogues = Mapping[str, Catalogue]
T = TypeVar("T")


def tools(verb: ListTools, catalogues: Catalogues, merged: Merged) -> ToolPage:
    """The tools of all servers, or of one."""
    named = {catalogue.server for catalogue in _of(verb.server, catalogues)}
    offered = [
        (
            name,
            OfferedTool(tool_name=name, server=server, **msgspec.structs.asdict(tool)),
        )
        for (server, _), name in merged.names().items()
        if server in named and (found := merged.find(name)) is not None and (tool := found[1])
    ]
    page, following = _page(offered, verb.after)
    held = [
        QuarantinedTool(catalogue.server, name)
        for catalogue in ([] if verb.after else _of(verb.server, catalogues))
        for name in catalogue.quarantined
    ]
    return ToolPage(page, next=following, quarantined=held, request_id=verb.request_id)


def prompts(verb: ListPrompts, catalogues: Catalogues) -> Prompts:
    """The prompts of all servers, or of one."""
    offered = [
        (
            SEPARATOR.join((catalogue.server, prompt.name)),
            OfferedPrompt(server=catalogue.server, **msgspec.structs.asdict(prompt)),
        )
        for catalogue in _of(verb.server, catalogues)
        for prompt in catalogue.prompts
    ]
    page, following = _page(offered, verb.after)
    return Prompts(page, next=following, request_id=verb.request_id)


def resources(verb: ListResources, catalogues: Catalogues) -> Resources:
    """The resources and templates of all servers, or of one."""
    offered: list[tuple[str, OfferedResource | OfferedTemplate]] = []
    for catalogue in _of(verb.server, catalogues):
        for resource in catalogue.resources:
            shown = OfferedResource(server=catalogue.server, **msgspec.structs.asdict(resource))
            offered.append((SEPARATOR.join(("0", catalogue.server, resource.uri)), shown))
        for template in catalogue.templates:
            address = OfferedTemplate(server=catalogue.server, **msgspec.structs.asdict(template))
            offered.append((SEPARATOR.join(("1", catalogue.server, template.uri_template)), address))
    page, following = _page(offered, verb.after)
    return Resources(
        resources=[item for item in page if isinstance(item, OfferedResource)],
        templates=[item for item in page if isinstance(item, OfferedTemplate)],
        next=following,
        request_id=verb.request_id,
    )


def server_of_prompt(name: str, server: str | None, catalogues: Catalogues) -> str:
    """The server that a prompt is of. Raises Fault."""
    if server is not None:
        return server
    return _only(f"prompt {name!r}", [c.server for c in catalogues.values() if any(p.name == name for p in c.prompts)])


def server_of_template(template: str, server: str | None, catalogues: Catalogues) -> str:
    """The server that a resource template is of. Raises Fault."""
    if server is not None:
        return server
    having = [c.server for c in catalogues.values() if any(t.uri_template == template for t in c.templates)]
    return _only(f"template {template!r}", having)


def server_of_resource(uri: str, server: str | None, catalogues: Catalogues) -> str:
    """The server that lists a resource, or has a template that its address may be made of. Raises Fault."""
    if server is not None:
        return server
    listing = [c.server for c in catalogues.values() if any(r.uri == uri for r in c.resources)]
    if not listing:
        begin = [(c.server, t.uri_template.partition("{")[0]) for c in catalogues.values() for t in c.templates]
        listing = sorted({name for name, literal in begin if literal and uri.startswith(literal)})
    return _only(f"resource {uri!r}", listing)


def _only(what: str, servers: Sequence[str]) -> str:
    if len(servers) == 1:
        return servers[0]
    if servers:
        several = ", ".join(sorted(servers)[:10])
        raise Fault(Code.INVALID_MESSAGE, f"Several servers have the {what[:200]}: {several} - at `$.server`.")
    raise Fault(Code.NOT_FOUND, f"No server lists the {what[:200]}.", hint="Name the server where it is in no list.")


def _of(server: str | None, catalogues: Catalogues) -> Iterable[Catalogue]:
    if server is None:
        return catalogues.values()
    found = catalogues.get(server)
    if found is None:
        raise Fault(Code.NOT_FOUND, f"There is no MCP server {server[:100]!r} that offers anything now.")
    return [found]


def _page(items: list[tuple[str, T]], after: str | None) -> tuple[list[T], str]:
    """Items in the order of their keys, from the first after `after` on; and the key to go on with, or nothing."""
    page: list[T] = []
    room, last = PAGE_BYTES, ""
    for key, item in sorted(items, key=_key):
        if after is not None and key <= after:
            continue
        room -= len(msgspec.json.encode(item))
        if page and room < 0:
            return page, last
        page.append(item)
        last = key
    return page, ""


def _key(item: tuple[str, object]) -> str:
    return item[0]

"""An MCP server that has one of everything: `python rich_server.py [older]`. Only the standard library.

Speaks the newer era, or with `older` the one before it. Tools: `picture` returns all kinds of parts, `film` as many
bytes of data as asked for, `text` as many characters, `sums` and `wrong` structured content that fits, and does not
fit, its schema, `touch` changes the resource `rich://clock` and says so as often as asked for, `learn` adds a tool,
`die` ends it, `wanted` tells which resources are subscribed to. `listen` and `subscribe` are honoured for `rich://clock`
only.
"""

from __future__ import annotations

import base64
import os
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests import light_server
from tests.light_server import NEWER, Call, Wrong, say

OLDER = "older" in sys.argv[1:]
CLOCK = "rich://clock"
PIXELS = base64.b64encode(bytes(range(48))).decode()
ICON = {"src": "https://example.com/icon.png", "mimeType": "image/png", "sizes": ["48x48"]}
ANY: dict[str, Any] = {"type": "object", "properties": {}}
SIZED: dict[str, Any] = {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}
SUM: dict[str, Any] = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "picture",
        "title": "A picture",
        "description": "All kinds of parts.",
        "inputSchema": ANY,
        "annotations": {"readOnlyHint": True},
        "icons": [ICON],
        "_meta": {"example.com/kind": "art"},
    },
    {"name": "film", "description": "Data.", "inputSchema": {**SIZED, "required": ["size"]}},
    {"name": "text", "description": "Text.", "inputSchema": SIZED},
    {"name": "sums", "description": "Adds.", "inputSchema": ANY, "outputSchema": SUM},
    {"name": "wrong", "description": "Adds badly.", "inputSchema": ANY, "outputSchema": SUM},
    {"name": "touch", "description": "Changes the clock.", "inputSchema": ANY},
    {"name": "learn", "description": "Learns.", "inputSchema": ANY},
    {"name": "die", "description": "Ends the process.", "inputSchema": ANY},
    {"name": "wanted", "description": "Who wants what.", "inputSchema": ANY},
]
RESOURCES = [
    {"uri": CLOCK, "name": "clock", "title": "The clock", "mimeType": "text/plain", "size": 5, "icons": [ICON]},
    {"uri": "rich://film", "name": "film", "mimeType": "video/mp4"},
]
TEMPLATES = [{"uriTemplate": "rich://city/{name}", "name": "city", "description": "A city.", "_meta": {"k": 1}}]
CITIES = ["Berlin", "Bern", "Bergen", "Paris"]
PROMPTS = [
    {"name": "visit", "title": "Visit", "arguments": [{"name": "city", "required": True}], "icons": [ICON]},
]
subscribed: dict[Any, str] = {}
"""By the id of the stream, in the older era by the address."""


def capabilities() -> dict[str, Any]:
    changes = {"listChanged": True}
    return {"prompts": {}, "resources": {"subscribe": True, **changes}, "tools": changes, "completions": {}}


def changed(method: str, **params: Any) -> None:
    """Tell of a change, in the newer era on each stream."""
    if OLDER:
        say({"method": method, "params": params})
        return
    for stream in subscribed:
        meta = {"io.modelcontextprotocol/subscriptionId": stream}
        say({"method": method, "params": {**params, "_meta": meta}})


def use_tool(call: Call) -> None:
    given = call.params.get("arguments") or {}
    match call.params["name"]:
        case "picture":
            about = {"annotations": {"audience": ["user"], "priority": 0.5}, "_meta": {"made": "by hand"}}
            call.answer(
                {
                    "content": [
                        {"type": "text", "text": "look:"},
                        {"type": "image", "data": PIXELS, "mimeType": "image/png", **about},
                        {"type": "audio", "data": PIXELS, "mimeType": "audio/wav"},
                        {"type": "resource", "resource": {"uri": "rich://a", "text": "inside", "mimeType": "text/x"}},
                        {"type": "resource_link", "uri": CLOCK, "name": "clock", "title": "The clock", "size": 5},
                    ]
                }
            )
        case "film":
            data = base64.b64encode(bytes(given["size"])).decode()
            call.answer({"content": [{"type": "image", "data": data, "mimeType": "image/gif"}]})
        case "text":
            call.answer({"content": [{"type": "text", "text": "ä" * given.get("size", 1)}]})
        case "sums":
            call.answer({"content": [], "structuredContent": {"sum": 3}})
        case "wrong":
            call.answer({"content": [{"type": "text", "text": "three"}], "structuredContent": {"sum": "three"}})
        case "touch":
            for _ in range(given.get("times", 1)):
                changed("notifications/resources/updated", uri=CLOCK)
            call.answer({"content": [{"type": "text", "text": "done"}]})
        case "die":
            os._exit(7)
        case "learn":
            TOOLS.append({"name": "learned", "inputSchema": ANY})
            changed("notifications/tools/list_changed")
            call.answer({"content": [{"type": "text", "text": "done"}]})
        case "wanted":
            call.answer({"content": [{"type": "text", "text": ",".join(filter(None, subscribed.values())) or "none"}]})


def listen(call: Call) -> None:
    wanted = call.params["notifications"]
    uris = [uri for uri in wanted.get("resourceSubscriptions") or [] if uri == CLOCK]
    subscribed[call.number] = ",".join(uris)
    honoured = {**wanted, "resourceSubscriptions": uris} if wanted.get("resourceSubscriptions") else wanted
    meta = {"io.modelcontextprotocol/subscriptionId": call.number}
    say({"method": "notifications/subscriptions/acknowledged", "params": {"_meta": meta, "notifications": honoured}})


def read(call: Call) -> None:
    uri = call.params["uri"]
    if uri == "rich://film":
        data = base64.b64encode(bytes(900_000)).decode()
        call.answer({"contents": [{"uri": uri, "mimeType": "video/mp4", "blob": data}]}, listed=True)
    elif uri == CLOCK or uri.startswith("rich://city/"):
        call.answer({"contents": [{"uri": uri, "mimeType": "text/plain", "text": uri[-5:]}]}, listed=True)
    else:
        raise Wrong(-32602, f"Unknown resource: {uri}")


def cancel(number: Any) -> None:
    subscribed.pop(number, None)


def complete(call: Call) -> None:
    argument, context = call.params["argument"], call.params.get("context") or {}
    known = (context.get("arguments") or {}).get("not", "")
    values = [city for city in CITIES if city.startswith(argument["value"]) and city != known]
    call.answer({"completion": {"values": values, "total": len(values), "hasMore": False}})


def answer(call: Call, method: str) -> None:
    match method:
        case "server/discover" if OLDER:
            raise Wrong(-32601, "Method not found")
        case "server/discover":
            call.answer({"supportedVersions": [NEWER], "capabilities": capabilities()}, listed=True)
        case "initialize":
            about = {"capabilities": capabilities(), "serverInfo": light_server.INFO}
            call.answer({"protocolVersion": call.params["protocolVersion"], **about})
        case "tools/list":
            call.answer({"tools": TOOLS}, listed=True)
        case "tools/call":
            use_tool(call)
        case "resources/list":
            call.answer({"resources": RESOURCES}, listed=True)
        case "resources/templates/list":
            call.answer({"resourceTemplates": TEMPLATES}, listed=True)
        case "resources/read":
            read(call)
        case "resources/subscribe" | "resources/unsubscribe" if call.params["uri"] != CLOCK:
            raise Wrong(-32602, "It never changes.")
        case "resources/subscribe":
            subscribed[CLOCK] = CLOCK
            call.answer({})
        case "resources/unsubscribe":
            subscribed.pop(CLOCK, None)
            call.answer({})
        case "subscriptions/listen":
            listen(call)
        case "prompts/list":
            call.answer({"prompts": PROMPTS}, listed=True)
        case "prompts/get":
            where = (call.params.get("arguments") or {}).get("city", "")
            block = {"type": "image", "data": PIXELS, "mimeType": "image/png"}
            said = [{"role": "user", "content": {"type": "text", "text": f"Visit {where}."}}]
            call.answer({"description": "A journey.", "messages": [*said, {"role": "user", "content": block}]})
        case "completion/complete":
            complete(call)
        case _:
            light_server.answer(call, method)


if __name__ == "__main__":
    light_server.main((answer, cancel))

"""An MCP server that asks: `python -I -S asking_server.py older|newer`. Only the standard library.

Its tool `ask` asks for what its argument `requests` holds, by key (`{key: {method, params}}`), in the way of its era:
as requests of its own, or as input that the call requires; its text is the answers as JSON, by key. `visited` says
that what was to be done at an address is done, by its argument `id`; `loose` asks while no call runs, after its own
answer; `told` gives what that was answered. `say` gives its argument `text` back; `hold` begins and never ends; `can`
gives what the client says it can; `gated` wants an address to be visited first (id `e9`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

NEWER = "2026-07-28"
OBJECT: dict[str, Any] = {"type": "object", "properties": {}}
TOOLS = [
    {"name": name, "description": name, "inputSchema": OBJECT}
    for name in ("ask", "say", "visited", "loose", "can", "told", "hold", "gated")
]
newer = sys.argv[1] == "newer"
capabilities: dict[str, Any] = {}
waiting: dict[str, tuple[int, str]] = {}
"""Requests of ours, by id: the call, and the key."""
answers: dict[int, dict[str, Any]] = {}
"""By call, and key; -1: of no call."""
wanted: dict[int, int] = {}
visited: set[str] = set()


def say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def result(number: int, value: dict[str, Any], *, listed: bool = False) -> None:
    if newer:
        value = {"resultType": "complete", **({"ttlMs": 0, "cacheScope": "private"} if listed else {}), **value}
    say({"id": number, "result": value})


def text(number: int, value: object) -> None:
    said = value if isinstance(value, str) else json.dumps(value)
    result(number, {"content": [{"type": "text", "text": said}]})


def ask(number: int, params: dict[str, Any]) -> None:
    requests = params["arguments"]["requests"]
    if newer and "inputResponses" in params:
        assert params["requestState"] == "mine"
        text(number, params["inputResponses"])
    elif newer:
        result(number, {"resultType": "input_required", "inputRequests": requests, "requestState": "mine"})
    else:
        request(number, requests)


def request(number: int, requests: dict[str, Any]) -> None:
    answers[number], wanted[number] = {}, len(requests)
    for key, asked in requests.items():
        own = f"{number}-{key}"
        waiting[own] = (number, key)
        say({"id": own, **asked})


def answered(message: dict[str, Any]) -> None:
    number, key = waiting.pop(message["id"])
    answers[number][key] = message.get("result", message.get("error"))
    if number >= 0 and len(answers[number]) == wanted[number]:
        text(number, answers[number])


def call(number: int, params: dict[str, Any]) -> None:
    arguments = params.get("arguments") or {}
    match params["name"]:
        case "ask":
            ask(number, params)
        case "say":
            text(number, arguments["text"])
        case "gated" if "e9" not in visited:
            page = {"mode": "url", "message": "Sign in", "url": "https://a.example/in", "elicitationId": "e9"}
            say({"id": number, "error": {"code": -32042, "message": "sign in", "data": {"elicitations": [page]}}})
        case "gated":
            text(number, "inside")
        case "hold":
            token = params["_meta"]["progressToken"]
            say({"method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})
        case "visited":
            visited.add(arguments["id"])
            say({"method": "notifications/elicitation/complete", "params": {"elicitationId": arguments["id"]}})
            text(number, "told")
        case "loose":
            text(number, "soon")
            request(-1, arguments["requests"])
        case "told":
            text(number, answers.get(-1, {}))
        case "can":
            text(number, (params.get("_meta") or {}).get("io.modelcontextprotocol/clientCapabilities", capabilities))


def handle(message: dict[str, Any]) -> None:
    number, method, params = message.get("id"), message.get("method"), message.get("params") or {}
    about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "asking", "version": "1"}, "instructions": "Ask."}
    if method is None:
        answered(message)
    elif number is None:
        pass
    elif method == "server/discover" and newer:
        result(number, {"supportedVersions": [NEWER], **about}, listed=True)
    elif method == "initialize" and not newer:
        capabilities.update(params["capabilities"])
        result(number, {"protocolVersion": params["protocolVersion"], **about})
    elif method == "tools/list":
        result(number, {"tools": TOOLS}, listed=True)
    elif method == "tools/call":
        call(number, params)
    elif method == "ping":
        result(number, {})
    else:
        say({"id": number, "error": {"code": -32601, "message": "Method not found"}})


for line in sys.stdin.buffer:
    handle(json.loads(line))
    sys.stdout.buffer.flush()  # all at once: what is asked after an answer is there before the next call

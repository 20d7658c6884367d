"""The demo server once more, from the standard library alone: `python -I -S light_server.py`.

Starts in some 20 ms where importing `mcp` takes most of a second, so tests that need *a* server, and are about
something else, use this one (`LIGHT` in tests/service.py). It has the same name, tools, schemas, resource and
prompt as `Servers.demo_server`, and gives the same answers in both protocol eras; test_light_server.py compares
them word by word. Only what a bad argument is told is its own: the kind of error, not pydantic's text.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

NEWER = "2026-07-28"
INSTRUCTIONS = "Tools to try tool calling with. They compute, wait or fail, and change nothing."
README = "A server to try MCP with: tools that add, echo, tell the time, wait, fail and roll dice."
INFO = {"name": "demo", "version": ""}
LISTED_FOR = {"cacheScope": "private", "ttlMs": 0}
NUMBER: dict[str, Any] = {"type": "number"}
TEXT: dict[str, Any] = {"type": "string"}
CHECKS: dict[str, Any] = {"number": (int, float), "integer": int, "string": str}


def described(name: str, description: str, answer: str, *, pure: bool, **arguments: Any) -> dict[str, Any]:
    """A tool as it is listed; arguments without a default are required."""
    properties = {key: {**schema, "title": key.replace("_", " ").title()} for key, schema in arguments.items()}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "title": f"{name}Arguments"}
    required = [key for key, schema in arguments.items() if "default" not in schema]
    if required:
        schema["required"] = required
    return {
        "name": name,
        "description": description,
        "annotations": {"readOnlyHint": True, "idempotentHint": pure, "openWorldHint": False},
        "inputSchema": schema,
        "outputSchema": {
            "type": "object",
            "properties": {"result": {"title": "Result", "type": answer}},
            "required": ["result"],
            "title": f"{name}Output",
        },
    }


STEPS = {"type": "integer", "default": 5, "minimum": 1, "maximum": 1000}
STEP_S = {"type": "number", "default": 0.2, "minimum": 0, "maximum": 60}
SIDES = {"type": "integer", "default": 6, "minimum": 2, "maximum": 1_000_000}
WAITS = "Take several steps of some seconds each, and report progress after each."
TOOLS = [
    described("add", "Add two numbers.", "number", pure=True, a=NUMBER, b=NUMBER),
    described("echo", "Give the text back as it came.", "string", pure=True, text=TEXT),
    described("now", "The current date and time in UTC, as RFC 3339.", "string", pure=False),
    described("slow", WAITS, "string", pure=False, steps=STEPS, step_s=STEP_S),
    described("fail", "Fail with that message.", "string", pure=True, message=TEXT),
    described("dice", "Roll a die.", "integer", pure=False, sides=SIDES),
]
RESOURCES = [
    {"uri": "demo://readme", "name": "readme", "description": "What this server is for.", "mimeType": "text/plain"}
]
PROMPTS = [
    {"name": "haiku", "description": "Ask for a haiku.", "arguments": [{"name": "topic", "required": False}]},
]


def capabilities(*, newer: bool) -> dict[str, Any]:
    """The older era knows no subscription that changes could be told to."""
    changes = {"listChanged": newer}
    return {"prompts": changes, "resources": {**changes, "subscribe": newer}, "tools": changes}


class Wrong(Exception):
    """A request cannot be answered: JSON-RPC code, text, data."""


class Slow:
    """A call of `slow` that runs."""

    def __init__(self, call: Call, steps: int, step_s: float) -> None:
        self.call, self.steps, self.step_s = call, steps, step_s
        self.step = 0
        self.due = time.monotonic() + step_s

    def take_step(self) -> None:
        self.step += 1
        self.due += self.step_s
        if self.call.token is not None:
            progress = {"progressToken": self.call.token, "progress": self.step, "total": self.steps}
            message = f"step {self.step} of {self.steps}"
            say({"method": "notifications/progress", "params": {**progress, "message": message}})
        if self.step == self.steps:
            del running[self.call.number]
            self.call.done(f"done after {self.steps} steps")


class Call:
    """A request, and how it is answered in its era."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.number = message["id"]
        self.params: dict[str, Any] = message.get("params") or {}
        meta = self.params.get("_meta") or {}
        self.token = meta.get("progressToken")
        self.newer = meta.get("io.modelcontextprotocol/protocolVersion") is not None

    def answer(self, result: dict[str, Any], *, listed: bool = False) -> None:
        if self.newer:
            about = {"resultType": "complete", "_meta": {"io.modelcontextprotocol/serverInfo": INFO}}
            result = {**result, **about, **(LISTED_FOR if listed else {})}
        say({"id": self.number, "result": result})

    def done(self, value: Any) -> None:
        """A tool's answer: as text, and structured."""
        text = value if isinstance(value, str) else json.dumps(value)
        content = [{"type": "text", "text": text}]
        self.answer({"content": content, "isError": False, "structuredContent": {"result": value}})

    def failed(self, text: str) -> None:
        content = [{"type": "text", "text": text}]
        self.answer({"content": content, "isError": True})


running: dict[Any, Slow] = {}


def say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    sys.stdout.buffer.flush()


def checked(schema: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with defaults; ValueError says which one is wrong."""
    arguments = {}
    for key, wanted in schema["properties"].items():
        if key not in given and "default" not in wanted:
            raise ValueError(f"{key}: required")
        value = given.get(key, wanted.get("default"))
        fits = isinstance(value, CHECKS[wanted["type"]])
        if not fits or ("minimum" in wanted and not wanted["minimum"] <= value <= wanted["maximum"]):
            raise ValueError(f"{key}: does not fit {json.dumps(wanted)}")
        arguments[key] = value
    return arguments


def use_tool(call: Call) -> None:
    name, given = call.params["name"], call.params.get("arguments") or {}
    schema = next((tool["inputSchema"] for tool in TOOLS if tool["name"] == name), None)
    if schema is None:
        return call.failed(f"Unknown tool: {name}")
    try:
        arguments = checked(schema, given)
    except ValueError as error:
        return call.failed(f"Error executing tool {name}: {error}")
    match name:
        case "add":
            call.done(float(arguments["a"] + arguments["b"]))
        case "echo":
            call.done(arguments["text"])
        case "now":
            call.done(datetime.now(UTC).isoformat(timespec="seconds"))
        case "slow":
            running[call.number] = Slow(call, arguments["steps"], arguments["step_s"])
        case "fail":
            call.failed(f"Error executing tool fail: {arguments['message']}")
        case "dice":
            call.done(random.randint(1, arguments["sides"]))


def answer(call: Call, method: str) -> None:
    match method:
        case "initialize":
            version = call.params["protocolVersion"]
            about = {"capabilities": capabilities(newer=False), "serverInfo": INFO, "instructions": INSTRUCTIONS}
            call.answer({"protocolVersion": version, **about})
        case "server/discover":
            about = {"capabilities": capabilities(newer=True), "instructions": INSTRUCTIONS}
            call.answer({"supportedVersions": [NEWER], **about}, listed=True)
        case "subscriptions/listen":
            meta = {"io.modelcontextprotocol/subscriptionId": call.number}
            about = {"_meta": meta, "notifications": call.params["notifications"]}
            say({"method": "notifications/subscriptions/acknowledged", "params": about})
        case "ping":
            call.answer({})
        case "tools/list":
            call.answer({"tools": TOOLS}, listed=True)
        case "tools/call":
            use_tool(call)
        case "resources/list":
            call.answer({"resources": RESOURCES}, listed=True)
        case "resources/read":
            uri = call.params["uri"]
            if uri != "demo://readme":
                raise Wrong(-32602, f"Unknown resource: {uri}", {"uri": uri})
            call.answer({"contents": [{"uri": uri, "mimeType": "text/plain", "text": README}]}, listed=True)
        case "prompts/list":
            call.answer({"prompts": PROMPTS}, listed=True)
        case "prompts/get":
            if call.params["name"] != "haiku":
                raise (
                    Wrong(-32603, "Internal server error")
                    if call.newer
                    else Wrong(0, f"Unknown prompt: {call.params['name']}")
                )
            topic = (call.params.get("arguments") or {}).get("topic", "actors")
            block = {"type": "text", "text": f"Write a haiku about {topic}."}
            call.answer({"description": "Ask for a haiku.", "messages": [{"role": "user", "content": block}]})
        case _:
            raise Wrong(-32601, "Method not found", method)


def cancel(number: Any) -> None:
    running.pop(number, None)


Hooks = tuple[Callable[[Call, str], None], Callable[[Any], None]]


def take(message: dict[str, Any], hooks: Hooks) -> None:
    method = message.get("method", "")
    if method == "notifications/cancelled":
        hooks[1](message["params"]["requestId"])
    elif "id" in message:
        try:
            hooks[0](Call(message), method)
        except Wrong as wrong:
            code, text, *data = wrong.args
            say({"id": message["id"], "error": {"code": code, "message": text, **({"data": data[0]} if data else {})}})


def main(hooks: Hooks = (answer, cancel)) -> None:
    unfinished = b""
    while True:
        wait = min((slow.due for slow in running.values()), default=None)
        wait = None if wait is None else max(wait - time.monotonic(), 0)
        if select.select([0], [], [], wait)[0]:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, unfinished = (unfinished + data).split(b"\n")
            for line in lines:
                take(json.loads(line), hooks)
        for slow in tuple(running.values()):
            if slow.due <= time.monotonic():
                slow.take_step()


if __name__ == "__main__":
    main()

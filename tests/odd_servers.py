"""An MCP server that misbehaves on order: `python odd_servers.py MODE [ARGUMENT]`. Only the standard library.

Speaks the older handshake, refusing `server/discover` with an error, unless the mode says otherwise. Its
tools: `hello` answers at once, `die` ends the process, `hang` never answers, `count` tells how many
requests were cancelled.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

MODE = sys.argv[1]
ARGUMENT = sys.argv[2] if len(sys.argv) > 2 else ""
GOOD: dict[str, Any] = {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]}
TOOLS: list[Any] = [
    {"name": name, "description": name, "inputSchema": GOOD} for name in ("hello", "die", "hang", "count")
]
CALM_S = 0.5
LOUD = {"level": "info", "data": "x" * 200}
CAPABILITIES: dict[str, Any] = {
    "bad_resources": {"resources": {}},
    "resources": {"resources": {"listChanged": True}, "prompts": {}},
    "logs": {"logging": {}},
}
cancelled: list[Any] = []
readable = {"odd://good": "good", "odd://later": ""}


def put(raw: bytes) -> None:
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def say(message: dict[str, Any]) -> None:
    put(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def complain(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def sleep_for_ever() -> None:
    while True:
        time.sleep(60)  # what a server does that hangs


def note(line: str) -> None:
    """Tell the test, in a file."""
    with open(ARGUMENT, "a") as file:
        file.write(line + "\n")


def forks() -> None:
    """A grandchild that outlives its parent's input, and is told to the test by its pid in a file."""
    import subprocess  # takes as long as all the rest

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import time\nwhile True: time.sleep(60)"  # ended by the signal that the test is about
    grandchild = subprocess.Popen([sys.executable, "-c", code])
    with open(ARGUMENT + ".new", "w") as file:
        file.write(str(grandchild.pid))
    os.rename(ARGUMENT + ".new", ARGUMENT)


def tools(cursor: object) -> dict[str, Any]:
    if MODE == "bad_schemas":
        bad = [{"name": "empty", "inputSchema": {}}, {"name": "none"}, {"name": "text", "inputSchema": "no"}]
        return {"tools": [*bad, {"inputSchema": GOOD}, "what", *TOOLS]}
    if MODE == "pages":
        page = int(str(cursor or 0))
        following = {"nextCursor": str(page + 1)} if page < 4 else {}
        return {"tools": [{"name": f"tool{page}", "inputSchema": GOOD}], **following}
    if MODE == "twice":
        return {"tools": [*TOOLS, {"name": "hello", "description": "again", "inputSchema": GOOD}]}
    if MODE == "long_names":
        return {"tools": [{"name": letter * 200, "inputSchema": GOOD} for letter in "ab"]}
    if MODE == "lies":
        number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        return {"tools": [{**tool, "outputSchema": number} for tool in TOOLS]}
    if MODE == "endless_pages":
        return {"tools": [], "nextCursor": f"{cursor or ''}x"[:1000]}
    if MODE == "shifts":  # what it says of its tools is in a file, as that is now
        with open(ARGUMENT) as file:
            said = json.load(file)
        return {"tools": [{**tool, **said[tool["name"]]} for tool in TOOLS if tool["name"] in said]}
    return {"tools": TOOLS}


def call(number: int, name: str) -> None:
    match MODE, name:
        case _, "die":
            complain("dying in the call")
            os._exit(7)
        case _, "hang":
            return
        case "half_line", _:
            put(b'{"jsonrpc": "2.0", "id": ')
            os._exit(3)
        case "garbage", _:
            put(b"between\n\xff\xfe\x00\n[1,2]\n{}\n\n")
        case "unreadable", _:
            put(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"\xff"}]}}\n' % number)
            return
        case "big" | "floods", "count":  # as long a call, without all that
            time.sleep(CALM_S)  # that is what it does
        case "big", _:
            text = "x" * int(ARGUMENT or 5_000_000)
            return say({"id": number, "result": {"content": [{"type": "text", "text": text}]}})
        case "notifies", _:
            changed = {"method": "notifications/tools/list_changed"}
            log = {"method": "notifications/message", "params": {"level": "info", "data": "again"}}
            for _ in range(int(ARGUMENT) // 2):
                say(changed)
                say(log)
        case "floods", _:
            note_again = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": LOUD}) + "\n"
            until = time.monotonic() + float(ARGUMENT)
            while time.monotonic() < until:
                put(note_again.encode() * 100)
        case "spins", _:
            while True:
                pass
        case "long_names", _:
            return say({"id": number, "result": {"content": [{"type": "text", "text": f"{name[0]} {len(name)}"}]}})
        case "lies", _:
            content = [{"type": "text", "text": "n is many"}]
            return say({"id": number, "result": {"content": content, "structuredContent": {"n": "many"}}})
        case "changing", _:
            TOOLS.append({"name": "later", "inputSchema": GOOD})
            say({"method": "notifications/tools/list_changed"})
        case "resources", "count":
            readable.clear()
        case "resources", _:
            readable["odd://later"] = readable.pop("odd://good")
            say({"method": "notifications/resources/list_changed"})
        case "logs", _:
            for level in ("debug", "info", "warning", "emergency"):
                say({"method": "notifications/message", "params": {"level": level, "logger": "db", "data": level}})
        case "nonsense", _:
            return say({"id": number, "result": {"content": "not a list"}})
        case "refusing", _:
            return say({"id": number, "error": {"code": -32602, "message": "who is missing"}})
    text = str(len(cancelled)) if name == "count" else "hello"
    say({"id": number, "result": {"content": [{"type": "text", "text": text}]}})


def resource(number: int, method: str, uri: str) -> None:
    if method == "resources/list":
        listed = [{"uri": f"odd://{name}", "name": name} for name in ("good", "gone", "hangs", "later", "nonsense")]
        say({"id": number, "result": {"resources": listed}})
    elif uri == "odd://nonsense":
        say({"id": number, "result": {"contents": 5}})
    elif uri in readable:
        text = readable[uri]
        say({"id": number, "result": {"contents": [{"uri": uri, "text": text}] if text else []}})
    elif uri != "odd://hangs":
        say({"id": number, "error": {"code": -32002, "message": f"no {uri} here"}})


def prompt(number: int, method: str, params: dict[str, Any]) -> None:
    if method == "prompts/list":
        say({"id": number, "result": {"prompts": [{"name": "greet", "arguments": [{"name": "who"}]}]}})
    elif params["name"] == "greet":
        block = {"type": "text", "text": f"Hello {params.get('arguments', {}).get('who')}"}
        say({"id": number, "result": {"messages": [{"role": "user", "content": block}]}})
    else:
        say({"id": number, "error": {"code": -32602, "message": "unknown prompt"}})


def answer(message: dict[str, Any]) -> None:
    number: Any = message.get("id")
    method, params = message.get("method"), message.get("params") or {}
    if method == "notifications/cancelled":
        cancelled.append(params.get("requestId"))
    elif method == "server/discover":
        if MODE != "ignores_discover":
            say({"id": number, "error": {"code": -32601, "message": "Method not found"}})
    elif method == "initialize":
        version = "1999-01-01" if MODE == "wrong_version" else params["protocolVersion"]
        capabilities: dict[str, Any] = {"tools": {"listChanged": True}}
        capabilities.update(CAPABILITIES.get(MODE, {}))
        info = {"name": "odd", "version": "1"}
        say({"id": number, "result": {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}})
    elif method == "tools/list":
        say({"id": number, "result": tools(params.get("cursor"))})
        if MODE == "dies_idle":
            complain("tired of waiting")
            os._exit(5)
        if MODE == "stops_reading":
            sleep_for_ever()
    elif method == "tools/call":
        call(number, params["name"])
    elif method in ("resources/list", "resources/read") and MODE == "resources":
        resource(number, method, params.get("uri", ""))
    elif method in ("prompts/list", "prompts/get") and MODE == "resources":
        prompt(number, method, params)
    elif method in ("ping", "logging/setLevel"):
        say({"id": number, "result": {}})
    elif number is not None:
        say({"id": number, "error": {"code": -32601, "message": "Method not found"}})


def main() -> None:
    if MODE == "exits":
        complain(f"no config file found, token is {os.environ.get('TOKEN')}")
        sys.exit(4)
    if MODE == "silent":
        sleep_for_ever()
    if MODE == "garbage":
        put(b"Welcome to this server!\n\n\xc3\x28 not UTF-8\n")
    if MODE == "flood":
        for _ in range(20 * 16):
            sys.stderr.buffer.write(b"e" * 65535 + b"\n")
    if MODE == "slow_end":
        note("start")
    if MODE in ("stubborn", "forking"):
        forks()
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if MODE in ("ignores_discover", "recorded", "logs"):
            note(f"{message['method']} {message.get('params', {}).get('level', '')}".strip())
        answer(message)
    if MODE == "slow_end":
        time.sleep(0.3)  # a second one started meanwhile would note its start now
        note("end")
    if MODE == "stubborn":
        sleep_for_ever()


if __name__ == "__main__":
    main()

"""The whole product in the test's own trio run, and a WebSocket client to talk to it.

Real parts: the product's own tree with its real placement, real sockets on loopback, a real SQLite file,
real MCP servers as child processes where a test asks for them. Only the provider is scripted.

    async with service(tmp_path, say("hello")) as s, s.client() as client:
        await client.send("user_message", message="hi")
        frames = await client.until("turn_finished")
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio_websocket
import yaml

from protocol.mail import Ref
from protocol.reporter import PartState
from supervisors import by_hand
from supervisors.supervisor import Tree, running
from supervisors.tree import product
from tests.fakes import FakeProvider, Reply

Frame = dict[str, Any]
DEMO: dict[str, Any] = {"demo": {"command": "python", "args": ["-m", "Servers.demo_server"]}}
LIGHT: dict[str, Any] = {
    "demo": {"command": "python", "args": ["-I", "-S", str(Path(__file__).with_name("light_server.py"))]}
}
"""The same to a client, and started thirty times as fast: for tests that are about something else."""


class Client:
    """One socket and everything that it has got."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection, welcome: Frame) -> None:
        self.websocket = websocket
        self.welcome = welcome
        self.seen: list[Frame] = [welcome]
        self.hears_changes = False
        """It gets `tools_changed` too, which comes whenever a server has started or looked at its resources."""

    @property
    def conversation(self) -> str:
        """The conversation that it was welcomed to."""
        return str(self.welcome["conversation_id"])

    async def send(self, type: str, **fields: Any) -> None:
        """Send a frame."""
        await self.websocket.send_message(json.dumps({"type": type, **fields}))

    async def next(self) -> Frame:
        """The next frame."""
        while True:
            frame: Frame = json.loads(await self.websocket.get_message())
            if self.hears_changes or frame["type"] != "tools_changed":
                self.seen.append(frame)
                return frame

    async def until(self, type: str, **fields: Any) -> list[Frame]:
        """Frames up to one of that type with those fields, which is the last."""
        frames: list[Frame] = []
        while True:
            frame = await self.next()
            frames.append(frame)
            if frame["type"] == type and all(frame.get(key) == value for key, value in fields.items()):
                return frames

    async def say(self, message: Any, **fields: Any) -> list[Frame]:
        """A user message and all frames up to the end of its turn."""
        await self.send("user_message", message=message, **fields)
        return await self.until("turn_finished")

    async def alive(self) -> list[Frame]:
        """The socket is open and answers; frames that came before the pong."""
        await self.send("ping", request_id="alive?")
        return (await self.until("pong", request_id="alive?"))[:-1]


def of_type(frames: list[Frame], *types: str) -> list[Frame]:
    """Only frames of those types, in order."""
    return [frame for frame in frames if frame["type"] in types]


def text_of(frames: list[Frame], type: str = "assistant_delta") -> str:
    """Joined text of the deltas."""
    return "".join(frame["text"] for frame in frames if frame["type"] == type)


class Service:
    """A running product."""

    def __init__(self, tree: Tree, provider: FakeProvider, port: int, state: Path) -> None:
        self.tree = tree
        self.provider = provider
        self.port = port
        self.state = state
        self.moved: list[tuple[str, int]] = []
        """Addresses that the service has moved to while it ran."""

    @property
    def url(self) -> str:
        """Of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}/ws/chat"

    def ref(self, path: str) -> Ref[Any]:
        """An actor's address."""
        return self.tree.ref(path)

    @asynccontextmanager
    async def client(self, query: str = "") -> AsyncIterator[Client]:
        """A socket, welcomed; `query` e.g. `?conversation=new`."""
        # the library does not close the connection of a socket that the peer has closed: it is closed here
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream, trio.open_nursery() as nursery:
            path = self.url.partition(f":{self.port}")[2] + query
            websocket = await trio_websocket.wrap_client_stream(
                nursery, stream, f"127.0.0.1:{self.port}", path, max_message_size=2**26
            )
            yield Client(websocket, json.loads(await websocket.get_message()))
            with trio.move_on_after(1.0):
                await websocket.aclose()
            nursery.cancel_scope.cancel()

    async def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """An HTTP GET on the same port: status, headers, body."""
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *(f"{k}: {v}" for k, v in headers.items())]
        return await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Raw bytes on the same port, answered by an HTTP response."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(request)
            answer = b""
            while part := await stream.receive_some(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body


def settings_for(provider: FakeProvider | str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A runtime configuration whose active provider is the scripted one."""
    base_url = provider if isinstance(provider, str) else provider.base_url
    settings: dict[str, Any] = {
        "llm": {
            "active": "fake",
            "providers": {"fake": {"base_url": base_url, "model": "fake-1", "client": {"retries": 0}}},
        },
        "chat": {"service": {"system_prompt": "You are a test."}},
    }
    merge_into(settings, changes or {})
    return settings


def merge_into(settings: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Merge nested mappings in place."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), dict):
            merge_into(settings[key], value)
        else:
            settings[key] = value


def prepare(state: Path, provider: FakeProvider | str, settings: Mapping[str, Any], servers: Mapping[str, Any]) -> None:
    """Write the two configuration files."""
    state.mkdir(exist_ok=True)
    # libyaml's dumper writes the same text, ten times as fast
    text = yaml.dump(settings_for(provider, settings), Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    (state / "runtime_config.yaml").write_text(text)
    (state / "servers_config.json").write_text(json.dumps({"mcpServers": servers}))


@asynccontextmanager
async def service(
    folder: Path,
    *replies: Reply,
    settings: Mapping[str, Any] | None = None,
    servers: Mapping[str, Any] | None = None,
    interval: float = 0.0,
) -> AsyncIterator[Service]:
    """The product, ready to take turns.

    Args:
        folder: the state directory is made in it; the same folder continues where it was.
        replies: of the provider, in order; the last one repeats.
        settings: merged over the runtime configuration.
        servers: `mcpServers`; none by default. The body begins when all are connected.
        interval: seconds between the provider's deltas.
    """
    state = folder / "state"
    async with FakeProvider(*replies, interval=interval) as provider:
        prepare(state, provider, settings or {}, servers or {})
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        trees: list[Tree] = []
        moved: list[tuple[str, int]] = []

        async def status_json() -> bytes:
            return msgspec.json.encode(trees[0].status())

        async def restart(path: str) -> PartState:
            part = await by_hand.restart(trees[0], path)
            if part is None:
                raise by_hand.unknown(path, trees[0].status())
            return part

        spec = product(
            watcher={"state_dir": str(state), "overrides": {}},
            writer={"path": str(state / "chat_history.db"), "type": "auto_persist"},
            local={"state_dir": str(state)},
            gateway={
                "listeners": listeners,
                "loopback": True,
                "moved": lambda host, port: moved.append((host, port)),
            },
            reporter={"status": status_json, "restart": restart},
        )
        async with running(spec) as tree:
            trees.append(tree)
            running_service = Service(tree, provider, listeners[0].socket.getsockname()[1], state)
            running_service.moved = moved
            for name in servers or {}:
                await connected(running_service, name)
            yield running_service


def front_of(s: Service) -> Any:
    """What the gateway's slot keeps."""
    return s.tree.slots["front/gateway"].kept


async def connected(s: Service, server: str) -> None:
    """Wait until the tools of a server are offered."""
    front = front_of(s)
    while not any(found == server for found, _ in front.merged.names()):
        await front.tools_changed.wait()

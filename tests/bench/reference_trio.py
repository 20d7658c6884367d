"""Reference: the plain way in trio, trio-websocket's own server and httpx's own streams, a task per socket.

Arguments: the upstream's port and the model. Says `port N`.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import httpx
import trio
import trio_websocket


async def chat(client: httpx.AsyncClient, url: str, model: str, request: trio_websocket.WebSocketRequest) -> None:
    """One socket."""
    websocket = await request.accept()
    try:
        await websocket.send_message(json.dumps({"type": "welcome"}))
        while True:
            asked = json.loads(await websocket.get_message())
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": asked["message"]}]}
            async with client.stream("POST", url, json=body) as answer:
                async for line in answer.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    for choice in json.loads(line[6:])["choices"]:
                        for key, kind in (("reasoning_content", "thinking_delta"), ("content", "assistant_delta")):
                            if text := choice["delta"].get(key):
                                await websocket.send_message(json.dumps({"type": kind, "text": text}))
            await websocket.send_message(json.dumps({"type": "turn_finished", "outcome": "completed"}))
    except trio_websocket.ConnectionClosed:
        return  # the client has gone


async def main(upstream: int, model: str) -> None:
    """Serve until told to end."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(None), trust_env=False) as client,
        trio.open_nursery() as nursery,
    ):
        url = f"http://127.0.0.1:{upstream}/v1/chat/completions"
        serve = partial(trio_websocket.serve_websocket, partial(chat, client, url, model), "127.0.0.1", 0, None)
        server = await nursery.start(serve)
        print(f"port {server.port}", flush=True)  # noqa: T201 - a command's output


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2])

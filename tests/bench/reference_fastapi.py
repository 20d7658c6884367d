"""Reference: FastAPI under uvicorn (uvloop, websockets), with the openai package as the provider's client.

What most such services are made of, at its best: nothing is stored, nothing is logged. Arguments: the upstream's
port and the model. Says `port N`.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import openai
import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect


async def main(upstream: int, model: str) -> None:
    """Serve until told to end."""
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{upstream}/v1", api_key="none", max_retries=0)

    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json({"type": "welcome"})
        try:
            while True:
                asked = await websocket.receive_json()
                messages = [{"role": "user", "content": asked["message"]}]
                stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
                async for chunk in stream:
                    if not chunk.choices:
                        continue
                    delta = chunk.choices[0].delta
                    if thought := getattr(delta, "reasoning_content", None):
                        await websocket.send_json({"type": "thinking_delta", "text": thought})
                    if delta.content:
                        await websocket.send_json({"type": "assistant_delta", "text": delta.content})
                await websocket.send_json({"type": "turn_finished", "outcome": "completed"})
        except WebSocketDisconnect:
            return  # the client has gone

    app = FastAPI()
    app.add_api_websocket_route("/", chat)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"port {listener.getsockname()[1]}", flush=True)  # noqa: T201 - a command's output
    config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2]))

"""SIGKILL of the whole service in mid-answer, with real processes: what was acknowledged is there afterwards."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio_websocket

from tests.fakes import FakeProvider, Pause, Script, Stall, say
from tests.program import program
from tests.service import Client, of_type, prepare, text_of


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    # the library does not close the connection that the peer has reset: its socket is ours to close
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]))
    async with stream, trio.open_nursery() as nursery:
        websocket = await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/ws/chat")
        yield Client(websocket, json.loads(await websocket.get_message()))
        nursery.cancel_scope.cancel()


@pytest.mark.seconds(40)
async def test_sigkill_in_mid_answer(tmp_path: Path) -> None:
    state = tmp_path / "state"
    words = [f"word{n} " for n in range(10)]
    # half a second passes in the answer: two and more ticks of the store
    paced = Script((*(item for word in words for item in (word, Pause(0.08))), Stall()))
    async with FakeProvider(say("first answer"), paced) as provider:
        prepare(state, provider, {}, {})
        arguments = ("run", "--state", str(state), "--port", "0")
        async with program(*arguments) as p:
            url = await p.listening()
            seen = ""
            async with client_of(url) as client:
                conversation = client.conversation
                await client.say("one", request_id="r1")
                await client.send("user_message", message="two", request_id="r2")
                await client.until("turn_started", request_id="r2")
                await client.send("user_message", message="three", request_id="r3")
                while words[-1] not in seen:
                    frame = await client.next()
                    if frame["type"] == "assistant_delta":
                        seen += frame["text"]
                        position = {"turn": frame["turn"], "seq": frame["seq"]}
                assert of_type(client.seen, "message_queued")
                p.signal(signal.SIGKILL)
                with contextlib.suppress(trio_websocket.ConnectionClosed):
                    await client.until("nothing more comes")
        provider.replies = [say("third answer")]
        async with program(*arguments) as p, client_of(await p.listening()) as client:
            assert client.conversation == conversation
            await client.send("resume", **position)
            frames = await client.until("turn_finished", turn=3)
            of_two = [f for f in frames if f.get("turn") == 2]
            [message] = of_type(of_two, "assistant_message")
            assert message["status"] == "interrupted"
            assert seen.startswith(message["message"])
            # what may be missing is what came within the last tick; the words before it are there
            assert len(message["message"].split()) >= 4
            assert of_two[-1]["outcome"] == "interrupted"
            assert of_two[-1]["seq"] > 1_000_000
            # the message that was only queued was acknowledged, so it is answered now
            of_three = [f for f in frames if f.get("turn") == 3]
            assert (of_three[0]["type"], of_three[0]["message"]) == ("turn_started", "three")
            assert of_type(of_three, "assistant_message")[0]["message"] == "third answer"
            await client.send("history")
            page = (await client.until("history"))[-1]
            assert [(m["turn"], m["role"], m["status"]) for m in page["messages"]] == [
                (1, "user", "complete"),
                (1, "assistant", "complete"),
                (2, "user", "interrupted"),
                (2, "assistant", "interrupted"),
                (3, "user", "complete"),
                (3, "assistant", "complete"),
            ]
            again = await client.say("two", request_id="r2")
            assert again[-1]["outcome"] == "interrupted"
            assert text_of(frames) in ("", "third answer")

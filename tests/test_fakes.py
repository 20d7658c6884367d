"""The fake upstream keeps its own promises, as an object and as a process, seen by a client that is not ours."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes import Cut, FakeProvider, Script, Stall, ask_tools, say


def post(base_url: str, said: str, **fields: Any) -> bytes:
    messages = fields.pop("messages", [{"role": "user", "content": said}])
    body = json.dumps({"model": "m", "messages": messages, "stream": True, **fields}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", body, {"Content-Type": "application/json"})  # noqa: S310  # our own http address
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # our own http address
        read: bytes = answer.read()
    return read


def deltas(body: bytes) -> list[dict[str, Any]]:
    chunks = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def content(body: bytes) -> str:
    return "".join(delta.get("content", "") for delta in deltas(body))


@pytest.fixture
def process() -> Iterator[str]:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "tests.fakes", "--port", "0", "--leash"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield child.stdout.readline().strip()
        child.stdin.close()
        assert child.wait(10) == 0


def test_the_process_answers_by_what_it_is_told(process: str) -> None:
    assert content(post(process, "say 3 words")) == "w1 w2 w3"
    assert content(post(process, "hello there  you")) == "hello there  you"
    assert post(process, "x").endswith(b"data: [DONE]\n\n")
    thoughts = deltas(post(process, "think 2 words"))
    assert [delta.get("reasoning_content") for delta in thoughts[:2]] == ["w1 ", "w2"]
    calls = [call for delta in deltas(post(process, 'tool add {"a": 1}')) for call in delta.get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "add"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": 1}'
    after = [{"role": "user", "content": "tool add {}"}, {"role": "tool", "content": "2", "tool_call_id": "call_1"}]
    assert content(post(process, "", messages=after)) == "add said: 2"
    again = [{"role": "user", "content": "loop add {}"}, after[1]]
    assert any(delta.get("tool_calls") for delta in deltas(post(process, "", messages=again)))
    whole = json.loads(post(process, "say 2 words", stream=False))
    assert whole["choices"][0]["message"]["content"] == "w1 w2"
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(process, "fail 503")
    caught.value.close()
    assert caught.value.code == 503


async def test_it_notices_when_the_client_goes() -> None:
    async with FakeProvider(Script(("a", Stall())), say("b")) as upstream:
        for number in (1, 2):
            stream = await trio.open_tcp_stream("127.0.0.1", upstream.port)
            await stream.send_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n")
            await stream.send_all(b'{"stream":true}')
            asked = await upstream.request(number)
            await (asked.started if number == 1 else asked.finished).wait()
            await stream.aclose()
            await asked.closed.wait()
            assert asked.abandoned.is_set() == (number == 1)
            assert asked.json == {"stream": True}
        assert (upstream.connections, upstream.open) == (2, 0)


async def test_a_cut_ends_inside_a_chunk() -> None:
    async with FakeProvider(Script(("a", Cut()))) as upstream:
        stream = await trio.open_tcp_stream("127.0.0.1", upstream.port)
        await stream.send_all(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"stream":true}')
        got = b""
        while part := await stream.receive_some():
            got += part
        await stream.aclose()
        assert got.endswith(b'64\r\ndata: {"choices":[{"delta":{"content":"')
        assert not upstream.requests[0].abandoned.is_set()


def test_parallel_calls_are_numbered() -> None:
    script = ask_tools(("a", "f", {}), ("b", "g", '{"x": 1}'))
    assert len(script.items) == 6

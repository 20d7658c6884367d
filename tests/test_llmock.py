"""What an independent judge says of the streamer: llmock breaks its answers on purpose and grades its client.

One llmock runs as a process for the whole module; each test tells it what to break, and asks for its verdict in
the end: no finding at all, warnings included. Where something was shown already, a stream that breaks is told to
the user as an error that may be tried again; the tests do what its hint says, and send the message again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.errors import Code
from protocol.streamer import Failed
from tests.service import LIGHT, of_type, service
from tests.streaming import Harness, harness, provider

SERVE = """
import sys
from llmock.testing import LLMockServer
with LLMockServer() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def llmock() -> Iterator[str]:
    """Its address; it ends with our end of the pipe."""
    # Its chunks come one by one: who stops at a broken one has stopped before all are sent, on a busy machine too.
    environment = {**os.environ, "LLMOCK_STREAM_CHUNK_DELAY_MS": "20"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.communicate()


@asynccontextmanager
async def graded(address: str, *behaviors: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """What is broken during the block; at its end the verdict must be without a finding."""
    async with httpx.AsyncClient(base_url=f"{address}/_llmock", trust_env=False, timeout=10) as admin:
        await admin.post("/reset")
        (await admin.post("/scenario", json={"behaviors": list(behaviors)})).raise_for_status()
        yield admin
        assert all(left["times"] is None for left in (await admin.get("/scenario")).json()["pending"])
        verdict = (await admin.get("/verdict")).json()
        assert (verdict["passed"], verdict["findings"]) == (True, [])


@asynccontextmanager
async def asked(address: str, **client: Any) -> AsyncIterator[Harness]:
    """A streamer whose provider is llmock, and whose waits between tries can be told from none."""
    async with harness(provider(f"{address}/v1", **client), backoff_s=0.2) as h:
        yield h


async def tries(admin: httpx.AsyncClient) -> int:
    return int((await admin.get("/requests")).json()["count"])


@pytest.fixture(autouse=True)
def without_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two waits are scattered so little that they are told from a constant one."""
    monkeypatch.setattr("random.random", lambda: 0.5)


PASSING: dict[str, dict[str, Any]] = {
    "429 with Retry-After": {"type": "fail", "status": 429, "retry_after": 0.3, "times": 2},
    "500": {"type": "fail", "status": 500, "times": 2},
    "408": {"type": "fail", "status": 408},
    "cut before anything is shown": {"type": "stream_fault", "kind": "disconnect", "after_chunks": 1},
    "truncated before anything is shown": {"type": "stream_fault", "kind": "truncate", "after_chunks": 1},
    "unreadable before anything is shown": {"type": "stream_fault", "kind": "malformed", "after_chunks": 1},
}


@pytest.mark.parametrize("what", PASSING)
async def test_what_passes_is_not_noticed(llmock: str, what: str) -> None:
    async with graded(llmock, PASSING[what]) as admin, asked(llmock) as h:
        h.ask(1)
        finished = await h.finished(1)
        assert (finished.finish_reason, bool(h.text(1))) == ("stop", True)
        assert await tries(admin) == PASSING[what].get("times", 1) + 1


BREAKING = ["disconnect", "truncate", "malformed", "stall"]


@pytest.mark.parametrize("kind", BREAKING)
async def test_a_stream_that_breaks_is_no_answer(llmock: str, kind: str) -> None:
    broken = {"type": "stream_fault", "kind": kind, "after_chunks": 3, "stall_seconds": 5}
    async with graded(llmock, broken) as admin, asked(llmock, idle_timeout=0.3) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert (fault.code, fault.retryable) == (Code.LLM_STREAM_BROKEN, True)
        assert h.text(1)
        assert await tries(admin) == 1
        h.ask(2)
        await h.finished(2)
        assert h.text(2).startswith(h.text(1))


async def test_a_slow_beginning_is_waited_for(llmock: str) -> None:
    async with graded(llmock, {"type": "slow_first_token", "seconds": 0.5}) as admin, asked(llmock) as h:
        h.ask(1)
        await h.finished(1)
        assert await tries(admin) == 1


async def test_an_outage_is_told_after_a_few_tries(llmock: str) -> None:
    outage = {"type": "fail", "status": 502, "times": None}
    async with graded(llmock, outage) as admin, asked(llmock, retries=2) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert (fault.code, fault.retryable) == (Code.LLM_UNAVAILABLE, True)
        assert await tries(admin) == 3


REFUSED = {
    Code.LLM_REJECTED: {"type": "fail", "status": 400},
    Code.LLM_AUTH_FAILED: {"type": "fail", "status": 401},
    Code.LLM_CONTEXT_TOO_LONG: {"type": "fail", "status": 400, "code": "context_length_exceeded"},
}


@pytest.mark.parametrize("code", REFUSED)
async def test_what_is_refused_is_not_asked_again(llmock: str, code: Code) -> None:
    async with graded(llmock, REFUSED[code]) as admin, asked(llmock) as h:
        h.ask(1)
        end = await h.end(1)
        assert isinstance(end, Failed)
        assert (end.fault.code, await tries(admin)) == (code, 1)


async def test_broken_tool_calls_are_answered_and_the_turn_goes_on(llmock: str, tmp_path: Path) -> None:
    settings = {"llm": {"providers": {"fake": {"base_url": f"{llmock}/v1"}}}}
    async with service(tmp_path, settings=settings, servers=LIGHT) as s, s.client() as client:
        for kind in ("malformed_arguments", "unknown_tool"):
            async with graded(llmock, {"type": "tool_fault", "kind": kind}) as admin:
                frames = await client.say(f"Add 1 and 2, {kind}.")
                assert frames[-1]["outcome"] == "completed"
                assert [f["status"] for f in of_type(frames, "tool_execution")] in (["failed"], ["executing", "failed"])
                assert of_type(frames, "assistant_message")[0]["message"]
                asked = (await admin.get("/requests")).json()["requests"]
                assert asked[-1]["body"]["messages"][-1]["role"] == "tool"

"""Many tool calls at once over a few MCP servers, of which one is killed again and again.

Through the whole service: turns whose model asks for many calls in parallel. Every call ends once, in what the tool
said or in an error with its code; every turn completes; and in the end all servers work.
"""

from __future__ import annotations

import os
import random
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from protocol.errors import Code
from tests.fakes import Script, ask_tools, say
from tests.service import LIGHT, Frame, Service, of_type, service

SERVERS = [f"s{number}" for number in range(1, 6)]
TIMEOUT_S = 20.0
SETTINGS = {"mcp": {"connection": {"max_reconnect_attempts": 10_000, "initial_reconnect_delay": 0.01}}}
ERRORS = {Code.MCP_SERVER_UNAVAILABLE, Code.TOOL_TIMEOUT, Code.TOOL_NOT_FOUND, Code.OVERLOADED}
"""What a call may end in beside what its tool says."""

Call = tuple[str, str, dict[str, Any]]


@dataclass
class Happened:
    """What was seen."""

    said: list[str] = field(default_factory=list)
    """What tools said, failures of their own too."""
    errors: list[Code] = field(default_factory=list)
    """Of the other calls."""
    kills: int = 0
    slowest_s: float = 0.0
    """From the intent of a call to its end."""


def call(rng: random.Random, number: int, longest_s: float) -> Call:
    """Any tool of any server."""
    server = rng.choice(SERVERS)
    tools: list[tuple[str, dict[str, Any]]] = [
        ("slow", {"steps": rng.randint(1, 5), "step_s": round(rng.uniform(0, longest_s / 5), 3)}),
        ("slow", {"steps": 1, "step_s": round(rng.uniform(0, longest_s), 3)}),
        ("echo", {"text": "said"}),
        ("fail", {"message": "said to fail"}),
        ("add", {"a": number, "b": "what?"}),
    ]
    tool, arguments = rng.choice(tools)
    return f"call{number}", f"{server}__{tool}", arguments


async def many_calls(
    folder: Path, *, turns: int, calls: int, kill_every_s: float, longest_s: float, seed: int
) -> Happened:
    """That many turns at once, with so many calls each.

    Args:
        longest_s: what a tool may take.
    """
    rng = random.Random(seed)
    wanted = {f"turn {turn}": [call(rng, number, longest_s) for number in range(calls)] for turn in range(turns)}
    wanted["all"] = [(name, f"{name}__echo", {"text": name}) for name in SERVERS]

    def model(asked: Any) -> Script:
        last = asked["messages"][-1]
        return ask_tools(*wanted[last["content"]]) if last["role"] == "user" else say("done")

    entry = {**LIGHT["demo"], "timeout": TIMEOUT_S, "limits": {"queue": 1000}, "breaker": {"failures": 0}}
    happened = Happened()
    async with service(folder, model, settings=SETTINGS, servers=dict.fromkeys(SERVERS, entry)) as s:
        async with trio.open_nursery() as killing:
            killing.start_soon(kill, s, kill_every_s, rng, happened)
            async with trio.open_nursery() as talking:
                for turn in range(turns):
                    talking.start_soon(one_turn, s, f"turn {turn}", calls, happened)
            killing.cancel_scope.cancel()
        async with s.client("?conversation=new") as client:
            executions: list[Frame] = []
            while {frame["tool_name"] for frame in executions if frame["status"] == "completed"} != {
                f"{name}__echo" for name in SERVERS
            }:
                executions = of_type(await client.say("all"), "tool_execution")  # the last one killed may take a moment
    return happened


async def one_turn(s: Service, message: str, calls: int, happened: Happened) -> None:
    async with s.client("?conversation=new") as client:
        frames = await client.say(message)
    assert frames[-1]["outcome"] == "completed", frames[-1]
    executions = of_type(frames, "tool_execution")
    ended = [frame for frame in executions if frame["status"] in ("completed", "failed")]
    assert len(ended) == len({frame["call_id"] for frame in ended}) == calls, "each ends once"
    for frame in ended:
        happened.slowest_s = max(happened.slowest_s, frame["elapsed_ms"] / 1000)
        code = re.match(r"([A-Z_]+): ", frame["result"])
        if code is None:
            happened.said.append(frame["result"])
        else:
            assert frame["status"] == "failed"
            happened.errors.append(Code(code[1]))
    assert set(happened.errors) <= ERRORS


async def kill(s: Service, every_s: float, rng: random.Random, happened: Happened) -> None:
    """One of them, for ever."""
    while True:
        await trio.sleep(every_s)  # how often is what this is about
        pids = [slot.facts["pid"] for name in SERVERS if "pid" in (slot := s.tree.slots[f"mcp/{name}"]).facts]
        if pids:
            os.kill(int(rng.choice(pids)), signal.SIGKILL)
            happened.kills += 1

"""A small MCP server to try things with: a few tools, one slow with progress, one that fails.

Stands alone: `python -m Servers.demo_server` speaks MCP over standard input and output. Its tools touch
nothing outside the process.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Annotated

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

PURE = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
CHANGING = ToolAnnotations(read_only_hint=True, idempotent_hint=False, open_world_hint=False)

server = MCPServer(
    "demo",
    instructions="Tools to try tool calling with. They compute, wait or fail, and change nothing.",
    log_level="WARNING",
)


@server.tool(annotations=PURE)
def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


@server.tool(annotations=PURE)
def echo(text: str) -> str:
    """Give the text back as it came."""
    return text


@server.tool(annotations=CHANGING)
def now() -> str:
    """The current date and time in UTC, as RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@server.tool(annotations=CHANGING)
async def slow(
    ctx: Context,
    steps: Annotated[int, Field(ge=1, le=1000)] = 5,
    step_s: Annotated[float, Field(ge=0, le=60)] = 0.2,
) -> str:
    """Take several steps of some seconds each, and report progress after each."""
    for step in range(1, steps + 1):
        await anyio.sleep(step_s)
        await ctx.report_progress(step, steps, f"step {step} of {steps}")
    return f"done after {steps} steps"


@server.tool(annotations=PURE)
def fail(message: str) -> str:
    """Fail with that message."""
    raise ToolError(message)


@server.tool(annotations=CHANGING)
def dice(sides: Annotated[int, Field(ge=2, le=1_000_000)] = 6) -> int:
    """Roll a die."""
    return random.randint(1, sides)  # noqa: S311 - a game, not a secret


@server.resource("demo://readme", mime_type="text/plain")
def readme() -> str:
    """What this server is for."""
    return "A server to try MCP with: tools that add, echo, tell the time, wait, fail and roll dice."


@server.prompt()
def haiku(topic: str = "actors") -> str:
    """Ask for a haiku."""
    return f"Write a haiku about {topic}."


if __name__ == "__main__":
    server.run("stdio")

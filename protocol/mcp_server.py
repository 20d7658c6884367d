"""What the actor of one MCP server understands, and what it says of itself.

Down: `CallTool` (an ask: its answer is a `ToolOutcome`, also when the tool failed) and `CancelCall`; from the
supervisor `Up` of the gateway, which is then told the catalogue again.
Up, to the gateway: `Catalogue` whenever what the server offers is known anew, `ToolProgress` during calls.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.mail import Nudge, Request
from protocol.spec import Down, Up


class Tool(msgspec.Struct, frozen=True):
    """One tool as its server describes it."""

    name: str
    """The server's own name for it."""
    description: str
    schema: dict[str, Any]
    """JSON Schema of the arguments, repaired to `type: object` with `properties`."""
    annotations: dict[str, Any]
    """readOnlyHint, destructiveHint, idempotentHint, openWorldHint, title."""


class Resource(msgspec.Struct, frozen=True):
    """One resource."""

    uri: str
    name: str
    description: str
    mime_type: str


class Prompt(msgspec.Struct, frozen=True):
    """One prompt."""

    name: str
    description: str
    arguments: list[dict[str, Any]]


class Catalogue(msgspec.Struct, frozen=True, tag=True):
    """Event: what a connected server offers; replaces what it offered before."""

    server: str
    tools: list[Tool]
    resources: list[Resource]
    prompts: list[Prompt]
    instructions: str


class ToolOutcome(msgspec.Struct, frozen=True):
    """How a call ended, as the model and the client see it."""

    ok: bool
    """false: the tool said `isError`, or could not be run; `text` says why."""
    text: str
    """Never empty."""
    structured: Any = None
    """The tool's structured content."""


class CallTool(Request[ToolOutcome], frozen=True, tag=True):
    """Run a tool. Never repeated by the actor. Faults: TOOL_NOT_FOUND, TOOL_TIMEOUT, TOOL_FAILED (also when
    cancelled), MCP_SERVER_UNAVAILABLE (not connected, or busy, within the timeout). Gone: outcome unknown."""

    call: str
    """Unique id of this call, chosen by the asker."""
    tool: str
    """The server's own name of the tool."""
    arguments: dict[str, Any]
    to: str
    """Address that gets `ToolProgress`."""


class CancelCall(msgspec.Struct, frozen=True, tag=True):
    """Cancel that call only, and tell the server; unknown ids are ignored."""

    call: str


class ToolProgress(msgspec.Struct, frozen=True, tag=True):
    """Event: a running call says how far it is."""

    call: str
    progress: float
    total: float | None
    message: str


McpServerMessage = CallTool | CancelCall | Down | Up | Nudge

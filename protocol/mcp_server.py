"""What the actor of one MCP server understands, and what it says of itself.

Down: `CallTool` (an ask: its answer is a `ToolOutcome`, also when the tool failed), `CancelCall`, the asks
`ReadResource` and `GetPrompt`, `SetServerLog`, and `TellTools`; from the supervisor `Up` of a gateway, which is then
told the catalogue again.
Up, to the gateways: `Catalogue` whenever what the server offers is known anew, `ToolProgress` during calls.
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
    """Event: what a connected server offers; replaces what it offered before. One with nothing in it: it stops."""

    server: str
    tools: list[Tool]
    resources: list[Resource]
    """Only those that could be read when they were last looked at, which is soon after a list is known."""
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


class ResourceContent(msgspec.Struct, frozen=True):
    """One part of what a resource holds; a resource may be a folder of several."""

    uri: str
    mime_type: str
    size: int
    """Bytes of the whole, whatever is given of it here."""
    text: str | None = None
    """None: it is not text."""
    data: str | None = None
    """Base64 of what is not text; None: it is text, or too large to be given."""
    cut: bool = False
    """It is larger than what is passed on: `text` is its beginning, `data` is not given."""


class ReadResource(Request[list[ResourceContent]], frozen=True, tag=True):
    """Read a resource, in the list or not. Faults: NOT_FOUND, TOOL_FAILED (the server refused, or answered against
    the protocol), TOOL_TIMEOUT, MCP_SERVER_UNAVAILABLE (as for `CallTool`). Gone: the server ended; ask again."""

    uri: str


class PromptMessage(msgspec.Struct, frozen=True):
    """One message of a prompt."""

    role: str
    """`user` or `assistant`"""
    content: dict[str, Any]
    """A content block in MCP's wire form: `{type: text, text}`, image, audio, resource or resource_link."""


class FilledPrompt(msgspec.Struct, frozen=True):
    """A prompt with its arguments filled in."""

    description: str
    messages: list[PromptMessage]


class GetPrompt(Request[FilledPrompt], frozen=True, tag=True):
    """Fill in a prompt. Faults: NOT_FOUND (or wrong arguments: servers do not tell these apart), TOOL_FAILED (also
    when it is too large), TOOL_TIMEOUT, MCP_SERVER_UNAVAILABLE. Gone: the server ended; ask again."""

    name: str
    arguments: dict[str, str]


class SetServerLog(msgspec.Struct, frozen=True, tag=True):
    """From now on pass on what the server logs at this level or above; also for later incarnations."""

    level: str
    """DEBUG, INFO, WARNING, ERROR or CRITICAL."""


class TellTools(msgspec.Struct, frozen=True, tag=True):
    """`Catalogue` goes to that gateway too, now and on every change; repeats count once."""

    to: str


class ToolProgress(msgspec.Struct, frozen=True, tag=True):
    """Event: a running call says how far it is."""

    call: str
    progress: float
    total: float | None
    message: str


McpServerMessage = CallTool | CancelCall | ReadResource | GetPrompt | SetServerLog | TellTools | Down | Up | Nudge

"""The client contract's frames of what MCP servers offer: tools, prompts, resources, and what was kept of results.

As in `protocol/contract.py`, whose unions they join. Lists come in pages of less than a megabyte: where an answer has
`next`, asking again with that as `after` continues it. A server's own words (titles, descriptions, annotations, icons,
`meta`) are passed on as they are: strangers wrote them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from protocol.contents import Content
from protocol.mcp_server import ResourceContent


class ListTools(msgspec.Struct, frozen=True, tag="list_tools"):
    """The tools of all servers, or of one."""

    server: str | None = None
    after: str | None = None
    request_id: str | None = None


class UseTool(msgspec.Struct, frozen=True, tag="call_tool"):
    """A call by hand, outside of any turn: the model is told nothing of it."""

    tool_name: str
    """As in `tools`."""
    arguments: dict[str, Any] = {}
    request_id: str | None = None


class ListPrompts(msgspec.Struct, frozen=True, tag="list_prompts"):
    """The prompts of all servers, or of one."""

    server: str | None = None
    after: str | None = None
    request_id: str | None = None


class FillPrompt(msgspec.Struct, frozen=True, tag="get_prompt"):
    """A prompt with its arguments filled in."""

    name: str
    server: str | None = None
    """Needed where several have one of that name."""
    arguments: dict[str, str] = {}
    request_id: str | None = None


class CompleteValue(msgspec.Struct, frozen=True, tag="complete"):
    """What an argument of a prompt, or a variable of a resource template, may be: one of `prompt` and `template`."""

    argument: str
    value: str
    """What has been written of it."""
    prompt: str | None = None
    template: str | None = None
    """`uri_template`"""
    server: str | None = None
    known: dict[str, str] = {}
    """Other arguments that have been filled in."""
    request_id: str | None = None


class ListResources(msgspec.Struct, frozen=True, tag="list_resources"):
    """The resources and templates of all servers, or of one."""

    server: str | None = None
    after: str | None = None
    request_id: str | None = None


class OpenResource(msgspec.Struct, frozen=True, tag="read_resource"):
    """What a resource holds."""

    uri: str
    server: str | None = None
    """Needed where it is in no list, or in several."""
    request_id: str | None = None


class FollowResource(msgspec.Struct, frozen=True, tag="subscribe_resource"):
    """From now on `resource_updated` comes to this socket when it changes. Answered by `resource_subscribed`."""

    uri: str
    server: str | None = None
    request_id: str | None = None


class UnfollowResource(msgspec.Struct, frozen=True, tag="unsubscribe_resource"):
    """No more of them. Answered by `resource_subscribed`."""

    uri: str
    server: str | None = None
    request_id: str | None = None


class GetResult(msgspec.Struct, frozen=True, tag="get_result"):
    """A page of what was kept of this socket's conversation, by its `result_id`."""

    result_id: str
    offset: int = 0
    """In bytes."""
    limit: int | None = None
    """Bytes; absent: as many as a page may have."""
    request_id: str | None = None


ToolFrame = (
    ListTools
    | UseTool
    | ListPrompts
    | FillPrompt
    | CompleteValue
    | ListResources
    | OpenResource
    | FollowResource
    | UnfollowResource
    | GetResult
)
"""What a client sends."""


class OfferedTool(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of `tools`."""

    tool_name: str
    """For `call_tool`, and as the model knows it; unique over all servers."""
    server: str
    name: str
    """The server's own name for it."""
    description: str
    schema: dict[str, Any]
    """JSON Schema of the arguments."""
    title: str = ""
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the structured content."""
    annotations: dict[str, Any] = {}
    """readOnlyHint, destructiveHint, idempotentHint, openWorldHint, title: what the server says of it."""
    icons: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}


class QuarantinedTool(msgspec.Struct, frozen=True):
    """One whose definition has changed since somebody agreed to it: it is not offered, and cannot be called."""

    server: str
    name: str
    """The server's own."""


class ToolPage(msgspec.Struct, frozen=True, tag="tools", omit_defaults=True):
    """By name. Servers that are down offer nothing."""

    tools: list[OfferedTool]
    next: str = ""
    quarantined: list[QuarantinedTool] = []
    """On the first page. An `approval_request` says what has changed."""
    request_id: str | None = None


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result", omit_defaults=True):
    """How a call by hand ended; one that could not be made is answered by an `error`."""

    tool_name: str
    server: str
    status: Literal["completed", "failed"]
    """failed: the tool said so."""
    result: str
    """As in `tool_execution`, and so is what follows."""
    elapsed_ms: int
    contents: list[Content] = []
    structured: Any = None
    result_id: str = ""
    result_size: int = 0
    request_id: str | None = None


class OfferedPrompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of `prompts`."""

    name: str
    server: str
    description: str
    arguments: list[dict[str, Any]]
    """`{name, title?, description?, required?}`"""
    title: str = ""
    icons: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}


class Prompts(msgspec.Struct, frozen=True, tag="prompts", omit_defaults=True):
    """By server and name."""

    prompts: list[OfferedPrompt]
    next: str = ""
    request_id: str | None = None


class FilledMessage(msgspec.Struct, frozen=True):
    """One of a prompt's messages."""

    role: str
    """user or assistant."""
    content: Content


class PromptFilled(msgspec.Struct, frozen=True, tag="prompt", omit_defaults=True):
    """A prompt that was filled in."""

    name: str
    server: str
    description: str
    messages: list[FilledMessage]
    request_id: str | None = None


class CompletedValue(msgspec.Struct, frozen=True, tag="completion", omit_defaults=True):
    """Values that an argument may have, best first; none where the server completes nothing."""

    values: list[str]
    total: int | None = None
    """How many there are in all, if the server says so."""
    more: bool = False
    request_id: str | None = None


class OfferedResource(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of `resources`."""

    uri: str
    name: str
    server: str
    description: str
    mime_type: str = ""
    title: str = ""
    size: int | None = None
    annotations: dict[str, Any] = {}
    icons: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}


class OfferedTemplate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of the templates of `resources`."""

    uri_template: str
    """RFC 6570."""
    name: str
    server: str
    description: str
    mime_type: str = ""
    title: str = ""
    annotations: dict[str, Any] = {}
    icons: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}


class Resources(msgspec.Struct, frozen=True, tag="resources", omit_defaults=True):
    """Those that could be read when they were last looked at, by server and address; then the templates."""

    resources: list[OfferedResource]
    templates: list[OfferedTemplate]
    next: str = ""
    request_id: str | None = None


class ResourceRead(msgspec.Struct, frozen=True, tag="resource", omit_defaults=True):
    """What a resource holds; what is large, by `result_id`."""

    uri: str
    server: str
    contents: list[ResourceContent]
    request_id: str | None = None


class ResourceSubscribed(msgspec.Struct, frozen=True, tag="resource_subscribed", omit_defaults=True):
    """Whether this socket is told when the resource changes, from now on."""

    uri: str
    server: str
    subscribed: bool
    request_id: str | None = None


class ResourceChanged(msgspec.Struct, frozen=True, tag="resource_updated"):
    """A resource that this socket subscribed to may hold something else now."""

    uri: str
    server: str


class ToolsChanged(msgspec.Struct, frozen=True, tag="tools_changed"):
    """What servers offer has changed: tools, prompts or resources."""

    servers: list[str]


class KeptResult(msgspec.Struct, frozen=True, tag="result", omit_defaults=True):
    """A page of what was kept."""

    result_id: str
    offset: int
    """Where the page begins."""
    size: int
    """Bytes of the whole."""
    text: str | None = None
    """Whole characters; None: it is not text."""
    data: str | None = None
    """Base64; None: it is text."""
    next: int | None = None
    """`offset` of the next page; None: this is the last."""
    request_id: str | None = None


ToolAnswer = (
    ToolPage
    | ToolResult
    | Prompts
    | PromptFilled
    | CompletedValue
    | Resources
    | ResourceRead
    | ResourceSubscribed
    | ResourceChanged
    | ToolsChanged
    | KeptResult
)
"""What a client is told."""

TOOL_CAPABILITIES = [
    "call_tool",
    "complete",
    "get_prompt",
    "get_result",
    "list_prompts",
    "list_resources",
    "list_tools",
    "read_resource",
    "subscribe_resource",
    "unsubscribe_resource",
]
"""Types of `ToolFrame`, by name."""

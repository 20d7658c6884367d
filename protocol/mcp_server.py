"""What the actor of one MCP server understands, and what it says of itself.

Down: `CallTool` (an ask: its answer is a `ToolOutcome`, also when the tool failed), `CancelCall`, the asks
`ReadResource`, `GetPrompt`, `CompleteArgument` and `SubscribeResource`, `UnsubscribeResource`, `SetServerLog`, and
`TellTools`; from the supervisor `Up` of a gateway, which is then told the catalogue again.
Up, to the gateways: `Catalogue` whenever what the server offers is known anew, `ToolProgress` during calls,
`ResourceUpdated` of what they subscribed to.
What a server wants of us goes up as an event too, `UserQuestion` or `SamplingRequest`, and its answer comes down as an
ask of its own, `AnswerQuestion` or `AnswerSampling`, so that nobody below waits for anybody above.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.contents import Content
from protocol.mail import Nudge, Request
from protocol.pending import PendingSettled
from protocol.pins import PinningChanged
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
    title: str = ""
    """For people; empty: `name` is all there is."""
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the structured content, as the server said; None: it promises nothing."""
    icons: list[dict[str, Any]] = []
    """As the server said, here and below: `{src, mimeType?, sizes?}`; strangers' addresses."""
    meta: dict[str, Any] = {}
    """`_meta`, as the server said, here and below."""


class Resource(msgspec.Struct, frozen=True):
    """One resource."""

    uri: str
    name: str
    description: str
    mime_type: str
    title: str = ""
    size: int | None = None
    """Bytes, if the server says so."""
    annotations: dict[str, Any] = {}
    """audience, priority, lastModified."""
    icons: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}


class ResourceTemplate(msgspec.Struct, frozen=True):
    """Addresses of resources with variables in them."""

    uri_template: str
    """RFC 6570."""
    name: str
    description: str
    mime_type: str
    title: str = ""
    annotations: dict[str, Any] = {}
    icons: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}


class Prompt(msgspec.Struct, frozen=True):
    """One prompt."""

    name: str
    description: str
    arguments: list[dict[str, Any]]
    title: str = ""
    icons: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}


class Catalogue(msgspec.Struct, frozen=True, tag=True):
    """Event: what a connected server offers; replaces what it offered before. One with nothing in it: it stops."""

    server: str
    tools: list[Tool]
    resources: list[Resource]
    """Only those that could be read when they were last looked at, which is soon after a list is known."""
    prompts: list[Prompt]
    instructions: str
    templates: list[ResourceTemplate] = []
    quarantined: list[str] = []
    """Names of tools that it has, and that are not offered since their definitions have changed."""


class ToolOutcome(msgspec.Struct, frozen=True):
    """How a call ended, as the model and the client see it."""

    ok: bool
    """false: the tool said `isError`, or could not be run; `text` says why."""
    text: str
    """For the model: never empty, without base64, bounded."""
    structured: Any = None
    """The tool's structured content, unless it is large: then it is one of `contents`."""
    contents: list[Content] = []
    """All parts, where there are others than plain text; what is large is in them by reference."""
    result_id: str = ""
    """The whole text is kept under this id, since clients, or the model too, are shown its beginning only."""
    size: int = 0
    """Bytes of the whole text, where it is kept."""


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
    conversation: str = ""
    """Whose files keep what is too large to be carried along; empty: nobody's, it is only told how large it was."""
    check: bool = False
    """A person made the arguments: INVALID_MESSAGE where they do not fit the tool's schema, and nothing is called."""


class CancelCall(msgspec.Struct, frozen=True, tag=True):
    """Cancel that call only, and tell the server; unknown ids are ignored."""

    call: str


class ResourceContent(msgspec.Struct, frozen=True, omit_defaults=True):
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
    result_id: str = ""
    """The whole of what was cut is kept under this id; empty: it is not."""


class ReadResource(Request[list[ResourceContent]], frozen=True, tag=True):
    """Read a resource, in the list or not. Faults: NOT_FOUND, TOOL_FAILED (the server refused, or answered against
    the protocol), TOOL_TIMEOUT, MCP_SERVER_UNAVAILABLE (as for `CallTool`). Gone: the server ended; ask again."""

    uri: str
    conversation: str = ""
    """As in `CallTool`."""


class PromptMessage(msgspec.Struct, frozen=True):
    """One message of a prompt."""

    role: str
    """`user` or `assistant`"""
    content: Content


class FilledPrompt(msgspec.Struct, frozen=True):
    """A prompt with its arguments filled in."""

    description: str
    messages: list[PromptMessage]


class GetPrompt(Request[FilledPrompt], frozen=True, tag=True):
    """Fill in a prompt. Faults: NOT_FOUND (or wrong arguments: servers do not tell these apart), TOOL_FAILED (also
    when it is too large), TOOL_TIMEOUT, MCP_SERVER_UNAVAILABLE. Gone: the server ended; ask again."""

    name: str
    arguments: dict[str, str]
    conversation: str = ""
    """As in `CallTool`."""


class Completion(msgspec.Struct, frozen=True, omit_defaults=True):
    """Values that an argument may have."""

    values: list[str]
    """At most 100, best first."""
    total: int | None = None
    """How many there are in all, if the server says so."""
    more: bool = False


class CompleteArgument(Request[Completion], frozen=True, tag=True):
    """Ask what an argument of a prompt, or a variable of a resource template, may be. A server that completes nothing
    has no values. Faults and Gone: as for `GetPrompt`."""

    argument: str
    value: str
    """What there is of it so far."""
    prompt: str = ""
    """Name of the prompt; empty: it is of `template`."""
    template: str = ""
    """The `uri_template`."""
    known: dict[str, str] | None = None
    """Other arguments, or variables, that are filled in already."""


class SubscribeResource(Request[bool], frozen=True, tag=True):
    """From now on `ResourceUpdated` goes to that gateway when the resource changes; in later incarnations too.

    Repeats count once. Faults: NOT_FOUND, FORBIDDEN (the server has no subscriptions), OVERLOADED (too many of this
    server), and those of `ReadResource`.
    """

    uri: str
    to: str
    """The gateway."""


class UnsubscribeResource(msgspec.Struct, frozen=True, tag=True):
    """No more of it to that gateway; unknown ones are ignored."""

    uri: str
    to: str


class SetServerLog(msgspec.Struct, frozen=True, tag=True):
    """From now on pass on what the server logs at this level or above; also for later incarnations."""

    level: str
    """DEBUG, INFO, WARNING, ERROR or CRITICAL."""


class TellTools(msgspec.Struct, frozen=True, tag=True):
    """`Catalogue` goes to that gateway too, now and on every change; repeats count once."""

    to: str


class Resting(msgspec.Struct, frozen=True, tag=True):
    """Event: the server failed too often in a row and is left alone for a while, or it is slow to connect; or it does
    its work again."""

    path: str
    """Of its actor."""
    reason: str
    """Empty: it works again."""
    retry_in_ms: int | None = None


class ToolProgress(msgspec.Struct, frozen=True, tag=True):
    """Event: a running call says how far it is."""

    call: str
    progress: float
    total: float | None
    message: str


class ResourceUpdated(msgspec.Struct, frozen=True, tag=True):
    """Event: a resource that the gateway subscribed to may hold something else now."""

    server: str
    uri: str
    """As subscribed to."""


class UserQuestion(msgspec.Struct, frozen=True, tag=True):
    """Event: a server wants something from the user: a form filled in, or an address visited. One of the two is set.

    To the gateway that a call's progress goes to; without a call to all that are told the catalogue.
    """

    question: str
    """Unique id, chosen by the actor."""
    server: str
    call: str
    """The call that it came up in, by its asker's id; empty: none, so it is for operators."""
    message: str
    """For the person; a stranger's text."""
    schema: dict[str, Any] | None = None
    """JSON Schema of the answer: an object of primitive properties, as the server sent it."""
    url: str | None = None
    """To be opened only once the user has agreed, after seeing all of it."""
    expires_at: str = ""
    """RFC 3339, UTC: when the actor gives up; empty: as `chat.tools.question_timeout` says, counted by the gateway."""


class SamplingRequest(msgspec.Struct, frozen=True, tag=True):
    """Event: a server wants a model to be asked for it, in a call; to the gateway that the call's progress goes to."""

    request: str
    """Unique id, chosen by the actor."""
    server: str
    call: str
    """As in `UserQuestion`; never empty."""
    nth: int
    """Which of that call, from 1."""
    messages: list[dict[str, Any]]
    """In MCP's wire form: `{role, content}`, the content one block or a list of them."""
    max_tokens: int
    system_prompt: str = ""
    temperature: float | None = None
    stop: list[str] = []
    """Texts that end the answer."""
    hints: list[str] = []
    """Names, or parts of names, of models that the server would like, best first."""
    tools: list[dict[str, Any]] = []
    """Tools of the server's own that it runs itself, in MCP's wire form."""
    tool_choice: str = ""
    """`auto`, `required` or `none`; empty: `auto`."""


class RequestEnded(msgspec.Struct, frozen=True, tag=True):
    """Event: a question or a sampling request is over, unanswered; unknown ids mean nothing."""

    request: str
    """Id of the question or of the sampling request."""
    reason: str
    """Why, for a person."""


class UrlVisited(msgspec.Struct, frozen=True, tag=True):
    """Event: what the user was to do at the address of a question is done, as the server says."""

    question: str


class AnswerQuestion(Request[bool], frozen=True, tag=True):
    """What the user says to a question. The answer: whether anybody still waited for it; the first one counts."""

    question: str
    action: str
    """`accept`, `decline`, or `cancel`: no choice was made."""
    content: dict[str, Any] | None = None
    """What was filled in, checked against the schema; None but for an accepted form."""


class AnswerSampling(Request[bool], frozen=True, tag=True):
    """What the model said, or why it was not asked. The answer: as for `AnswerQuestion`."""

    request: str
    content: list[dict[str, Any]] | None = None
    """Blocks in MCP's wire form, text and calls of the server's tools."""
    model: str = ""
    stop_reason: str = ""
    """`endTurn`, `stopSequence`, `maxTokens`, `toolUse`, or a provider's own word."""
    refused: str = ""
    """Why there is no answer, for the server to read; empty: there is one."""


McpServerMessage = (
    CallTool
    | CancelCall
    | ReadResource
    | GetPrompt
    | CompleteArgument
    | SubscribeResource
    | UnsubscribeResource
    | AnswerQuestion
    | AnswerSampling
    | SetServerLog
    | TellTools
    | PendingSettled
    | PinningChanged
    | Down
    | Up
    | Nudge
)

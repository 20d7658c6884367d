"""Every error a client, a model or an operator can meet, in one table.

A *code* is the contract with clients (PROTOCOL: `error_code`); its row says the general text, what to do
about it, and whether sending the same thing again makes sense. A `Fault` is one occurrence: it travels as
an exception inside an actor and as a value (`Fault.body`) between actors. Nothing in here may hold a
secret: whoever raises a Fault puts only text that a client may read into `detail`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec


class Code(StrEnum):
    """Names of the error table; the values are what clients read as `error_code`."""

    INVALID_MESSAGE = "INVALID_MESSAGE"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    RATE_LIMITED = "RATE_LIMITED"
    OVERLOADED = "OVERLOADED"
    NOT_FOUND = "NOT_FOUND"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    TURN_NOT_RUNNING = "TURN_NOT_RUNNING"
    LLM_NOT_CONFIGURED = "LLM_NOT_CONFIGURED"
    LLM_AUTH_FAILED = "LLM_AUTH_FAILED"
    LLM_RATE_LIMITED = "LLM_RATE_LIMITED"
    LLM_CONTEXT_TOO_LONG = "LLM_CONTEXT_TOO_LONG"
    LLM_REJECTED = "LLM_REJECTED"
    LLM_UNAVAILABLE = "LLM_UNAVAILABLE"
    LLM_STREAM_BROKEN = "LLM_STREAM_BROKEN"
    TOOL_HOPS_EXCEEDED = "TOOL_HOPS_EXCEEDED"
    TOOL_NOT_FOUND = "TOOL_NOT_FOUND"
    TOOL_FAILED = "TOOL_FAILED"
    TOOL_TIMEOUT = "TOOL_TIMEOUT"
    MCP_SERVER_UNAVAILABLE = "MCP_SERVER_UNAVAILABLE"
    STORAGE_FULL = "STORAGE_FULL"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    CONFIG_INVALID = "CONFIG_INVALID"
    CONFIG_CONFLICT = "CONFIG_CONFLICT"
    ALREADY_SETTLED = "ALREADY_SETTLED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    MOVED = "MOVED"
    INTERNAL = "INTERNAL"


class Row(NamedTuple):
    """One line of the table."""

    text: str
    """What happened, when the occurrence has nothing better to say."""
    hint: str
    """What the reader can do about it."""
    retryable: bool
    """Whether the same request may succeed if it is sent again unchanged."""


TABLE: dict[Code, Row] = {
    Code.INVALID_MESSAGE: Row("The message does not have the expected form.", "Compare it with GET /schema.", False),
    Code.UNKNOWN_TYPE: Row("This message type is not known here.", "See `capabilities` in the welcome frame.", False),
    Code.MESSAGE_TOO_LARGE: Row("The message is larger than allowed.", "See `limits` in the welcome frame.", False),
    Code.UNAUTHORIZED: Row("Who is asking could not be established.", "Send a valid token.", False),
    Code.FORBIDDEN: Row("This is not allowed here.", "Ask the operator of the service.", False),
    Code.RATE_LIMITED: Row("Too many requests.", "Wait a moment, then send it again.", True),
    Code.OVERLOADED: Row("The service is too busy to take this now.", "Send it again in a moment.", True),
    Code.NOT_FOUND: Row("There is no such thing.", "It may have expired; list what there is.", False),
    Code.SESSION_NOT_FOUND: Row("There is no such saved session.", "It may have expired; see list_sessions.", False),
    Code.TURN_NOT_RUNNING: Row("No such turn is running.", "It may have ended; see history.", False),
    Code.LLM_NOT_CONFIGURED: Row(
        "No language model is configured.",
        "Put the provider's key into the environment or .env (for the default provider: OPENROUTER_API_KEY=...), "
        "or run `uv run --extra local actors-main` for a small model on this machine.",
        False,
    ),
    Code.LLM_AUTH_FAILED: Row("The provider refused our key.", "Check the provider's key in the environment.", False),
    Code.LLM_RATE_LIMITED: Row("The provider asks to slow down.", "Wait, then send the message again.", True),
    Code.LLM_CONTEXT_TOO_LONG: Row(
        "The conversation is longer than the model can read.", "Start a new conversation.", False
    ),
    Code.LLM_REJECTED: Row(
        "The provider rejected the request.", "Check model and parameters in the configuration.", False
    ),
    Code.LLM_UNAVAILABLE: Row("The provider could not be reached or failed.", "Send the message again later.", True),
    Code.LLM_STREAM_BROKEN: Row("The answer broke off before its end.", "Send the message again.", True),
    Code.TOOL_HOPS_EXCEEDED: Row(
        "The model kept asking for tools past the limit.",
        "Ask something narrower, or raise chat.service.max_tool_hops.",
        False,
    ),
    Code.TOOL_NOT_FOUND: Row("There is no tool of that name.", "See the tool list.", False),
    Code.TOOL_FAILED: Row("The tool failed.", "See its message.", False),
    Code.TOOL_TIMEOUT: Row("The tool did not answer in time.", "Try again, or raise the server's timeout.", True),
    Code.MCP_SERVER_UNAVAILABLE: Row(
        "The tool's server is not available.", "It is being restarted; see `actors-main status`.", True
    ),
    Code.STORAGE_FULL: Row("The disk is full.", "The operator must free space; reading still works.", True),
    Code.STORAGE_UNAVAILABLE: Row("The conversation store is not available.", "Send it again in a moment.", True),
    Code.CONFIG_INVALID: Row("The configuration is not valid.", "See the named file, line and key.", False),
    Code.CONFIG_CONFLICT: Row("The configuration changed meanwhile.", "Read it again, then change it.", True),
    Code.ALREADY_SETTLED: Row("Somebody was faster, or it is too late.", "Nothing is left to be done.", False),
    Code.SHUTTING_DOWN: Row("The service is shutting down.", "Connect again in a moment.", True),
    Code.MOVED: Row("This conversation is served elsewhere by now.", "Connect again, then resume.", True),
    Code.INTERNAL: Row("Something failed inside the service.", "It was logged; send it again.", True),
}


class FaultBody(msgspec.Struct, frozen=True, rename={"code": "error_code", "text": "error_message"}):
    """A fault as a value, safe to show to a client and to store."""

    code: Code
    """Row of the table."""
    text: str
    """What happened, for a person."""
    hint: str
    """What to do about it."""
    retryable: bool
    """Whether sending the same again makes sense."""


class Fault(Exception):
    """A typed error of the product.

    Args:
        code: its row in the table.
        detail: what happened this time, for a client's eyes; the row's text if empty.
        hint: overrides the row's hint.
        retryable: overrides the row's answer.
    """

    def __init__(self, code: Code, detail: str = "", *, hint: str = "", retryable: bool | None = None) -> None:
        row = TABLE[code]
        self.body = FaultBody(
            code=code,
            text=detail or row.text,
            hint=hint or row.hint,
            retryable=row.retryable if retryable is None else retryable,
        )
        super().__init__(self.body.code, self.body.text)

    def __str__(self) -> str:
        return f"{self.body.code}: {self.body.text}"

    @property
    def code(self) -> Code:
        """Row of the table."""
        return self.body.code

    @classmethod
    def of(cls, body: FaultBody) -> Fault:
        """The exception for a fault that came as a value."""
        return cls(body.code, body.text, hint=body.hint, retryable=body.retryable)

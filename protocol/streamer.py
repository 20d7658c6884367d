"""What the LLM streamer understands, and what comes back from it.

Down: `Complete` starts one request, `Cancel` ends it; `ListModels` (protocol/models.py) asks what a provider
offers. Up: one `Pieces` per tick to the address that the request named, with what all running requests of that
address received since the last.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.errors import FaultBody
from protocol.mail import Nudge
from protocol.models import ListModels
from protocol.spec import Down, Up
from protocol.watcher import Configured, Llm


class Complete(msgspec.Struct, frozen=True, tag=True):
    """Ask the model once. Its pieces all carry `request`; the last is `Finished` or `Failed`, exactly once."""

    request: int
    """Chosen by the asker; unique among running requests of its front."""
    to: str
    """Address that gets the pieces."""
    provider: str
    """Name under `llm.providers`."""
    model: str
    """Overrides the provider's `model` when not empty."""
    messages: list[dict[str, Any]]
    """`chat/completions` messages, system prompt first."""
    tools: bytes
    """`chat/completions` tools: their list as JSON text, which is sent as it is; empty: none are offered."""
    conversation: str
    """For logs only."""
    llm: Llm | None = None
    """The configuration that the turn began with, which it keeps; None: the one in force."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Close that upstream request now; nothing more comes for it. Unknown ids are ignored."""

    to: str
    request: int


StreamerMessage = Complete | Cancel | ListModels | Configured | Down | Up | Nudge


class Text(msgspec.Struct, frozen=True, tag=1, array_like=True, gc=False):
    """A piece of the answer."""

    request: int
    text: str


class Thinking(msgspec.Struct, frozen=True, tag=2, array_like=True, gc=False):
    """A piece of the reasoning."""

    request: int
    text: str


class ToolCall(msgspec.Struct, frozen=True):
    """One call that the model asked for, whole."""

    id: str
    """The provider's id, or one made here where it gave none."""
    name: str
    arguments: str
    """JSON text as the model wrote it; may be invalid JSON."""
    raw: dict[str, Any] = {}
    """The provider's further fields of the call, sent back with it."""


class Finished(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """The request ended as it should. The text pieces before it, joined, are the content."""

    request: int
    finish_reason: str
    """The provider's; `tool_calls` where calls came without one."""
    model: str
    """As the provider named it; the asked one where it named none."""
    tool_calls: list[ToolCall]
    usage: dict[str, Any] | None
    """The provider's usage object, the last one seen."""
    raw: dict[str, Any]
    """Further fields of the assistant message (reasoning_content, refusal, annotations, ...), accumulated."""
    annotations: list[dict[str, Any]] = []
    """What the answer refers to, for the client: the provider's `annotations` as they came; bare addresses
    (`citations`) in the same form, `{"type": "url_citation", "url_citation": {"url": ..., "title"?: ...}}`."""
    provider: str = ""
    """Name under `llm.providers` of the one that answered: the asked one, or one of `llm.fallbacks`. `raw` (and
    that of the calls) is its own, and goes back to it only."""


class Failed(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """The request ended with a typed error; text pieces before it stand."""

    request: int
    fault: FaultBody


Piece = Text | Thinking | Finished | Failed
"""Tagged arrays: of these there are hundreds in a message, and between processes every byte of them counts."""


class Pieces(msgspec.Struct, frozen=True, tag=True):
    """One batch per tick; order within a request is the stream's order."""

    pieces: list[Piece]

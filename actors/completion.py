"""One `chat/completions` answer, free of I/O: the request's body out, chunks in, pieces out.

`Completion.take` is the hot path: one call per event of the stream. The common chunk is decoded by one
msgspec decoder into structs of only the needed fields. Its delta forbids unknown fields on purpose: a
chunk that has more, or other types than expected, fails there and takes the general path, which reads the
same chunk as plain objects and keeps what it does not know. Both paths end in the same few methods.

Providers differ wildly within "compatible"; every rule below has been seen on a wire. What fails raises
`Complaint` (verdict.py): an error object inside the stream, data that is no JSON, an end without a finish.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from actors.calls import Calls
from actors.citations import NONE, cited
from actors.parts import MOST_STRINGS, add_text, append_part, merged, words
from actors.sse import Event
from actors.verdict import Complaint, of_error
from protocol.errors import Code
from protocol.streamer import Complete, Finished, Piece, Text, Thinking
from protocol.watcher import Provider

REASONING = (
    "thinking",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "thought_process",
    "internal_thoughts",
    "chain_of_thought",
    "rationale",
)
"""Fields with reasoning, in the order in which they are looked at: per delta the first non-empty is shown,
since some providers send the same text in two."""

NOT_OF_THE_MESSAGE = frozenset({"role", "index", "channel"})
"""Fields that describe a delta; sent back within a message, strict providers would refuse them."""

NOT_DATA = frozenset({b"ping", b"heartbeat", b"keepalive", b"keep-alive"})
"""Names of events that say nothing but that the line is up."""


class Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The fields that nearly every delta is made of; any other sends the chunk along the general path."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    index: int | None = None
    channel: str | None = None


class Choice(msgspec.Struct, gc=False):
    """One of a chunk's choices."""

    delta: Delta
    index: int | None = 0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """One event's data. Without `choices` it fails to decode and takes the general path."""

    choices: list[Choice]
    model: str | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    citations: msgspec.Raw = NONE
    """Repeated in every chunk by those who have them, so decoded once, at the end."""
    search_results: msgspec.Raw = NONE


_decode = msgspec.json.Decoder(Chunk).decode


def request_body(request: Complete, provider: Provider) -> dict[str, Any]:
    """The body of POST chat/completions.

    The provider's parameters are sent as they are; one that is None leaves its key out, ours too. Usage
    comes in streams only when asked for, so it is, unless the parameters say something of stream_options.
    """
    body: dict[str, Any] = {
        "model": request.model or provider.model,
        "messages": request.messages,
        "stream": provider.client.stream,
        **provider.parameters,
    }
    if body["stream"] is True:
        body.setdefault("stream_options", {"include_usage": True})
    if request.tools:
        own = body.get("tools")
        tools = msgspec.Raw(request.tools)
        body["tools"] = [*own, *msgspec.json.decode(tools, type=list[msgspec.Raw])] if isinstance(own, list) else tools
    return {key: value for key, value in body.items() if value is not None}


class _Beside:
    """What an answer has beside plain text."""

    __slots__ = ("calls", "citations", "kept", "parts", "raw", "results")

    def __init__(self) -> None:
        self.calls: Calls | None = None
        self.kept: dict[str, list[str]] = {}
        """Strings that came in pieces, by their fields."""
        self.raw: dict[str, Any] = {}
        """All else that came, by its field."""
        self.parts: list[Any] | None = None
        """The content, once it is not just text."""
        self.citations = self.results = NONE

    def call(self, deltas: list[dict[str, Any]]) -> None:
        """The `tool_calls` of one delta or message."""
        if self.calls is None:
            self.calls = Calls()
        self.calls.add(deltas)

    def keep(self, field: str, text: str) -> None:
        """More of a field's string."""
        add_text(self.kept.setdefault(field, []), text)


class Completion:
    """What one answer amounts to so far.

    Args:
        request: number that its pieces carry.
        model: named in `Finished` where the provider names none.
        provider: who is asked.
    """

    __slots__ = (
        "_any",
        "_beside",
        "_choice",
        "_streamed",
        "_text",
        "complete",
        "ended",
        "events",
        "finish_reason",
        "model",
        "provider",
        "request",
        "shown",
        "usage",
    )

    def __init__(self, request: int, model: str, provider: str = "") -> None:
        self.request = request
        self.model = model
        self.provider = provider
        self.finish_reason = ""
        """The provider's, once it came: what follows can only be usage and the end mark."""
        self.ended = False
        """The provider's end mark came: nothing follows."""
        self.complete = False
        """The answer's end has come, whatever may follow."""
        self.usage: dict[str, Any] | None = None
        self.events = 0
        """Events taken."""
        self.shown = False
        """A piece came out."""
        self._beside: _Beside | None = None
        """Once there is such."""
        self._text: list[str] = []
        """What was said so far, as it came or joined."""
        self._choice = 0
        self._streamed = False
        self._any = False

    def take(self, event: Event, out: list[Piece]) -> None:
        """Take one event; its pieces are appended to `out`. Raises Complaint."""
        self.events += 1
        if event.name:
            if event.name == b"error":
                raise of_error(_lenient(event.data, event.data.decode("utf-8", "replace")))
            if event.name in NOT_DATA:
                return
        try:
            chunk = _decode(event.data)
        except (ValueError, RecursionError):
            # Not the common form (msgspec's errors are ValueErrors): an end mark, other fields or types.
            self._take_general(event.data, out)
            return
        if chunk.error:
            raise of_error(chunk.error)
        if chunk.model:
            self.model = chunk.model
        if chunk.usage:
            self.usage = chunk.usage
        if chunk.citations:
            self._more.citations = chunk.citations
        if chunk.search_results:
            self._more.results = chunk.search_results
        for choice in chunk.choices:
            if (choice.index != self._choice or not self._any) and self._not_ours(choice.index):
                continue
            self._streamed = True
            if choice.error:
                raise of_error(choice.error)
            if choice.usage:
                self.usage = choice.usage
            delta = choice.delta
            if delta.reasoning_content or delta.reasoning:
                self._reason(delta, out)
            if delta.content:
                self._say(delta.content, out)
            if delta.refusal:
                self._refuse(delta.refusal, out)
            if delta.tool_calls:
                self._more.call(delta.tool_calls)
            if choice.finish_reason:
                self._finish(choice.finish_reason)

    def take_whole(self, body: bytes, out: list[Piece]) -> None:
        """Take an answer that came as one JSON object instead of a stream. Raises Complaint."""
        self.events += 1
        self._take_general(body, out)
        if self._any:
            self._end()

    def finish(self) -> Finished:
        """The answer as a whole, when its end has come. Raises Complaint: it broke off before."""
        if not self.complete:
            raise Complaint(Code.LLM_STREAM_BROKEN, "the answer broke off before its end", retry=True)
        beside = self._beside or _Beside()
        calls = beside.calls.finish() if beside.calls is not None else []
        raw = {**{key: "".join(strings) for key, strings in beside.kept.items()}, **beside.raw}
        if beside.parts is not None:
            # Content that is not just text goes back as it came.
            raw["content"] = beside.parts
        given = raw.get("annotations")
        return Finished(
            request=self.request,
            finish_reason=self.finish_reason or ("tool_calls" if calls else "stop"),
            model=self.model,
            tool_calls=calls,
            usage=self.usage,
            raw=raw,
            annotations=[
                *(item for item in (given if isinstance(given, list) else []) if isinstance(item, dict)),
                *cited(beside.citations, beside.results),
            ],
            provider=self.provider,
        )

    def _not_ours(self, index: int | None) -> bool:
        # Of several choices (n > 1) only the one that began is followed: one turn has one answer.
        if not self._any:
            self._any = True
            self._choice = index or 0
            self.complete = self.complete or self.ended
        return (index or 0) != self._choice

    @property
    def _more(self) -> _Beside:
        if self._beside is None:
            self._beside = _Beside()
        return self._beside

    def _say(self, text: str, out: list[Piece]) -> None:
        self._text.append(text)
        if len(self._text) >= MOST_STRINGS:  # as `add_text`, without the call for each token
            self._text = ["".join(self._text)]
        self.shown = True
        if self._beside is not None and self._beside.parts is not None:
            append_part(self._beside.parts, {"type": "text", "text": text})
        out.append(Text(self.request, text))

    def _refuse(self, text: str, out: list[Piece]) -> None:
        # Comes in place of content: who asked must read it. Kept too, since it goes back under its own name.
        self._more.keep("refusal", text)
        self.shown = True
        out.append(Text(self.request, text))

    def _reason(self, delta: Delta, out: list[Piece]) -> None:
        if delta.reasoning:
            self._more.keep("reasoning", delta.reasoning)
        if delta.reasoning_content:
            self._more.keep("reasoning_content", delta.reasoning_content)
        self._think(delta.reasoning or delta.reasoning_content or "", out)

    def _think(self, text: str, out: list[Piece]) -> None:
        self.shown = True
        out.append(Thinking(self.request, text))

    def _finish(self, reason: str) -> None:
        if reason == "error":
            raise Complaint(Code.LLM_UNAVAILABLE, "the provider ended its answer with an error", retry=True)
        self.finish_reason = reason
        self.complete = True

    def _end(self) -> None:
        self.ended = True
        self.complete = self.complete or self._any

    def _take_general(self, data: bytes, out: list[Piece]) -> None:
        if data.strip() == b"[DONE]":
            self._end()
            return
        chunk = _lenient(data)
        if isinstance(chunk, list):
            # Some wrap the one object into a list.
            chunk = next((item for item in chunk if isinstance(item, dict)), None)
        if not isinstance(chunk, dict):
            raise _unreadable(data)
        if chunk.get("error") or chunk.get("object") == "error" or chunk.get("type") == "error":
            raise of_error(chunk.get("error") or chunk)
        if isinstance(model := chunk.get("model"), str) and model:
            self.model = model
        self._take_usage(chunk)
        if chunk.get("citations"):
            self._more.citations = msgspec.Raw(msgspec.json.encode(chunk["citations"]))
        if chunk.get("search_results"):
            self._more.results = msgspec.Raw(msgspec.json.encode(chunk["search_results"]))
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            if choices is None and self._any is False and ("detail" in chunk or "message" in chunk):
                raise of_error(chunk)
            return
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            if self._not_ours(index if isinstance(index, int) else 0):
                continue
            if choice.get("error"):
                raise of_error(choice["error"])
            self._take_usage(choice)
            if isinstance(delta := choice.get("delta"), dict):
                self._streamed = True
                self._absorb(delta, out)
            elif isinstance(message := choice.get("message"), dict) and not self._streamed:
                self._absorb(message, out)
            if isinstance(reason := choice.get("finish_reason"), str) and reason:
                self._finish(reason)

    def _take_usage(self, where: dict[str, Any]) -> None:
        if isinstance(usage := where.get("usage"), dict) and usage:
            self.usage = usage

    def _absorb(self, fields: dict[str, Any], out: list[Piece]) -> None:
        """A delta or message with any fields of any type."""
        shown = False
        for field in REASONING:
            value = fields.get(field)
            if not value:
                continue
            text = words(value)
            if text and not shown:
                shown = True
                self._think(text, out)
            self._keep(field, value)
        content = fields.get("content")
        if isinstance(content, str):
            if content:
                self._say(content, out)
        elif isinstance(content, list | dict):
            self._take_parts(content if isinstance(content, list) else [content], out, thinking=not shown)
        calls = fields.get("tool_calls")
        if isinstance(calls, list):
            self._more.call([call for call in calls if isinstance(call, dict)])
        elif isinstance(calls, dict):
            self._more.call([calls])
        for key, value in fields.items():
            if key in REASONING or key in NOT_OF_THE_MESSAGE or key in {"content", "tool_calls"}:
                continue
            if key == "refusal" and isinstance(value, str) and value:
                self._refuse(value, out)
            elif value not in (None, "", [], {}):
                self._keep(key, value)

    def _take_parts(self, parts: list[Any], out: list[Piece], *, thinking: bool) -> None:
        for part in parts:
            if isinstance(part, str):
                part = {"type": "text", "text": part}
            if not isinstance(part, dict):
                continue
            kind = part.get("type")
            if kind in {"text", "output_text", None} and isinstance(text := part.get("text"), str):
                if text:
                    self._say(text, out)
                continue
            if (beside := self._more).parts is None:
                beside.parts = [{"type": "text", "text": "".join(self._text)}] if self._text else []
            append_part(beside.parts, part)
            if thinking and kind in {"thinking", "reasoning"} and (text := words(part)):
                self._think(text, out)

    def _keep(self, key: str, value: Any) -> None:
        beside = self._more
        if isinstance(value, str) and key not in beside.raw:
            beside.keep(key, value)
            return
        if key in beside.kept:
            beside.raw[key] = "".join(beside.kept.pop(key))
        beside.raw[key] = merged(beside.raw.get(key), value)


_MISSING: Any = object()


def _lenient(data: bytes, default: Any = _MISSING) -> Any:
    """JSON as providers write it: with NaN, broken UTF-8, half surrogate pairs."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        # msgspec is strict; what the standard library reads is written anew as clean JSON.
        try:
            loose = json.loads(data.decode("utf-8", "replace"), parse_constant=lambda _: None)
            return msgspec.json.decode(json.dumps(loose, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            if default is not _MISSING:
                return default
            raise _unreadable(data) from None


def _unreadable(data: bytes) -> Complaint:
    words = data[:1000].decode("utf-8", "replace")
    return Complaint(Code.LLM_STREAM_BROKEN, "the answer is not readable", words, retry=True)

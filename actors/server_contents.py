"""What a resource holds and what a prompt says, from MCP's wire form into ours, bounded.

Pure. A frame to a client may have 16 MiB, so neither may be larger than half of that: text is cut, other data
is left out with its size told, a prompt that large is refused. Nothing in here raises but `TooLarge`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.mcp_server import FilledPrompt, PromptMessage, ResourceContent

CONTENT_CAP = 8 * 1024 * 1024  # bytes of all contents of one resource, or of all messages of one prompt
PARTS = 1000  # contents of one resource, or messages of one prompt


class TooLarge(Exception):
    """It has that many bytes, more than may be passed on."""

    def __init__(self, size: int) -> None:
        super().__init__(f"it has {size} bytes, more than the {CONTENT_CAP} that can be passed on")


def contents_of(result: dict[str, Any], cap: int = CONTENT_CAP) -> list[ResourceContent]:
    """The contents of a `resources/read` result in its wire form; together they hold at most `cap` bytes."""
    said = result.get("contents")
    found: list[ResourceContent] = []
    for part in said[:PARTS] if isinstance(said, list) else []:
        if isinstance(part, dict):
            content, used = _content(part, cap)
            found.append(content)
            cap -= used
    return found


def _content(part: dict[str, Any], room: int) -> tuple[ResourceContent, int]:
    uri, mime_type = str(part.get("uri") or ""), str(part.get("mimeType") or "")
    blob = part.get("blob")
    if isinstance(blob, str):
        size = len(blob) * 3 // 4 - blob[-2:].count("=")
        fits = len(blob) <= room
        return (
            ResourceContent(uri, mime_type, size, data=blob if fits else None, cut=not fits),
            len(blob) if fits else 0,
        )
    # Lone surrogates cannot be sent to anybody.
    data = str(part.get("text") or "").encode("utf-8", "replace")
    kept = data[:room].decode("utf-8", "ignore")
    return ResourceContent(uri, mime_type, len(data), text=kept, cut=len(data) > room), min(len(data), room)


def prompt_of(result: dict[str, Any], cap: int = CONTENT_CAP) -> FilledPrompt:
    """The messages of a `prompts/get` result in its wire form. Raises TooLarge."""
    said = result.get("messages")
    messages = [
        PromptMessage(role="assistant" if message.get("role") == "assistant" else "user", content=message["content"])
        for message in (said[:PARTS] if isinstance(said, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), dict)
    ]
    size = sum(len(msgspec.json.encode(message)) for message in messages)
    if size > cap:
        raise TooLarge(size)
    return FilledPrompt(description=str(result.get("description") or "")[:2000], messages=messages)

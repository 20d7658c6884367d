"""What a resource holds, what a prompt says and what a tool returned, from MCP's wire form into ours, bounded.

Pure but for `keep`. A frame to a client should have less than a megabyte, so what is large is kept as a file and told
by its id; where nothing can be kept, text is cut, other data is left out with its size told, and a prompt that large
is refused. Nothing in here raises but `TooLarge`.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from actors.kept_results import Keep
from actors.tool_schema import icons_of, meta_of, small
from protocol.contents import Content
from protocol.mcp_server import FilledPrompt, PromptMessage, ResourceContent

CONTENT_CAP = 8 * 1024 * 1024  # bytes of all contents of one resource that nobody keeps
FRAME_BYTES = 256 * 1024  # of all contents of one resource, or messages of one prompt, where the rest can be kept
INLINE_BYTES = 32 * 1024  # of all contents of one tool's result; they stay in the database
BEGINNING_BYTES = 1024  # of a text that is kept
PARTS = 1000  # contents of one resource, or messages of one prompt
WORD_CHARS = 2000  # of a name, a title, a description, an address


class TooLarge(Exception):
    """It has that many bytes, more than may be passed on."""

    def __init__(self, size: int) -> None:
        super().__init__(f"it has {size} bytes, more than the {FRAME_BYTES} that can be passed on")


def contents_of(result: dict[str, Any], cap: int = CONTENT_CAP, keep: Keep | None = None) -> list[ResourceContent]:
    """The contents of a `resources/read` result in its wire form; together they hold at most `cap` bytes.

    Args:
        keep: keeps the whole of what is cut; then they hold at most FRAME_BYTES.
    """
    said = result.get("contents")
    room = cap if keep is None else min(cap, FRAME_BYTES)
    found: list[ResourceContent] = []
    for part in said[:PARTS] if isinstance(said, list) else []:
        if isinstance(part, dict):
            content, used = _resource_content(part, room, keep)
            found.append(content)
            room -= used
    return found


def _resource_content(part: dict[str, Any], room: int, keep: Keep | None) -> tuple[ResourceContent, int]:
    uri, mime_type = _word(part, "uri"), _word(part, "mimeType")
    blob = part.get("blob")
    if isinstance(blob, str):
        size = decoded_size(blob)
        if len(blob) <= room:
            return ResourceContent(uri, mime_type, size, data=blob), len(blob)
        return ResourceContent(uri, mime_type, size, cut=True, result_id=_kept_blob(blob, keep)), 0
    # Lone surrogates cannot be sent to anybody.
    data = str(part.get("text") or "").encode("utf-8", "replace")
    kept = data[:room].decode("utf-8", "ignore")
    cut = len(data) > room
    result_id = keep(data, True) if cut and keep is not None else ""
    return ResourceContent(uri, mime_type, len(data), text=kept, cut=cut, result_id=result_id), min(len(data), room)


def prompt_of(result: dict[str, Any], cap: int = FRAME_BYTES, keep: Keep | None = None) -> FilledPrompt:
    """The messages of a `prompts/get` result in its wire form. Raises TooLarge."""
    said = result.get("messages")
    messages: list[PromptMessage] = []
    room = cap
    for message in said[:PARTS] if isinstance(said, list) else []:
        if isinstance(message, dict) and isinstance(message.get("content"), dict):
            content, used = content_of(message["content"], room if keep is not None else 2**62, keep)
            messages.append(PromptMessage("assistant" if message.get("role") == "assistant" else "user", content))
            room -= used
    size = sum(len(msgspec.json.encode(message)) for message in messages)
    if size > 2 * cap:  # what is told of the parts counts too
        raise TooLarge(size)
    return FilledPrompt(description=str(result.get("description") or "")[:WORD_CHARS], messages=messages)


def content_of(block: dict[str, Any], room: int, keep: Keep | None) -> tuple[Content, int]:
    """A content block in MCP's wire form as ours, and how many bytes it holds of at most `room`."""
    inner = block.get("resource")
    held: dict[str, Any] = inner if block.get("type") == "resource" and isinstance(inner, dict) else block
    blob = held.get("blob") if held is inner else block.get("data")
    text = held.get("text")
    annotations = block.get("annotations")
    about = Content(
        type=str(block.get("type") or "")[:40],
        mime_type=_word(held, "mimeType"),
        uri=_word(held, "uri"),
        name=_word(held, "name"),
        title=_word(held, "title"),
        description=_word(held, "description"),
        icons=icons_of(block),
        annotations=annotations if isinstance(annotations, dict) and small(annotations) else {},
        meta=meta_of(block) or meta_of(held),
    )
    if isinstance(blob, str):
        size = decoded_size(blob)
        if len(blob) <= room:
            return msgspec.structs.replace(about, size=size, data=blob), len(blob)
        return msgspec.structs.replace(about, size=size, result_id=_kept_blob(blob, keep)), 0
    if isinstance(text, str):
        data = text.encode("utf-8", "replace")
        if len(data) <= room:
            return msgspec.structs.replace(about, size=len(data), text=data.decode()), len(data)
        beginning = data[:BEGINNING_BYTES].decode("utf-8", "ignore")
        result_id = keep(data, True) if keep is not None else ""
        return msgspec.structs.replace(about, size=len(data), text=beginning, result_id=result_id), 0
    said = block.get("size")
    return msgspec.structs.replace(about, size=said if isinstance(said, int) else 0), 0


def decoded_size(encoded: str) -> int:
    """Bytes behind base64."""
    return len(encoded) * 3 // 4 - encoded[-2:].count("=")


def _kept_blob(blob: str, keep: Keep | None) -> str:
    if keep is None:
        return ""
    try:
        return keep(base64.b64decode("".join(blob.split()), validate=True), False)
    except ValueError:
        return ""  # it is no base64: nobody could show it


def _word(of: dict[str, Any], key: str) -> str:
    value = of.get(key)
    return value.encode("utf-8", "replace").decode()[:WORD_CHARS] if isinstance(value, str) else ""

"""What a tool returned, as text that a model can read.

Pure: the wire form of a `tools/call` result in, a `ToolOutcome` out. The text is never empty, holds no
base64 and is bounded; pictures and files are named, not included. Whatever a server sends, nothing in here
raises.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from protocol.mcp_server import ToolOutcome

TEXT_CAP = 256 * 1024  # bytes of text for the model: about what the longest contexts can hold

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[\w;=.+-]*;base64,([A-Za-z0-9+/=_-]{64,})")


def outcome_of(result: dict[str, Any], cap: int = TEXT_CAP) -> ToolOutcome:
    """The outcome for a `CallToolResult` in its wire form (`content`, `structuredContent`, `isError`), with at most
    `cap` bytes of text."""
    ok = result.get("isError") is not True
    said = result.get("content")
    blocks = [block for block in said if isinstance(block, dict)] if isinstance(said, list) else []
    texts = [text for text in map(_text, blocks) if text]
    references = [reference for reference in map(_reference, blocks) if reference]
    structured = result.get("structuredContent")
    encoded = b"" if structured is None else msgspec.json.encode(structured)
    if not texts and encoded:
        texts = [encoded.decode()]
    text = "\n".join([*texts, *references]).strip()
    if not text:
        text = "(the tool returned nothing)" if ok else "(the tool failed and did not say why)"
    return ToolOutcome(ok=ok, text=bounded(text, cap), structured=structured if len(encoded) <= cap else None)


def bounded(text: str, cap: int = TEXT_CAP) -> str:
    """The text without base64 and with at most `cap` bytes; what was cut is told at its end."""
    if ";base64," in text:
        text = _DATA_URI.sub(lambda found: f"[{found[1] or 'data'}, {_decoded_size(found[2])} bytes]", text)
    # Lone surrogates cannot be sent to anybody.
    data = text.encode("utf-8", "replace")
    if len(data) <= cap:
        return data.decode()
    return f"{data[:cap].decode('utf-8', 'ignore')}\n[cut here: these are the first {cap} of {len(data)} bytes]"


def _text(block: dict[str, Any]) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "resource", "resource": {"text": str(text)}}:
            return text
    return ""


def _reference(block: dict[str, Any]) -> str:
    match block:
        case {"type": "text"} | {"type": "resource", "resource": {"text": str()}}:
            return ""
        case {"type": "image" | "audio" as kind, "data": str(data)}:
            return f"[{kind} {block.get('mimeType') or 'of unknown type'}, {_decoded_size(data)} bytes]"
        case {"type": "resource", "resource": {"blob": str(blob), **of}}:
            return f"[file {of.get('uri') or ''} {of.get('mimeType') or ''}, {_decoded_size(blob)} bytes]"
        case {"type": "resource_link", "uri": str(uri)}:
            about = " ".join(str(block[key]) for key in ("name", "description", "mimeType") if block.get(key))
            return f"[link {uri} {about}]".replace(" ]", "]")
    return f"[{str(block.get('type') or 'something')[:40]} that cannot be shown]"


def _decoded_size(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")

"""What a tool returned: as text that a model can read, and in parts for clients.

Pure but for `keep`: the wire form of a `tools/call` result in, a `ToolOutcome` out. The text is never empty, holds
no base64 and is bounded; pictures and files are named, not included. Clients get them as `contents`, large ones by
reference to what `keep` kept. Whatever a server sends, nothing in here raises.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from actors.kept_results import Keep
from actors.server_contents import INLINE_BYTES, content_of, decoded_size
from protocol.contents import SHOWN_CHARS, Content
from protocol.mcp_server import ToolOutcome

TEXT_CAP = 256 * 1024  # bytes of text for the model: about what the longest contexts can hold
KEPT_CHARS = SHOWN_CHARS - 512  # of a text that need not be kept: a word of ours may come before it
PARTS = 200  # contents of one result; more are told as a number

# Each part with an end: without one a text that nearly is one takes the square of its length, for hours.
_DATA_URI = re.compile(r"data:([\w.+-]{1,80}/[\w.+-]{1,80})?[\w;=.+-]{0,120}?;base64,([A-Za-z0-9+/=_-]{64,})")


def outcome_of(result: dict[str, Any], cap: int = TEXT_CAP, keep: Keep | None = None) -> ToolOutcome:
    """The outcome for a `CallToolResult` in its wire form (`content`, `structuredContent`, `isError`).

    Args:
        cap: bytes of text.
        keep: keeps what is too large; None: it is only told how large it was.
    """
    ok = result.get("isError") is not True
    said = result.get("content")
    blocks = [block for block in said if isinstance(block, dict)] if isinstance(said, list) else []
    told = [_text(block) or (_reference(block) if place < PARTS else "") for place, block in enumerate(blocks)]
    if len(blocks) > PARTS:
        told.append(f"[{len(blocks)} parts in all]")
    structured = result.get("structuredContent")
    encoded = b"" if structured is None else msgspec.json.encode(structured)
    if encoded and not any(map(_text, blocks)):
        told.insert(0, encoded.decode("utf-8", "replace"))
    text = "\n".join(filter(None, told)).strip()
    if not text:
        text = "(the tool returned nothing)" if ok else "(the tool failed and did not say why)"
    contents = _contents(blocks[:PARTS], keep)
    if len(encoded) > INLINE_BYTES:
        structured = None
        kept = keep(encoded, True) if keep is not None else ""
        contents.append(Content("structured", len(encoded), mime_type="application/json", result_id=kept))
    outcome = ToolOutcome(ok=ok, text=bounded(text, cap), structured=structured, contents=contents)
    return shown(outcome, text, keep)


def shown(outcome: ToolOutcome, whole: str, keep: Keep | None) -> ToolOutcome:
    """The outcome with the whole text kept, where a client is shown its beginning only."""
    if keep is None or len(whole) <= KEPT_CHARS:
        return outcome
    data = whole.encode("utf-8", "replace")
    return msgspec.structs.replace(outcome, result_id=keep(data, True), size=len(data))


def refused(outcome: ToolOutcome, why: str) -> ToolOutcome:
    """A result that breaks what its tool promised: a failed one, which says so and then what came."""
    text = f"The tool's structured result does not fit its output schema: {why}.\nWhat it returned:\n{outcome.text}"
    return msgspec.structs.replace(outcome, ok=False, text=text)


def weight(result: dict[str, Any]) -> int:
    """About how many bytes it has; says whether a thread should look at it."""
    said = result.get("content")
    total = 0 if result.get("structuredContent") is None else 1
    for block in said if isinstance(said, list) else []:
        inner = block.get("resource") if isinstance(block, dict) else None
        for part in (block, inner):
            if isinstance(part, dict):
                total += sum(len(value) for value in part.values() if isinstance(value, str))
    return total


def bounded(text: str, cap: int = TEXT_CAP) -> str:
    """The text without base64 and with at most `cap` bytes; what was cut is told at its end."""
    if ";base64," in text:
        text = _DATA_URI.sub(lambda found: f"[{found[1] or 'data'}, {decoded_size(found[2])} bytes]", text)
    # Lone surrogates cannot be sent to anybody.
    data = text[: cap + 1].encode("utf-8", "replace")  # a character has a byte at least
    if len(data) <= cap:
        return data.decode()
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return f"{data[:cap].decode('utf-8', 'ignore')}\n[cut here: these are the first {cap} of {size} bytes]"


def _contents(blocks: list[dict[str, Any]], keep: Keep | None) -> list[Content]:
    """Nothing where all is plain text, which is `text` already."""
    if all(block.keys() <= {"type", "text"} and isinstance(block.get("text"), str) for block in blocks):
        return []
    room, contents = INLINE_BYTES, list[Content]()
    for block in blocks:
        content, used = content_of(block, room, keep)
        contents.append(content)
        room -= used
    if len(msgspec.json.encode(contents)) > 4 * INLINE_BYTES:
        contents = [msgspec.structs.replace(one, icons=[], annotations={}, meta={}) for one in contents]
    return contents


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
            return f"[{kind} {block.get('mimeType') or 'of unknown type'}, {decoded_size(data)} bytes]"
        case {"type": "resource", "resource": {"blob": str(blob), **of}}:
            return f"[file {of.get('uri') or ''} {of.get('mimeType') or ''}, {decoded_size(blob)} bytes]"
        case {"type": "resource_link", "uri": str(uri)}:
            about = " ".join(str(block[key]) for key in ("name", "description", "mimeType") if block.get(key))
            return f"[link {uri} {about}]".replace(" ]", "]")
    return f"[{str(block.get('type') or 'something')[:40]} that cannot be shown]"

"""Values that a stream sends in pieces, put together again; free of I/O.

What a provider adds to a message beyond text is kept as it came, so that it can be sent back. In a stream
such fields come as fragments: strings are joined, lists go on, objects are merged. Nothing here can fail;
a fragment that does not fit what is there takes its place.
"""

from __future__ import annotations

from typing import Any

MOST_STRINGS = 64  # that a text is kept in; one for each token would take six times the memory of its letters


def add_text(strings: list[str], text: str) -> None:
    """More of a text that is kept in strings, to be joined."""
    strings.append(text)
    if len(strings) >= MOST_STRINGS:
        strings[:] = ["".join(strings)]


def words(value: Any) -> str:
    """The readable text of a reasoning value: a string, a part, or a list of them; empty if encrypted."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(words(item) for item in value)
    if isinstance(value, dict):
        for key in ("text", "thinking", "reasoning", "summary", "content"):
            if text := words(value.get(key)):
                return text
    return ""


_FLOWING = frozenset({"text", "summary", "thinking", "reasoning", "content", "data", "transcript", "arguments"})
"""Keys within a kept object whose strings come in pieces; any other (type, format, signature) is replaced."""


def merged(old: Any, new: Any) -> Any:
    """A kept field and what a further delta brought of it."""
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        for item in new:
            append_part(old, item)
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            if value is None:
                continue
            if isinstance(value, str) and key not in _FLOWING:
                old[key] = value or old.get(key, "")
            else:
                old[key] = merged(old.get(key), value)
        return old
    return new


def append_part(parts: list[Any], part: Any) -> None:
    """Append, or go on with the last part if the new one is its continuation: same type, same place."""
    last = parts[-1] if parts else None
    if (
        isinstance(last, dict)
        and isinstance(part, dict)
        and last.get("type") == part.get("type")
        and last.get("index") == part.get("index")
        and any(key in last and key in part for key in ("text", "summary", "thinking", "reasoning"))
        and not ("id" in part and last.get("id") != part["id"])
    ):
        parts[-1] = merged(last, part)
    elif isinstance(part, dict):
        parts.append(dict(part))
    else:
        parts.append(part)

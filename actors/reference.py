"""Every setting for people: its default, what it means, what it expects, and when a change of it counts.

Derived from the schema and the reference defaults; the README's table is `markdown()`, and a test holds the two
together. Pure but for reading the packaged defaults.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from actors.checks import expects, fields, section
from actors.layers import Layer, parse
from actors.llm_settings import ProviderSettings
from actors.settings import Settings
from actors.trees import Path, Tree, written

MOMENTS = {
    "at once": "counts from the next message, tick or decision on",
    "next turn": "running turns keep what they began with",
    "reconnect": "counts for connections made after the change; those to MCP servers are made anew by themselves",
    "restart": "counts when the service is started again",
}
"""When a change counts, and what that means."""

APPLIES: dict[str, str] = {
    "chat.websocket": "at once",
    "chat.websocket.endpoint": "reconnect",
    "chat.websocket.allow_origins": "reconnect",
    "chat.websocket.allow_credentials": "reconnect",
    "chat.storage.type": "restart",
    "chat.storage.persistence.db_path": "restart",
    "chat.storage.persistence.retention": "at once",
    "chat.storage.saved_sessions": "at once",
    "chat.sessions": "reconnect",
    "chat.service": "next turn",
    "chat.tools": "at once",
    "chat.tools.instructions": "next turn",
    "chat.service.streaming.persistence": "at once",
    "chat.service.logging": "at once",
    "chat.service.drain_s": "at once",
    "llm": "next turn",
    "mcp.config_file": "at once",
    "mcp.connection": "reconnect",
    "logging": "at once",
    "connection_pool": "next turn",
}
"""The moment of every key: the longest beginning of it that is here decides."""


class Row(NamedTuple):
    """One setting, for people."""

    key: str
    """As written: `chat.websocket.port`."""
    default: object
    """Plain value; None is null, or that a provider must have it."""
    meaning: str
    expects: str
    """`a whole number from 0 to 65535`"""
    applies: str
    """One of `MOMENTS`."""


@cache
def defaults() -> Layer:
    """The reference defaults."""
    text = (importlib.resources.files("actors") / "defaults.yaml").read_text("utf-8")
    return parse(text, "defaults.yaml")


def settings_table() -> list[Row]:
    """Every setting, in the order of the schema; a provider's own keys are under `llm.providers.<name>`."""
    return list(_rows(Settings, defaults().data, ()))


def markdown() -> str:
    """The table of all settings as Markdown, with what the moments mean below."""
    lines = ["| key | default | meaning | expects | a change counts |", "|---|---|---|---|---|"]
    for row in settings_table():
        cells = (f"`{row.key}`", f"`{_short(row.default)}`", _escaped(row.meaning), row.expects, row.applies)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- *{moment}*: {meaning}." for moment, meaning in MOMENTS.items())]
    return "\n".join(lines) + "\n"


def applies(key: str) -> str:
    """The moment of a key. Raises KeyError where nobody has said it."""
    known = [start for start in APPLIES if key == start or key.startswith(f"{start}.")]
    if not known:
        raise KeyError(key)
    return APPLIES[max(known, key=len)]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _rows(model: Any, values: Tree, path: Path) -> Iterator[Row]:
    for name, info in fields(model).items():
        here = (*path, name)
        default = values.get(name, None if info.is_required() else info.get_default(call_default_factory=True))
        if here == ("llm", "providers"):
            yield from _rows(ProviderSettings, {}, (*here, "<name>"))
        elif inner := section(info.annotation):
            yield from _rows(inner, default if isinstance(default, dict) else {}, here)
        else:
            key = written(here)
            yield Row(key, default, info.description or "", expects(info.annotation, info.metadata), applies(key))

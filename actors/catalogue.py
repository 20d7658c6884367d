"""What all servers offer a model: one list of tools, the way back from a name to a server, and the system prompt.

Pure. A model knows one flat list of names of `[A-Za-z0-9_-]{1,64}`; servers name their tools as they like.
A name that only one server uses stays as it is; colliding ones all become `server__tool`. The way back is
a table, names are never parsed. The same catalogues give the same names whatever order they came in, so
names are stable over restarts of servers and of ours.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from actors import system_prompt
from protocol.mcp_server import Catalogue, Tool

NAME_MAX = 64  # OpenAI's limit for function names, which other providers took over
_HASH = 8  # hex digits: among 1,000 tools two equal ones in 10,000 catalogues
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]")


class Merged:
    """What a model is offered. A running turn keeps the one that it began with."""

    def __init__(self, tools: Mapping[str, tuple[str, Tool]], catalogues: Mapping[str, Catalogue]) -> None:
        self._tools = dict(tools)
        self._catalogues = dict(catalogues)
        self._prompt: tuple[tuple[str, bool], str] | None = None
        self.tools_for_model: list[dict[str, Any]] = [
            {
                "type": "function",
                "function": {"name": name, "description": tool.description, "parameters": tool.schema},
            }
            for name, (_, tool) in sorted(self._tools.items())
        ]
        """As the `tools` of a chat completion request, ordered by name."""

    @cached_property
    def tools_text(self) -> bytes:
        """The same as it is sent; made once, since every request has the same."""
        return text_of(self.tools_for_model)

    def prompt(self, configured: str, *, instructions: bool) -> str:
        """`system_prompt.build`; made once, since every turn has the same, and 400 resources take a millisecond."""
        made_of = configured, instructions
        if self._prompt is None or self._prompt[0] != made_of:
            self._prompt = made_of, system_prompt.build(configured, self._catalogues, instructions=instructions)
        return self._prompt[1]

    def find(self, name: str) -> tuple[str, Tool] | None:
        """The server and its tool behind a name that a model used; None if there is none."""
        return self._tools.get(name)

    def names(self) -> dict[tuple[str, str], str]:
        """For each (server, the server's own name of the tool): the name for the model."""
        return {(server, tool.name): name for name, (server, tool) in self._tools.items()}


def text_of(tools: Sequence[Mapping[str, Any]]) -> bytes:
    """Tools as JSON; empty for none."""
    if not tools:
        return b""
    try:
        return msgspec.json.encode(tools)
    except (UnicodeEncodeError, OverflowError):  # half a surrogate pair, or a number of more than 64 bits: servers do
        return json.dumps(tools).encode()


def merge(catalogues: Mapping[str, Catalogue]) -> Merged:
    """Merge what servers offer, keyed by the server's name. A tool listed twice by one server counts once."""
    tools = {(server, tool.name): tool for server, offered in catalogues.items() for tool in offered.tools}
    plain = {key: _sanitised(key[1], key) for key in tools}
    crowded = Counter(plain.values())
    names = {key: name if crowded[name] == 1 else _sanitised(f"{key[0]}__{key[1]}", key) for key, name in plain.items()}
    # `server__tool` may meet another one, or a plain name, again: then all of these are told apart by a hash;
    # and by one more if a server chose a name that looks like such a hash.
    crowded = Counter(names.values())
    final: dict[str, tuple[str, Tool]] = {}
    for key, wanted in sorted(names.items()):
        name, salt = wanted, tuple[str, ...](key)
        while name in final or (name == wanted and crowded[name] > 1):
            name, salt = _hashed(wanted, salt), (*salt, "")
        final[name] = (key[0], tools[key])
    return Merged(final, catalogues)


def _sanitised(name: str, key: tuple[str, ...]) -> str:
    clean = _FOREIGN.sub("_", name) or "_"
    return clean if len(clean) <= NAME_MAX else _hashed(clean, key)


def _hashed(name: str, key: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join(key).encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{name[: NAME_MAX - _HASH - 1]}_{digest}"

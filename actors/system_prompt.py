"""What a model is told before a conversation: the configured prompt, and what the MCP servers have to say.

Pure. After the prompt come the servers' own instructions, the resources that are available now and the prompts,
as one line each. What servers add is bounded, and what had no room is told as numbers, so that a server with
ten thousand resources costs no context. Everything is chosen in turns over the servers, so none crowds out the
others; the same catalogues give the same text whatever order they came in, which providers' caches need.

The contents of resources are not in it. Servers are strangers: what they say stays on lines that are named
after them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from protocol.mcp_server import Catalogue

LIMIT_CHARS = 8_000  # about 2,000 tokens: little for any model that can use tools
INSTRUCTIONS_MAX = 2_000  # characters of one server's instructions
LINE_MAX = 300  # characters of the line of one resource or prompt

_HEADINGS = {
    "instructions": "What the connected MCP servers say of themselves:",
    "resources": "Resources that are available now:",
    "prompts": "Prompts that the user can choose:",
}
_NOTE_ROOM = 120  # characters for the line that says what was left out


class _Line(NamedTuple):
    kind: str
    """Key of _HEADINGS."""
    turn: int
    """Position in its server's list."""
    server: str
    text: str


def build(
    prompt: str, catalogues: Mapping[str, Catalogue], *, instructions: bool = True, limit_chars: int = LIMIT_CHARS
) -> str:
    """The whole system prompt.

    Args:
        prompt: the configured one; never cut.
        catalogues: what the servers offer, by the server's name.
        instructions: with what the servers say of themselves.
        limit_chars: how much may be added to the prompt.
    """
    lines = [line for server in sorted(catalogues) for line in _lines(server, catalogues[server])]
    lines = [line for line in lines if instructions or line.kind != "instructions"]
    kinds = list(_HEADINGS)
    chosen, left_out = _choose(sorted(lines, key=lambda line: (kinds.index(line.kind), line.turn)), limit_chars)
    parts: list[str] = []
    for kind, heading in _HEADINGS.items():
        if texts := [line.text for line in lines if line.kind == kind and line in chosen]:
            parts.append("\n".join([heading, *texts]))
    if left_out and limit_chars >= _NOTE_ROOM:
        counted = ", ".join(f"{number} {kind}" for kind, number in sorted(left_out.items()))
        parts.append(f"(Left out for their size: {counted}.)")
    return "\n\n".join(filter(None, [prompt.rstrip(), *parts])) if parts else prompt


def _choose(lines: list[_Line], limit: int) -> tuple[set[_Line], Counter[str]]:
    """Those that have room, and how many of each kind have none."""
    total = sum(len(line.text) + 1 for line in lines)
    total += sum(len(_HEADINGS[kind]) + 2 for kind in {line.kind for line in lines})
    room = limit if total <= limit else limit - _NOTE_ROOM
    chosen: set[_Line] = set()
    left_out: Counter[str] = Counter()
    opened: set[str] = set()
    for line in lines:
        cost = len(line.text) + 1 + (0 if line.kind in opened else len(_HEADINGS[line.kind]) + 2)
        if cost <= room:
            room -= cost
            opened.add(line.kind)
            chosen.add(line)
        else:
            left_out[line.kind] += 1
    return chosen, left_out


def _lines(server: str, offered: Catalogue) -> Iterator[_Line]:
    name = _one_line(server)
    if said := offered.instructions.strip():
        indented = "\n  ".join(filter(None, map(str.rstrip, said.splitlines())))
        yield _Line("instructions", 0, server, f"- {name}: {_cut(indented, INSTRUCTIONS_MAX)}")
    for turn, resource in enumerate(offered.resources):
        about = [part for part in (resource.name, resource.mime_type) if part]
        text = f"- {resource.uri} ({', '.join([*about, f'server {name}'])})"
        yield _Line("resources", turn, server, _described(text, resource.description))
    for turn, prompt in enumerate(offered.prompts):
        arguments = ", ".join(str(argument.get("name", "")) for argument in prompt.arguments)
        text = f"- {prompt.name}({arguments}) (server {name})"
        yield _Line("prompts", turn, server, _described(text, prompt.description))


def _described(text: str, description: str) -> str:
    return _cut(_one_line(f"{text}: {description}" if description.strip() else text), LINE_MAX)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"

"""An MCP server that offers prompts and nothing else: no tools, no resources.

Stands alone: `python -m Servers.demo_prompt_server` speaks MCP over standard input and output. Its prompts come
from `prompt_options.md` in its working directory, made from the template beside this module when it is not
there; the file is read for every request, so an edit counts at once. Where it cannot be made or read, the
template itself is used.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import mcp_types as types
from mcp import MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server

TEMPLATE = Path(__file__).with_name("prompt_options.template.md")
OPTIONS = "prompt_options.md"
FILE_MAX = 1024 * 1024  # bytes; a larger file is no list of prompts

_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?:=([^{}]*))?\}")


class Option(NamedTuple):
    """One prompt of the file."""

    name: str
    description: str
    text: str
    """With `{word}` and `{word=default}`."""

    def arguments(self) -> dict[str, str | None]:
        """Its arguments in the order of the text, with their defaults; None: must be given."""
        found: dict[str, str | None] = {}
        for name, default in _PLACE.findall(self.text):
            found[name] = found.get(name) or default or None
        return found

    def filled(self, given: dict[str, str]) -> str:
        """The text with its arguments. Raises MCPError if one is missing."""
        values = {name: given.get(name) or default for name, default in self.arguments().items()}
        if missing := [name for name, value in values.items() if value is None]:
            raise MCPError(types.INVALID_PARAMS, f"prompt {self.name!r} needs {', '.join(missing)}")
        return _PLACE.sub(lambda place: str(values[place[1]]), self.text)


def parse(markdown: str) -> dict[str, Option]:
    """The prompts of a file, by name; of two with the same name the later one counts."""
    found: dict[str, Option] = {}
    for section in re.split(r"^##[ \t]+", markdown, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        lines = body.splitlines()
        description = " ".join(line.lstrip("> \t").rstrip() for line in lines if line.startswith(">"))
        text = "\n".join(line for line in lines if not line.startswith(">")).strip()
        if name.strip() and text:
            found[name.strip()] = Option(name.strip(), description, text)
    return found


def options(folder: Path) -> dict[str, Option]:
    """The prompts of a working directory."""
    path = folder / OPTIONS
    template = TEMPLATE.read_text(encoding="utf-8")
    try:
        if not path.exists():
            with path.open("x", encoding="utf-8") as file:
                file.write(template)
        with path.open("rb") as opened:
            return parse(opened.read(FILE_MAX).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{path} cannot be used, the template is: {error}\n")
        return parse(template)


async def list_prompts(
    _: ServerRequestContext[Any], __: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    """All prompts of the file."""
    return types.ListPromptsResult(
        prompts=[
            types.Prompt(
                name=option.name,
                description=option.description or None,
                arguments=[
                    types.PromptArgument(
                        name=name,
                        required=default is None,
                        description=None if default is None else f"by default: {default}",
                    )
                    for name, default in option.arguments().items()
                ],
            )
            for option in options(Path.cwd()).values()
        ]
    )


async def get_prompt(_: ServerRequestContext[Any], params: types.GetPromptRequestParams) -> types.GetPromptResult:
    """One prompt, filled in."""
    option = options(Path.cwd()).get(params.name)
    if option is None:
        raise MCPError(types.INVALID_PARAMS, f"there is no prompt {params.name!r}")
    text = types.TextContent(type="text", text=option.filled(params.arguments or {}))
    return types.GetPromptResult(
        description=option.description or None, messages=[types.PromptMessage(role="user", content=text)]
    )


server: Server[Any] = Server("demo_prompt", on_list_prompts=list_prompts, on_get_prompt=get_prompt)


async def main() -> None:
    """Serve until the input closes."""
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)

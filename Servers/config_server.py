"""An MCP server with which the model reads and changes its own configuration.

Stands alone: `python -m Servers.config_server` speaks MCP over standard input and output. It writes no file:
every change is asked of the running service, over HTTP on a Unix socket, and the service validates it by the
same schema as an edit by hand, records it as a version with the author `tool`, and refuses what a model may
not change (an address would send the key to a stranger). Where the socket is, and a token that is good for one
run of the service, stands in the JSON file that MCP_ACTORS_CONFIG_ACCESS names; it is read anew for every call.

What fails is told to the model as the tool's error, with the service's own words and hint.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

ACCESS = "MCP_ACTORS_CONFIG_ACCESS"
TIMEOUT_S = 28.0  # of one request: the service gives itself 25 s, since an editor may be at the file
ANSWER_MAX = 4 * 1024 * 1024  # bytes of one answer; a configuration has a few thousand
TRIES = 3  # of a change that was made for a version which has just been replaced

READING = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
# Not destructive: every version is kept, and can be rolled back to.
CHANGING = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Tree = dict[str, Any]

server = MCPServer(
    "config",
    instructions=(
        "Reads and changes the configuration of this chat service: provider, model, sampling, system prompt and "
        "logging. Changes count from the next turn on, are kept over restarts, and are recorded in a history."
    ),
    log_level="WARNING",
)


class Refused(ToolError):
    """The service answered with an error.

    Args:
        code: its `error_code`.
        text: what a model should read.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(method: str, target: str, body: Tree | None = None) -> Any:
    """Ask the service; the JSON value of its answer. Raises ToolError."""
    path, token = _access()
    connection = _Connection(path)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read(ANSWER_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise ToolError(f"The service does not answer on its configuration socket: {error}. Try again.") from error
    finally:
        connection.close()
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise ToolError(f"The service gave an answer that is not JSON (status {response.status}).") from error
    if response.status == http.client.OK:
        return answer
    said = answer if isinstance(answer, dict) else {}
    code = str(said.get("error_code") or f"status {response.status}")
    words = (said.get("error_message"), said.get("hint"))
    raise Refused(code, " ".join([f"{code}:", *(str(word) for word in words if word)]))


def _access() -> tuple[str, str]:
    name = os.environ.get(ACCESS)
    if not name:
        raise ToolError(f"The service gives no access to its configuration ({ACCESS} is not set).")
    try:
        with open(name, encoding="utf-8") as file:
            access = json.load(file)
        return str(access["socket"]), str(access["token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Only the kind of the error: its text could hold a piece of the file.
        raise ToolError(f"The access to the configuration cannot be read ({type(error).__name__}).") from None


def _configuration(path: str = "") -> Tree:
    """`version` and `config`, nested from the top also if only a part of it is asked for."""
    answer = request("GET", f"/config?{urlencode({'path': path})}" if path else "/config")
    if not isinstance(answer, dict) or not isinstance(answer.get("config"), dict):
        raise ToolError("The service gave an answer that is no configuration.")
    return answer


def _llm(answer: Tree) -> tuple[str, dict[str, Tree]]:
    """The active provider's name, and all providers by name."""
    llm = answer["config"].get("llm") or {}
    return str(llm.get("active", "")), {name: p for name, p in (llm.get("providers") or {}).items() if p is not None}


def _change(changes: Tree, base_version: int | None = None) -> Tree:
    """Make a change; what the model should know of the outcome."""
    body: Tree = {"changes": changes, "author": "tool"}
    if base_version is not None:
        body["base_version"] = base_version
    answer = request("POST", "/config", body)
    return {"version": answer.get("version") if isinstance(answer, dict) else None, "changed": changes}


def _change_provider(provider: str | None, values: Callable[[Tree], Tree]) -> Tree:
    """Change keys of a provider, by default the active one as it is when the change comes into force.

    Args:
        values: from the provider as it is to the keys to change.
    """
    for tried in range(1, TRIES + 1):
        now = _configuration("llm")
        active, providers = _llm(now)
        name = provider or active
        if name not in providers:
            raise ToolError(f"There is no provider {name!r}; there are: {', '.join(sorted(providers))}.")
        try:
            return _change({"llm": {"providers": {name: values(providers[name])}}}, now.get("version"))
        except Refused as refused:
            if refused.code != "CONFIG_CONFLICT" or tried == TRIES:
                raise
    raise AssertionError("the last try returns or raises")


@server.tool(annotations=READING)
def get_configuration(
    path: Annotated[str, Field(description="Only this part, e.g. `llm.active` or `chat.service`; empty: all")] = "",
) -> dict[str, Any]:
    """The configuration in force and its version; nested from the top. Keys of providers are never in it."""
    answer = _configuration(path)
    return {"version": answer.get("version"), "config": answer["config"]}


@server.tool(annotations=READING)
def list_providers() -> dict[str, Any]:
    """The configured model providers, which of them is active, and each one's model and sampling parameters."""
    active, providers = _llm(_configuration("llm"))
    ours = ("base_url", "api_key_env", "client", "model")
    return {
        "active": active,
        "providers": [
            {
                "name": name,
                "active": name == active,
                "model": provider.get("model"),
                "parameters": {key: value for key, value in provider.items() if key not in ours},
            }
            for name, provider in sorted(providers.items())
        ],
    }


@server.tool(annotations=CHANGING)
def set_provider(name: Annotated[str, Field(description="One of list_providers")]) -> dict[str, Any]:
    """Make another configured provider the active one, from the next turn on."""
    _, providers = _llm(_configuration("llm"))
    if name not in providers:
        raise ToolError(f"There is no provider {name!r}; there are: {', '.join(sorted(providers))}.")
    return _change({"llm": {"active": name}})


@server.tool(annotations=CHANGING)
def set_model(
    model: Annotated[str, Field(min_length=1, description="The model's id as its provider writes it")],
    provider: Annotated[str | None, Field(description="Whose model to set; by default the active provider's")] = None,
) -> dict[str, Any]:
    """Use another model of a provider, from the next turn on. The id is not checked with the provider."""
    return _change_provider(provider, lambda _: {"model": model})


@server.tool(annotations=CHANGING)
def set_system_prompt(prompt: Annotated[str, Field(max_length=100_000)]) -> dict[str, Any]:
    """Replace the system prompt, from the next turn on. Read the present one first with get_configuration."""
    return _change({"chat": {"service": {"system_prompt": prompt}}})


@server.tool(annotations=CHANGING)
def set_sampling(
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None,
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None,
    max_tokens: Annotated[int | None, Field(ge=1)] = None,
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None,
    top_k: Annotated[int | None, Field(ge=0)] = None,
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None,
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None,
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None,
    seed: int | None = None,
    reasoning_effort: Annotated[str | None, Field(description="As the provider writes it, e.g. low or high")] = None,
    remove: Annotated[list[str] | None, Field(description="Parameters that are not to be sent any more")] = None,
    provider: Annotated[str | None, Field(description="Whose to set; by default the active provider's")] = None,
) -> dict[str, Any]:
    """Change how a provider's model samples, from the next turn on. What is not given stays as it is."""
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "max_completion_tokens": max_completion_tokens,
        "top_k": top_k,
        "min_p": min_p,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "seed": seed,
        "reasoning_effort": reasoning_effort,
    }
    values: Tree = {key: value for key, value in given.items() if value is not None}
    unknown = [key for key in remove or [] if key not in given or key in values]
    if unknown:
        raise ToolError(f"Cannot remove {', '.join(unknown)}: only parameters of this tool that are not set as well.")
    if not values and not remove:
        raise ToolError("Nothing to change: give at least one parameter.")

    def wanted(now: Tree) -> Tree:
        # Null takes a key away; one that is not there needs nothing.
        changed = values | {key: None for key in remove or [] if now.get(key) is not None}
        if not changed:
            raise ToolError("Nothing to change: none of these parameters is set.")
        return changed

    return _change_provider(provider, wanted)


@server.tool(annotations=CHANGING)
def set_logging(
    level: Level | None = None,
    modules: Annotated[
        dict[str, Level] | None, Field(description='Levels of single parts, e.g. {"actors.streamer": "DEBUG"}')
    ] = None,
    llm_replies: bool | None = None,
    tool_execution: bool | None = None,
    tool_results: bool | None = None,
    system_prompt: bool | None = None,
) -> dict[str, Any]:
    """Change what the service writes to its log, at once: levels, and whether replies, tool calls and their results,
    and the system prompt are logged. What is not given stays as it is.
    """
    switches = {
        "llm_replies": llm_replies,
        "tool_execution": tool_execution,
        "tool_results": tool_results,
        "system_prompt": system_prompt,
    }
    features = {key: value for key, value in switches.items() if value is not None}
    levels = {key: value for key, value in {"level": level, "modules": modules}.items() if value}
    changes: Tree = {}
    if levels:
        changes["logging"] = levels
    if features:
        changes["chat"] = {"service": {"logging": features}}
    if not changes:
        raise ToolError("Nothing to change: give at least one setting.")
    return _change(changes)


@server.tool(annotations=READING)
def configuration_history(limit: Annotated[int, Field(ge=1, le=200)] = 20) -> dict[str, Any]:
    """The latest versions of the configuration, newest first: when each was made, by whom, and what it changed."""
    rows = request("GET", f"/versions?{urlencode({'limit': limit})}")
    if not isinstance(rows, list):
        raise ToolError("The service gave an answer that is no list of versions.")
    return {"versions": rows}


if __name__ == "__main__":
    server.run("stdio")

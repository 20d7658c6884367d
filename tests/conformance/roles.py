"""What a user and a model do in each scenario, on one MCP server of the stage.

The model calls tools, all with the arguments that the scenario wants. The user agrees to everything: fills forms in
with what they suggest, and opens addresses, as a browser would.
"""

from __future__ import annotations

import itertools
import logging
import os
from typing import Any

import httpx
import trio

from protocol.errors import Fault
from protocol.mail import Gone
from protocol.mcp_server import AnswerQuestion, CallTool, Catalogue, Tool, UserQuestion
from protocol.spec import Down
from tests.conformance.stage import GATEWAY, Stage, Told

PATIENCE_S = 90.0  # for a whole scenario
BY_TYPE: dict[str, Any] = {"integer": 1, "number": 1, "boolean": True, "object": {}, "array": []}
NAMED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "tools_call": [("add_numbers", {"a": 5, "b": 3})],
    "sse-retry": [("test_reconnection", {})],
    "elicitation-sep1034-client-defaults": [("test_client_elicitation_defaults", {})],
    "sep-2322-client-request-state": [
        ("test_mrtr_echo_state", {}),
        ("test_mrtr_unrelated", {}),
        ("test_mrtr_no_state", {}),
        ("test_mrtr_no_result_type", {}),
    ],
    "initialize": [],
    "json-schema-ref-no-deref": [],
}
"""The calls of a scenario; of those that are not here, every tool is called once."""

log = logging.getLogger(__name__)

_numbers = itertools.count(1)


class Trouble(Exception):
    """The scenario cannot be played to its end; says why."""


async def play(stage: Stage, scenario: dict[str, Any]) -> None:
    """One scenario, from an entry in the servers file to the end of its server. Raises Trouble."""
    name = f"server{next(_numbers)}"
    with trio.move_on_after(PATIENCE_S):
        async with stage.server(name, await entry_of(name, scenario)) as told:
            catalogue = await _catalogue(stage, name, told, anything=not scenario["name"].startswith("auth/"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_user, stage, name, told)
                for tool, arguments in calls_of(scenario, catalogue.tools):
                    await _call(stage, name, tool, arguments)
                nursery.cancel_scope.cancel()
        return
    raise Trouble(f"not over within {PATIENCE_S:g} s")


async def entry_of(name: str, scenario: dict[str, Any]) -> dict[str, Any]:
    """What an operator writes for that server."""
    entry: dict[str, Any] = {"url": scenario["url"], "type": "http", "timeout": 20}
    if scenario["version"] < "2026":
        entry["protocol"] = "legacy"
    context = scenario["context"]
    if scenario["name"] == "auth/basic-cimd":
        entry["auth"] = {"client_metadata_url": "https://conformance-test.local/client-metadata.json"}
    elif "client_id" in context:
        os.environ[f"SECRET_OF_{name}"] = context.get("client_secret", "")
        entry["auth"] = {"client_id": context["client_id"]}
        if "client_secret" in context:
            entry["auth"]["client_secret"] = f"${{SECRET_OF_{name}}}"
        if scenario["name"].startswith("auth/client-credentials"):
            if "client_secret" not in context:
                raise Trouble("nobody can be named by a signature")
            entry["auth"] |= {"type": "client_credentials", "issuer": await _issuer(scenario["url"])}
    return entry


def calls_of(scenario: dict[str, Any], tools: list[Tool]) -> list[tuple[str, dict[str, Any]]]:
    """What the model does."""
    if "toolCalls" in scenario["context"]:
        return [(call["name"], call.get("arguments") or {}) for call in scenario["context"]["toolCalls"]]
    if scenario["name"] == "json-schema-2020-12-preservation":
        schema = next(tool.schema for tool in tools if tool.name == "json_schema_2020_12_tool")
        return [("json_schema_echo", {"schema": schema})]
    if scenario["name"] in NAMED:
        return NAMED[scenario["name"]]
    return [(tool.name, _arguments(tool.schema)) for tool in tools]


def _arguments(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = {name: schema["properties"].get(name, {}).get("type") for name in schema.get("required", [])}
    return {name: BY_TYPE.get(kind, "text") for name, kind in kinds.items()}


async def _issuer(url: str) -> str:
    """The authorization server that an operator would read about in the server's manual."""
    async with httpx.AsyncClient() as client:
        at = httpx.URL(url)
        found = await client.get(at.copy_with(path=f"/.well-known/oauth-protected-resource{at.path}"))
        return str(found.json()["authorization_servers"][0])


async def _catalogue(stage: Stage, name: str, told: trio.MemoryReceiveChannel[Told], *, anything: bool) -> Catalogue:
    """What the server offers, once it is connected; `anything`: be it nothing."""
    async for message in told:
        match message:
            case Catalogue() if message.tools or anything:
                return message
            case UserQuestion():
                await _answer(stage, name, message)
            case Down(parked=True, reason=reason):
                raise Trouble(reason)
            case _:
                pass
    raise Trouble("it told nothing more")


async def _user(stage: Stage, name: str, told: trio.MemoryReceiveChannel[Told]) -> None:
    async for message in told:
        if isinstance(message, UserQuestion):
            await _answer(stage, name, message)


async def _answer(stage: Stage, name: str, question: UserQuestion) -> None:
    properties = (question.schema or {}).get("properties", {})
    content = {key: field["default"] for key, field in properties.items() if "default" in field}
    missing = [key for key in (question.schema or {}).get("required", []) if key not in content]
    content |= {key: BY_TYPE.get(properties[key].get("type"), "text") for key in missing}
    answer = AnswerQuestion(question.question, "accept", content)
    await stage.tree.ref(f"mcp/{name}").ask(answer, within=10)
    if question.url:
        async with httpx.AsyncClient(follow_redirects=True, timeout=PATIENCE_S) as browser:
            try:
                await browser.get(question.url)
            except httpx.HTTPError as error:  # it may be over by now
                log.warning("the page for %s: %s", name, error)


async def _call(stage: Stage, name: str, tool: str, arguments: dict[str, Any]) -> None:
    call = CallTool(call=f"{name}-{next(_numbers)}", tool=tool, arguments=arguments, to=GATEWAY)
    try:
        await stage.tree.ref(f"mcp/{name}").ask(call, within=PATIENCE_S)
    except (Fault, Gone) as error:  # some are there to fail; the suite judges by what it saw
        log.warning("%s of %s: %s", tool, name, error)

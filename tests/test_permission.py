"""What a model may change of itself, as a table: everything else is refused, key by key."""

from __future__ import annotations

import pytest

from actors.permission import refused
from actors.trees import Tree
from tests.test_checks import DEFAULTS

ALLOWED: list[Tree] = [
    {"llm": {"active": "openrouter"}},
    {"llm": {"providers": {"openrouter": {"model": "m", "temperature": 0.1, "top_p": None, "stop": ["a"]}}}},
    {"llm": {"providers": {"openrouter": {"reasoning": {"effort": "high", "exclude": True}, "seed": 1}}}},
    {"llm": {"providers": {"openrouter": {"presence_penalty": 0, "frequency_penalty": 0, "max_tokens": 1}}}},
    {"chat": {"service": {"system_prompt": "p", "logging": {"llm_replies": True}}}},
    {"logging": {"level": "DEBUG", "modules": {"streamer": "DEBUG"}}},
    {},
]

REFUSED: list[tuple[Tree, list[str]]] = [
    (
        {"llm": {"active": "x", "providers": {"openrouter": {"base_url": "https://evil.example"}}}},
        ["llm.providers.openrouter.base_url"],
    ),
    ({"llm": {"providers": {"openrouter": {"api_key_env": "PATH"}}}}, ["llm.providers.openrouter.api_key_env"]),
    (
        {"llm": {"providers": {"openrouter": {"client": {"headers": {"X": "${SECRET}"}}}}}},
        ["llm.providers.openrouter.client.headers.X"],
    ),
    ({"llm": {"providers": {"openrouter": {"headers": {"X": "y"}}}}}, ["llm.providers.openrouter.headers.X"]),
    ({"llm": {"providers": {"new": {"model": "m"}}}}, ["llm.providers.new.model"]),
    ({"llm": {"providers": {"openrouter": None}}}, ["llm.providers.openrouter"]),
    ({"llm": {"providers": {}}}, ["llm.providers"]),
    ({"llm": None}, ["llm"]),
    ({"chat": {"service": None}}, ["chat.service"]),
    ({"chat": {"service": {"max_tool_hops": 1000}}}, ["chat.service.max_tool_hops"]),
    ({"chat": {"websocket": {"host": "::", "port": 1}}}, ["chat.websocket.host", "chat.websocket.port"]),
    ({"mcp": {"config_file": "mine.json"}}, ["mcp.config_file"]),
    ({"_runtime_config": {"version": 1}}, ["_runtime_config.version"]),
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_allowed(changes: Tree) -> None:
    assert refused(changes, DEFAULTS.data) == []


@pytest.mark.parametrize(("changes", "keys"), REFUSED, ids=[",".join(keys) for _, keys in REFUSED])
def test_refused(changes: Tree, keys: list[str]) -> None:
    assert refused(changes, DEFAULTS.data) == keys

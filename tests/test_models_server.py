"""The models server by itself, in process, with a real provider behind it on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult

import Servers
from Servers import models_server
from Servers.models_server import read, server
from tests.model_lists import FORMS, NO_LISTS, OPENROUTER, written

KEY = "sk-planted-4711"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_server._Kept, "models", ())


@contextmanager
def provider(status: int = 200, body: bytes = b"", **headers: str) -> Iterator[list[Any]]:
    """A provider on loopback; gives the requests that came: the address first, then (path, headers) of each."""
    came: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append((self.path, dict(self.headers)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        came.append(f"http://127.0.0.1:{listener.server_port}/v1")
        try:
            yield came
        finally:
            listener.shutdown()
            thread.join()


@pytest.mark.parametrize("form", FORMS)
def test_any_form_is_read_as_the_service_reads_it(form: str) -> None:
    found = read(written(form))
    assert found is not None
    assert [model.model_dump(exclude_defaults=True) for model in found] == FORMS[form][1]


@pytest.mark.parametrize("body", NO_LISTS)
def test_what_is_no_list_is_none(body: bytes) -> None:
    assert read(body) is None


def ids(result: CallToolResult) -> list[str]:
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return [model["id"] for model in result.structured_content["models"]]


async def test_models_are_found_by_words_features_price_and_context(monkeypatch: pytest.MonkeyPatch) -> None:
    mini, r1, auto = "openai/gpt-4o-mini", "deepseek/deepseek-r1:free", "openrouter/auto"
    with provider(body=json.dumps(OPENROUTER).encode()) as came:
        monkeypatch.setenv("MODELS_BASE_URL", came[0])
        monkeypatch.setenv("MODELS_KEY_VARIABLE", "PLANTED_KEY")
        monkeypatch.setenv("PLANTED_KEY", KEY)
        async with Client(server) as client:
            for arguments, expected in (
                ({}, [r1, mini, auto]),
                ({"query": "GPT mini"}, [mini]),
                ({"features": ["vision", "tools"]}, [mini]),
                ({"features": ["audio"]}, []),
                ({"max_input_price": 0}, [r1]),
                ({"max_output_price": 0.6}, [r1, mini]),
                ({"min_context_tokens": 163840, "order": "context"}, [auto, r1]),
                ({"order": "name"}, sorted([mini, r1, auto])),
            ):
                assert ids(await client.call_tool("search_models", arguments)) == expected, arguments
            some = await client.call_tool("search_models", {"limit": 1})
            assert some.structured_content is not None
            assert (ids(some), some.structured_content["more"]) == ([r1], 2)
            shown = await client.call_tool("show_model", {"id": mini})
            assert shown.structured_content is not None
            assert (shown.structured_content["input_price"], shown.structured_content["context_tokens"]) == (
                0.15,
                128000,
            )
            missing = await client.call_tool("show_model", {"id": "gpt-4o"})
            assert missing.is_error
            assert mini in str(missing.content)
            tools = (await client.list_tools()).tools
        assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in tools)
        # asked once, with the key
        [(path, headers)] = came[1:]
        assert (path, headers["Authorization"]) == ("/v1/models", f"Bearer {KEY}")


async def test_what_fails_is_told_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused() -> str:
        async with Client(server) as client:
            result = await client.call_tool("search_models", {})
        assert result.is_error
        assert KEY not in str(result.content)
        return str(result.content)

    monkeypatch.setenv("MODELS_KEY_VARIABLE", "PLANTED_KEY")
    monkeypatch.delenv("PLANTED_KEY", raising=False)
    assert "PLANTED_KEY" in await refused()
    monkeypatch.setenv("PLANTED_KEY", KEY)
    with provider(401, f"bad key {KEY}".encode()) as came:
        monkeypatch.setenv("MODELS_BASE_URL", came[0])
        assert "HTTP 401" in await refused()
    with provider(302, Location="http://127.0.0.1:1/elsewhere") as came:
        monkeypatch.setenv("MODELS_BASE_URL", came[0])
        assert "HTTP 302" in await refused()
    assert "does not answer" in await refused()
    with provider(body=b"<html>") as came:
        monkeypatch.setenv("MODELS_BASE_URL", came[0])
        assert "no list of models" in await refused()
    monkeypatch.setenv("MODELS_BASE_URL", "ftp://x")
    assert "MODELS_BASE_URL" in await refused()


def test_the_shipped_configuration_names_it_and_leaves_it_off() -> None:
    configuration = json.loads((Path(Servers.__file__).with_name("servers_config.json")).read_text())
    models = configuration["mcpServers"]["models"]
    assert (models["enabled"], models["command"]) == (False, "python")
    assert find_spec(models["args"][1]) is not None

"""Model lists: read whatever their form, asked for once, and no error of a provider's is more than one answer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from actors.commands import MOST_ASIDE
from actors.models import MOST_MODELS, read
from tests.fakes import FakeProvider, Script, Stall, fail, page, raw, say
from tests.model_lists import FORMS, NO_LISTS, OPENROUTER, written
from tests.service import of_type, service
from tests.test_keys import change

LIST = raw(json.dumps(OPENROUTER).encode(), content_type="application/json")


@pytest.mark.parametrize("form", FORMS)
def test_any_form_is_read(form: str) -> None:
    found = read(written(form))
    assert found is not None
    assert msgspec.to_builtins(found) == FORMS[form][1]


@pytest.mark.parametrize("body", NO_LISTS)
def test_what_is_no_list_is_none(body: bytes) -> None:
    assert read(body) is None


def test_a_list_has_an_end() -> None:
    found = read(json.dumps([{"id": f"m{n:06}"} for n in range(MOST_MODELS + 10)]).encode())
    assert found is not None
    assert len(found) == MOST_MODELS


async def test_models_are_listed_once_and_anew_where_the_address_is_another(tmp_path: Path) -> None:
    async with (
        FakeProvider(raw(b'{"data": [{"id": "b"}]}', content_type="application/json")) as other,
        service(tmp_path, LIST, say("hi")) as s,
        s.client() as client,
    ):
        assert "list_models" in client.welcome["capabilities"]
        await client.send("list_models", request_id="m1")
        await client.send("list_models", provider="fake", refresh=True)
        first = (await client.until("models"))[-1]
        assert (first["provider"], first["request_id"]) == ("fake", "m1")
        assert [m["id"] for m in first["models"]] == [m["id"] for m in FORMS["OpenRouter"][1]]
        assert first["models"][1]["input_price"] == 0.15
        again = (await client.until("models"))[-1]
        assert (again["models"], again["at"]) == (first["models"], first["at"])
        asked = await s.provider.request(1)
        assert (asked.path, asked.body, asked.headers["accept"]) == ("/v1/models", b"", "application/json")
        await change(s, client, {"llm": {"providers": {"fake": {"base_url": other.base_url}}}})
        await client.send("list_models")
        assert [m["id"] for m in (await client.until("models"))[-1]["models"]] == ["b"]
        assert (len(s.provider.requests), len(other.requests)) == (1, 1)


async def test_a_slow_list_holds_up_nothing_else_on_its_socket(tmp_path: Path) -> None:
    def reply(asked: Any) -> Script:
        return Script((Stall(gate), *LIST.items), content_type="application/json", done=False) if asked is None else hi

    gate, hi = trio.Event(), Script(("a", Stall()))
    async with service(tmp_path, reply) as s, s.client() as client:
        for number in range(MOST_ASIDE + 1):
            await client.send("list_models", request_id=str(number))
        # the last is one too many
        [error] = await client.until("error")
        assert (error["error_code"], error["request_id"]) == ("OVERLOADED", str(MOST_ASIDE))
        await client.send("user_message", message="go")
        await client.until("assistant_delta")
        await client.send("stop")
        assert (await client.until("turn_finished"))[-1]["outcome"] == "stopped"
        gate.set()
        for _ in range(MOST_ASIDE):
            await client.until("models")
        assert len([asked for asked in s.provider.requests if asked.json is None]) == 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (fail(401, "bad key sk-planted-4711"), "LLM_AUTH_FAILED"),
        (fail(404), "NOT_FOUND"),
        (fail(429), "LLM_RATE_LIMITED"),
        (fail(503), "LLM_UNAVAILABLE"),
        (page("<html>sk-planted-4711</html>"), "LLM_UNAVAILABLE"),
    ],
)
async def test_what_goes_wrong_is_typed_and_without_secrets(
    tmp_path: Path, reply: Script, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KEY", "sk-planted-4711")
    settings = {"llm": {"providers": {"fake": {"api_key_env": "FAKE_KEY"}}}}
    async with service(tmp_path, reply, settings=settings) as s, s.client() as client:
        await client.send("list_models", request_id="m")
        [*_, error] = await client.until("error")
        assert (error["error_code"], error["request_id"]) == (code, "m")
        assert "planted" not in json.dumps(error)
        assert (await s.provider.request(1)).headers["authorization"] == "Bearer sk-planted-4711"
        await client.send("list_models", provider="nobody")
        [*_, error] = await client.until("error")
        assert error["error_code"] == "LLM_NOT_CONFIGURED"
        assert not of_type(client.seen, "models")

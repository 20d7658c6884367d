"""Planted secrets on every way in which a provider can fail: nowhere to be found afterwards.

The provider says back what it was sent, in every place where it can say something. Looked through are all logs,
everything that the client got, status, metrics and the other pages, and every byte of the state directory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol.errors import Code
from tests.fakes import Asked, Cut, FakeProvider, Script, Stall, fail, page, raw, say
from tests.service import of_type, service

KEY = "sk-planted/qwzx&secret"
ORG = "org-planted-vkjy"


def echo(asked: Asked) -> str:
    """What the provider says: all that it must not know."""
    return f"{asked.headers['authorization']} of {asked.headers['x-org']}"


def event(asked: Asked, **error: Any) -> Script:
    return Script(({"error": {"message": echo(asked), **error}},))


def escaped(asked: Asked) -> bytes:
    return b'{"error":{"message":"' + echo(asked).replace("/", "\\/").encode() + b'"'  # cut off: no JSON


WAYS: dict[str, tuple[Callable[[Asked], Script], Code]] = {
    "400": (lambda a: fail(400, echo(a)), Code.LLM_REJECTED),
    "401": (lambda a: fail(401, f"Incorrect API key: {echo(a)}"), Code.LLM_AUTH_FAILED),
    "402": (lambda a: fail(402, echo(a)), Code.LLM_RATE_LIMITED),
    "404": (lambda a: fail(404, echo(a)), Code.LLM_REJECTED),
    "413": (lambda a: fail(413, echo(a)), Code.LLM_CONTEXT_TOO_LONG),
    "429": (lambda a: fail(429, echo(a)), Code.LLM_RATE_LIMITED),
    "500": (lambda a: fail(500, echo(a)), Code.LLM_UNAVAILABLE),
    "an error that is cut in two": (lambda a: fail(400, "x" * 285 + echo(a)), Code.LLM_REJECTED),
    "an error that is no JSON": (
        lambda a: Script((escaped(a),), 400, content_type="application/json", done=False),
        Code.LLM_REJECTED,
    ),
    "a redirect": (
        lambda a: fail(307, echo(a), {"Location": f"http://127.0.0.1:9/?{KEY}"}),
        Code.LLM_REJECTED,
    ),
    "a page": (lambda a: page(f"<title>{echo(a)}</title>"), Code.LLM_UNAVAILABLE),
    "a page that writes & as pages do": (
        lambda a: page(f"<p>{echo(a).replace('&', '&amp;')}", 503),
        Code.LLM_UNAVAILABLE,
    ),
    "an error in the stream": (lambda a: event(a), Code.LLM_UNAVAILABLE),
    "an error in the stream, with a status": (lambda a: event(a, code=429), Code.LLM_RATE_LIMITED),
    "an error after text": (lambda a: Script(("some", *event(a).items)), Code.LLM_UNAVAILABLE),
    "an error event": (lambda a: raw(f"event: error\ndata: {echo(a)}\n\n".encode()), Code.LLM_UNAVAILABLE),
    "a chunk that is none": (lambda a: raw(f"data: {echo(a)}\n\n".encode()), Code.LLM_STREAM_BROKEN),
    "no stream at all": (lambda a: raw(echo(a).encode()), Code.LLM_STREAM_BROKEN),
    "a coding": (
        lambda a: Script((b"x",), headers={"Content-Encoding": f"br, {ORG}"}, done=False),
        Code.LLM_UNAVAILABLE,
    ),
    "a cut": (lambda a: Script(("some", Cut(reset=True))), Code.LLM_STREAM_BROKEN),
    "silence": (lambda a: Script(before_head=Stall()), Code.LLM_UNAVAILABLE),
    "silence after text": (lambda a: Script(("some", Stall())), Code.LLM_STREAM_BROKEN),
}


async def test_what_is_sent_is_found_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PLANTED_KEY", KEY)
    monkeypatch.setenv("PLANTED_ORG", ORG)
    upstreams: list[FakeProvider] = []
    names = list(WAYS)

    def reply(asked: Any) -> Script:
        said = asked["messages"][-1]["content"]
        return WAYS[said][0](upstreams[0].requests[-1]) if said in WAYS else say("fine")

    client_settings = {
        "headers": {"X-Org": "id=${PLANTED_ORG}"},
        "retries": 0,
        "first_token_timeout": 0.5,
        "idle_timeout": 0.5,
        "breaker": {"failures": 0},
    }
    provider = {"api_key_env": "PLANTED_KEY", "client": client_settings}
    settings = {
        "llm": {"providers": {"fake": provider}},
        "chat": {"service": {"logging": {"llm_replies": True, "system_prompt": True}}},
    }
    told: list[str] = []
    async with service(tmp_path, reply, settings=settings) as s, s.client() as client:
        upstreams.append(s.provider)
        for name in [*names, "and at last"]:
            frames = await client.say(name)
            errors = [frame["error_code"] for frame in of_type(frames, "error")]
            assert errors == ([WAYS[name][1]] if name in WAYS else []), name
        asked = s.provider.requests[0]
        assert (asked.headers["authorization"], asked.headers["x-org"]) == (f"Bearer {KEY}", f"id={ORG}")
        await client.send("get_config")
        await client.until("config")
        for path in ("/status", "/readyz", "/metrics", "/sessions", "/schema"):
            told.append((await s.get(path))[2].decode("utf-8", "replace"))
        told += map(str, client.seen)
    told += [record.getMessage() + str(record.__dict__) for record in caplog.records]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]  # noqa: ASYNC240  # nothing else runs by now
    assert any(path.suffix == ".db" for path in files)
    told += [(await trio.Path(path).read_bytes()).decode("utf-8", "replace") for path in files]
    assert any("[redacted]" in text for text in told)
    for text in told:
        for secret in (KEY, KEY.replace("/", "\\/"), KEY.replace("&", "&amp;"), "qwzx", ORG):
            at = text.find(secret)
            assert at < 0, text[max(0, at - 300) : at + 100]

"""Providers that change, fail and step in while turns run, seen by a client: who is asked, who answers, who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes import FakeProvider, Script, Stall, ask_tool, fail, say
from tests.service import LIGHT, of_type, service
from tests.test_keys import change
from tests.test_metrics import scraped, value


async def test_a_fallback_that_answers_is_told_paid_and_kept_for_the_turn(tmp_path: Path) -> None:
    prices = {"input": 1.0, "output": 10.0}
    async with FakeProvider(ask_tool("add", {"a": 1, "b": 2}, text=("Well. ",)), say("three")) as spare:
        entry = {"base_url": spare.base_url, "model": "spare-1", "client": {"prices": prices, "retries": 0}}
        settings = {"llm": {"fallbacks": ["spare", "fake"], "providers": {"spare": entry}}}
        replies = (fail(500), say("I am back"))
        async with service(tmp_path, *replies, settings=settings, servers=LIGHT) as s, s.client() as client:
            frames = await client.say("1+2?")
            started, [message] = frames[0], of_type(frames, "assistant_message")
            assert (started["provider"], started["model"], started["fallbacks"]) == ("fake", "fake-1", ["spare"])
            assert (message["message"], message["provider"]) == ("Well. three", "spare")
            assert message["usage"]["cost"] == pytest.approx((22 * 1.0 + 14 * 10.0) / 1e6)
            # the second round went to who had answered the first, and to nobody else
            assert (len(s.provider.requests), len(spare.requests)) == (1, 2)
            assert spare.requests[0].json["model"] == "spare-1"
            # the next turn begins with the active one again
            [message] = of_type(await client.say("and now?"), "assistant_message")
            assert (message["message"], message["provider"]) == ("I am back", "fake")
            assert "cost" not in message["usage"]
            families, _ = await scraped(s)
            assert value(families, "tokens_total", provider="spare", model="spare-1", kind="input") == 22
            assert value(families, "llm_requests_total", provider="spare", outcome="finished") == 2
            await client.send("history")
            answers = [m for m in (await client.until("history"))[-1]["messages"] if m["role"] == "assistant"]
            assert [m["provider"] for m in answers] == ["spare", "fake"]


async def test_a_running_turn_keeps_provider_model_and_parameters_in_all_its_rounds(tmp_path: Path) -> None:
    def first(asked: Any) -> Script:
        return say("from the first") if asked["messages"][-1]["role"] == "tool" else tool

    gate = trio.Event()
    tool = Script(("Let me see. ", Stall(gate), *ask_tool("add", {"a": 1, "b": 2}).items))
    entry = {"temperature": 0.1, "client": {"headers": {"X-Team": "blue"}}}
    async with (
        FakeProvider(say("from the other")) as other,
        service(tmp_path, first, settings={"llm": {"providers": {"fake": entry}}}, servers=LIGHT) as s,
        s.client() as client,
    ):
        await client.send("user_message", message="go")
        await client.until("assistant_delta")
        changed = {"model": "fake-2", "temperature": 0.9, "base_url": other.base_url, "client": {"headers": None}}
        added = {"base_url": other.base_url, "model": "other-1"}
        await change(s, client, {"llm": {"active": "other", "providers": {"fake": changed, "other": added}}})
        gate.set()
        await client.until("turn_finished")
        assert len(other.requests) == 0
        one, two = (asked for asked in s.provider.requests)
        for asked in (one, two):
            assert (asked.json["model"], asked.json["temperature"]) == ("fake-1", 0.1)
            assert asked.headers["x-team"] == "blue"
        frames = await client.say("next")
        assert (frames[0]["provider"], frames[0]["model"]) == ("other", "other-1")
        assert of_type(frames, "assistant_message")[0]["message"] == "from the other"

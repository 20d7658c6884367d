"""What answers have used: counted whatever form the provider chose, priced, told, and kept."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.usage import MOST, added, cost_of, priced, tokens
from protocol.watcher import PriceOptions
from tests.fakes import ask_tool, say
from tests.service import LIGHT, of_type, service
from tests.test_keys import change

PRICES = PriceOptions(input=2.0, output=8.0, cached=0.5)
FORMS: dict[str, tuple[Any, dict[str, int]]] = {
    "OpenAI": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 5},
        },
        {"input": 100, "output": 20, "cached": 60, "reasoning": 5},
    ),
    "OpenAI, responses": (
        {"input_tokens": 1, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}},
        {"input": 1, "output": 2, "cached": 1},
    ),
    "DeepSeek": (
        {"prompt_tokens": 5, "completion_tokens": 1, "prompt_cache_hit_tokens": 3, "prompt_cache_miss_tokens": 2},
        {"input": 5, "output": 1, "cached": 3},
    ),
    "no details": (
        {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": None},
        {"input": 5, "output": 1},
    ),
    "half": ({"completion_tokens": 7}, {"output": 7}),
    "nothing": (None, {}),
    "nonsense": (
        {
            "prompt_tokens": "11",
            "completion_tokens": -1,
            "prompt_tokens_details": [1],
            "reasoning_tokens": True,
            "input_tokens": MOST * 4,
            "output_tokens": 1.5,
        },
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_found_where_providers_tell_them(form: str) -> None:
    usage, expected = FORMS[form]
    assert tokens(usage) == expected


def test_cost_is_counted_where_prices_and_counts_are_known() -> None:
    usage = FORMS["OpenAI"][0]
    assert cost_of(usage, PRICES) == (40 * 2.0 + 60 * 0.5 + 20 * 8.0) / 1e6
    assert cost_of(usage, PriceOptions(input=2.0, output=8.0)) == (100 * 2.0 + 20 * 8.0) / 1e6
    assert cost_of(usage, PriceOptions(output=8.0)) == 20 * 8.0 / 1e6
    assert cost_of(usage, PriceOptions(input=0.0, output=0.0)) == 0.0
    assert cost_of({"prompt_tokens": 1, "prompt_cache_hit_tokens": 9}, PRICES) == 0.5 / 1e6
    for usage_, prices in ((usage, PriceOptions()), (None, PRICES), ({"total_tokens": 3}, PRICES)):
        assert cost_of(usage_, prices) is None
    # what the provider says that it took stays, unless the operator has prices
    own = {"prompt_tokens": 1_000_000, "cost": 0.25}
    assert priced(own, PriceOptions()) == own
    assert priced(own, PRICES) == {"prompt_tokens": 1_000_000, "cost": 2.0}
    assert priced(None, PRICES) is None


NUMBERS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000))
USAGES = st.lists(st.fixed_dictionaries({}, optional={"n": st.integers(0, 1000), "in": NUMBERS}))


@given(USAGES)
def test_sums_are_of_all_numbers_also_inside(usages: list[dict[str, Any]]) -> None:
    total: dict[str, Any] = reduce(added, usages, {})
    assert total.get("n", 0) == sum(usage.get("n", 0) for usage in usages)
    for key in "abc":
        assert total.get("in", {}).get(key, 0) == sum(usage.get("in", {}).get(key, 0) for usage in usages)


def test_what_is_no_number_is_the_last_one() -> None:
    total = added({"tier": "a", "yes": True, "n": 1, "d": 3}, {"tier": "b", "yes": True, "n": 2.5, "d": {"x": 1}})
    assert total == {"tier": "b", "yes": True, "n": 3.5, "d": {"x": 1}}
    assert added({"n": 1}, None) == {"n": 1}


async def test_what_an_answer_costs_is_told_and_kept_and_prices_change_live(tmp_path: Path) -> None:
    prices = {"input": 1.0, "output": 10.0}
    settings = {"llm": {"providers": {"fake": {"client": {"prices": prices}}}}}
    cached = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 50}}
    replies = (ask_tool("add", {"a": 1, "b": 2}), say("three"), say("x", usage=cached), say("y", usage=None))
    async with service(tmp_path, *replies, settings=settings, servers=LIGHT) as s, s.client() as client:
        [message] = of_type(await client.say("1+2?"), "assistant_message")
        # two answers of 11 and 7 tokens each
        used = {"prompt_tokens": 22, "completion_tokens": 14, "total_tokens": 36, "cost": 0.000162}
        assert message["usage"] == used
        assert message["provider"] == "fake"
        await change(s, client, {"llm": {"providers": {"fake": {"client": {"prices": {"cached": 0.5}}}}}})
        [message] = of_type(await client.say("and now"), "assistant_message")
        assert message["usage"]["cost"] == pytest.approx((50 * 1.0 + 50 * 0.5 + 10 * 10.0) / 1e6)
        [message] = of_type(await client.say("and then"), "assistant_message")
        assert "usage" not in message
        await client.send("history")
        answers = [m for m in (await client.until("history"))[-1]["messages"] if m["role"] == "assistant"]
        assert (answers[0]["usage"], answers[0]["provider"], answers[0]["model"]) == (used, "fake", "fake-model")

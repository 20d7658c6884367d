"""What answers have used: tokens as their providers count them, summed and priced.

Pure. A usage object is a stranger's: any keys, any values. Numbers are summed, also inside of it (cached and reasoning
tokens are told there); of all else the last is kept. Where prices are configured `cost` is ours, in the
operator's currency; where none are, a `cost` of the provider's own stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from protocol.watcher import PriceOptions

MOST = 2**53  # tokens; beyond it is no count
MILLION = 1_000_000
COST_DIGITS = 12  # of the fraction: a token of the cheapest model costs 0.00000001

PLACES: dict[str, tuple[tuple[str, ...], ...]] = {
    "input": (("prompt_tokens",), ("input_tokens",)),
    "output": (("completion_tokens",), ("output_tokens",)),
    "cached": (
        ("prompt_tokens_details", "cached_tokens"),
        ("input_tokens_details", "cached_tokens"),
        ("prompt_cache_hit_tokens",),
        ("cache_read_input_tokens",),
    ),
    "reasoning": (
        ("completion_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
        ("reasoning_tokens",),
    ),
}
"""Where providers tell how many tokens of a kind there were; the first that says something counts.

`input` has those in `cached` in it, `output` those in `reasoning`.
"""


NOTHING_USED: Mapping[str, Any] = MappingProxyType({})


def added(total: Mapping[str, Any], usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both together."""
    both = dict(total)
    for key, value in (usage or {}).items():
        before = both.get(key)
        if isinstance(value, dict):
            both[key] = added(before if isinstance(before, dict) else {}, value)
        elif _is_number(value) and _is_number(before):
            both[key] = round(before + value, COST_DIGITS)
        else:
            both[key] = value
    return both


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def tokens(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """Tokens by kind, as in PLACES; kinds of which nothing is said are missing."""
    found: dict[str, int] = {}
    for kind, places in PLACES.items():
        for place in places:
            count: Any = usage
            for key in place:
                count = count.get(key) if isinstance(count, Mapping) else None
            if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MOST:
                found[kind] = count
                break
    return found


def cost_of(usage: Mapping[str, Any] | None, prices: PriceOptions) -> float | None:
    """What it costs; None where prices or counts are missing."""
    used = tokens(usage)
    if prices.input is None and prices.output is None:
        return None
    if "input" not in used and "output" not in used:
        return None
    cached = min(used.get("cached", 0), used.get("input", 0))
    read = prices.input or 0.0
    again = read if prices.cached is None else prices.cached
    paid = (used.get("input", 0) - cached) * read + cached * again + used.get("output", 0) * (prices.output or 0.0)
    return round(paid / MILLION, COST_DIGITS)


def priced(usage: dict[str, Any] | None, prices: PriceOptions) -> dict[str, Any] | None:
    """The usage with our `cost` in it, where there is one."""
    cost = cost_of(usage, prices)
    return usage if usage is None or cost is None else {**usage, "cost": cost}

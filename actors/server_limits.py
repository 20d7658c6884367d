"""What one MCP server may take: the keys of `limits` and `breaker` of its entry, each with its rule.

Pure. A rule gives the value as it is used, or says in a ValueError what is wrong; what is not there has the
default of `protocol.watcher`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

Rule = Callable[[object], Any]


def _whole(least: int, most: int) -> Rule:
    def rule(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        return _raise(f"must be a whole number from {least} to {most}")

    return rule


def _or_null(rule: Rule) -> Rule:
    def nullable(value: object) -> Any:
        try:
            return None if value is None else rule(value)
        except ValueError as error:
            return _raise(f"{error}, or null")

    return nullable


def _seconds(value: object) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int | float) and good and math.isfinite(value) and 0 < value <= 1_000_000:
        return float(value)
    return _raise("must be a number of seconds above 0 and up to 1000000")


def _raise(words: str) -> NoReturn:
    raise ValueError(words)


LIMITS: dict[str, Rule] = {
    "result_bytes": _whole(100, 2**26),
    "line_bytes": _whole(1024, 2**30),
    "concurrent": _whole(1, 1000),
    "queue": _whole(0, 10_000),
    "per_minute": _or_null(_whole(1, 1_000_000)),
    "cpu_seconds": _or_null(_whole(1, 10**9)),
    "memory_mb": _or_null(_whole(1, 2**30)),
    "idle_timeout": _or_null(_seconds),
}
"""Keys of `protocol.watcher.ServerLimits`."""

BREAKER: dict[str, Rule] = {"failures": _whole(0, 1000), "rest": _seconds}
"""Keys of `protocol.watcher.BreakerOptions`."""

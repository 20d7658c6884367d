"""What one front has counted since its process began: turns, answers, tokens, costs, tool calls.

Plain numbers by name and labels, as `/metrics` shows them; nothing per token. Labels are names of the configuration
and words of ours, never what a provider, a tool or a client says: the number of series stays bounded, and nothing of
a conversation or its owner is in them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from actors.usage import MOST, tokens
from protocol.gateway import Figure
from protocol.streamer import Failed, Finished
from protocol.watcher import Provider

Key = tuple[str, tuple[tuple[str, str], ...]]


class Tally:
    """Counts; all of it only grows."""

    def __init__(self) -> None:
        self._counts: defaultdict[Key, float] = defaultdict(float)

    def _add(self, name: str, value: float = 1, **labels: str) -> None:
        self._counts[name, tuple(labels.items())] += value

    def turn(self, outcome: str) -> None:
        """A turn has ended."""
        self._add("turns_total", outcome=outcome)

    def request(self, provider: Provider | None, end: object) -> None:
        """A request to a model has ended: `Finished`, `Failed`, or anything else: with the part that ran it.

        Args:
            provider: who answered, or was asked; None where there is none of that name.
            end: with its usage priced.
        """
        name, model = (provider.name, provider.model) if provider is not None else ("", "")
        match end:
            case Finished():
                self._add("llm_requests_total", provider=name, outcome="finished")
                self._used(name, model, end.usage or {})
            case Failed():
                self._add("llm_requests_total", provider=name, outcome=str(end.fault.code))
            case _:
                self._add("llm_requests_total", provider=name, outcome="lost")

    def _used(self, provider: str, model: str, usage: dict[str, Any]) -> None:
        for kind, count in tokens(usage).items():
            self._add("tokens_total", count, provider=provider, model=model, kind=kind)
        cost = usage.get("cost")
        if isinstance(cost, int | float) and 0 <= cost < MOST:
            self._add("cost_total", cost, provider=provider, model=model)

    def tool_call(self, server: str, outcome: str) -> None:
        """A tool call has its outcome."""
        self._add("tool_calls_total", server=server, outcome=outcome)

    def figures(self) -> list[Figure]:
        """All that was counted."""
        return [Figure(name, value, dict(labels)) for (name, labels), value in self._counts.items()]

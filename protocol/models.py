"""What is asked of the streamer about the models that a provider offers, and what it answers."""

from __future__ import annotations

import msgspec

from protocol.mail import Request


class OfferedModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model, as far as its provider says anything of it."""

    id: str
    """What `llm.providers.<name>.model` is set to."""
    name: str = ""
    """For people; absent: none but the id."""
    context_tokens: int | None = None
    """Its context window."""
    input_price: float | None = None
    """Of a million tokens that it reads, in the provider's currency."""
    output_price: float | None = None
    """Of a million tokens that it writes."""
    features: list[str] = []
    """Of `vision`, `audio`, `tools`, `reasoning`, `structured_output`; sorted. Absent ones may only be unsaid."""


class ModelList(msgspec.Struct, frozen=True):
    """The models of a provider."""

    provider: str
    at: float
    """When the provider was asked; Unix time in seconds."""
    models: list[OfferedModel]
    """Ordered by id."""


class ListModels(Request[ModelList], frozen=True, tag=True):
    """Ask: the models of a provider; kept for some minutes.

    Faults: LLM_NOT_CONFIGURED (no such provider, or no key), LLM_AUTH_FAILED, LLM_RATE_LIMITED, LLM_UNAVAILABLE,
    LLM_REJECTED, NOT_FOUND (it has no list).
    """

    provider: str = ""
    """Name under `llm.providers`; empty: the active one."""
    refresh: bool = False
    """Ask the provider, whatever is kept."""

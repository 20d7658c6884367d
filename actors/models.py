"""The models that providers offer: asked once, kept for a while, read out of whatever form the answer has.

`GET {base_url}/models` with the provider's own client, key and headers. Who asks while the answer is on its way waits
for the same one. What is kept is forgotten with the address that it came from, and with the streamer.

Providers agree on `{"data": [{"id": ...}]}` and on nothing else: prices are texts a token here and numbers a million
there, the context window has seven names. What is not understood of a model is left out, never an error;
no list at all is one. Fails with `Fault` only.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import trio

from actors.provider import Clients
from actors.sending import Sending, prepare
from actors.verdict import Complaint, of_status
from protocol.errors import Code, Fault
from protocol.models import ListModels, ModelList, OfferedModel
from protocol.watcher import Llm, Provider

log = logging.getLogger("actors.streamer")

KEPT_S = 600.0  # providers add models by the day
REFRESHED_S = 10.0  # where a client wants it anew: no client makes us ask all the time
ANSWER_S = 15.0  # for the whole list: routers have half a megabyte of it
MOST_BYTES = 16 * 2**20  # of an answer
MOST_MODELS = 5_000
MOST_CHARS = 200  # of an id or a name
MILLION = 1_000_000

CONTEXT = (
    ("context_length",),
    ("context_window",),
    ("max_context_length",),
    ("max_model_len",),
    ("top_provider", "context_length"),
    ("limits", "max_context_window_tokens"),
    ("meta", "n_ctx_train"),
)
"""Where the context window is told."""

PRICES: dict[str, tuple[tuple[tuple[str, ...], int], ...]] = {
    "input_price": (
        (("pricing", "prompt"), MILLION),
        (("pricing", "input"), 1),
        (("metadata", "pricing", "input_tokens"), 1),
    ),
    "output_price": (
        (("pricing", "completion"), MILLION),
        (("pricing", "output"), 1),
        (("metadata", "pricing", "output_tokens"), 1),
    ),
}
"""Where prices are told, and how many of that unit are a million tokens' price."""

FEATURES = {
    "vision": {"vision", "image", "image_input", "images"},
    "audio": {"audio", "audio_input"},
    "tools": {"tools", "tool_use", "tool_calling", "function_calling", "tool_choice"},
    "reasoning": {"reasoning", "include_reasoning", "thinking"},
    "structured_output": {"structured_outputs", "structured_output", "json_schema"},
}
"""Words that say that a model can do something, wherever they are told."""

WORDS = (("supported_parameters",), ("architecture", "input_modalities"), ("features",), ("capabilities",), ("tags",))
"""Where such words are told: lists, or mappings to true."""


class _Kept(NamedTuple):
    address: str
    at: float
    found: ModelList


class ModelLists:
    """Lists of the providers that were asked for.

    Args:
        clients: of the providers.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._kept: dict[str, _Kept] = {}
        self._asking: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def answer(self, message: ListModels, llm: Llm) -> ModelList | Fault:
        """The list, or why there is none."""
        provider = llm.providers.get(message.provider or llm.active)
        if provider is None:
            named = f"{message.provider or llm.active!r}"
            return Fault(Code.LLM_NOT_CONFIGURED, f"The configuration has no provider {named}.")
        try:
            async with self._asking[provider.name]:
                kept = self._kept.get(provider.name)
                most_s = REFRESHED_S if message.refresh else KEPT_S
                if kept is None or kept.address != provider.base_url or trio.current_time() - kept.at > most_s:
                    found = ModelList(provider.name, time.time(), await self._ask(provider))
                    kept = self._kept[provider.name] = _Kept(provider.base_url, trio.current_time(), found)
                return kept.found
        except Fault as fault:
            return fault
        except Exception:  # the boundary: whatever a stranger's list provokes ends here
            log.exception("the models of %s could not be listed", provider.name)
            return Fault(Code.INTERNAL)

    async def _ask(self, provider: Provider) -> list[OfferedModel]:
        sending: Sending | None = None
        try:
            sending = prepare(provider)
            with trio.move_on_after(ANSWER_S):
                async with self._clients.using(provider) as client, await client.list_models(sending) as answer:
                    body = await answer.read(MOST_BYTES)
                    if answer.status in (404, 405, 501):
                        raise Fault(Code.NOT_FOUND, f"{provider.name}: it has no list of models.")
                    if not 200 <= answer.status < 300:
                        raise of_status(answer.status, body, answer.after_s)
                    found = read(body)
                    if found is None:
                        raise Complaint(Code.LLM_UNAVAILABLE, "its list of models is not readable")
                    return found
        except Complaint as complaint:
            raise complaint.fault(provider.name, sending.redact if sending is not None else str) from None
        raise Fault(Code.LLM_UNAVAILABLE, f"{provider.name}: no list of models within {ANSWER_S:g} s.")


def read(body: bytes) -> list[OfferedModel] | None:
    """The models of an answer, ordered by id; None: it is no list of models."""
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError):  # a page, or cut at our bound
        return None
    if isinstance(answer, dict):
        answer = answer.get("data", answer.get("models"))
    if not isinstance(answer, list):
        return None
    found = {model.id: model for entry in answer[:MOST_MODELS] if (model := _model(entry)) is not None}
    return [found[id] for id in sorted(found)]


def _model(entry: object) -> OfferedModel | None:
    if not isinstance(entry, dict) or not isinstance(id := entry.get("id"), str) or not 0 < len(id) <= MOST_CHARS:
        return None
    name = next((value for key in ("name", "display_name") if isinstance(value := entry.get(key), str)), "")
    context = next((n for place in CONTEXT if isinstance(n := _at(entry, place), int) and 0 < n < 2**53), None)
    prices = {key: _price(entry, places) for key, places in PRICES.items()}
    said = set(_words(entry))
    features = sorted(feature for feature, words in FEATURES.items() if words & said)
    return OfferedModel(
        id=id,
        name="" if name == id else name[:MOST_CHARS],
        context_tokens=context,
        input_price=prices["input_price"],
        output_price=prices["output_price"],
        features=features,
    )


def _at(entry: object, place: tuple[str, ...]) -> Any:
    for key in place:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return None if isinstance(entry, bool) else entry


def _price(entry: object, places: tuple[tuple[tuple[str, ...], int], ...]) -> float | None:
    for place, per in places:
        value = _at(entry, place)
        try:
            price = float(value) if isinstance(value, str | int | float) else -1.0
        except (ValueError, OverflowError):  # words
            continue
        if 0 <= price * per < 1e12:  # -1: it depends
            return round(price * per, 6)
    return None


def _words(entry: object) -> Iterator[str]:
    for place in WORDS:
        value = _at(entry, place)
        if isinstance(value, Mapping):
            value = [key for key, yes in value.items() if yes is True]
        for word in value if isinstance(value, list) else ():
            if isinstance(word, str):
                yield word.lower().replace("-", "_")

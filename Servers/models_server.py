"""An MCP server with which the model finds models: by words, price, context window and features.

Stands alone: `python -m Servers.models_server` speaks MCP over standard input and output, asks
`GET {MODELS_BASE_URL}/models` of an OpenAI-compatible service (default: OpenRouter, whose list is public and priced)
and changes nothing. MODELS_KEY_VARIABLE names the environment variable with the key, where one is needed;
the key is sent to that address only, and never shown. The list is kept for some minutes.

Providers agree on `{"data": [{"id": ...}]}` and on little else; what is not understood of a model is left out. What
fails (no address, no answer, an error, no list) is told to the model as the tool's error.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

BASE_URL, KEY_VARIABLE = "MODELS_BASE_URL", "MODELS_KEY_VARIABLE"
DEFAULT_URL = "https://openrouter.ai/api/v1"
KEPT_S = 600.0  # providers add models by the day
TIMEOUT_S = 20.0  # of one wait for bytes
MOST_BYTES = 16 * 2**20  # of an answer
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
WORDS = (("supported_parameters",), ("architecture", "input_modalities"), ("features",), ("capabilities",), ("tags",))
"""Where words that say what a model can do are told: lists, or mappings to true."""

READING = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True)

Feature = Literal["vision", "audio", "tools", "reasoning", "structured_output"]
Order = Literal["price", "context", "name"]

server = MCPServer(
    "models",
    instructions=(
        "Finds language models of the provider and tells their prices, context windows and features. It changes "
        "nothing: to use another model, change the configuration."
    ),
    log_level="WARNING",
)


class Model(BaseModel):
    """One model, as far as its provider says anything of it."""

    id: str
    name: str = ""
    context_tokens: int | None = None
    input_price: float | None = Field(None, description="of a million tokens that it reads")
    output_price: float | None = Field(None, description="of a million tokens that it writes")
    features: list[str] = []


class Found(BaseModel):
    """The models that fit."""

    models: list[Model]
    more: int = Field(description="how many more fit")


class _Kept:
    lock = threading.Lock()
    at = 0.0
    models: tuple[Model, ...] = ()


def listed() -> tuple[Model, ...]:
    """All models, at most KEPT_S old. Raises ToolError."""
    with _Kept.lock:  # tools run in threads; who comes second gets the same answer
        if not _Kept.models or time.monotonic() - _Kept.at > KEPT_S:
            _Kept.models, _Kept.at = tuple(fetched()), time.monotonic()
        return _Kept.models


def fetched() -> list[Model]:
    """All models, asked for now. Raises ToolError."""
    url = urlsplit(os.environ.get(BASE_URL) or DEFAULT_URL)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ToolError(f"{BASE_URL} is no address such as {DEFAULT_URL}.")
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "mcp-actors-models"}
    variable = os.environ.get(KEY_VARIABLE, "")
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not (key and key.isascii() and key.isprintable()):
        raise ToolError(f"The environment variable {variable}, which {KEY_VARIABLE} names, holds no key.")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{url.path.rstrip('/')}/models", headers=headers)
        answer = connection.getresponse()  # a redirect is not followed: the key is for this address
        body, status = answer.read(MOST_BYTES + 1), answer.status
    except (OSError, http.client.HTTPException) as error:
        raise ToolError(f"{url.hostname} does not answer: {type(error).__name__}.") from None
    finally:
        connection.close()
    # the provider's own words stay unsaid: they may quote the key
    if status != http.client.OK:
        raise ToolError(f"{url.hostname} answered with HTTP {status} instead of a list of models.")
    found = read(body) if len(body) <= MOST_BYTES else None
    if found is None:
        raise ToolError(f"{url.hostname} has no list of models that can be read.")
    return found


def read(body: bytes) -> list[Model] | None:
    """The models of an answer, ordered by id; None: it is no list of models."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(answer, dict):
        answer = answer.get("data", answer.get("models"))
    if not isinstance(answer, list):
        return None
    found = {model.id: model for entry in answer if (model := _model(entry)) is not None}
    return [found[id] for id in sorted(found)]


def _model(entry: object) -> Model | None:
    if not isinstance(entry, dict) or not isinstance(id := entry.get("id"), str) or not 0 < len(id) <= MOST_CHARS:
        return None
    name = next((value for key in ("name", "display_name") if isinstance(value := entry.get(key), str)), "")
    said = set(_words(entry))
    return Model(
        id=id,
        name="" if name == id else name[:MOST_CHARS],
        context_tokens=next((n for place in CONTEXT if isinstance(n := _at(entry, place), int) and n > 0), None),
        input_price=_price(entry, PRICES["input_price"]),
        output_price=_price(entry, PRICES["output_price"]),
        features=sorted(feature for feature, words in FEATURES.items() if words & said),
    )


def _at(entry: object, place: tuple[str, ...]) -> Any:
    for key in place:
        entry = entry.get(key) if isinstance(entry, dict) else None
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
        if isinstance(value, dict):
            value = [key for key, yes in value.items() if yes is True]
        for word in value if isinstance(value, list) else ():
            if isinstance(word, str):
                yield word.lower().replace("-", "_")


@server.tool(annotations=READING)
def search_models(
    query: Annotated[str, Field(max_length=200, description="words that must all be in the id or the name")] = "",
    features: Annotated[list[Feature] | None, Field(description="what it must be able to do")] = None,
    max_input_price: Annotated[float | None, Field(ge=0, description="of a million tokens that it reads")] = None,
    max_output_price: Annotated[float | None, Field(ge=0, description="of a million tokens that it writes")] = None,
    min_context_tokens: Annotated[int | None, Field(ge=1, description="its context window at least")] = None,
    order: Annotated[Order, Field(description="cheapest, largest context window, or name first")] = "price",
    limit: Annotated[int, Field(ge=1, le=100)] = 20,
) -> Found:
    """Find models. One of which the provider does not say what is asked for is not found."""
    words, wanted = query.lower().split(), set(features or ())
    fitting = [
        model
        for model in listed()
        if all(word in f"{model.id} {model.name}".lower() for word in words)
        and wanted <= set(model.features)
        and _below(model.input_price, max_input_price)
        and _below(model.output_price, max_output_price)
        and (min_context_tokens is None or (model.context_tokens or 0) >= min_context_tokens)
    ]
    match order:
        case "price":
            fitting.sort(key=lambda model: (_known(model.input_price), _known(model.output_price), model.id))
        case "context":
            fitting.sort(key=lambda model: (-(model.context_tokens or 0), model.id))
        case "name":
            fitting.sort(key=lambda model: model.id)
    return Found(models=fitting[:limit], more=max(0, len(fitting) - limit))


def _below(price: float | None, most: float | None) -> bool:
    return most is None or (price is not None and price <= most)


def _known(price: float | None) -> float:
    return float("inf") if price is None else price


@server.tool(annotations=READING)
def show_model(id: Annotated[str, Field(min_length=1, max_length=MOST_CHARS)]) -> Model:
    """What the provider says of one model."""
    for model in listed():
        if model.id == id:
            return model
    close = [model.id for model in listed() if id.lower() in model.id.lower()][:5]
    raise ToolError(f"There is no model {id!r}." + (f" Is one of these meant: {', '.join(close)}?" if close else ""))


if __name__ == "__main__":
    server.run("stdio")

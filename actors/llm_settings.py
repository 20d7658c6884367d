"""The schema of `llm`: the providers, which one answers, and who steps in for it.

Beside settings.py, which has all else and says what holds for both. Everything of a provider that is ours and
not sent to the model is in its `client`.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from protocol.watcher import ClientOptions

MOST_SECONDS = 1_000_000  # eleven days; more is a mistake in the unit


def _base_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s\x00-\x1f]", text):
        raise ValueError("must be an address such as https://api.example.com/v1")
    if parts.username or parts.password:
        raise ValueError("must not hold a name or password; put the key into the environment")
    return text


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("must be the name of an environment variable, or null where no key is needed")
    return text


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise ValueError("must map header names to values of one line")
    return headers


Address = Annotated[str, AfterValidator(_base_url)]
Variable = Annotated[str, AfterValidator(_variable)]
_CLIENT = ClientOptions()


class Section(BaseModel):
    """A mapping of known keys; others are ignored here, and found by checks.py."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class LimitsSettings(Section):
    """`llm.providers.<name>.client.limits`."""

    concurrent: int | None = Field(
        _CLIENT.limits.concurrent, ge=1, le=100_000, description="requests at a time; null: as many as connections"
    )
    per_minute: int | None = Field(
        _CLIENT.limits.per_minute, ge=1, le=10**6, description="requests that begin within any minute"
    )
    queue: int = Field(_CLIENT.limits.queue, ge=0, le=10**6, description="requests that wait for their turn")
    wait: float = Field(_CLIENT.limits.wait, gt=0, le=MOST_SECONDS, description="seconds that they wait at most")


class BreakerSettings(Section):
    """`llm.providers.<name>.client.breaker`."""

    failures: int = Field(
        _CLIENT.breaker.failures, ge=0, le=1000, description="failed tries in a row until it is left alone; 0: never"
    )
    rest: float = Field(
        _CLIENT.breaker.rest, gt=0, le=3600, description="seconds that it is left alone; more if it goes on failing"
    )


class PricesSettings(Section):
    """`llm.providers.<name>.client.prices`, in any currency."""

    input: float | None = Field(
        _CLIENT.prices.input, ge=0, le=10**9, description="price of a million tokens that the model reads"
    )
    output: float | None = Field(
        _CLIENT.prices.output, ge=0, le=10**9, description="price of a million tokens that it writes"
    )
    cached: float | None = Field(
        _CLIENT.prices.cached, ge=0, le=10**9, description="price of a million tokens read before; null: as input"
    )


class ClientSettings(Section):
    """`llm.providers.<name>.client`: nothing of it is sent to the model."""

    http2: bool = Field(_CLIENT.http2, description="HTTP/2 to this provider")
    ca_file: str | None = Field(_CLIENT.ca_file, description="certificates to trust instead of the system's")
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(
        _CLIENT.headers, description="sent with every request; ${VAR} comes from the environment"
    )
    connect_timeout: float = Field(_CLIENT.connect_timeout, gt=0, le=MOST_SECONDS, description="seconds")
    first_token_timeout: float = Field(
        _CLIENT.first_token_timeout, gt=0, le=MOST_SECONDS, description="seconds until the answer begins"
    )
    idle_timeout: float = Field(
        _CLIENT.idle_timeout, gt=0, le=MOST_SECONDS, description="seconds of silence inside an answer"
    )
    total_timeout: float | None = Field(
        _CLIENT.total_timeout, gt=0, le=MOST_SECONDS, description="seconds for a whole answer"
    )
    max_connections: int = Field(_CLIENT.max_connections, ge=1, le=100_000, description="connections at a time")
    max_keepalive_connections: int = Field(
        _CLIENT.max_keepalive_connections, ge=0, le=100_000, description="idle connections that are kept"
    )
    keepalive_expiry: float = Field(
        _CLIENT.keepalive_expiry, ge=0, le=MOST_SECONDS, description="seconds that an idle connection is kept"
    )
    prewarm: int | None = Field(
        _CLIENT.prewarm, ge=0, le=100, description="connections opened ahead; null: one to an https address"
    )
    limits: LimitsSettings = Field(default_factory=lambda: LimitsSettings.model_validate({}))
    breaker: BreakerSettings = Field(default_factory=lambda: BreakerSettings.model_validate({}))
    retries: int = Field(_CLIENT.retries, ge=0, le=100, description="further tries before the first piece")
    stream: bool = Field(_CLIENT.stream, description="false: the provider is asked for whole answers")
    vision: bool = Field(
        _CLIENT.vision, description="false: the model reads text only; messages with images are refused"
    )
    context_tokens: int | None = Field(
        _CLIENT.context_tokens,
        ge=1,
        le=10**9,
        description="tokens of the model's context window (estimated): what does not fit leaves, the oldest first",
    )
    prices: PricesSettings = Field(default_factory=lambda: PricesSettings.model_validate({}))


class ProviderSettings(Section):
    """One entry of `llm.providers`; every key beside these goes to the model as it is."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    base_url: Address = Field(description="address of the OpenAI-compatible API")
    model: str = Field(min_length=1, description="the model asked for")
    api_key_env: Variable | None = Field(
        None, description="environment variable with the key; null: none is needed; default <NAME>_API_KEY"
    )
    client: ClientSettings = Field(default_factory=lambda: ClientSettings.model_validate({}))


class LlmSettings(Section):
    """`llm`."""

    active: str = Field(min_length=1, description="the provider that answers, one of llm.providers")
    fallbacks: list[str] = Field(description="providers that are asked, in this order, when that one fails")
    providers: dict[str, ProviderSettings]

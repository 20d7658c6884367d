"""What a request sends beside its body: the key and the configured headers, read when it is sent.

They come from the environment and live in the request's `Sending`, which also knows how to take them out of a
text, and as long as they stay the same in `Sendings` and the client's `Form`. Nothing here sends. Fails with
`Complaint` LLM_NOT_CONFIGURED where something is missing, or cannot be a header; what was found is never quoted.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Container, Mapping
from urllib.parse import urlsplit

import msgspec

from actors.redaction import written_as
from actors.verdict import Complaint
from protocol.errors import Code
from protocol.watcher import Provider

LOCAL = "or run `uv run --extra local actors-main` for a small model on this machine."

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SHORTEST_SECRET = 4  # header values shorter than this ("1", "on") are no secrets, and would shred any text


class Sending(msgspec.Struct, frozen=True):
    """What one request sends beside its body; holds secrets, so it is never logged nor put into messages."""

    headers: dict[str, str]
    secrets: list[str]
    """What `redact` takes out, longest first."""

    def redact(self, text: str) -> str:
        """The text without the key and the configured header values, plain or as JSON and addresses write them."""
        for secret in self.secrets:
            for written in written_as(secret):
                text = text.replace(written, "[redacted]")
        return text

    def __repr__(self) -> str:
        return "<Sending>"


class Sendings:
    """What the requests to each provider send: one object for all that send the same."""

    def __init__(self) -> None:
        self._last: dict[str, Sending] = {}

    def of(self, provider: Provider) -> Sending:
        """As `prepare`."""
        sending = prepare(provider)
        if (last := self._last.get(provider.name)) != sending or last is None:
            last = self._last[provider.name] = sending
        return last

    def keep(self, names: Container[str]) -> None:
        """Forget those of all other providers."""
        self._last = {name: sending for name, sending in self._last.items() if name in names}


def prepare(provider: Provider, environ: Mapping[str, str] = os.environ) -> Sending:
    """Read key and header variables from the environment, now. Raises Complaint LLM_NOT_CONFIGURED."""
    options = provider.client
    headers = {
        "Accept": "text/event-stream" if options.stream else "application/json",
        "Accept-Encoding": "identity",  # compressed events come late, in lumps
        "Content-Type": "application/json",
        "User-Agent": "mcp-actors",
    }
    secrets: set[str] = set()
    if provider.api_key_env is not None:
        key = environ.get(provider.api_key_env, "").strip()
        if key:
            _check_value(key, provider.api_key_env)
            headers["Authorization"] = f"Bearer {key}"
            secrets.add(key)
        elif not is_loopback(provider.base_url):
            raise Complaint(
                Code.LLM_NOT_CONFIGURED,
                f"the environment has no {provider.api_key_env}",
                hint=f"Put {provider.api_key_env}=... into the environment or .env, {LOCAL}",
            )
    for name, pattern in options.headers.items():
        value = pattern
        for variable in _VARIABLE.findall(pattern):
            filling = environ.get(variable, "").strip()
            if not filling:
                raise Complaint(
                    Code.LLM_NOT_CONFIGURED,
                    f"the environment has no {variable}, which its header {name} needs",
                    hint=f"Put {variable}=... into the environment or .env, {LOCAL}",
                )
            secrets.add(filling)
            value = value.replace(f"${{{variable}}}", filling)
        _check_value(value, f"header {name}")
        for other in [known for known in headers if known.lower() == name.lower()]:
            del headers[other]
        headers[name] = value
        if len(value) >= _SHORTEST_SECRET:
            secrets.add(value)
    return Sending(headers, sorted(secrets, key=len, reverse=True))


def _check_value(value: str, where: str) -> None:
    # httpx and h11 would quote the value in their errors.
    if not (value.isascii() and value.isprintable()):
        raise Complaint(Code.LLM_NOT_CONFIGURED, f"the value of {where} has characters that no header can carry")


def is_loopback(base_url: str) -> bool:
    """The provider runs on this machine."""
    try:
        host = urlsplit(base_url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, or no address at all

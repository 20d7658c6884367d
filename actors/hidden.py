"""Which values no log line may show: the keys that the configuration names, as the environment has them.

The last line of defence. Whoever writes a line keeps secrets out of it himself; but texts of strangers
(errors, arguments that a model writes, results of tools) may quote what they were sent. Errs on the side of
hiding, yet not by short or plain values, which would only make lines unreadable. Nothing in here fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from protocol.watcher import Provider, Snapshot

SHORTEST = 6  # characters; a shorter value stands in too many innocent words
INSTEAD = "[redacted]"

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)")
# Looser than the rule for configuration keys: hiding a harmless value costs a word of a log line.
_SECRET = re.compile(r"key|token|secret|passw|pwd|credential|auth|cookie|bearer|private", re.IGNORECASE)


def hidden(snapshot: Snapshot, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Values that no line may show, longest first, so that one within another leaves nothing over."""
    found: set[str] = set()
    for provider in snapshot.llm.providers.values():
        found.update(_of_provider(provider, environment))
    for server in snapshot.mcp.servers.values():
        for name, value in (*server.env.items(), *server.headers.items()):
            found.update(_of_setting(name, value, environment))
        found.update(environment.get(variable, "").strip() for variable in _VARIABLE.findall(server.url))
        if server.auth is not None:
            found.update(_of_setting("client_secret", server.auth.client_secret, environment))
    return tuple(sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True))


def without(text: str, values: Iterable[str]) -> str:
    """The text with each of the values blacked out. Not to be cut before: the beginning of a secret would be left."""
    for value in values:
        if value in text:
            text = text.replace(value, INSTEAD)
    return text


def _of_provider(provider: Provider, environment: Mapping[str, str]) -> Iterator[str]:
    if provider.api_key_env:
        yield environment.get(provider.api_key_env, "").strip()
    for name, value in provider.client.headers.items():
        yield from (environment.get(variable, "").strip() for variable in _VARIABLE.findall(value))
        yield from _of_setting(name, value, environment)
    for name, value in provider.parameters.items():
        # `max_tokens` and the like hold numbers; a text under such a name is somebody's key
        if isinstance(value, str):
            yield from _of_setting(name, value, environment)
    try:
        yield urlsplit(provider.base_url).password or ""
    except ValueError:  # no URL: it is told where the provider is used
        return


def _of_setting(name: str, value: str, environment: Mapping[str, str]) -> Iterator[str]:
    variables = _VARIABLE.findall(value)
    if _SECRET.search(name) and not variables:
        yield value
        yield from value.split()[1:]  # of `Bearer KEY`
    for variable in variables:
        if _SECRET.search(name) or _SECRET.search(variable):
            yield environment.get(variable, "").strip()

"""What of a configuration may be shown: which keys hold secrets, and how a wrong value is quoted.

Providers' keys belong into the environment. People write them into files all the same, so everything that
shows a value asks here first. Errs on the side of hiding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import quote

from actors.trees import Path, Tree, without

LONGEST_SHOWN = 40  # characters of a wrong value; longer ones are described

# Not `max_tokens`, `stop_token` and the like: those are parameters of models.
_SECRET = re.compile(
    r"(?:.*_)?(?:api_?key|secret|secret_key|private_key|password|passwd|passphrase|authorization)"
    r"|(?:access|auth|api|bearer|refresh|session|secret)_token|token|bearer|credentials?|cookie|set_cookie",
    re.IGNORECASE,
)
_SECRET_HEADER = re.compile(r"(?:.*[-_])?(?:key|token|secret|signature)", re.IGNORECASE)


def secret_key(name: str) -> bool:
    """Whether a key of that name holds a secret: api_key, token, password, Authorization, x-api-key, ..."""
    return _SECRET.fullmatch(name.replace("-", "_")) is not None


def secrets(tree: Tree, path: Path = ()) -> Iterator[Path]:
    """Paths of the values in `tree` that look like secrets; `${VAR}` in them is none, it names one.

    A mapping or list of such a name is looked into: in a JSON Schema `password` is a property.
    """
    headers = bool(path) and path[-1] == "headers"
    for key, value in tree.items():
        here = (*path, key)
        if isinstance(value, dict):
            yield from secrets(value, here)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    yield from secrets(item, (*here, position))
        elif value is None or (isinstance(value, str) and "${" in value):
            continue
        elif secret_key(key) or (headers and _SECRET_HEADER.fullmatch(key)):
            yield here


def redacted(tree: Tree) -> Tree:
    """`tree` without what looks like a secret, wherever it stands."""
    for path in list(secrets(tree)):
        tree = without(tree, path)
    return tree


def written_as(secret: str) -> set[str]:
    """A secret as texts may hold it: plain, or as JSON and addresses write it."""
    return {secret, secret.replace("/", "\\/"), quote(secret), quote(secret, safe="")}


def shown(path: Path, value: object) -> str:
    """A wrong value as an error quotes it: short plain values only, never one under a secret's key."""
    if any(isinstance(part, str) and (secret_key(part) or part in ("headers", "env")) for part in path):
        return "its value is not shown"
    if isinstance(value, dict):
        return "got a mapping"
    if isinstance(value, list):
        return "got a list"
    text = json.dumps(value, ensure_ascii=False)
    # A URL may hold a password; a long run of letters and digits is what keys look like.
    if len(text) > LONGEST_SHOWN or re.search(r"://|@|[A-Za-z0-9_-]{20}|\bsk-", text):
        return f"got text of {len(value)} characters" if isinstance(value, str) else "got a long number"
    return f"got {text}"

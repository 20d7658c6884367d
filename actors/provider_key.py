"""Whether the provider that is to answer can be asked: what is told to operators when its key is not there.

Beside whoever reads a snapshot: fronts tell it in `/readyz`, the watcher in the log. Pure but for the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from protocol.watcher import Provider, Snapshot


def has_key(provider: Provider, environment: Mapping[str, str] = os.environ) -> bool:
    """Its key is there, or it needs none."""
    return provider.api_key_env is None or bool(environment.get(provider.api_key_env))


def missing_key(snapshot: Snapshot) -> str:
    """Why the active provider cannot be asked; empty if it can."""
    provider = snapshot.llm.providers.get(snapshot.llm.active)
    if provider is None:
        return f"llm.active names {snapshot.llm.active!r}, which is not among llm.providers"
    if not has_key(provider):
        return f"the provider {provider.name!r} has no key: set {provider.api_key_env} in the environment or .env"
    return ""

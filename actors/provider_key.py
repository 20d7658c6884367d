"""Whether the provider that is to answer can be asked: what is told to operators when its key is not there.

Beside whoever reads a snapshot: fronts tell it in `/readyz`, the watcher in the log. Pure but for the environment.
"""

from __future__ import annotations

import os

from protocol.watcher import Snapshot


def missing_key(snapshot: Snapshot) -> str:
    """Why the active provider cannot be asked; empty if it can."""
    provider = snapshot.llm.providers.get(snapshot.llm.active)
    if provider is None:
        return f"llm.active names {snapshot.llm.active!r}, which is not among llm.providers"
    if provider.api_key_env is not None and not os.environ.get(provider.api_key_env):
        return f"the provider {provider.name!r} has no key: set {provider.api_key_env} in the environment or .env"
    return ""

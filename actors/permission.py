"""What a model may change of its own configuration through its tool: its choice of model, sampling, prompt, logs.

Not more: a changed `base_url` would send the provider's key to a stranger, a changed `host` would open the door.
Pure; asked by whoever writes the file, so no way around it is left to the tool's own server.
"""

from __future__ import annotations

from collections.abc import Iterator

from actors.trees import Path, Tree, value_at, written

WHOLE: tuple[Path, ...] = (
    ("llm", "active"),
    ("chat", "service", "system_prompt"),
    ("chat", "service", "logging"),
    ("logging",),
)
"""These and all that is below them."""

PARAMETERS = frozenset(
    {
        *("model", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
        *("max_tokens", "max_completion_tokens"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("reasoning", "reasoning_effort", "thinking", "include_reasoning", "verbosity"),
    }
)
"""Of a provider that is there, with all that is below them."""

PROVIDERS: Path = ("llm", "providers")


def refused(changes: Tree, tree: Tree) -> list[str]:
    """Keys of `changes` that a model's tool may not change.

    Args:
        tree: the configuration in force; its providers are those that there are.
    """
    return [written(path) for path in _changed(changes, ()) if not _allowed(path, tree)]


def _allowed(path: Path, tree: Tree) -> bool:
    if any(path[: len(whole)] == whole for whole in WHOLE):
        return True
    if len(path) < 4 or path[:2] != PROVIDERS:
        return False
    return path[3] in PARAMETERS and isinstance(value_at(tree, path[:3]), dict)


def _changed(changes: Tree, path: Path) -> Iterator[Path]:
    # Down to where a decision can be made: what is not a mapping, or an empty one, replaces what is there.
    for key, value in changes.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield from _changed(value, here)
        else:
            yield here

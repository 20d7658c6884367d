"""What the original backend's files say, in the places where it is here.

Its `runtime_config.yaml` loads as it is: sections that it keeps elsewhere are moved, its levels per module are
read out of their mappings, and what nothing here can follow is accepted and said once. Pure; never fails.
"""

from __future__ import annotations

from dataclasses import replace

from actors.layers import Layer, place
from actors.trees import Path, Tree, deep_merge, value_at, with_value, without, written

ELSEWHERE: dict[Path, Path] = {
    ("chat", "storage", "persistence", "saved_sessions"): ("chat", "storage", "saved_sessions"),
    ("logging", "modules", "chat", "enable_features"): ("chat", "service", "logging"),
    ("logging", "modules", "chat", "truncate_lengths", "llm_reply"): (
        *("chat", "service", "logging", "llm_reply_truncate_length"),
    ),
    ("logging", "modules", "chat", "truncate_lengths", "result"): (
        *("chat", "service", "logging", "result_truncate_length"),
    ),
}
"""Where the original backend has a section or a value, and where it is here."""

NO_EFFECT: dict[Path, str] = {
    ("logging", "advanced"): (
        "logs go to standard error, where what runs the service keeps and rotates them; for JSON see logging.json"
    ),
    ("chat", "storage", "persistence", "retention", "clear_triggers_before_full_wipe"): (
        "a new session never wipes the others"
    ),
    ("chat", "service", "logging", "tool_arguments"): "arguments are logged with the tool call they belong to",
    ("connection_pool", "logging"): "see logging.modules",
    ("mcp", "connection", "logging"): "see logging.modules",
}
"""Keys of the original backend that are accepted and do nothing, with the reason."""

MODULES: Path = ("logging", "modules")


def adopt(layer: Layer) -> Layer:
    """The layer with the original backend's keys where they are here; what is in both places, here counts."""
    data, lines = layer.data, dict(layer.lines)
    for old, new in ELSEWHERE.items():
        moved = value_at(data, old)
        if moved is None:
            continue
        kept = value_at(data, new)
        if isinstance(moved, dict) and isinstance(kept, dict):
            moved = deep_merge(moved, kept)
        elif kept is not None:
            moved = kept
        data = with_value(without(data, old), new, moved)
        for path, line in layer.lines.items():
            if path[: len(old)] == old:
                lines.setdefault((*new, *path[len(old) :]), line)
    warnings = list(layer.warnings)
    data = _levels(data, layer, warnings)
    return replace(layer, data=data, lines=lines, warnings=warnings)


def _levels(data: Tree, layer: Layer, warnings: list[str]) -> Tree:
    """`logging.modules.<name>: {level: X, ...}` as `logging.modules.<name>: X`; the rest is warned of."""
    modules = value_at(data, MODULES)
    if not isinstance(modules, dict):
        return data
    levels: Tree = {}
    for name, module in modules.items():
        if not isinstance(module, dict):
            levels[name] = module
            continue
        for key, value in module.items():
            here = (*MODULES, name, key)
            if key == "level":
                levels[name] = value
            elif value not in ({}, None):  # what is left where its contents were read from elsewhere
                warnings.append(f"{place([layer], here)}: {written(here)}: has no effect: only its level is read")
    return with_value(data, MODULES, levels)

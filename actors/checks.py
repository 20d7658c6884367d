"""Says in words what is wrong or strange in a configuration, with file, line and key.

Stands between the layers (where things were written) and the schema in settings.py (what may be written):
puts what the original backend has elsewhere in its place, finds unknown keys and secrets, and derives from
the schema both the words of errors and the table of all settings.

Fails with `ConfigurationError` only. No value of a key that looks like a secret's is ever quoted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from actors.layers import ConfigurationError, Layer, Path, Tree, deep_merge, place, written
from actors.redaction import secrets, shown, without
from actors.settings import Invalid, ProviderSettings, Settings, validate

METADATA = "_runtime_config"  # written by our own saves, read by nobody but them

ELSEWHERE: dict[Path, Path] = {
    ("chat", "storage", "persistence", "saved_sessions"): ("chat", "storage", "saved_sessions"),
    ("logging", "modules", "chat", "enable_features"): ("chat", "service", "logging"),
}
"""Where the original backend has a section, and where it is here."""

NO_EFFECT: dict[Path, str] = {
    ("logging", "advanced"): "logs go to standard error; what runs the service keeps and rotates them",
    ("logging", "modules"): "logging.level counts for all modules",
    ("chat", "storage", "persistence", "retention", "clear_triggers_before_full_wipe"): (
        "a new session never wipes the others"
    ),
    ("chat", "service", "logging", "llm_reply_truncate_length"): "log lines are cut at one length",
    ("chat", "service", "logging", "result_truncate_length"): "log lines are cut at one length",
    ("connection_pool", "keepalive_expiry_seconds"): "idle connections are kept until the provider closes them",
    ("connection_pool", "total_timeout_seconds"): "an answer may take as long as it flows; see client.idle_timeout",
}
"""Keys of the original backend that are accepted and do nothing, with the reason."""


class Row(NamedTuple):
    """One setting, for people."""

    key: str
    """As written: `chat.websocket.port`."""
    default: object
    """Plain value; None is null."""
    meaning: str
    expects: str
    """`a whole number from 0 to 65535`"""


class Checked(NamedTuple):
    """A configuration that may come into force."""

    settings: Settings
    tree: Tree
    """The merged layers as written, without metadata and secrets."""
    warnings: list[str]


def check(layers: Sequence[Layer]) -> Checked:
    """Merge the layers, the weakest first, and check the outcome.

    Raises ConfigurationError with a line for each thing that is wrong; what has no effect is warned of.
    The first layer is the reference defaults, whose keys are all known.
    """
    layers = [adopt(layer) for layer in layers]
    tree: Tree = {}
    for layer in layers:
        tree = deep_merge(tree, layer.data)
    tree.pop(METADATA, None)
    warnings = [line for layer in layers for line in layer.warnings]
    for layer in layers[1:]:
        warnings += [f"{place([layer], path)}: {written(path)}: {why}" for path, why in _unknown(Settings, layer.data)]
    for path in _secrets(tree):
        tree = without(tree, path)
        warnings.append(
            f"{place(layers, path)}: {written(path)}: looks like a secret and is not used; put it into the "
            f"environment or .env, and remove it here"
        )
    try:
        settings = validate(tree)
    except Invalid as invalid:
        raise ConfigurationError(
            f"{place(layers, wrong.path)}: {written(wrong.path)}: {words}"
            for wrong in invalid.wrongs
            for words in [_words(wrong.path, wrong.value, wrong.missing, wrong.rule)]
        ) from None
    if settings.llm.active not in settings.llm.providers:
        there = ", ".join(settings.llm.providers) or "none"
        at = ("llm", "active")
        raise ConfigurationError(
            [f"{place(layers, at)}: llm.active: names no provider of llm.providers (there are: {there})"]
        )
    if "*" in settings.chat.websocket.allow_origins:
        origins = ("chat", "websocket", "allow_origins")
        warnings.append(f'{place(layers, origins)}: {written(origins)}: "*" lets every web page use this service')
    return Checked(settings, tree, warnings)


def adopt(layer: Layer) -> Layer:
    """The layer with the original backend's sections where they are here; what is in both places, here counts."""
    data, lines = layer.data, dict(layer.lines)
    old: Path
    new: Path
    for old, new in ELSEWHERE.items():
        section = _at(data, old)
        if not isinstance(section, dict):
            continue
        kept = _at(data, new)
        moved = deep_merge(section, kept) if isinstance(kept, dict) else section
        for part in reversed(new):
            moved = {str(part): moved}
        data = deep_merge(without(data, old), moved)
        for path, line in layer.lines.items():
            if path[: len(old)] == old:
                lines.setdefault((*new, *path[len(old) :]), line)
    return replace(layer, data=data, lines=lines)


def settings_table(defaults: Tree) -> list[Row]:
    """Every setting with default, meaning and what it expects, in the order of the reference defaults.

    A provider's own keys are rows too, under `llm.providers.<name>`.
    """
    return list(_rows(Settings, defaults, ()))


def _rows(model: Any, defaults: Tree, path: Path) -> Iterator[Row]:
    for name, info in model.model_fields.items():
        here = (*path, name)
        default = defaults.get(name, None if info.is_required() else info.get_default(call_default_factory=True))
        if here == ("llm", "providers"):
            yield from _rows(ProviderSettings, {}, (*here, "<name>"))
        elif section := _section(info.annotation):
            yield from _rows(section, default if isinstance(default, dict) else {}, here)
        else:
            yield Row(written(here), default, info.description or "", _expects(info.annotation, info.metadata))


def _unknown(model: Any, data: Tree, path: Path = ()) -> Iterator[tuple[Path, str]]:
    for key, value in data.items():
        here = (*path, key)
        info = model.model_fields.get(key)
        if here in NO_EFFECT:
            if value not in ({}, {"chat": {}}):  # what is left where its contents were read from elsewhere
                yield here, f"has no effect: {NO_EFFECT[here]}"
        elif info is None:
            if here != (METADATA,) and model is not ProviderSettings:
                close = difflib.get_close_matches(key, model.model_fields, 1)
                yield here, f"is not known here and is ignored{f'; is {close[0]} meant?' if close else ''}"
        elif here == ("llm", "providers") and isinstance(value, dict):
            for name, provider in value.items():
                if isinstance(provider, dict):
                    yield from _unknown(ProviderSettings, provider, (*here, name))
        elif (section := _section(info.annotation)) and isinstance(value, dict):
            yield from _unknown(section, value, here)


def _secrets(tree: Tree) -> list[Path]:
    providers = _at(tree, ("llm", "providers"))
    if not isinstance(providers, dict):
        return []
    # The provider's name is a name, whatever it is called.
    return [
        path
        for name, provider in providers.items()
        if isinstance(provider, dict)
        for path in secrets(provider, ("llm", "providers", name))
    ]


def _words(path: Path, value: object, missing: bool, rule: str) -> str:
    """What is wrong at `path`, in words."""
    if missing:
        return "is missing"
    info = _info(path)
    text = rule or (f"must be {_expects(info.annotation, info.metadata)}" if info else "does not fit here")
    return text if rule.startswith("must not hold") else f"{text} ({shown(path, value)})"


def _info(path: Path) -> Any:
    """The schema's field at a path, or an imitation for items of lists and mappings."""
    model: Any = Settings
    info: Any = None
    rest = list(path)
    while rest:
        part = rest.pop(0)
        if model is None:
            return _Item(str)  # headers.<name>, allow_origins[0]: all such items are texts
        info = model.model_fields.get(part)
        if info is None:
            return None
        if info.annotation == dict[str, ProviderSettings]:
            if not rest:
                return info
            rest.pop(0)
            model, info = ProviderSettings, _Item(ProviderSettings)
        else:
            model = _section(info.annotation)
    return info


class _Item(NamedTuple):
    annotation: Any
    metadata: tuple[object, ...] = ()


def _section(annotation: Any) -> Any:
    """The section's model, if the annotation is one."""
    return annotation if hasattr(annotation, "model_fields") else None


def _expects(annotation: Any, metadata: Sequence[object]) -> str:
    """A type and its bounds in words."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        inner = next(one for one in get_args(annotation) if one is not type(None))
        return f"{_expects(inner, metadata)}, or null"
    if hasattr(annotation, "__metadata__"):
        return _expects(annotation.__origin__, metadata)
    if origin is Literal:
        *most, last = get_args(annotation)
        return f"{', '.join(most)} or {last}"
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return f"a {'whole ' if annotation is int else ''}number{_bounds(metadata)}"
    if annotation is str:
        longest = next((item.max_length for item in metadata if hasattr(item, "max_length")), None)
        some = any(hasattr(item, "min_length") for item in metadata)
        return f"text{' that is not empty' if some else ''}{f' of at most {longest} characters' if longest else ''}"
    if origin is list:
        return "a list of texts"
    return "a mapping of names to texts" if annotation == dict[str, str] else "a mapping of keys"


def _bounds(metadata: Sequence[object]) -> str:
    found = {name: getattr(item, name) for item in metadata for name in ("ge", "gt", "le") if hasattr(item, name)}
    if "gt" in found:
        return f" above {found['gt']} and up to {found['le']}"
    return f" from {found['ge']} to {found['le']}" if found else ""


def _at(tree: object, path: Path) -> object:
    for part in path:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(part)
    return tree

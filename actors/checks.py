"""Says in words what is wrong or strange in a configuration, with file, line and key.

Stands between the layers (where things were written) and the schema in settings.py (what may be written):
merges, finds unknown keys and secrets, and derives the words of errors from the schema.

Fails with `ConfigurationError` only. No value of a key that looks like a secret's is ever quoted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from actors.adoption import MODULES, NO_EFFECT, adopt
from actors.layers import ConfigurationError, Layer, place
from actors.llm_settings import ProviderSettings
from actors.redaction import secrets, shown
from actors.settings import Invalid, Settings, validate
from actors.trees import Path, Tree, deep_merge, value_at, without, written

ACTIVE: Path = ("llm", "active")
PROVIDERS: Path = ("llm", "providers")
METADATA = "_runtime_config"  # written by our own saves, read by nobody but them
IGNORED = " and is ignored"
GIVEN = "given configuration"  # how messages call what a program wants to save


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
    layers = _active_stays([adopt(layer) for layer in layers])
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
    there = ", ".join(settings.llm.providers) or "none"
    named: list[tuple[Path, str]] = [(ACTIVE, settings.llm.active)]
    named += [(("llm", "fallbacks", number), name) for number, name in enumerate(settings.llm.fallbacks)]
    if unknown := [path for path, name in named if name not in settings.llm.providers]:
        raise ConfigurationError(
            f"{place(layers, path)}: {written(path)}: names no provider of llm.providers (there are: {there})"
            for path in unknown
        )
    if "*" in settings.chat.websocket.allow_origins:
        origins = ("chat", "websocket", "allow_origins")
        warnings.append(f'{place(layers, origins)}: {written(origins)}: "*" lets every web page use this service')
    return Checked(settings, tree, warnings)


def _active_stays(layers: list[Layer]) -> list[Layer]:
    """The layers without a null that would take the active provider away.

    Below `llm.providers` null removes; but an entry with all its keys commented out looks the same.
    """
    said = (value_at(layer.data, ACTIVE) for layer in reversed(layers))
    path = (*PROVIDERS, next((name for name in said if isinstance(name, str)), ""))
    return [_without_null(layer, path) if _is_null(layer.data, path) else layer for layer in layers]


def _without_null(layer: Layer, path: Path) -> Layer:
    why = "is empty and is ignored: the active provider is not taken away"
    warnings = [*layer.warnings, f"{place([layer], path)}: {written(path)}: {why}"]
    return replace(layer, data=without(layer.data, path), warnings=warnings)


def _is_null(tree: Tree, path: Path) -> bool:
    above = value_at(tree, path[:-1])
    return isinstance(above, dict) and path[-1] in above and above[path[-1]] is None


def refusals(changes: Layer, tree: Tree) -> list[str]:
    """What a program may not write into the file: unknown keys and secrets, unless `tree` has them already.

    A person who edits the file is warned of such; a program would never read the warning.
    Args:
        changes: with everything in its place here.
    """
    lines = [line for line in changes.warnings if not _known(tree, MODULES)]
    active = (*PROVIDERS, value_at(changes.data, ACTIVE) or value_at(tree, ACTIVE))
    if _is_null(changes.data, active):
        lines.append(
            f"{changes.name}: {written(active)}: is the active provider; let llm.active name another one first"
        )
    found = [(path, why.replace(IGNORED, "")) for path, why in _unknown(Settings, changes.data)]
    found += [(path, "looks like a secret; put it into the environment or .env") for path in secrets(changes.data)]
    return lines + [f"{changes.name}: {written(path)}: {why}" for path, why in found if not _known(tree, path)]


def _known(tree: Tree, path: Path) -> bool:
    return value_at(tree, path) is not None


def _unknown(model: Any, data: Tree, path: Path = ()) -> Iterator[tuple[Path, str]]:
    for key, value in data.items():
        here = (*path, key)
        info = fields(model).get(key)
        if here in NO_EFFECT:
            yield here, f"has no effect: {NO_EFFECT[here]}"
        elif info is None:
            if here != (METADATA,) and model is not ProviderSettings:
                close = difflib.get_close_matches(key, fields(model), 1)
                yield here, f"is not known here{IGNORED}{f'; is {close[0]} meant?' if close else ''}"
        elif here == PROVIDERS and isinstance(value, dict):
            for name, provider in value.items():
                if isinstance(provider, dict):
                    yield from _unknown(ProviderSettings, provider, (*here, name))
        elif (inner := section(info.annotation)) and isinstance(value, dict):
            yield from _unknown(inner, value, here)


def _secrets(tree: Tree) -> list[Path]:
    providers = value_at(tree, PROVIDERS)
    if not isinstance(providers, dict):
        return []
    # The provider's name is a name, whatever it is called.
    return [
        path
        for name, provider in providers.items()
        if isinstance(provider, dict)
        for path in secrets(provider, (*PROVIDERS, name))
    ]


def _words(path: Path, value: object, missing: bool, rule: str) -> str:
    """What is wrong at `path`, in words."""
    if missing:
        return "is missing"
    info = _info(path)
    text = rule or (f"must be {expects(info.annotation, info.metadata)}" if info else "does not fit here")
    return text if rule.startswith("must not hold") else f"{text} ({shown(path, value)})"


def _info(path: Path) -> Any:
    """The schema's field at a path, or an imitation for items of lists and mappings."""
    model: Any = Settings
    info: Any = None
    rest = list(path)
    while rest:
        part = rest.pop(0)
        if model is None:  # headers.<name>, allow_origins[0]
            return _Item(get_args(info.annotation)[-1]) if get_args(info.annotation) else None
        info = fields(model).get(str(part))
        if info is None:
            return None
        if info.annotation == dict[str, ProviderSettings]:
            if not rest:
                return info
            rest.pop(0)
            model, info = ProviderSettings, _Item(ProviderSettings)
        else:
            model = section(info.annotation)
    return info


class _Item(NamedTuple):
    annotation: Any
    metadata: tuple[object, ...] = ()


def fields(model: Any) -> dict[str, Any]:
    """The fields of a section by their keys in the file."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def section(annotation: Any) -> Any:
    """The section's model, if the annotation is one."""
    return annotation if hasattr(annotation, "model_fields") else None


def expects(annotation: Any, metadata: Sequence[object]) -> str:
    """A type and its bounds in words."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        inner = next(one for one in get_args(annotation) if one is not type(None))
        return f"{expects(inner, metadata)}, or null"
    if hasattr(annotation, "__metadata__"):
        return expects(annotation.__origin__, metadata)
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
    if origin is dict and (inner := get_args(annotation)[1]) != ProviderSettings:
        return f"a mapping of names to {'texts' if inner is str else expects(inner, ())}"
    return "a mapping of keys"


def _bounds(metadata: Sequence[object]) -> str:
    found = {name: getattr(item, name) for item in metadata for name in ("ge", "gt", "le") if hasattr(item, name)}
    if "gt" in found:
        return f" above {found['gt']} and up to {found['le']}"
    return f" from {found['ge']} to {found['le']}" if found else ""

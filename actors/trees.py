"""Trees of plain values as configurations are made of, and the paths into them: merged, compared, taken apart.

Pure: nothing here changes what it is given. May assume values as YAML has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
"""Where a value is: keys, and positions in lists."""

Tree = dict[str, Any]
"""Nested plain values as YAML has them: dict, list, str, int, float, bool, None."""


_PROVIDERS = ("llm", "providers")
_MODULES = ("logging", "modules")


def written(path: Path) -> str:
    """A path as people write it: `chat.websocket.allow_origins[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def removes(path: Path) -> bool:
    """Whether null at that path takes an inherited key away instead of being a value.

    That is so everywhere below `llm.providers`: what is sent to a model has no other way to say "do not
    send this". Only `api_key_env: null` is a value there: no key is needed. And below `logging.modules`.
    """
    if len(path) == len(_MODULES) + 1 and path[:2] == _MODULES:
        return True
    return len(path) > len(_PROVIDERS) and path[:2] == _PROVIDERS and not (len(path) == 4 and path[3] == "api_key_env")


def deep_merge(base: Tree, over: Tree, path: Path = ()) -> Tree:
    """`base` with what `over` says; neither is changed.

    Mappings are merged key by key; anything else, lists too, is replaced whole. Null below `llm.providers`
    removes the key (see `removes`). A section left empty (`chat:` with all its keys commented out) says nothing.
    """
    merged = dict(base)
    for key, value in over.items():
        here = (*path, key)
        below = merged.get(key)
        if value is None and removes(here):
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = deep_merge(below if isinstance(below, dict) else {}, value, here)
        elif not (value is None and isinstance(below, dict)):
            merged[key] = value
    return merged


def difference(base: Tree, wanted: Tree, path: Path = ()) -> Tree:
    """The smallest layer that makes `wanted` out of `base`: `deep_merge(base, difference(base, wanted)) == wanted`.

    Keys that `wanted` lacks are removed where a layer can say so, and stay as they are elsewhere.
    """
    over: Tree = {}
    for key, value in wanted.items():
        if key in base and same(base[key], value):
            continue
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            if changed := difference(below, value, (*path, key)):
                over[key] = changed
        else:
            over[key] = value
    over.update({key: None for key in base if key not in wanted and removes((*path, key))})
    return over


def same(one: object, other: object) -> bool:
    """Equal in type too: 1, 1.0 and true are three things to a model's parameters."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def value_at(tree: object, path: Path) -> Any:
    """What is at a path; None where nothing is."""
    for part in path:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(part)
    return tree


def with_value(tree: Tree, path: Path, value: object) -> Tree:
    """`tree` with a value at `path`; whatever stands in the way is replaced; the original is not changed."""
    head, *rest = path
    below = tree.get(str(head))
    inner = with_value(below if isinstance(below, dict) else {}, tuple(rest), value) if rest else value
    return {**tree, str(head): inner}


def without(tree: Any, path: Path) -> Any:
    """`tree` without what is at `path`; the original is not changed."""
    head, rest = path[0], path[1:]
    if isinstance(tree, list):
        return [without(item, rest) if position == head else item for position, item in enumerate(tree)]
    if rest:
        return {key: without(value, rest) if key == head else value for key, value in tree.items()}
    return {key: value for key, value in tree.items() if key != head}


def leaves(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every path with its value; lists and empty mappings are values."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def changes(before: Tree, after: Tree) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, as people write them, with the old and the new value (None: none), in order."""
    old, new = dict(leaves(before)), dict(leaves(after))
    both = [*new, *(path for path in old if path not in new)]
    return [
        (written(path), old.get(path), new.get(path))
        for path in both
        if (path not in old or path not in new or not same(old[path], new[path]))
        # An empty mapping that has or had something in it: what is in it is named.
        and not (isinstance(value_at(before, path), dict) and isinstance(value_at(after, path), dict))
    ]


def only(tree: Tree, path: Path) -> Tree | None:
    """`tree` with nothing but what is at `path`; None: nothing is there."""
    head, *rest = path
    if head not in tree:
        return None
    value = tree[str(head)]
    if rest:
        value = only(value, tuple(rest)) if isinstance(value, dict) else None
        if value is None:
            return None
    return {str(head): value}


def find(tree: Tree, text: str) -> Path:
    """The path that people mean by `llm.providers.my-llm.2.model`: names of keys that are there may have dots."""
    path: list[str] = []
    here: Any = tree
    while text:
        there = [key for key in here if text == key or text.startswith(f"{key}.")] if isinstance(here, dict) else []
        key = max(there, key=len) if there else text.partition(".")[0]
        path.append(key)
        here = here.get(key) if isinstance(here, dict) else None
        text = text[len(key) + 1 :]
    return tuple(path)

"""What a piece of work leaves behind that only the garbage collector can free: objects in reference cycles.

A long-lived process collects rarely, since a collection stops it: so what comes and goes must free itself.
"""

from __future__ import annotations

import gc
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unreachable() -> Iterator[list[Any]]:
    """Within: nothing is collected. After: the list holds all that was left unreachable and was not freed."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def circles(objects: Iterable[Any]) -> list[Counter[str]]:
    """The reference cycles among them, joined where they share an object: how many there are of each type."""
    graph = {id(one): one for one in objects}
    edges = {number: [id(to) for to in gc.get_referents(one) if id(to) in graph] for number, one in graph.items()}
    back: dict[int, list[int]] = {number: [] for number in graph}
    for number, ends in edges.items():
        for end in ends:
            back[end].append(number)
    order: list[int] = []
    _walk(edges, edges, order)
    groups: list[list[int]] = []
    seen: set[int] = set()
    for number in reversed(order):
        if number not in seen:
            group: list[int] = []
            _walk([number], back, group, seen)
            groups.append(group)
    return [
        Counter(_name(graph[number]) for number in group)
        for group in groups
        if len(group) > 1 or group[0] in edges[group[0]]
    ]


def _walk(starts: Iterable[int], edges: dict[int, list[int]], order: list[int], seen: set[int] | None = None) -> None:
    seen = set() if seen is None else seen
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        path = [(start, iter(edges[start]))]
        while path:
            at, rest = path[-1]
            for end in rest:
                if end not in seen:
                    seen.add(end)
                    path.append((end, iter(edges[end])))
                    break
            else:
                order.append(at)
                path.pop()


def _name(one: object) -> str:
    if isinstance(one, types.FunctionType | types.MethodType | types.CoroutineType):
        return f"{type(one).__name__} {one.__qualname__}"
    return f"{type(one).__module__}.{type(one).__qualname__}"

"""Whether a value fits a JSON Schema that a stranger wrote: the arguments of a call, the structured result of one.

Only the MCP process imports this: `jsonschema` is below the MCP package. Pure, and bounded whatever the schema is: so
many steps and no more (what a keyword compares counts, too), no address is fetched, no regular expression of a
stranger is run (they can take for ever; a server checks what it gets itself). What cannot be decided within that fits.
Nothing in here raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # no types are published for it
import msgspec
import referencing
from jsonschema import exceptions, validators

STEPS = 20_000  # keywords that are looked at: some 100 ms
PARTS = 4  # of a list or an object, which take about as long as a keyword
MOST_BYTES = 512 * 1024  # of a value; larger ones are not looked at
UNIQUE_MOST = 500  # items of a list that are compared with each other
WHY_CHARS = 300  # of a reason

log = logging.getLogger(__name__)

_Keyword = Callable[[Any, Any, Any, Any], Iterator[exceptions.ValidationError] | None]


class _Enough(Exception):
    """So many steps were made."""


class _Budget:
    """The steps of one check that are left."""

    def __init__(self) -> None:
        self._left = STEPS
        self._compared: dict[int, int] = {}  # by the identity of a part of the schema, which lives as long as this

    def step(self, name: str, wanted: Any, instance: Any) -> None:
        """One keyword is looked at. Raises _Enough."""
        if name in ("enum", "const"):  # deep in it, too
            if id(wanted) not in self._compared:
                self._compared[id(wanted)] = len(msgspec.json.encode(wanted))
            self._left -= 1 + self._compared[id(wanted)] // (4 * PARTS)
        else:
            self._left -= 1 + (_parts(wanted) + _parts(instance)) // PARTS
        if self._left < 0:
            raise _Enough


_budget: ContextVar[_Budget] = ContextVar("_budget")
"""Of the check that runs; validators carry nothing of ours from a schema to the schemas in it."""


def mismatch(schema: dict[str, Any], value: object) -> str:
    """Why the value does not fit, in a line that names the place; empty: it does, or nobody can say."""
    try:
        if len(msgspec.json.encode(value)) > MOST_BYTES:
            return ""
        kind = validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        checked = _bounded(kind)(schema, registry=referencing.Registry())
        _budget.set(_Budget())
        errors = list(checked.iter_errors(value))
    except _Enough:
        return ""
    except Exception as error:  # noqa: BLE001 - a schema that is none fails in as many ways as there are keywords
        log.debug("a schema could not be used: %s", error)
        return ""
    if not errors:
        return ""
    first = exceptions.best_match(errors)
    text = first.message if len(first.message) <= WHY_CHARS else f"{first.message[:WHY_CHARS]}..."
    return f"{text} - at `{first.json_path}`"


@cache  # one for each dialect that the library knows; making a class takes longer than most checks
def _bounded(kind: Any) -> Any:
    """That dialect, without what may take for ever."""

    def counted(name: str, keyword: _Keyword) -> _Keyword:
        def step(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
            _budget.get().step(name, wanted, instance)
            yield from keyword(validator, wanted, instance, schema) or ()

        return step

    def unique(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, list) and len(instance) <= UNIQUE_MOST:
            yield from kind.VALIDATORS["uniqueItems"](validator, wanted, instance, schema) or ()

    def additional(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if "patternProperties" not in schema:
            yield from kind.VALIDATORS["additionalProperties"](validator, wanted, instance, schema) or ()

    own: dict[str, _Keyword] = {"uniqueItems": unique, "additionalProperties": additional}
    for name in ("pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems"):
        own[name] = _nothing
    rules = {name: counted(name, own.get(name, keyword)) for name, keyword in kind.VALIDATORS.items()}
    return validators.extend(kind, rules)


def _parts(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _nothing(*_: Any) -> Iterator[Any]:
    return iter(())

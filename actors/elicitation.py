"""What a server may ask of a person, and whether an answer fits: forms of flat primitive fields, and addresses.

Pure. The schemas are those that MCP allows for elicitation: an object whose properties are texts, numbers, booleans,
choices and lists of choices, each with its own few rules; what else a schema says is for the form that shows it. A
schema that asks for more than that is refused as a whole (`refusal`), since nobody could be shown what it wants. An
answer that does not fit is a `Fault` that names the field; fields that were left out take the server's defaults.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from protocol.errors import Code, Fault

MESSAGE_MAX = 8_000  # characters that a person is shown; more is cut
SCHEMA_MAX = 64 * 1024  # bytes of a form's schema
FIELDS_MAX = 100  # of one form
TEXT_MAX = 32_000  # characters of one answer in it
URL_MAX = 4_000  # characters of an address
NAMED_MAX = 10  # choices that an error names
EMAIL_MAX = 320  # characters of an e-mail address; the expression takes cubic time for what is none
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

Field = dict[str, Any]


def refusal(schema: dict[str, Any] | None, url: str | None) -> str | None:
    """Why nobody is asked this, in words for the server; None: it can be asked."""
    if url is not None:
        return _bad_address(url)
    if schema is None:
        return "neither a form nor an address is asked for"
    if len(msgspec.json.encode(schema)) > SCHEMA_MAX:
        return f"the schema has more than {SCHEMA_MAX} bytes"
    fields = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(fields, dict) or len(fields) > FIELDS_MAX:
        return f"the schema must be of an object with at most {FIELDS_MAX} properties"
    for name, field in fields.items():
        if not isinstance(field, dict) or _rule(field) is None:
            return f"the property {name[:80]!r} is none of text, number, boolean, choice or list of choices"
    return None


def _bad_address(url: str) -> str | None:
    if len(url) > URL_MAX:
        return f"the address has more than {URL_MAX} characters"
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "the address cannot be read"
    clean = url.isprintable() and " " not in url
    return None if clean and host and parts.scheme in ("http", "https") else "the address is none of http or https"


def checked(schema: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """The answer as the server gets it: its fields, checked, and the defaults of those that were left out.

    Raises: Fault INVALID_MESSAGE, which names the first field that does not fit.
    """
    fields: dict[str, Field] = schema.get("properties") or {}
    listed = schema.get("required")
    required = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    for name in content:
        if name not in fields:
            raise _misfit(name, "is not asked for")
    answer: dict[str, Any] = {}
    for name, field in fields.items():
        value = content.get(name)
        if value is None:
            default = field.get("default")
            if default is not None and _wrong(field, default) is None:
                answer[name] = default
            elif name in required:
                raise _misfit(name, "is required")
        elif (wrong := _wrong(field, value)) is not None:
            raise _misfit(name, wrong)
        else:
            answer[name] = value
    return answer


def _misfit(name: str, wrong: str) -> Fault:
    return Fault(
        Code.INVALID_MESSAGE,
        f"The field {name[:80]!r} {wrong} - at `$.content`.",
        hint="The question stays open: send another answer.",
    )


def _wrong(field: Field, value: object) -> str | None:
    rule = _rule(field)
    return rule(field, value) if rule is not None else None


def _rule(field: Field) -> Callable[[Field, object], str | None] | None:
    match field.get("type"):
        case "string":
            return _text if _choices(field) is None else _choice
        case "number" | "integer":
            return _number
        case "boolean":
            return _boolean
        case "array" if isinstance(items := field.get("items"), dict) and _choices(items) is not None:
            return _several
    return None


def _choices(field: Field) -> list[str] | None:
    """The values that may be chosen; None: it is free."""
    if isinstance(listed := field.get("enum"), list):
        return [str(one) for one in listed]
    for key in ("oneOf", "anyOf"):
        if isinstance(titled := field.get(key), list):
            return [str(one.get("const")) for one in titled if isinstance(one, dict)]
    return None


def _text(field: Field, value: object) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    least, most = _bound(field, "minLength", 0), min(_bound(field, "maxLength", TEXT_MAX), TEXT_MAX)
    if not least <= len(value) <= most:
        return f"must have {_span(least, most)} characters"
    match field.get("format"):
        case "email":
            address = len(value) <= EMAIL_MAX and _EMAIL.fullmatch(value) is not None
            return None if address else "must be an e-mail address"
        case "uri":
            return None if _is_uri(value) else "must be a URI"
        case "date":
            return None if _is(datetime.date.fromisoformat, value) else "must be a date (2026-01-31)"
        case "date-time":
            good = "T" in value.upper() and _is(datetime.datetime.fromisoformat, value)
            return None if good else "must be a date and time (2026-01-31T12:00:00Z)"
    return None


def _number(field: Field, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "must be a number"
    if field.get("type") == "integer" and value != int(value):
        return "must be a whole number"
    least, most = _bound(field, "minimum", -math.inf), _bound(field, "maximum", math.inf)
    return None if least <= value <= most else f"must be {_span(least, most)}"


def _boolean(_: Field, value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _choice(field: Field, value: object) -> str | None:
    choices = _choices(field) or []
    return None if isinstance(value, str) and value in choices else f"must be one of {_named(choices)}"


def _several(field: Field, value: object) -> str | None:
    choices = _choices(field["items"]) or []
    if not isinstance(value, list) or not all(isinstance(one, str) and one in choices for one in value):
        return f"must be a list of some of {_named(choices)}"
    if len(set(value)) < len(value):
        return "names a choice twice"
    least, most = _bound(field, "minItems", 0), _bound(field, "maxItems", len(choices))
    return None if least <= len(value) <= most else f"must name {_span(least, most)} of them"


def _named(choices: list[str]) -> str:
    return ", ".join(choice[:40] for choice in choices[:NAMED_MAX]) + (", ..." if len(choices) > NAMED_MAX else "")


def _bound(field: Field, key: str, otherwise: float) -> float:
    found = field.get(key)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else otherwise


def _span(least: float, most: float) -> str:
    if math.isinf(most):
        return f"{least:g} or more"
    return f"{most:g} or less" if math.isinf(least) else f"{least:g} to {most:g}"


def _is(parse: Callable[[str], object], value: str) -> bool:
    try:
        parse(value)
    except ValueError:
        return False
    return True


def _is_uri(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return bool(parts.scheme and (parts.netloc or parts.path))

"""The terminal client asks the person what an MCP server wants to know: one field of a form after the other.

Pure. What is typed is read by the field's type; whether the whole fits is the service's to say, which then asks again.
An empty line leaves a field out, so that it takes the server's default; `/no` declines. An address is opened by the
person, nothing is opened here.
"""

from __future__ import annotations

from typing import Any

from supervisors.chat_screen import clean, short
from supervisors.chat_turn import Frame

DECLINE = "/no"
YES = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
"""What is typed -> whether."""

Field = dict[str, Any]


class Form:
    """One question, as far as it is answered."""

    def __init__(self, asked: Frame) -> None:
        self.content: dict[str, Any] = {}
        self._asked = asked
        schema = asked.schema if isinstance(asked.schema, dict) else {}
        listed, required = schema.get("properties"), schema.get("required")
        fields = listed if isinstance(listed, dict) else {}
        self._left = [(name, field) for name, field in fields.items() if isinstance(field, dict)]
        self._required = required if isinstance(required, list) else []

    @property
    def asks(self) -> str:
        """What is to be typed next."""
        if self._asked.url:
            return f"{clean(self._asked.url)}\ny: I open it · n: no"
        if not self._left:
            return "y: yes · n: no"
        name, field = self._left[0]
        said = [str(field.get("title") or name), str(field.get("description") or "")]
        if (choices := _choices(field)) is not None:
            said.append(f"one of {', '.join(choices)}")
        elif field.get("type") == "array":
            said.append(f"some of {', '.join(_choices(field.get('items') or {}) or [])}, with commas between")
        elif field.get("type") == "boolean":
            said.append("y or n")
        if field.get("default") is not None:
            said.append(f"empty: {field['default']}")
        elif name not in self._required:
            said.append("empty: left out")
        return short(" · ".join(filter(None, said))) + f"   ({DECLINE}: decline)"

    def take(self, line: str) -> str | None:
        """What was typed; the action once the question is answered. Raises ValueError, which says what is wrong."""
        typed = line.strip()
        if typed == DECLINE:
            return "decline"
        if self._asked.url or not self._left:
            if (agrees := YES.get(typed.lower())) is None:
                raise ValueError("y or n")
            return "accept" if agrees else "decline"
        name, field = self._left[0]
        if typed:
            self.content[name] = value_of(field, typed)
        elif name in self._required and field.get("default") is None:
            raise ValueError("this is needed")
        self._left.pop(0)
        return None if self._left else "accept"


def value_of(field: Field, typed: str) -> Any:
    """What was typed, as the field's type. Raises ValueError."""
    match field.get("type"):
        case "boolean":
            if typed.lower() not in YES:
                raise ValueError("y or n")
            return YES[typed.lower()]
        case "integer":
            return int(typed)
        case "number":
            return float(typed)
        case "array":
            items = field.get("items")
            return [_chosen(items if isinstance(items, dict) else {}, part.strip()) for part in typed.split(",")]
        case _:
            return _chosen(field, typed)


def _chosen(field: Field, typed: str) -> str:
    """The value of a choice that was typed by its value or by its title."""
    for value, title in _titled(field):
        if typed.lower() in (value.lower(), title.lower()):
            return value
    return typed


def _choices(field: Field) -> list[str] | None:
    return [title for _, title in _titled(field)] or None


def _titled(field: Field) -> list[tuple[str, str]]:
    if isinstance(listed := field.get("enum"), list):
        names = field.get("enumNames")
        titles = names if isinstance(names, list) and len(names) == len(listed) else listed
        return [(str(value), str(title)) for value, title in zip(listed, titles, strict=True)]
    for key in ("oneOf", "anyOf"):
        if isinstance(options := field.get(key), list):
            return [(str(one.get("const")), str(one.get("title"))) for one in options if isinstance(one, dict)]
    return []

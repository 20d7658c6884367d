"""Tool calls put together from what a stream's deltas say of them; free of I/O.

Providers number calls by index, name them by id, do both, or neither; send them whole or in pieces; write
arguments as JSON text or as an object. The rules, in the order in which they are asked:
- an index that is not in use begins a call; so does a new id on a used index;
- without an index, an id begins a call and none continues the last;
- a name that comes again after arguments that are complete begins a call, whatever index and id say:
  complete JSON has no continuation.
Nothing here can fail: what makes no sense becomes a call that the session will answer with an error.
"""

from __future__ import annotations

import secrets
import string
from typing import Any

import msgspec

from actors.parts import add_text
from protocol.streamer import ToolCall

_ID_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 9  # the one form that strict providers accept too (Mistral: exactly nine letters or digits)


class _Call:
    __slots__ = ("arguments", "id", "name", "raw")

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = ""
        self.arguments: list[str] = []
        self.raw: dict[str, Any] = {}

    def complete(self) -> bool:
        text = "".join(self.arguments)
        if not text.endswith("}"):
            return False
        try:
            msgspec.json.decode(text)
        except ValueError:
            return False
        return True


class Calls:
    """The calls of one answer."""

    __slots__ = ("_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def add(self, deltas: list[dict[str, Any]]) -> None:
        """Take the `tool_calls` of one delta or message."""
        for delta in deltas:
            function = delta.get("function")
            if not isinstance(function, dict):
                function = {}
            name, id = _text(function.get("name")), _text(delta.get("id"))
            call = self._find(delta.get("index"), id, name)
            call.id = call.id or id
            if name and name != call.name:
                call.name += name
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                if arguments:
                    add_text(call.arguments, arguments)
            elif arguments is not None:
                call.arguments.append(msgspec.json.encode(arguments).decode())
            for key, value in delta.items():
                if key not in {"index", "id", "type", "function"} and value is not None:
                    call.raw[key] = value

    def finish(self) -> list[ToolCall]:
        """The calls, whole and in order; each has an id that no other has."""
        taken: set[str] = set()
        whole: list[ToolCall] = []
        for call in self._calls:
            if not call.name and not call.arguments:
                continue
            id = call.id
            while not id or id in taken:
                id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
            taken.add(id)
            # No arguments at all mean an empty object; an empty text would be invalid when sent back.
            whole.append(ToolCall(id, call.name, "".join(call.arguments).strip() or "{}", call.raw))
        return whole

    def _find(self, index: Any, id: str, name: str) -> _Call:
        if isinstance(index, int):
            known = self._by_index.get(index)
            # A new id without a name is a provider that names each piece anew: no call begins nameless.
            fresh = known is None or (id != "" and known.id not in ("", id) and name != "")
        elif id:
            known = next((call for call in self._calls if call.id == id), None)
            fresh = known is None
        else:
            known = self._calls[-1] if self._calls else None
            fresh = known is None
        if known is None or fresh or (name and known.name and known.complete()):
            known = _Call(id)
            self._calls.append(known)
        if isinstance(index, int):
            self._by_index[index] = known
        return known


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else ""

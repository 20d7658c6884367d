"""A log record as one line: in the configured format, or as JSON.

Whatever a stranger wrote into a record (a user's text, a model's, a tool's) stays within its line: control
characters, line ends and marks that turn the writing direction are written as escapes, and the lines of a
traceback are set off by `INDENT`, so none of them can look like a record. What must not be shown is blacked
out before anything is escaped. Raises what a wrong call of the logger raises (`log.info("%d", "x")`).
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import trio

INDENT = "  | "  # begins every line of a traceback
LONGEST = 100_000  # characters of a message or a traceback; the log is no place for more
SESSION = re.compile(r"front\d*/sessions/(.+)")  # paths of the actors that are named by their conversation

Clean = Callable[[str], str]
Line = Callable[[logging.LogRecord], str]

# C0, DEL, C1, line and paragraph separators, bidirectional controls, and halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TIME = logging.Formatter()


def escaped(text: str) -> str:
    """The text on one line, whatever was in it."""
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    return _NAMED.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")


class Text:
    """Lines in a format of Python's logging.

    Args:
        form: with %-style fields; what stands in it is kept as it is, what is filled in is escaped.
        clean: takes out of a text what must not be shown.
    """

    def __init__(self, form: str, clean: Clean) -> None:
        self._form = form or "%(message)s"
        self._timed = "%(asctime)" in self._form
        self._clean = clean

    def __call__(self, record: logging.LogRecord) -> str:
        """The record's line, and its traceback below."""
        fields = {key: escaped(value) if isinstance(value, str) else value for key, value in vars(record).items()}
        fields["message"] = escaped(_cut(self._clean(record.getMessage())))
        if self._timed:
            fields["asctime"] = _TIME.formatTime(record)
        lines = [self._form % fields]
        if error := error_of(record):
            lines += [INDENT + escaped(line) for line in _cut(self._clean(error)).split("\n")]
        return "\n".join(lines)


class Json:
    """One JSON object per line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and where known `actor` (its
    path), `conversation`, `turn` and `error` (with traceback).

    Args:
        clean: takes out of a text what must not be shown.
    """

    def __init__(self, clean: Clean) -> None:
        self._clean = clean

    def __call__(self, record: logging.LogRecord) -> str:
        """The record's line."""
        actor = getattr(record, "actor", None) or running_actor()
        conversation = getattr(record, "conversation", None)
        if conversation is None and actor is not None and (session := SESSION.fullmatch(actor)):
            conversation = session[1]
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(self._clean(record.getMessage())),
            "actor": actor,
            "conversation": conversation,
            "turn": getattr(record, "turn", None),
            "error": _cut(self._clean(error_of(record))) or None,
        }
        known = {
            # Half a surrogate pair is no Unicode text, and no encoder takes it.
            key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for key, value in fields.items()
            if value is not None
        }
        return msgspec.json.encode(known).decode()


def error_of(record: logging.LogRecord) -> str:
    """The record's error with its traceback, and its stack if it was asked for; empty where there is neither."""
    parts = []
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        parts.append("".join(traceback.format_exception(*record.exc_info)))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts).rstrip("\n")


def running_actor() -> str | None:
    """Path of the actor in whose task, or a child of it, this is called; None outside of all.

    The supervisor names the task of an incarnation `path#number`, and one that holds what a slot keeps `path keeps`.
    """
    try:
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    except RuntimeError:
        return None  # not in a task: another thread, or no event loop at all
    while task is not None:
        path, mark, number = task.name.rpartition("#")
        if mark and number.isdecimal():
            return path
        if task.name.endswith(" keeps"):
            return task.name.removesuffix(" keeps")
        task = task.parent_nursery.parent_task if task.parent_nursery is not None else None
    return None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"

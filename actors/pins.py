"""Definitions of tools in the rows: as they were first seen, or as somebody has agreed to them since.

A definition is compared by its digest; the text is kept for the difference that a person is shown. The approval of a
change has an id that is made of the change, so that a server which is started ten times asks once. Who declines keeps
the tool from being offered; it is asked again when the decision is forgotten with its row, or the tool changes again.

A server may say something else each time: so few approvals of one wait at a time, the rest is held back without; what
is withdrawn leaves nothing; past so many definitions what is new is held back; and long ones are not compared.

As `actors.rows`, all of it runs inside a transaction of the store, and may come twice.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator

import msgspec

from actors.fence import Fence
from actors.pending import DROP_PENDING, OPEN_OF_SERVER, find, from_row, open_pending, told
from actors.rows import one, rows
from actors.schema import Database
from protocol.errors import Fault
from protocol.pending import APPROVAL, OPERATORS, Decided, OpenPending, Pending
from protocol.pins import Checked, CheckTools, OnlyServers

LASTS_S = 30 * 86400.0  # an approval; then it is asked anew
ASKED_MAX = 20  # approvals of one server that wait at a time
PINS_MAX = 10_000  # definitions of one server, with names that it has no more; past that new ones are held back
PINS_CHARS = 2**26  # of all of them
DIFF_CHARS = 8000  # more nobody reads
DIFF_MOST = 2**16  # characters of a definition that is compared with another
DIFF_LINES = 400  # that are compared, from the first that differs on: comparing takes the square of it, or the cube
PREFIX = "tool-"  # of the ids of these approvals; there are others without a turn
NOBODY = Fence()  # what is asked here belongs to no front

OPEN_SERVERS = "SELECT server FROM pending WHERE state = 'open' AND owner = ?"
FIND_PINS = "SELECT tool, source, digest FROM pin WHERE server = ?"
COUNT_PINS = "SELECT count(*), coalesce(sum(length(definition)), 0) FROM pin WHERE server = ?"
DROP_OTHERS = "DELETE FROM pin WHERE server = ? AND source <> ?"
FIND_PIN = "SELECT definition FROM pin WHERE server = ? AND tool = ?"
SET_PIN = (
    "INSERT INTO pin (server, tool, source, digest, definition, at) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (server, tool) DO UPDATE SET source = excluded.source, digest = excluded.digest, "
    "definition = excluded.definition, at = excluded.at"
)
DROP_GRANTS = "DELETE FROM granted WHERE server = ? AND tool = ?"

REASON = (
    "The definition of this tool has changed since it was first seen, or last agreed to. "
    "It is not offered to the model until somebody agrees."
)


def digest_of(text: str) -> str:
    """Of a definition."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check(db: Database, message: CheckTools, now: float) -> Checked:
    """`CheckTools`."""
    if message.mode == "off":
        return Checked([], [], list(_withdrawn(db, message.server, set(), now)))
    pins = {tool: (source, digest) for tool, source, digest in rows(db, FIND_PINS, message.server)}
    room: tuple[int, int] | None = None
    held: dict[str, str] = {}
    changed: list[str] = []
    for tool, text in message.tools.items():
        digest = digest_of(text)
        source, pinned = pins.get(tool, ("", ""))
        if (source, pinned) == (message.source, digest):
            continue
        if source == message.source and message.mode == "ask" and pinned != digest:
            held[tool] = _id(message.server, tool, digest)
            continue
        room = room or _room(db, message)
        if tool not in pins and (room[0] <= 0 or room[1] < len(text)):
            held[tool] = ""
            continue
        room = room[0] - 1, room[1] - len(text)
        changed += [tool] if source == message.source else []
        _pin(db, message.server, tool, message.source, text, now)
    news = list(_withdrawn(db, message.server, set(held.values()), now))
    return Checked(list(held), changed, [*news, *_asked(db, message, held, now)])


def _room(db: Database, message: CheckTools) -> tuple[int, int]:
    """How many more definitions may be kept of a server, and how many characters."""
    count, size = one(db, COUNT_PINS, message.server) or (0, 0)
    if count >= PINS_MAX or size >= PINS_CHARS:
        db.execute(DROP_OTHERS, (message.server, message.source))
        count, size = one(db, COUNT_PINS, message.server) or (0, 0)
    return PINS_MAX - count, PINS_CHARS - size


def _id(server: str, tool: str, digest: str) -> str:
    return PREFIX + hashlib.sha256(chr(0).join((server, tool, digest)).encode("utf-8", "surrogatepass")).hexdigest()


def _asked(db: Database, message: CheckTools, held: dict[str, str], now: float) -> Iterator[Pending]:
    """The approvals of changes that are opened now."""
    waiting = sum(pending.id.startswith(PREFIX) for pending in map(from_row, rows(db, OPEN_OF_SERVER, message.server)))
    for tool, name in held.items():
        earlier = find(db, name) if name else None
        if not name or (earlier is not None and earlier.state in ("open", "declined")):
            continue
        if waiting >= ASKED_MAX:
            return
        if earlier is not None:
            db.execute(DROP_PENDING, (name,))
        server, text = message.server, message.tools[tool]
        (pinned,) = one(db, FIND_PIN, server, tool) or ("{}",)
        body = {
            "tool_name": tool,
            "arguments": None,
            "reason": REASON,
            "diff": difference(pinned, text),
            "source": message.source,
            "definition": text,
        }
        asked = Pending(name, APPROVAL, OPERATORS, server, body, tool=tool, asker=message.to)
        opened = open_pending(db, OpenPending(asked, LASTS_S), now, NOBODY)
        if isinstance(opened, Fault):
            return  # so much waits for operators that it is held back without
        waiting += 1
        yield told(opened)


def _withdrawn(db: Database, server: str, asked: set[str], now: float) -> Iterator[Pending]:
    """Nobody need agree to what is not so any more."""
    for pending in map(from_row, rows(db, OPEN_OF_SERVER, server)):
        if pending.id.startswith(PREFIX) and pending.id not in asked:
            db.execute(DROP_PENDING, (pending.id,))
            yield msgspec.structs.replace(told(pending), state="cancelled", settled_at=now)


def only(db: Database, message: OnlyServers, now: float) -> list[Pending]:
    """`OnlyServers`."""
    gone = {server for (server,) in rows(db, OPEN_SERVERS, OPERATORS)} - set(message.servers)
    return [pending for server in sorted(gone) for pending in _withdrawn(db, server, set(), now)]


def accept(db: Database, decided: Decided, now: float) -> None:
    """Somebody agreed to a changed definition: it is the pinned one."""
    pending = decided.pending
    agreed = decided.won and pending.kind == APPROVAL and not pending.turn and pending.state == "answered"
    if agreed and isinstance(pending.body, dict) and "definition" in pending.body:
        _pin(db, pending.server, pending.tool, pending.body["source"], pending.body["definition"], now)


def _pin(db: Database, server: str, tool: str, source: str, text: str, now: float) -> None:
    """From now on that is the definition; what was allowed for always was another tool."""
    db.execute(SET_PIN, (server, tool, source, digest_of(text), text, now))
    db.execute(DROP_GRANTS, (server, tool))


def difference(before: str, after: str) -> str:
    """What changed between two definitions, for a person: lines that begin with - or +, and some around them."""
    if len(before) > DIFF_MOST or len(after) > DIFF_MOST:
        return f"- ({len(before)} characters)\n+ ({len(after)} characters: too many to be compared)"
    old, new = (json.dumps(json.loads(text), indent=1, ensure_ascii=False).splitlines() for text in (before, after))
    same = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    begin = max(0, same - 1)
    rest = max(len(old), len(new)) - begin - DIFF_LINES
    old, new = old[begin : begin + DIFF_LINES], new[begin : begin + DIFF_LINES]
    found = [line for line in difflib.unified_diff(old, new, n=1, lineterm="") if not line.startswith("@@")]
    text = "\n".join(found[2:])  # without the names of the files that there are none of
    more = f"\n... ({rest} more lines were not compared)" if rest > 0 else ""
    return (text if len(text) <= DIFF_CHARS else f"{text[:DIFF_CHARS]}\n... ({len(text)} characters)") + more

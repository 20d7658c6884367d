"""Definitions of tools in the rows: as they were first seen, or as somebody has agreed to them since.

A definition is compared by its digest; the text is kept for the difference that a person is shown. The approval of a
change has an id that is made of the change, so that a server which is started ten times asks once. Who declines keeps
the tool from being offered; it is asked again when the decision is forgotten with its row, or the tool changes again.

As `actors.rows`, all of it runs inside a transaction of the store, and may come twice.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator

from actors.fence import Fence
from actors.pending import DROP_PENDING, OPEN_OF_SERVER, find, from_row, open_pending, settle
from actors.rows import one, rows
from actors.schema import Database
from protocol.errors import Fault
from protocol.pending import APPROVAL, OPERATORS, Decided, OpenPending, Pending
from protocol.pins import Checked, CheckTools

LASTS_S = 30 * 86400.0  # an approval; then it is asked anew
DIFF_CHARS = 8000  # more nobody reads
PREFIX = "tool-"  # of the ids of these approvals; there are others without a turn
NOBODY = Fence()  # what is asked here belongs to no front

FIND_PINS = "SELECT tool, source, digest FROM pin WHERE server = ?"
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


def check(db: Database, message: CheckTools, now: float) -> Checked | Fault:
    """`CheckTools`."""
    if message.mode == "off":
        return Checked([], [], list(_withdrawn(db, message.server, set(), now)))
    pins = {tool: (source, digest) for tool, source, digest in rows(db, FIND_PINS, message.server)}
    quarantined: dict[str, str] = {}
    changed: list[str] = []
    news: list[Pending] = []
    for tool, text in message.tools.items():
        digest = digest_of(text)
        source, pinned = pins.get(tool, ("", ""))
        if (source, pinned) == (message.source, digest):
            continue
        if source == message.source and message.mode == "ask" and pinned != digest:
            asked = _asked(db, message, tool, digest, now)
            if isinstance(asked, Fault):
                return asked
            quarantined[tool] = asked.id
            if asked.made_at == now:
                news.append(asked)
        else:
            changed += [tool] if source == message.source else []
            _pin(db, message.server, tool, message.source, text, now)
    news += _withdrawn(db, message.server, set(quarantined.values()), now)
    return Checked(list(quarantined), changed, news)


def _asked(db: Database, message: CheckTools, tool: str, digest: str, now: float) -> Pending | Fault:
    """The approval of a change, opened if it is not there."""
    server, text = message.server, message.tools[tool]
    name = f"{PREFIX}{hashlib.sha256(chr(0).join((server, tool, digest)).encode('utf-8', 'surrogatepass')).hexdigest()}"
    earlier = find(db, name)
    if earlier is not None and earlier.state not in ("open", "declined"):
        db.execute(DROP_PENDING, (name,))
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
    return open_pending(db, OpenPending(asked, LASTS_S), now, NOBODY)


def _withdrawn(db: Database, server: str, asked: set[str], now: float) -> Iterator[Pending]:
    """Nobody need agree to what is not so any more."""
    for pending in map(from_row, rows(db, OPEN_OF_SERVER, server)):
        if pending.id.startswith(PREFIX) and pending.id not in asked:
            yield settle(db, pending, "cancelled", now)


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
    old, new = (json.dumps(json.loads(text), indent=1, ensure_ascii=False).splitlines() for text in (before, after))
    found = [line for line in difflib.unified_diff(old, new, n=1, lineterm="") if not line.startswith("@@")]
    text = "\n".join(found[2:])  # without the names of the files that there are none of
    return text if len(text) <= DIFF_CHARS else f"{text[:DIFF_CHARS]}\n... ({len(text)} characters)"

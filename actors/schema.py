"""The tables of the conversation store, as an ordered list of small steps.

`migrate` brings a file to the newest version; each step runs in a transaction of its own together with the
new `user_version`, so a crash in between leaves a whole older version. A step that was released is never
edited: a change is a new step at the end. A file that is newer than this program, or that is some other
program's, is refused untouched (`Unfit`).

Where rows live: `conversation.n` is a small integer that everything else is keyed by, so the long ids that
clients see are stored once. Turns, events and the text of running answers are in the order of their writing, and
an event is found by its turn's number, which grows with time: what runs now is together at the end of each table
and index, on few pages, however many conversations it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import apsw

Database = apsw.Connection
"""A connection; the name by which the modules beside this one know it."""

SQLiteValue = str | int | float | bytes | None
"""What a column or a binding can hold."""

APPLICATION_ID = 0x6D637061  # "mcpa" in the file's header: this file is ours


class Unfit(Exception):
    """The file is a database but not one that this program may write; says why and what to do."""


def _conversations(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE conversation (
            n INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            created_at REAL NOT NULL,
            entered_at REAL NOT NULL, -- orders the conversations of one owner by last entry; never equal there
            updated_at REAL NOT NULL,
            last_turn INTEGER NOT NULL -- greatest turn ever begun: ids are not used twice
        ) STRICT;
        CREATE INDEX conversation_entered ON conversation (owner, entered_at);
        """
    )


def _turns(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE turn (
            conversation INTEGER NOT NULL REFERENCES conversation (n),
            turn INTEGER NOT NULL,
            request_id TEXT NOT NULL,
            state TEXT NOT NULL, -- queued, running, or the outcome
            hop INTEGER NOT NULL DEFAULT 0, -- greatest hop with an event: deltas up to it are superseded
            seq INTEGER NOT NULL DEFAULT 0, -- greatest position of its log that storage has seen
            PRIMARY KEY (conversation, turn),
            UNIQUE (conversation, request_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX turn_open ON turn (conversation, turn, state) WHERE state IN ('queued', 'running');
        CREATE TABLE event (
            conversation INTEGER NOT NULL,
            turn INTEGER NOT NULL,
            pos INTEGER NOT NULL,
            key TEXT, -- of the Append that brought it, on its first event: a repeat is known by it
            kind TEXT NOT NULL,
            at REAL NOT NULL,
            body TEXT NOT NULL, -- JSON of protocol.writer.Event
            PRIMARY KEY (conversation, turn, pos),
            FOREIGN KEY (conversation, turn) REFERENCES turn
        ) STRICT, WITHOUT ROWID;
        """
    )


def _deltas(db: Database) -> None:
    # Rows live as long as their turn runs: closing it deletes them.
    db.execute(
        """
        CREATE TABLE delta (
            conversation INTEGER NOT NULL,
            turn INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            hop INTEGER NOT NULL,
            text TEXT NOT NULL,
            thinking TEXT NOT NULL,
            PRIMARY KEY (conversation, turn, seq),
            FOREIGN KEY (conversation, turn) REFERENCES turn
        ) STRICT, WITHOUT ROWID;
        """
    )


def _saved(db: Database) -> None:
    # A saved session is no copy: it pins the turns of its conversation up to one of them.
    db.execute(
        """
        ALTER TABLE turn ADD COLUMN messages INTEGER NOT NULL DEFAULT 1; -- the user's, and the answer if there is one
        ALTER TABLE conversation ADD COLUMN title TEXT NOT NULL DEFAULT '';
        ALTER TABLE conversation ADD COLUMN messages INTEGER NOT NULL DEFAULT 0; -- of all its turns
        ALTER TABLE conversation ADD COLUMN saved_turn INTEGER NOT NULL DEFAULT 0; -- the last one that is pinned
        ALTER TABLE conversation ADD COLUMN saved_messages INTEGER NOT NULL DEFAULT 0; -- of turns up to that one
        CREATE TABLE saved (
            id TEXT NOT NULL PRIMARY KEY,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            conversation INTEGER NOT NULL REFERENCES conversation (n),
            up_to_turn INTEGER NOT NULL,
            messages INTEGER NOT NULL,
            at REAL NOT NULL -- never equal
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX saved_owner ON saved (owner, at);
        CREATE INDEX saved_at ON saved (at);
        CREATE INDEX saved_conversation ON saved (conversation, up_to_turn);
        UPDATE turn SET messages = 2 WHERE EXISTS (
            SELECT 1 FROM event WHERE event.conversation = turn.conversation AND event.turn = turn.turn
            AND kind = 'closed' AND json_extract(body, '$.message') <> ''
        );
        UPDATE turn SET messages = 2 WHERE state NOT IN ('queued', 'running') AND EXISTS (
            SELECT 1 FROM event WHERE event.conversation = turn.conversation AND event.turn = turn.turn
            AND kind = 'tool_started'
        );
        UPDATE conversation SET
            messages = coalesce((SELECT sum(turn.messages) FROM turn WHERE conversation = n), 0),
            title = coalesce((
                SELECT CASE json_type(body, '$.content')
                    WHEN 'text' THEN substr(replace(json_extract(body, '$.content'), char(10), ' '), 1, 100) ELSE '' END
                FROM event WHERE conversation = n AND kind = 'user' ORDER BY turn, pos LIMIT 1
            ), '');
        """
    )


def _events(db: Database) -> None:
    # In the order of writing: a commit of many conversations' events then fills a few pages at the end of the
    # table and touches small entries of one index. Clustered by conversation it rewrote one to three pages of
    # whole rows for each event: three times as much log, which was most of what a commit cost.
    db.execute(
        """
        CREATE TABLE written (
            n INTEGER PRIMARY KEY,
            conversation INTEGER NOT NULL,
            turn INTEGER NOT NULL,
            pos INTEGER NOT NULL,
            key TEXT, -- of the Append that brought it, on its first event: a repeat is known by it
            kind TEXT NOT NULL,
            at REAL NOT NULL,
            body TEXT NOT NULL, -- JSON of protocol.writer.Event
            FOREIGN KEY (conversation, turn) REFERENCES turn
        ) STRICT;
        INSERT INTO written (conversation, turn, pos, key, kind, at, body)
            SELECT conversation, turn, pos, key, kind, at, body FROM event ORDER BY at;
        DROP TABLE event;
        ALTER TABLE written RENAME TO event;
        CREATE UNIQUE INDEX event_place ON event (conversation, turn, pos);
        """
    )


def _claims(db: Database) -> None:
    db.execute(
        """
        ALTER TABLE conversation ADD COLUMN front TEXT NOT NULL DEFAULT ''; -- whose it is; empty: nobody's
        CREATE INDEX conversation_front ON conversation (front) WHERE front <> '';
        ALTER TABLE turn ADD COLUMN lost INTEGER NOT NULL DEFAULT 0; -- with a front, before anything was shown
        """
    )


def _pending(db: Database) -> None:
    # No foreign keys: a row outlives the conversation that retention takes, for as long as settled ones are kept.
    db.execute(
        """
        CREATE TABLE pending (
            id TEXT NOT NULL PRIMARY KEY,
            kind TEXT NOT NULL, -- approval or question
            owner TEXT NOT NULL, -- empty: every operator
            server TEXT NOT NULL,
            body TEXT NOT NULL, -- JSON of what is asked
            conversation TEXT NOT NULL, -- its id, since it may have no row; empty: none
            turn INTEGER NOT NULL,
            call TEXT NOT NULL,
            tool TEXT NOT NULL,
            asker TEXT NOT NULL, -- address of the actor that is told how it was settled
            front TEXT NOT NULL,
            made_at REAL NOT NULL,
            expires_at REAL NOT NULL,
            state TEXT NOT NULL, -- open, then once and for all something else
            answer TEXT, -- JSON
            key TEXT NOT NULL DEFAULT '', -- of the decision that won
            settled_at REAL NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX pending_owner ON pending (owner, made_at) WHERE state = 'open';
        CREATE INDEX pending_server ON pending (server) WHERE state = 'open';
        CREATE INDEX pending_due ON pending (expires_at) WHERE state = 'open';
        CREATE INDEX pending_settled ON pending (settled_at) WHERE state <> 'open';
        CREATE INDEX pending_turn ON pending (conversation, turn, made_at);
        CREATE TABLE granted ( -- tools that need no approval any more
            owner TEXT NOT NULL,
            server TEXT NOT NULL,
            tool TEXT NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (owner, server, tool)
        ) STRICT, WITHOUT ROWID;
        """
    )


def _pins(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE pin ( -- what tools said of themselves when they were first seen, or agreed to
            server TEXT NOT NULL,
            tool TEXT NOT NULL,
            source TEXT NOT NULL, -- digest of how the server is started or reached
            digest TEXT NOT NULL, -- of the definition
            definition TEXT NOT NULL, -- canonical JSON
            at REAL NOT NULL,
            PRIMARY KEY (server, tool)
        ) STRICT, WITHOUT ROWID;
        """
    )


def _granted(db: Database) -> None:
    db.execute("CREATE INDEX granted_tool ON granted (server, tool)")


def _ticks(db: Database) -> None:
    # Text of running answers, see actors.ticks. What an older program left of such is one row.
    db.execute(
        """
        CREATE TABLE tick (
            n INTEGER PRIMARY KEY,
            body TEXT NOT NULL -- JSON: a list of [conversation, turn, seq, hop, text, thinking]
        ) STRICT;
        ALTER TABLE turn ADD COLUMN tick INTEGER NOT NULL DEFAULT 0; -- first row with text of its running hop
        CREATE INDEX turn_tick ON turn (tick) WHERE tick > 0;
        """
    )
    left = db.execute("SELECT conversation, turn, seq, hop, text, thinking FROM delta").fetchall()
    if left:
        db.execute("INSERT INTO tick VALUES (1, ?)", (json.dumps(left),))
        db.execute("UPDATE turn SET tick = 1 WHERE (conversation, turn) IN (SELECT conversation, turn FROM delta)")
    db.execute("DROP TABLE delta")


def _places(db: Database) -> None:
    # Clustered by conversation, a turn had a page of its own to be written at its beginning and at its end, and so had
    # the place of each of its events: a commit of a hundred conversations wrote five hundred pages for their turns.
    # `key` is in the index since whether an event came under it is asked with each that comes.
    db.execute(
        """
        CREATE TABLE begun (
            n INTEGER PRIMARY KEY,
            conversation INTEGER NOT NULL REFERENCES conversation (n),
            turn INTEGER NOT NULL,
            request_id TEXT NOT NULL,
            state TEXT NOT NULL, -- queued, running, or the outcome
            hop INTEGER NOT NULL DEFAULT 0, -- greatest hop with an event: deltas up to it are superseded
            seq INTEGER NOT NULL DEFAULT 0, -- greatest position of its log that storage has seen
            messages INTEGER NOT NULL DEFAULT 1, -- the user's, and the answer if there is one
            lost INTEGER NOT NULL DEFAULT 0, -- with a front, before anything was shown
            tick INTEGER NOT NULL DEFAULT 0 -- first row with text of its running hop
        ) STRICT;
        INSERT INTO begun (conversation, turn, request_id, state, hop, seq, messages, lost, tick)
            SELECT conversation, turn, request_id, state, hop, seq, messages, lost, tick FROM turn;
        CREATE UNIQUE INDEX begun_place ON begun (conversation, turn);
        CREATE TABLE written (
            n INTEGER PRIMARY KEY,
            turn INTEGER NOT NULL REFERENCES begun (n),
            pos INTEGER NOT NULL,
            key TEXT, -- of the Append that brought it, on its first event: a repeat is known by it
            kind TEXT NOT NULL,
            at REAL NOT NULL,
            body TEXT NOT NULL -- JSON of protocol.writer.Event
        ) STRICT;
        INSERT INTO written (n, turn, pos, key, kind, at, body)
            SELECT event.n, begun.n, pos, key, kind, at, body FROM event JOIN begun
            ON begun.conversation = event.conversation AND begun.turn = event.turn ORDER BY event.n;
        DROP TABLE event;
        DROP TABLE turn;
        DROP INDEX begun_place;
        ALTER TABLE begun RENAME TO turn;
        ALTER TABLE written RENAME TO event;
        CREATE UNIQUE INDEX turn_place ON turn (conversation, turn);
        CREATE UNIQUE INDEX turn_request ON turn (conversation, request_id);
        CREATE INDEX turn_open ON turn (conversation, turn) WHERE state IN ('queued', 'running');
        CREATE INDEX turn_tick ON turn (tick) WHERE tick > 0;
        CREATE INDEX event_place ON event (turn, pos, key);
        """
    )


Step = Callable[[Database], None]
MIGRATIONS: tuple[Step, ...] = (
    _conversations,
    _turns,
    _deltas,
    _saved,
    _events,
    _claims,
    _pending,
    _pins,
    _granted,
    _ticks,
    _places,
)
"""Step number n (from 1) makes `user_version` n."""


def _number(db: Database, pragma: str) -> int:
    return int(db.pragma(pragma))


def inspect(db: Database, newest: int = len(MIGRATIONS)) -> int:
    """The version of the file, 0 for an empty one; changes nothing.

    Raises: Unfit (another program's file, or a newer one); the driver's errors for what is no database.
    """
    version, mark = _number(db, "user_version"), _number(db, "application_id")
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if mark != APPLICATION_ID and (mark or version or (tables and tables[0])):
        raise Unfit("is another program's SQLite database. Nothing was changed. Name another db_path.")
    if version > newest:
        raise Unfit(
            f"was written by a newer version of this program (schema {version}, this one knows {newest}). "
            "Nothing was changed. Run the newer program, or name another db_path."
        )
    return version


def migrate(db: Database, steps: tuple[Step, ...] = MIGRATIONS) -> int:
    """Run the steps that the file lacks, each in its own transaction; answers how many.

    Raises: what `inspect` raises, and the driver's errors; the file then holds a whole older version.
    """
    version = inspect(db, len(steps))
    for number, step in enumerate(steps[version:], version + 1):
        db.execute("SAVEPOINT step")
        try:
            step(db)
            db.pragma("application_id", APPLICATION_ID)
            db.pragma("user_version", number)
            db.execute("RELEASE step")
        except BaseException:
            if db.in_transaction:  # a full disk has rolled back already: the driver's own block would fail by that
                db.execute("ROLLBACK TO step")
                db.execute("RELEASE step")
            raise
    return len(steps) - version

"""Saved sessions, on the wire and by the original backend's REST: save, list, load, delete.

Functions of what asks and the store; they raise what the store answers (`Fault`) and `MailError` where it does
not, for the caller to tell.
"""

from __future__ import annotations

import datetime
import secrets
from typing import Any

import msgspec

from actors import transcript
from protocol.client import HistoryMessage, SavedSession, Sessions, SessionSaved, time_of
from protocol.errors import Code, Fault
from protocol.mail import Ref
from protocol.watcher import Snapshot
from protocol.writer import (
    ConversationPage,
    DeleteSaved,
    ListConversations,
    ListSaved,
    Loaded,
    LoadSaved,
    ReadSaved,
    Saved,
    SaveSession,
)

ANSWER_S = 10.0  # for the store to answer
MAX_NAME_CHARS = 200
REST_TURNS = 500  # of one saved session that REST shows


def _allowed(snapshot: Snapshot) -> None:
    if not snapshot.storage.saved_sessions.enabled:
        raise Fault(Code.FORBIDDEN, "Saved sessions are switched off (chat.storage.saved_sessions.enabled).")


async def save(writer: Ref[Any], snapshot: Snapshot, owner: str, conversation: str, name: str) -> SessionSaved:
    """Pin a conversation under a name. Raises INVALID_MESSAGE, FORBIDDEN, NOT_FOUND."""
    _allowed(snapshot)
    if not name.strip() or len(name) > MAX_NAME_CHARS:
        raise Fault(Code.INVALID_MESSAGE, f"Expected a name of 1 to {MAX_NAME_CHARS} characters - at `$.name`.")
    ask = SaveSession(owner=owner, conversation=conversation, name=name, saved_id=secrets.token_hex(16))
    saved: Saved = await writer.ask(ask, within=ANSWER_S, again=True)
    return SessionSaved(saved.saved_id, saved.name, saved.conversation, time_of(saved.at))


async def listed(writer: Ref[Any], snapshot: Snapshot, owner: str) -> Sessions:
    """All saved sessions of an owner."""
    _allowed(snapshot)
    found: list[Saved] = await writer.ask(ListSaved(owner), within=ANSWER_S, again=True)
    return Sessions([_shown(saved) for saved in found])


def _shown(saved: Saved) -> SavedSession:
    return SavedSession(saved.saved_id, saved.name, saved.conversation, time_of(saved.at), saved.messages)


async def load(writer: Ref[Any], snapshot: Snapshot, owner: str, saved_id: str, front: str = "") -> Loaded:
    """A new conversation of that front that begins as the saved one. Raises SESSION_NOT_FOUND, FORBIDDEN."""
    _allowed(snapshot)
    ask = LoadSaved(owner=owner, saved_id=saved_id, fresh_id=secrets.token_hex(16), front=front)
    loaded: Loaded = await writer.ask(ask, within=ANSWER_S, again=True)
    return loaded


async def delete(writer: Ref[Any], snapshot: Snapshot, owner: str, saved_id: str) -> Sessions:
    """Delete one; answers with those that are left. Raises SESSION_NOT_FOUND, FORBIDDEN."""
    _allowed(snapshot)
    await writer.ask(DeleteSaved(owner, saved_id), within=ANSWER_S)
    return await listed(writer, snapshot, owner)


class SessionRow(msgspec.Struct, frozen=True):
    """A conversation or saved session, as the REST shows it."""

    id: str
    title: str
    message_count: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    saved: bool


class SessionPage(msgspec.Struct, frozen=True):
    """What `GET /sessions/{saved_id}` answers."""

    id: str
    title: str
    conversation_id: str
    saved_at: datetime.datetime
    messages: list[HistoryMessage]
    more: bool


async def rest_list(writer: Ref[Any], snapshot: Snapshot, owner: str) -> bytes:
    """`GET /sessions`: saved sessions first, then the conversations."""
    saved: list[Saved] = []
    if snapshot.storage.saved_sessions.enabled:
        saved = await writer.ask(ListSaved(owner), within=ANSWER_S, again=True)
    page: ConversationPage = await writer.ask(ListConversations(owner), within=ANSWER_S, again=True)
    rows = [SessionRow(s.saved_id, s.name, s.messages, time_of(s.at), time_of(s.at), saved=True) for s in saved]
    rows += [
        SessionRow(c.conversation, c.title, c.messages, time_of(c.created_at), time_of(c.updated_at), saved=False)
        for c in page.conversations
    ]
    return msgspec.json.encode({"sessions": rows})


async def rest_read(writer: Ref[Any], snapshot: Snapshot, owner: str, saved_id: str) -> bytes:
    """`GET /sessions/{saved_id}`. Raises SESSION_NOT_FOUND, FORBIDDEN."""
    _allowed(snapshot)
    found = await writer.ask(ReadSaved(owner, saved_id, limit=REST_TURNS), within=ANSWER_S, again=True)
    saved: Saved = found.saved
    messages = transcript.page(found.events)
    return msgspec.json.encode(
        SessionPage(saved.saved_id, saved.name, saved.conversation, time_of(saved.at), messages, found.more)
    )

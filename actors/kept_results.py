"""What is too large to be carried along, kept as files beside the database: `results/CONVERSATION/ID`.

Synchronous: callers that must not wait use a thread. A conversation's folder is all there is to say whose a file is,
so who is in a conversation may read what is kept for it, and nothing else. The MCP process writes, fronts read, the
store removes a folder once it has no such conversation (`sweep`) and links it where a conversation begins as a copy.
What can fail: `keep` keeps nothing where the disk is full, or a conversation has too much; `read` raises `Fault`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from protocol.contents import RESULT_ID
from protocol.errors import Code, Fault

FOLDER = "results"
MOST_BYTES = 2**30  # of one conversation; what comes after that is told by its size only
SETTLED_S = 120.0  # a folder is left alone so long after its last file: its conversation may have no row yet
_CONVERSATION = re.compile(r"[A-Za-z0-9_-]{1,200}")  # ours are hex; nothing in it can leave the folder

log = logging.getLogger(__name__)

Keep = Callable[[bytes, bool], str]
"""Keeps bytes, of a text or not; gives the id that they are found by, empty where they could not be kept."""


class Piece(NamedTuple):
    """A piece of what is kept."""

    data: bytes
    offset: int
    """Where it begins."""
    size: int
    """Bytes of the whole."""


def keeper(state_dir: str, conversation: str) -> Keep | None:
    """What keeps for that conversation; None: it is none that anything can be kept for."""
    return partial(keep, state_dir, conversation) if _CONVERSATION.fullmatch(conversation) else None


def keep(state_dir: str, conversation: str, data: bytes, text: bool) -> str:
    """Write a file that nobody else may read; its id, empty where that failed. What is the same is kept once."""
    name = f"{'t' if text else 'b'}-{hashlib.sha256(data).hexdigest()[:32]}"
    folder = Path(state_dir, FOLDER, conversation)
    unfinished = folder / f".{name}-{secrets.token_hex(4)}"
    try:
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, exist_ok=True)
        if (folder / name).exists():
            return name
        if (held := _held(folder)) + len(data) > MOST_BYTES:
            log.warning("%d bytes are kept of conversation %s: a result of %d is not", held, conversation, len(data))
            return ""
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        unfinished.rename(folder / name)
    except OSError as error:
        log.warning("a result of %d bytes could not be kept: %s", len(data), error)
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        return ""
    return name


def _held(folder: Path) -> int:
    """Bytes of all that is in it."""
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def read(state_dir: str, conversation: str, name: str, offset: int, limit: int) -> Piece:
    """At most `limit` bytes from `offset` on; of a text only whole characters. Raises Fault NOT_FOUND."""
    if not RESULT_ID.fullmatch(name) or not _CONVERSATION.fullmatch(conversation):
        raise Fault(Code.NOT_FOUND, "There is no such result in this conversation.")
    try:
        with open(Path(state_dir, FOLDER, conversation, name), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            offset = file.seek(min(offset, size))
            data = file.read(limit)
    except FileNotFoundError:
        raise Fault(Code.NOT_FOUND, "There is no such result in this conversation.") from None
    except OSError as error:
        log.warning("a result could not be read: %s", error)
        raise Fault(Code.INTERNAL, "The result could not be read.") from error
    if is_text(name):
        begin = _inside(data)
        data, offset = data[begin:], offset + begin
        end = len(data.decode("utf-8", "ignore").encode()) if offset + len(data) < size else len(data)
        data = data[:end]
    return Piece(data, offset, size)


def is_text(name: str) -> bool:
    """Whether what is kept under that id is a text in UTF-8."""
    return name.startswith("t")


def _inside(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that begins before."""
    return next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def link(state_dir: str, source: str, copy: str) -> None:
    """What is kept for a conversation is from now on kept for one that begins as its copy, too; harmless twice."""
    if not (_CONVERSATION.fullmatch(source) and _CONVERSATION.fullmatch(copy)):
        return
    origin, target = Path(state_dir, FOLDER, source), Path(state_dir, FOLDER, copy)
    try:
        names = [entry.name for entry in os.scandir(origin) if RESULT_ID.fullmatch(entry.name)]
        target.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        return  # nothing was kept for it
    for name in names:
        try:
            os.link(origin / name, target / name)
        except FileExistsError:
            continue  # from an earlier try
        except OSError as error:  # a file system without links: the copy of the conversation then lacks it
            log.warning("a kept result of a copied conversation is not there: %s", error)


def folders(state_dir: str) -> list[str]:
    """Conversations for which something is kept, and nothing was added of late: those that `remove` may ask about."""
    before = time.time() - SETTLED_S
    try:
        with os.scandir(Path(state_dir, FOLDER)) as entries:
            return [entry.name for entry in entries if entry.stat(follow_symlinks=False).st_mtime < before]
    except FileNotFoundError:
        return []


def remove(state_dir: str, conversations: Iterable[str]) -> None:
    """Remove all that is kept for them."""
    for conversation in conversations:
        if _CONVERSATION.fullmatch(conversation):
            shutil.rmtree(Path(state_dir, FOLDER, conversation), ignore_errors=True)

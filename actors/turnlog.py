"""The log of one turn: the single source for live sockets, late joiners, resume and storage.

Theory of operation. A turn's log is an append-only list of entries; an entry's `seq` is its index + 1.
Entries are pieces of text and thinking, and whole frames (tool_execution, the closing frames). All who
want to know are *readers with a position*: sockets, the delta tick that stores what grew, and the session.
A slow reader is simply behind, and what it then gets is merged (`frames`); nothing is queued for anybody.
What the store has, and most readers have had, is kept as longer texts (`Run`), under the same indexes.
Logs of one conversation are linked by `next`, so a reader that is turns behind still misses nothing; a log
that no reader needs is freed with its last reference.

What the session must decide upon (the end of a request, its failure) is not an entry: it goes to
`decisions`, with the number of entries before it. What belongs here: positions, merging, encoding. What
this file refuses to know: sockets, storage, what a turn does next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from actors.dialect import Speaker
from actors.usage import NOTHING_USED
from protocol.client import ServerFrame, encode
from protocol.streamer import Failed, Finished
from protocol.writer import ToolStarted

SAID = b'{"type":"assistant_delta","turn":%d,"seq":%d,"text":%b}'
THOUGHT = b'{"type":"thinking_delta","turn":%d,"seq":%d,"text":%b}'
"""Frames with a piece of text, or of thinking."""

MERGE_CHARS = 32_768  # of text in one merged frame: keeps frames small for a reader that is far behind

JOINED = 128  # pieces that are kept as one text
LARGE = 64  # characters of a piece that is kept by itself: it takes little more than its letters

_json_text = msgspec.json.Encoder().encode


def frame_of(payload: bytes) -> bytes:
    """One unmasked WebSocket text frame (RFC 6455 section 5.2) with this payload."""
    size = len(payload)
    if size < 126:
        return b"\x81" + bytes((size,)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def spoken(speaker: Speaker, *frames: ServerFrame) -> bytes:
    """Frames as they go to a socket that is spoken to in the older dialect."""
    return b"".join(frame_of(payload) for frame in frames for payload in speaker.frame(frame))


class Lost(msgspec.Struct, frozen=True):
    """A request died with the actor that ran it; nothing more will come for it."""

    request: int
    reason: str


class Thought(msgspec.Struct, frozen=True, gc=False):
    """A piece of thinking."""

    text: str


class Run(msgspec.Struct, frozen=True, gc=False):
    """JOINED pieces of one kind; the entry of each. A string for each takes six times the memory of its letters."""

    first: int
    """Index of the first of them."""
    text: str
    """Of all."""
    sizes: bytes
    """Of each."""
    thinking: bool

    @property
    def end(self) -> int:
        """Index behind the last of them."""
        return self.first + len(self.sizes)

    def since(self, index: int) -> str:
        """The text of the piece at that index, and of those behind it."""
        return self.text[sum(self.sizes[: index - self.first]) :]


class TurnLog:
    """One turn, from its first request to `turn_finished`.

    Args:
        conversation: id of the conversation.
        turn: id of the turn; 0 for the sentinel that a conversation begins with.
        streaming: whether readers get text and thinking as they come.
    """

    __slots__ = (
        "_cache",
        "_joined",
        "aside",
        "asked",
        "attached",
        "calls",
        "conversation",
        "decisions",
        "entries",
        "finished",
        "head",
        "hop",
        "hop_start",
        "marked",
        "next",
        "request",
        "sending",
        "started",
        "stored",
        "streaming",
        "tools_ran",
        "turn",
        "unstored_chars",
        "whole",
    )

    def __init__(self, conversation: str, turn: int, *, streaming: bool = True) -> None:
        self.conversation = conversation
        self.turn = turn
        self.streaming = streaming
        self.entries: list[str | Thought | Run | bytes] = []
        """Text, thinking, or whole frames as they go to sockets.

        Nothing that the garbage collector counts: of all that a delta makes only this stays. As pairs they had it
        look for garbage many times a second, now and then for several milliseconds in which no delta went out.
        """
        self.whole: dict[int, tuple[ServerFrame, ...]] = {}
        """What the whole frames say, by index, for readers of another dialect."""
        self.started: ServerFrame | None = None
        """The frame that begins the turn (turn_started) ..."""
        self.head: bytes = b""
        """... and its bytes."""
        self.attached = False
        """Readers can see it: the user's message is on disk."""
        self.finished = False
        self.next: TurnLog | None = None
        self.decisions: list[Finished | Failed | Lost] = []
        self.hop = 0
        """The hop that is being answered, from 1."""
        self.hop_start = 0
        """Index of the first entry of that hop."""
        self.asked = 0
        """How often that hop was asked."""
        self.request = 0
        """The streamer's request that fills this log now; 0: none."""
        self.calls: dict[str, ToolStarted] = {}
        """Tool calls that have begun and not ended, by call id."""
        self.aside = NOTHING_USED
        """What was used by requests to the model that its tools have made."""
        self.tools_ran = False
        self.stored = 0
        """Index up to which the delta tick has stored."""
        self.sending = 0
        """Index up to which a tick is on its way to the store; sent again unchanged until it is acknowledged."""
        self.unstored_chars = 0
        """Characters of text since then."""
        self.marked = False
        """Where several fronts run: the store is told that something of it was shown."""
        self._cache: tuple[int, int, bytes] = (0, 0, b"")
        self._joined = 0
        """Index up to which entries were looked at whether they can be joined; the store has them."""

    @property
    def seq(self) -> int:
        """Of the last entry; 0 when there is none."""
        return len(self.entries)

    @property
    def shown(self) -> bool:
        """Something of the answer exists that a client may have seen, or a tool has run."""
        return bool(self.entries) or self.tools_ran

    def add(self, text: str, *, thinking: bool = False) -> None:
        """Append a piece."""
        self.entries.append(Thought(text) if thinking else text)
        self.unstored_chars += len(text)

    def add_frame(self, make: Callable[[int], ServerFrame], *before: ServerFrame) -> int:
        """Append a whole frame that is made knowing its seq; `before` go out with it, without a seq of their own."""
        seq = len(self.entries) + 1
        frames = (*before, make(seq))
        self.whole[seq - 1] = frames
        self.entries.append(b"".join(frame_of(encode(frame)) for frame in frames))
        return seq

    def begin(self, started: ServerFrame) -> None:
        """The turn is on disk: what begins it, for every reader."""
        self.started, self.head = started, frame_of(encode(started))

    def begin_hop(self, hop: int, request: int) -> None:
        """A request starts to fill the log. What earlier hops added is stored with their events, not as deltas."""
        self.request = request
        self.decisions.clear()
        self.asked += 1
        if hop != self.hop:
            self.hop, self.asked = hop, 1
            self.hop_start = len(self.entries)
            self.stored = self.sending = self.hop_start
            self.unstored_chars = 0

    def was_stored(self, seq: int, chars: int) -> None:
        """The store has everything up to there, and with it so many more characters of the running hop."""
        self.stored = max(self.stored, seq)
        self.unstored_chars = max(0, self.unstored_chars - chars)
        while self.stored - self._joined >= JOINED:
            self._join(self._joined)
            self._joined += JOINED

    def _join(self, first: int) -> None:
        entries: list[Any] = self.entries[first : first + JOINED]
        if (kinds := set(map(type, entries))) in ({str}, {Thought}):
            texts: list[str] = [entry.text for entry in entries] if Thought in kinds else entries
            sizes = [*map(len, texts)]
            if max(sizes) < LARGE:
                run = Run(first, "".join(texts), bytes(sizes), Thought in kinds)
                self.entries[first : first + JOINED] = [run] * JOINED

    def stop_filling(self) -> None:
        """Nothing of the running request counts from now on."""
        self.request = 0
        self.decisions.clear()

    def text(self, start: int = 0) -> str:
        """The answer's text from that index on, joined."""
        return "".join(self._said(start, thinking=False))

    def thinking(self, start: int = 0) -> str:
        """The reasoning from that index on, joined."""
        return "".join(self._said(start, thinking=True))

    def _said(self, index: int, *, thinking: bool) -> Iterator[str]:
        while index < len(self.entries):
            entry = self.entries[index]
            if not isinstance(entry, bytes) and _thinks(entry) is thinking:
                text, index = _piece(entry, index)
                yield text
            else:
                index = entry.end if isinstance(entry, Run) else index + 1

    def frames(self, start: int, *, text: bool = True, speaker: Speaker | None = None) -> tuple[bytes, int]:
        """What a reader at index `start` gets next: bytes of whole WebSocket frames, and its new index.

        Text is merged per kind up to MERGE_CHARS a frame; call again until the index no longer grows. All
        readers that are equally far share one encoding.

        Args:
            text: False leaves text and thinking out.
            speaker: of the older dialect, for a reader that is spoken to in it.
        """
        if not text or speaker is not None:
            return self._encode(start, text=text and self.streaming, speaker=speaker)
        entries = self.entries
        cached_start, cached_end, cached = self._cache
        if cached_start == start and cached_end == len(entries):
            return cached, cached_end
        end = start + 1
        entry = entries[start] if end == len(entries) and self.streaming else b""
        if type(entry) is str and entry:  # one piece, as nearly always where readers keep up
            out = frame_of(SAID % (self.turn, end, _json_text(entry)))
        elif type(entry) is Thought and entry.text:
            out = frame_of(THOUGHT % (self.turn, end, _json_text(entry.text)))
        else:
            out, end = self._encode(start, text=self.streaming, speaker=None)
        self._cache = (start, end, out)
        return out, end

    def _encode(self, start: int, *, text: bool, speaker: Speaker | None) -> tuple[bytes, int]:
        entries, out, size = self.entries, [], 0
        index, total = start, len(entries)
        while index < total and size < MERGE_CHARS:
            entry = entries[index]
            if isinstance(entry, bytes):
                out.append(entry if speaker is None else spoken(speaker, *self.whole[index]))
                size += len(entry)
                index += 1
                continue
            thinking, parts, chars = _thinks(entry), [], 0
            while index < total and chars < MERGE_CHARS:
                entry = entries[index]
                if type(entry) is str and not thinking:  # as most are
                    part, index = entry, index + 1
                elif isinstance(entry, bytes) or _thinks(entry) is not thinking:
                    break
                else:
                    part, index = _piece(entry, index)
                parts.append(part)
                chars += len(part)
            if not (text and chars):  # none: a place that is held
                continue
            merged = parts[0] if len(parts) == 1 else "".join(parts)
            if speaker is None:
                out.append(frame_of((THOUGHT if thinking else SAID) % (self.turn, index, _json_text(merged))))
            else:
                out += map(frame_of, speaker.text(self.turn, merged, thinking=thinking))
            size += chars
        return (out[0] if len(out) == 1 else b"".join(out)), index


def _thinks(entry: str | Thought | Run) -> bool:
    return entry.thinking if isinstance(entry, Run) else isinstance(entry, Thought)


def _piece(entry: str | Thought | Run, index: int) -> tuple[str, int]:
    """The text at that index, of as much as is kept as one, and the index behind it."""
    if isinstance(entry, Run):
        return entry.since(index), entry.end
    return (entry.text if isinstance(entry, Thought) else entry), index + 1

"""Frames: how items become bytes and bytes items, and how many messages may be under way; free of I/O.

A frame is a u32 length (big-endian) and a msgpack array of items. `Packer` gathers items into frames;
`Unpacker` makes items of whatever bytes come, at any split. An item of more than `WHOLE` bytes travels as
`Part`s, one large item at a time, between which other items go; what goes to the same address waits behind it,
so that order is kept. `Flow` counts credit.

May assume that peers are the same user's processes of the same version, but trusts no size. What can fail:
`BadFrame`, at the receiver: the port cannot be used any more; `TooLarge`, at the sender: nothing was queued.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

import msgspec

from protocol.frames import MOST, Credit, Item, Part

WINDOW = 256  # messages under way in one direction: sent, and not yet at their mailbox
WHOLE = 256 * 1024  # bytes; an item above it travels in parts
PART = 64 * 1024  # bytes of one part: what a small message may have to wait for
FRAME = 1024 * 1024  # bytes at which a frame is closed and the next one begun
FRAME_MOST = FRAME + WHOLE + PART + 1024  # bytes that a receiver takes

_HEAD = struct.Struct(">IBI")  # length of what follows; msgpack's array 32 and its count
_LENGTH = struct.Struct(">I")
_ARRAY = 0xDD
_encoder = msgspec.msgpack.Encoder()
_items = msgspec.msgpack.Decoder(list[Item])
_item = msgspec.msgpack.Decoder(Item)


class BadFrame(Exception):
    """The peer sent what is no frame of ours."""


class TooLarge(Exception):
    """An item of more than MOST bytes."""


class Packer:
    """Gathers the items of one direction of a port into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._begin = 0  # of the open frame
        self._count = 0  # of its items; 0: none is open
        self._large: deque[tuple[str, memoryview]] = deque()
        self._behind: dict[str, deque[bytes]] = {}

    def __bool__(self) -> bool:
        return bool(self._buffer or self._large)

    def add(self, item: Item, to: str = "", size: int = 0) -> None:
        """Queue an item.

        Args:
            to: address within which order is kept; empty: none is promised past a large item.
            size: bytes of its body, if it has one.
        Raises: TooLarge, and what msgspec raises for what it cannot encode; then nothing was queued.
        """
        if size > MOST:
            raise TooLarge(f"{size} bytes, {MOST} are allowed")
        if size > WHOLE or (self._behind and to in self._behind):
            self._later(to, _encoder.encode(item))
            return
        end = self._open()
        try:
            _encoder.encode_into(item, self._buffer, end)
        except Exception:  # whatever it is, it is the caller's; a part of the item may have been written
            del self._buffer[end:]
            raise
        if len(self._buffer) - end > WHOLE:
            data = bytes(self._buffer[end:])
            del self._buffer[end:]
            self._later(to, data)
            return
        self._added()

    def take(self) -> bytearray | None:
        """The frames of what was queued, with one part of what is large; None if there is nothing."""
        if self._large:
            self._part()
        self._close()
        if not self._buffer:
            return None
        taken, self._buffer = self._buffer, bytearray()
        self._begin = 0
        return taken

    def _open(self) -> int:
        if not self._count:
            self._begin = len(self._buffer)
            self._buffer += bytes(_HEAD.size)
        return len(self._buffer)

    def _added(self) -> None:
        self._count += 1
        if len(self._buffer) - self._begin >= FRAME:
            self._close()

    def _close(self) -> None:
        if self._count:
            length = len(self._buffer) - self._begin - _LENGTH.size
            _HEAD.pack_into(self._buffer, self._begin, length, _ARRAY, self._count)
            self._count = 0

    def _later(self, to: str, data: bytes) -> None:
        if len(data) > MOST + WHOLE:
            raise TooLarge(f"{len(data)} bytes, {MOST} are allowed")
        if to in self._behind:
            self._behind[to].append(data)
            return
        if to:
            self._behind[to] = deque()
        self._large.append((to, memoryview(data)))

    def _part(self) -> None:
        to, data = self._large.popleft()
        part, rest = data[:PART], data[PART:]
        _encoder.encode_into(Part(part, not rest), self._buffer, self._open())
        self._added()
        if rest:
            self._large.appendleft((to, rest))
            return
        behind = self._behind.pop(to, deque())
        while behind:
            encoded = behind.popleft()
            if len(encoded) > WHOLE:
                self._large.append((to, memoryview(encoded)))
                self._behind[to] = behind
                return
            self._open()
            self._buffer += encoded
            self._added()


class Unpacker:
    """Makes items of the bytes that come from one peer."""

    def __init__(self) -> None:
        self._chunks: list[bytes | bytearray] = []
        self._have = 0
        self._need = _LENGTH.size
        self._large = bytearray()

    @property
    def torn(self) -> bool:
        """What came so far ends within a frame or a large item."""
        return bool(self._have or self._large)

    def feed(self, data: bytes | bytearray) -> Iterator[list[Item]]:
        """The items of each frame that is complete now; to be used up before the next `feed`. Raises BadFrame."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        view = memoryview(data if len(self._chunks) == 1 else b"".join(self._chunks))
        at, self._need = 0, _LENGTH.size
        while len(view) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(view, at)
            if length > FRAME_MOST:
                raise BadFrame(f"a frame of {length} bytes, {FRAME_MOST} are allowed")
            begin, end = at + _LENGTH.size, at + _LENGTH.size + length
            if end > len(view):
                self._need = end - at
                break
            yield self._unpacked(view[begin:end])
            at = end
        self._have = len(view) - at
        self._chunks = [bytes(view[at:])] if self._have else []

    def _unpacked(self, frame: memoryview) -> list[Item]:
        try:
            items = _items.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadFrame(f"a frame that cannot be read: {error}") from None
        for item in items:
            if type(item) is Part or self._large:
                return [whole for item in items if (whole := self._whole(item)) is not None]
        return items

    def _whole(self, item: Item) -> Item | None:
        if not isinstance(item, Part):
            return item
        if len(self._large) + len(item.data) > MOST + WHOLE:
            raise BadFrame(f"an item of more than {MOST} bytes")
        self._large += item.data
        if not item.last:
            return None
        data, self._large = self._large, bytearray()
        try:
            whole: Item = _item.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadFrame(f"a large item that cannot be read: {error}") from None
        if isinstance(whole, Part):
            raise BadFrame("a part of a part")
        return whole


class Flow:
    """Credit, both ways: how many messages may be sent, and how many of the peer's are to be given back."""

    def __init__(self) -> None:
        self.left = WINDOW
        """How many may be sent now."""
        self._owed = 0

    @property
    def under_way(self) -> int:
        """Sent, and not known to have arrived."""
        return WINDOW - self.left

    def sent(self) -> None:
        """A message leaves; `left` was more than 0."""
        self.left -= 1

    def credited(self, credit: Credit) -> None:
        """The peer gives some back. Raises BadFrame if it is more than was taken."""
        if not 0 < credit.count <= self.under_way:
            raise BadFrame(f"a credit of {credit.count}, {self.under_way} are under way")
        self.left += credit.count

    def arrived(self) -> bool:
        """A message came. True: now enough are owed to be worth a frame of their own. Raises BadFrame past WINDOW."""
        self._owed += 1
        if self._owed > WINDOW:
            raise BadFrame(f"more than {WINDOW} messages without credit")
        return self._owed == WINDOW // 4

    def due(self, *, alone: bool) -> Credit | None:
        """What is given back with the next frame; `alone`: there would be no frame without it."""
        if not self._owed or (alone and self._owed < WINDOW // 4):
            return None
        credit, self._owed = Credit(self._owed), 0
        return credit

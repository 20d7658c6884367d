"""One TCP connection of the gateway's port, from its first byte to its end.

The guard (`serve`) is the outermost call of the connection's task: whatever a peer does ends this
connection and nothing else. Reads the head, then answers plain HTTP, or becomes a WebSocket whose every
byte out goes through one `Outbox`, and whose bytes in are read by its `Wire`. One task reads, always; another
handles what came, and is there only while there is something to handle: a socket on which nothing happens costs
little. Close frames and the last bytes get a bounded time; then the connection is dropped.

Where several fronts run, a WebSocket is served by the one that has its conversation (`actors.passing`): it comes
from, or goes to, another front with its descriptor, and nothing more is said to its peer here.
"""

from __future__ import annotations

import contextlib
import logging

import msgspec
import trio

from actors import handshake, pages, passing, subscribers
from actors.client_socket import Socket
from actors.commands import Commands
from actors.entering import Elsewhere, Place
from actors.front import MOVED, Front
from actors.handover import Passed
from actors.http import BadRequest, Head, Replay, host_allowed, origin_allowed, read_head, response
from actors.outbox import Outbox
from actors.passing import Line
from actors.wire import ABNORMAL, Wire
from protocol.client import LOCAL_OWNER, error_frame
from protocol.errors import Code, Fault
from protocol.mail import MailError
from protocol.watcher import WebSocket

log = logging.getLogger("actors.gateway")

HANDSHAKE_S = 10.0  # for the head; a phone on a bad network takes 3
CLOSE_S = 1.0  # for the close handshake and what still waits to be sent
STALLED_S = 30.0  # a peer that takes no byte for this long is closed with 1013 and can resume
LOOKS = 100  # sockets that are looked at before others have a turn
SWEEP_S = 5.0  # how often sockets are looked at where no ping is due earlier
INBOX = 8  # frames read ahead of the one that is handled; the rest waits in the peer's TCP buffer
PING = b"\x89\x00"  # an empty ping frame
NO_STORE = 1013, "the store is not available, try again later"
FAILED = 1011, "something failed inside the service"

Settled = Place | Fault | MailError
"""Where a client is to be, or why it can be nowhere."""


class Entry(msgspec.Struct):
    """How a WebSocket begins; kept until its client is welcomed, but for `head`."""

    wanted: str
    """The conversation that its address names."""
    dialect: str
    head: bytes
    """Of its request, where there are other fronts."""
    answer: bytes
    """To its handshake; empty: the peer has had one."""
    early: bytes
    """What came with its handshake, or behind `first`."""
    settled: Settled | None = None
    first: str | None = None
    """A message that is handled first: it comes from another front."""
    unsent: bytes = b""
    frame_s: float = 0.0
    follows: list[tuple[str, str]] = []


async def serve(front: Front, stream: trio.SocketStream, passed: Passed | None = None) -> None:
    """Serve one connection; returns when it is over, or another front has it. Never raises an Exception.

    Args:
        passed: what came with it from another front.
    """
    try:
        async with stream:
            entry = await _enter(front, stream, passed)
            if entry is not None:
                del passed  # it may be large, and would be kept as long as the socket
                await _websocket(front, stream, entry)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("a connection broke")  # peers reset connections all the time
    except Exception:  # boundary: one connection's trouble is its own
        log.exception("a connection failed and was closed")


async def _enter(front: Front, stream: trio.SocketStream, passed: Passed | None) -> Entry | None:
    """How the WebSocket begins; None: it was another request, and is answered, or another front has it."""
    try:
        source = stream if passed is None else Replay(passed.head, stream)
        head = await read_head(source, within=HANDSHAKE_S)
        if head is None:
            return None
        if passed is None:
            _check(front, head)
            if not (head.wants_websocket and head.path == front.snapshot.websocket.endpoint):
                await _finish(stream, await _page(front, head))
                return None
        return await _entry(front, stream, head, passed)
    except BadRequest as bad:
        upgrade = bad.status == handshake.UPGRADE_REQUIRED
        headers = [("Sec-WebSocket-Version", handshake.WEBSOCKET_VERSION)] if upgrade else []
        await _finish(
            stream, response(bad.status, bad.text.encode() + b"\n", "text/plain; charset=utf-8", headers=headers)
        )
    return None


async def _entry(front: Front, stream: trio.SocketStream, head: Head, passed: Passed | None) -> Entry | None:
    key, early = handshake.accepted(head)
    settled: Settled | None = None
    if front.handover is not None:
        settled = await passing.settle(front, stream, head, LOCAL_OWNER, passed)
        if settled is None:
            return None
    begun = passed is not None and passed.frame is not None
    entry = Entry(
        wanted=head.query.get("conversation", ""),
        dialect=head.query.get("dialect", ""),
        head=head.brief(handshake.KEPT) if front.handover is not None else b"",
        answer=b"" if begun else await handshake.answered(key),
        early=early,
        settled=settled,
    )
    if passed is not None:
        entry.first, entry.unsent, entry.follows = passed.frame, passed.unsent, passed.follows
        entry.frame_s = passed.frame_s
        if begun:
            entry.early = passed.rest
    return entry


async def _page(front: Front, head: Head) -> bytes:
    try:
        return await pages.answer(front, head)
    except Exception:  # boundary: a page that fails is a 500, not a silent end
        log.exception("the page %s failed", head.path)
        return response(500, b"something failed inside the service; it was logged\n", "text/plain; charset=utf-8")


def _check(front: Front, head: Head) -> None:
    if not host_allowed(head, bound_to_loopback=front.loopback):
        raise BadRequest(403, "this service answers under its own loopback names only")
    if not origin_allowed(head, allow_origins=front.snapshot.websocket.allow_origins):
        raise BadRequest(403, "pages of this origin may not use the service; see chat.websocket.allow_origins")


async def _finish(stream: trio.SocketStream, last: bytes) -> None:
    """Send the last bytes, then let the peer close first for a moment: closing with unread bytes would reset."""
    with trio.move_on_after(CLOSE_S):
        await stream.send_all(last)
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass


async def _websocket(front: Front, stream: trio.SocketStream, entry: Entry) -> None:
    try:
        async with trio.open_nursery() as nursery:
            outbox = Outbox(stream.socket, nursery, front.timer)
            outbox.write(entry.answer + entry.unsent)
            outbox.frame_s = entry.frame_s
            several = front.handover is not None
            wire = Wire(outbox, stream.socket, front.message_limit, early=entry.early, keeps=several)
            entry.early = entry.answer = entry.unsent = b""
            await Talk(Line(front, stream, entry.head, outbox, wire), entry, nursery).run()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # what the peer caused is expected; the rest goes on to the guard
        _, rest = group.split((OSError, trio.BrokenResourceError, trio.ClosedResourceError))
        if rest is not None:
            raise rest from None


class Talk:
    """What is said over one WebSocket, until one of its ends has enough."""

    __slots__ = ("_changed", "_commands", "_ending", "_entry", "_handling", "_inbox", "_line", "_nursery", "_socket")

    def __init__(self, line: Line, entry: Entry, nursery: trio.Nursery) -> None:
        self._line = line
        self._entry: Entry | None = entry
        self._nursery = nursery
        self._socket = Socket(line.front.next_number(), line.outbox, self._close)
        self._commands = Commands(line.front, self._socket, nursery)
        self._ending: tuple[int, str] | None = None
        self._inbox: list[str | bytes] | None = None
        """What was read and not taken yet."""
        self._handling = False
        """There is a task that handles it."""
        self._changed: trio.Event | None = None
        """Set when one was taken, or that task has ended; while somebody waits for it."""

    def _close(self, code: int, reason: str) -> None:
        self._ending = self._ending or (code, reason)
        self._nursery.cancel_scope.cancel()

    async def run(self) -> None:
        """Returns, or is cancelled, when it is over; its peer is told why, within CLOSE_S."""
        line, socket = self._line, self._socket
        line.front.sockets[socket.number] = socket
        try:
            socket.wire = line.wire
            self._handle_soon()
            await self._read()
        except Exception:  # whatever it is, the peer is told that it was us
            self._ending = FAILED
            raise  # the guard logs it
        finally:
            self._nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                while self._handling:  # it has been cancelled; what it does at its end comes before ours
                    await self._change()
            line.front.leave(socket)
            subscribers.leave(line.front, socket)
            del line.front.sockets[socket.number]
            socket.let_go()
            if line.gone:
                log.info("socket %d: another front has it", socket.number)
            else:
                code, reason = self._ending or _why(line.wire)
                log.info("socket %d: closed with %s", socket.number, f"{code} {reason}" if reason else code)
                await _say_goodbye(line.stream, line.outbox, line.wire, code, reason)

    async def _read(self) -> None:
        """Always, also while something is handled: pings are answered, and the peer's end is seen."""
        wire = self._line.wire
        while (message := wire.next()) is not None or await wire.receive():
            if message is None or self._handled_now(message):
                continue
            if self._inbox is None:
                self._inbox = []
            self._inbox.append(message)
            self._handle_soon()
            while self._inbox is not None and len(self._inbox) > INBOX and not wire.over:
                await self._change()
        while self._handling:
            await self._change()

    def _handled_now(self, message: str | bytes) -> bool:
        """Handle what needs no waiting, where nothing came before or behind it: a task takes as long as all of that."""
        wire, commands = self._line.wire, self._commands
        if self._handling or self._inbox or self._ending is not None or not wire.drained or isinstance(message, bytes):
            return False
        try:
            if not commands.handle_now(message):
                return False
        except Exception:  # noqa: BLE001  # the boundary, see there
            self._failed()
        wire.taken()
        return True

    async def _change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    def _tell_change(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _handle_soon(self) -> None:
        if not self._handling:
            self._handling = True
            self._nursery.start_soon(self._handle_all)

    async def _handle_all(self) -> None:
        line = self._line
        try:
            if self._entry is not None:
                entry, self._entry = self._entry, None
                await self._begin(entry)
            while self._inbox and not line.wire.over and self._ending is None:
                message = self._inbox.pop(0)
                line.wire.taken()
                self._tell_change()
                await self._handle(message)
            self._inbox = None
        except Exception:  # whatever it is, the peer is told that it was us
            self._ending = FAILED
            raise  # the guard logs it
        finally:
            self._handling = False
            self._tell_change()

    async def _begin(self, entry: Entry) -> None:
        commands, socket = self._commands, self._socket
        try:
            if isinstance(entry.settled, Exception):
                raise entry.settled
            if entry.settled is not None and entry.first is not None:
                commands.arrive(entry.settled)
            else:
                await commands.greet(entry.wanted, entry.dialect, entry.settled)
        except (MailError, Fault) as error:
            log.warning("a client could not be welcomed: %s", error)
            fault = error if isinstance(error, Fault) else Fault(Code.STORAGE_UNAVAILABLE)
            socket.tell(error_frame(fault.body))
            self._close(*(MOVED if fault.code is Code.MOVED else NO_STORE))
            return
        entry.settled = None  # the entry is kept as long as the socket
        commands.follow_on(sorted(entry.follows))
        where = socket.conversation.id if socket.conversation is not None else "(none)"
        log.info("socket %d: connected, in conversation %s", socket.number, where)
        if entry.first is not None:
            first, entry.first = entry.first, None
            await self._handle(first)

    async def _handle(self, frame: str | bytes) -> None:
        line, commands, socket = self._line, self._commands, self._socket
        patience = passing.Patience()
        while True:
            try:
                if isinstance(frame, bytes):
                    raise Fault(Code.INVALID_MESSAGE, "Binary frames are not understood; send JSON in text frames.")
                await commands.handle(frame)
            except Elsewhere as elsewhere:
                frame = elsewhere.frame or str(frame)
                # not while something is owed to this client here: it would get it from nobody
                if commands.settled and await passing.move(line, frame, elsewhere, sorted(socket.follows)):
                    return
                if await patience.wait() or await passing.bury(line.front, elsewhere.entered.front):
                    continue
                socket.close(*MOVED)
            except Fault as fault:
                socket.tell(error_frame(fault.body))
            except RecursionError:
                deep = Fault(Code.INVALID_MESSAGE, "The frame is nested too deeply.")
                socket.tell(error_frame(deep.body))
            except Exception:  # noqa: BLE001  # the boundary, see there
                self._failed()
            await line.outbox.wait_room()
            return

    def _failed(self) -> None:
        """The boundary: one frame's trouble is its own."""
        log.exception("socket %d: a frame could not be handled", self._socket.number)
        self._socket.tell(error_frame(Fault(Code.INTERNAL).body))


async def look_after(front: Front) -> None:
    """Ping silent peers, drop dead ones, close stalled ones; one task for all sockets, until it is cancelled."""
    while True:
        interval = front.snapshot.websocket.ping_interval
        await trio.sleep(min(interval, SWEEP_S) if interval > 0 else SWEEP_S)
        for number, socket in enumerate(tuple(front.sockets.values())):
            if number % LOOKS == LOOKS - 1:
                await trio.lowlevel.checkpoint()
            try:
                if _is_dead(socket, front.snapshot.websocket):
                    log.debug("socket %d: no sign of life", socket.number)
                    socket.outbox.close()
            except Exception:  # boundary: one socket's trouble is its own
                log.exception("socket %d: it could not be looked after", socket.number)


def _is_dead(socket: Socket, settings: WebSocket) -> bool:
    """The peer has answered no ping; sends one, or closes the socket, where that is due."""
    outbox, interval, wire = socket.outbox, settings.ping_interval, socket.wire
    if wire is None:
        return False  # it comes or goes
    if outbox.waiting:
        # a ping would wait behind the rest: that it is not answered would say nothing
        if trio.current_time() - outbox.progress_at > STALLED_S:
            socket.close(1013, "nothing was read for too long; connect again and resume")
        return False
    if interval <= 0:
        return False
    silent_s = wire.silent_s
    if silent_s > interval + settings.ping_timeout:
        return True
    if silent_s >= interval:
        outbox.write(PING)
    return False


def _why(wire: Wire) -> tuple[int, str]:
    """The close code of an end that was not asked for by us."""
    if wire.refused:
        return 1009, wire.refused
    return wire.closed or (1001, "the service stops")


async def _say_goodbye(stream: trio.SocketStream, outbox: Outbox, wire: Wire, code: int, reason: str) -> None:
    """Close frame, what waits to be sent, and the peer's end, all within CLOSE_S; shielded: also at a stop.

    The end of our side is sent once the peer has seen the close frame, or is gone: some clients take an end
    that comes earlier for a failure. What the peer still sends is dropped, since closing with unread bytes
    would reset the connection, and the close frame with it.
    """
    wire.over = True
    if outbox.broken or code == ABNORMAL:
        return
    wire.say_close(code, reason)
    outbox.sealed = True
    with trio.move_on_after(CLOSE_S, shield=True):
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await outbox.flush()
            gone = False
            while not (wire.peer_closing or gone):
                data = await stream.receive_some(65536)
                wire.follow(bytes(data))
                gone = not data
            await stream.send_eof()
            while not gone and await stream.receive_some(65536):
                pass

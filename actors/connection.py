"""One TCP connection of the gateway's port, from its first byte to its end. The importer of trio_websocket.

The guard (`serve`) is the outermost call of the connection's task: whatever a peer does ends this
connection and nothing else. Reads the head, then answers plain HTTP, or becomes a WebSocket whose every
byte out goes through one `Outbox`. The library's own server is not used: one bad handshake takes it down.
It speaks the protocol behind a `Wire`; the handshake is checked, and the connection ended, here.
Close frames and the last bytes get a bounded time; then the connection is dropped.

Where several fronts run, a WebSocket is served by the one that has its conversation (`actors.passing`): it comes
from, or goes to, another front with its descriptor, and nothing more is said to its peer here.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import sys
from collections.abc import AsyncIterator

import trio
import trio_websocket
from wsproto.connection import ConnectionType
from wsproto.handshake import H11Handshake

from actors import pages, passing, subscribers
from actors.commands import Commands
from actors.entering import Elsewhere, Place
from actors.front import MOVED, Front, Socket
from actors.handover import Passed
from actors.http import BadRequest, Head, Replay, host_allowed, origin_allowed, read_head, response
from actors.outbox import Outbox
from actors.passing import Line
from actors.wire import Wire
from protocol.client import LOCAL_OWNER, error_frame
from protocol.errors import Code, Fault
from protocol.mail import MailError
from protocol.watcher import WebSocket

log = logging.getLogger("actors.gateway")

HANDSHAKE_S = 10.0  # for the head, and again for the WebSocket handshake; a phone on a bad network takes 3
CLOSE_S = 1.0  # for the close handshake and what still waits to be sent
STALLED_S = 30.0  # a peer that takes no byte for this long is closed with 1013 and can resume
LOOKS = 100  # sockets that are looked at before others have a turn
SWEEP_S = 5.0  # how often sockets are looked at where no ping is due earlier
INBOX = 8  # frames read ahead of the one that is handled; the rest waits in the peer's TCP buffer
PING = b"\x89\x00"  # an empty ping frame
WEBSOCKET_VERSION = "13"  # the only one there is: RFC 6455
UPGRADE_REQUIRED = 426
KEY_BYTES = 16  # of Sec-WebSocket-Key, decoded
ABNORMAL = 1006  # the peer ended without a close frame
NO_STORE = 1013, "the store is not available, try again later"
HEAD_END = re.compile(rb"\n\r?\n")
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)
SPENT = H11Handshake(ConnectionType.SERVER)  # one that says nothing, for all whose own is over

Settled = Place | Fault | MailError
"""Where a client is to be, or why it can be nowhere."""


async def serve(front: Front, stream: trio.SocketStream, passed: Passed | None = None) -> None:
    """Serve one connection; returns when it is over, or another front has it. Never raises an Exception.

    Args:
        passed: what came with it from another front.
    """
    try:
        async with stream:
            await _serve(front, stream, passed)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("a connection broke")  # peers reset connections all the time
    except Exception:  # boundary: one connection's trouble is its own
        log.exception("a connection failed and was closed")


async def _serve(front: Front, stream: trio.SocketStream, passed: Passed | None) -> None:
    try:
        source = stream if passed is None else Replay(passed.head, stream)
        head = await read_head(source, within=HANDSHAKE_S)
        if head is None:
            return
        if passed is not None:
            await _websocket(front, stream, head, passed)
            return
        _check(front, head)
        if head.wants_websocket and head.path == front.snapshot.websocket.endpoint:
            await _websocket(front, stream, head, None)
            return
        answer = await _page(front, head)
    except BadRequest as bad:
        headers = [("Sec-WebSocket-Version", WEBSOCKET_VERSION)] if bad.status == UPGRADE_REQUIRED else []
        answer = response(bad.status, bad.text.encode() + b"\n", "text/plain; charset=utf-8", headers=headers)
    await _finish(stream, answer)


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


async def _websocket(front: Front, stream: trio.SocketStream, head: Head, passed: Passed | None) -> None:
    handshake, early = accepted(head)
    settled: Settled | None = None
    several = front.handover is not None
    if several:
        settled = await passing.settle(front, stream, head, LOCAL_OWNER, passed)
        if settled is None:
            return
    begun = passed is not None and passed.frame is not None
    try:
        async with trio.open_nursery() as nursery:
            replay = Replay(handshake + (passed.rest if passed is not None and begun else early), stream)
            outbox = Outbox(replay, stream.socket, nursery)
            if passed is not None:
                outbox.write(passed.unsent)
                outbox.frame_s = passed.frame_s
            limit = lambda: front.snapshot.websocket.max_message_size  # noqa: E731 - as it is in force when asked
            wire = Wire(outbox, len(handshake), limit, keeps=several, muted=begun)
            connection = await _shake_hands(wire, nursery)
            if connection is not None:
                line = Line(front, stream, head, replay, outbox, wire)
                line.follows.update(passed.follows if passed is not None else ())
                await _talk(line, connection, nursery, settled, passed.frame if passed is not None else None)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # what the peer caused is expected; the rest goes on to the guard
        _, rest = group.split((OSError, trio.BrokenResourceError, trio.ClosedResourceError))
        if rest is not None:
            raise rest from None


def accepted(head: Head) -> tuple[bytes, bytes]:
    """A handshake in plain words for the library, and what the peer sent behind its own.

    The library fails on a peer's handshake in many ways (bytes that are not ASCII, names that are not IDNA)
    and needs nothing of it but the key. Raises BadRequest: 426 for another version, 400 for a bad key.
    """
    version = head.header("sec-websocket-version")
    if version != WEBSOCKET_VERSION:
        raise BadRequest(UPGRADE_REQUIRED if version else 400, "this endpoint speaks WebSocket version 13")
    key = head.header("sec-websocket-key") or ""
    try:
        nonce = base64.b64decode(key.encode("latin-1"), validate=True)
    except ValueError:
        nonce = b""
    if len(nonce) != KEY_BYTES:
        raise BadRequest(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    end = HEAD_END.search(head.raw)
    early = head.raw[end.end() :] if end is not None else b""
    return HANDSHAKE % base64.b64encode(nonce), early


async def _shake_hands(wire: Wire, nursery: trio.Nursery) -> trio_websocket.WebSocketConnection | None:
    with trio.move_on_after(HANDSHAKE_S):
        request = await trio_websocket.wrap_server_stream(
            nursery,
            wire,
            max_message_size=sys.maxsize,  # the library counts characters; the wire counts bytes
            message_queue_size=INBOX,
            receive_buffer_size=65536,
        )
        connection = await request.accept()
        # It would be kept for as long as the socket, with a parser of HTTP and all that was said.
        connection._wsproto.handshake = SPENT
        return connection
    return None


async def _talk(
    line: Line,
    connection: trio_websocket.WebSocketConnection,
    nursery: trio.Nursery,
    settled: Settled | None,
    first: str | None,
) -> None:
    front, outbox, wire = line.front, line.outbox, line.wire
    ending: list[tuple[int, str]] = []
    scope = trio.CancelScope()

    def close(code: int, reason: str) -> None:
        ending.append((code, reason))
        scope.cancel()

    socket = Socket(front.next_number(), outbox, close)
    came_with, line.follows = sorted(line.follows), socket.follows
    try:
        async with _registered(front, socket):
            socket.wire = wire
            with scope:
                commands = Commands(front, socket, nursery)
                try:
                    await _welcome(commands, line.head, settled, begun=first is not None)
                except (MailError, Fault) as error:
                    log.warning("a client could not be welcomed: %s", error)
                    fault = error if isinstance(error, Fault) else Fault(Code.STORAGE_UNAVAILABLE)
                    socket.tell(error_frame(fault.body))
                    close(*(MOVED if fault.code is Code.MOVED else NO_STORE))
                commands.follow_on(came_with)
                log.info("socket %d: connected, in conversation %s", socket.number, _where(socket))
                with contextlib.suppress(trio_websocket.ConnectionClosed):
                    await _read(line, connection, commands, first)
    except Exception:
        ending.insert(0, (1011, "something failed inside the service"))
        raise  # the guard logs it
    finally:
        # also when the connection is cancelled: its peer is told why, within CLOSE_S
        if line.gone:
            log.info("socket %d: another front has it", socket.number)
        else:
            code, reason = ending[0] if ending else _why(wire, connection)
            log.info("socket %d: closed with %d %s", socket.number, code, reason)
            await _say_goodbye(line.stream, outbox, wire, code, reason)


async def _welcome(commands: Commands, head: Head, settled: Settled | None, *, begun: bool) -> None:
    if isinstance(settled, Exception):
        raise settled
    if settled is not None and begun:
        commands.arrive(settled)
    else:
        await commands.greet(head.query.get("conversation", ""), head.query.get("dialect", ""), settled)


@contextlib.asynccontextmanager
async def _registered(front: Front, socket: Socket) -> AsyncIterator[None]:
    front.sockets[socket.number] = socket
    try:
        yield
    finally:
        front.leave(socket)
        subscribers.leave(front, socket)
        del front.sockets[socket.number]


def _where(socket: Socket) -> str:
    return socket.conversation.id if socket.conversation is not None else "(none)"


async def _read(
    line: Line, connection: trio_websocket.WebSocketConnection, commands: Commands, first: str | None
) -> None:
    if first is not None:
        await _handle(line, connection, commands, first)
    while not line.gone:
        frame = await connection.get_message()
        line.wire.taken()
        await _handle(line, connection, commands, frame)


async def _handle(
    line: Line, connection: trio_websocket.WebSocketConnection, commands: Commands, frame: str | bytes
) -> None:
    async def discard() -> None:
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            while True:
                await connection.get_message()

    patience = passing.Patience()
    while True:
        try:
            if isinstance(frame, bytes):
                raise Fault(Code.INVALID_MESSAGE, "Binary frames are not understood; send JSON in text frames.")
            await commands.handle(frame)
        except Elsewhere as elsewhere:
            frame = elsewhere.frame or str(frame)
            # not while something is owed to this client here: it would get it from nobody
            if commands.settled and await passing.move(line, frame, elsewhere, discard):
                return
            if await patience.wait() or await passing.bury(line.front, elsewhere.entered.front):
                continue
            commands.socket.close(*MOVED)
        except Fault as fault:
            commands.socket.tell(error_frame(fault.body))
        except RecursionError:
            deep = Fault(Code.INVALID_MESSAGE, "The frame is nested too deeply.")
            commands.socket.tell(error_frame(deep.body))
        except Exception:  # boundary: one frame's trouble is its own
            log.exception("socket %d: a frame could not be handled", commands.socket.number)
            commands.socket.tell(error_frame(Fault(Code.INTERNAL).body))
        await commands.socket.outbox.wait_room()
        return


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
                    await socket.outbox.aclose()
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


def _why(wire: Wire, connection: trio_websocket.WebSocketConnection) -> tuple[int, str]:
    """The close code of an end that was not asked for by us."""
    if wire.refused:
        return 1009, wire.refused
    closed = connection.closed
    if closed is None:
        return 1001, "the service stops"
    return int(closed.code), closed.reason or ""


async def _say_goodbye(stream: trio.SocketStream, outbox: Outbox, wire: Wire, code: int, reason: str) -> None:
    """Close frame, what waits to be sent, and the peer's end, all within CLOSE_S; shielded: also at a stop.

    The end of our side is sent once the peer has seen the close frame, or is gone: some clients take an end
    that comes earlier for a failure. What the peer still sends is dropped, since closing with unread bytes
    would reset the connection, and the close frame with it.
    """
    wire.stop()
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

"""One TCP connection of the gateway's port, from its first byte to its end. The importer of trio_websocket.

The guard (`serve`) is the outermost call of the connection's task: whatever a peer does ends this
connection and nothing else. Reads the head, then answers plain HTTP, or becomes a WebSocket whose every
byte out goes through one `Outbox`. The library's own server is not used: one bad handshake takes it down.
Close frames and the last bytes get a bounded time; then the connection is dropped.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

import trio
import trio_websocket

from actors import pages
from actors.commands import Commands
from actors.front import Front, Socket
from actors.http import BadRequest, Head, Replay, host_allowed, origin_allowed, read_head, response
from actors.outbox import Outbox
from protocol.client import error_frame
from protocol.errors import Code, Fault
from protocol.mail import MailError

log = logging.getLogger("actors.gateway")

HANDSHAKE_S = 10.0  # for the head, and again for the WebSocket handshake; a phone on a bad network takes 3
CLOSE_S = 1.0  # for the close handshake and what still waits to be sent
STALLED_S = 30.0  # a peer that takes no byte for this long is closed with 1013 and can resume
SWEEP_S = 5.0  # how often sockets are looked at where no ping is due earlier
INBOX = 8  # frames read ahead of the one that is handled; the rest waits in the peer's TCP buffer
PING = b"\x89\x00"  # an empty ping frame
MAX_CLOSE_REASON = 120  # bytes; RFC 6455 allows 123


async def serve(front: Front, stream: trio.SocketStream) -> None:
    """Serve one connection; returns when it is over. Never raises an Exception."""
    try:
        async with stream:
            await _serve(front, stream)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("a connection broke")  # peers reset connections all the time
    except Exception:  # boundary: one connection's trouble is its own
        log.exception("a connection failed and was closed")


async def _serve(front: Front, stream: trio.SocketStream) -> None:
    try:
        head = await read_head(stream, within=HANDSHAKE_S)
        if head is None:
            return
        _check(front, head)
        if head.wants_websocket and head.path == front.snapshot.websocket.endpoint:
            await _websocket(front, stream, head)
            return
        answer = await _page(front, head)
    except BadRequest as bad:
        answer = response(bad.status, bad.text.encode() + b"\n", "text/plain; charset=utf-8")
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


async def _websocket(front: Front, stream: trio.SocketStream, head: Head) -> None:
    try:
        async with trio.open_nursery() as nursery:
            outbox = Outbox(Replay(head.raw, stream), stream.socket, nursery)
            connection = await _shake_hands(front, outbox, nursery)
            if connection is not None:
                await _talk(front, stream, head, outbox, connection, nursery)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # what the peer caused is expected; the rest goes on to the guard
        _, rest = group.split((OSError, trio.BrokenResourceError, trio.ClosedResourceError))
        if rest is not None:
            raise rest from None


async def _shake_hands(
    front: Front, outbox: Outbox, nursery: trio.Nursery
) -> trio_websocket.WebSocketConnection | None:
    with trio.move_on_after(HANDSHAKE_S):
        request = await trio_websocket.wrap_server_stream(
            nursery,
            outbox,
            max_message_size=front.snapshot.websocket.max_message_size,
            message_queue_size=INBOX,
            receive_buffer_size=65536,
        )
        return await request.accept()
    return None


async def _talk(
    front: Front,
    stream: trio.SocketStream,
    head: Head,
    outbox: Outbox,
    connection: trio_websocket.WebSocketConnection,
    nursery: trio.Nursery,
) -> None:
    ending: list[tuple[int, str]] = []
    scope = trio.CancelScope()

    def close(code: int, reason: str) -> None:
        ending.append((code, reason))
        scope.cancel()

    socket = Socket(front.next_number(), outbox, close)
    async with _registered(front, socket):
        nursery.start_soon(_keep_alive, front, socket)
        with scope:
            commands = Commands(front, socket)
            try:
                await commands.greet(head.query.get("conversation", ""))
            except (MailError, Fault) as error:
                log.warning("a client could not be welcomed, the store does not answer: %s", error)
                fault = error if isinstance(error, Fault) else Fault(Code.STORAGE_UNAVAILABLE)
                socket.tell(error_frame(fault.body))
                close(1013, "the store is not available, try again later")
            with contextlib.suppress(trio_websocket.ConnectionClosed):
                await _read(front, connection, commands)
    code, reason = ending[0] if ending else (1000, "")
    await _say_goodbye(stream, outbox, connection, code, reason)


@contextlib.asynccontextmanager
async def _registered(front: Front, socket: Socket) -> AsyncIterator[None]:
    front.sockets[socket.number] = socket
    try:
        yield
    finally:
        front.leave(socket)
        del front.sockets[socket.number]


async def _read(front: Front, connection: trio_websocket.WebSocketConnection, commands: Commands) -> None:
    while True:
        frame = await connection.get_message()
        limit = front.snapshot.websocket.max_message_size
        if isinstance(frame, bytes):
            fault = Fault(Code.INVALID_MESSAGE, "Binary frames are not understood; send JSON in text frames.")
            commands.socket.tell(error_frame(fault.body))
        elif len(frame) * 4 > limit and len(frame.encode("utf-8", "surrogatepass")) > limit:
            # the library counts characters; the promise is in bytes
            commands.socket.close(1009, f"a frame may have {limit} bytes")
            await trio.lowlevel.checkpoint()
        else:
            await commands.handle(frame)
        await commands.socket.outbox.wait_room()


async def _keep_alive(front: Front, socket: Socket) -> None:
    """Ping a silent peer, drop a dead one, close a stalled one."""
    outbox = socket.outbox
    while True:
        settings = front.snapshot.websocket
        interval = settings.ping_interval
        await trio.sleep(min(interval, SWEEP_S) if interval > 0 else SWEEP_S)
        now = trio.current_time()
        if outbox.waiting and now - outbox.progress_at > STALLED_S:
            socket.close(1013, "nothing was read for too long; connect again and resume")
            return
        silent = now - outbox.received_at
        if interval > 0 and silent > interval + settings.ping_timeout:
            log.debug("socket %d: no sign of life for %.0f s", socket.number, silent)
            await outbox.aclose()
            return
        if interval > 0 and silent >= interval:
            outbox.write(PING)


async def _say_goodbye(
    stream: trio.SocketStream,
    outbox: Outbox,
    connection: trio_websocket.WebSocketConnection,
    code: int,
    reason: str,
) -> None:
    """Close handshake, what waits to be sent, and the peer's end, all within CLOSE_S; shielded: also at a stop."""
    outbox.sealed = True
    with trio.move_on_after(CLOSE_S, shield=True):
        if connection.closed is None:
            await connection.aclose(code, reason[:MAX_CLOSE_REASON])
        elif not outbox.broken:
            # the library has sent its close frame (too large, protocol error) and reads no more
            await outbox.flush()
            with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass

"""Connections over plain sockets, below httpcore: written and awaited as ever, read without waiting where that is best.

A TLS connection is an `SSLSocket`: a read of it that does not wait costs a microsecond, one through
`trio.SSLStream` ten. Errors are httpcore's, as from its own backend; `take`, which nobody of httpcore's calls,
raises OSError (ssl.SSLError is one). One task reads a connection at a time. Closing is at once: no farewell is
said, and none is awaited.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import httpcore
import trio
from httpcore._backends.trio import TrioBackend  # the public name of it picks a backend anew for each connection

MOST = 64 * 1024  # bytes of one read; a TLS record has at most 16 KiB, so one never stays behind unseen

BLOCKED = BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError
"""Nothing can be done now without waiting."""

_BUFFER = memoryview(bytearray(MOST))  # shared by all: nothing waits between the read and the copy of what came


class Backend(TrioBackend):
    """Opens connections as httpcore's does, and hands them out as `RawStream`."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises httpcore.ConnectError, ConnectTimeout."""
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return RawStream(socket.socket(fileno=stream.get_extra_info("socket").detach()))


class RawStream(httpcore.AsyncNetworkStream):
    """One connection.

    Args:
        sock: connected; it is closed with this.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def fileno(self) -> int:
        """Of the socket; -1: it is closed."""
        return self._sock.fileno()

    def take(self) -> bytes | None:
        """What has come; b"" at the end, None if nothing has. Raises OSError."""
        try:
            count = self._sock.recv_into(_BUFFER)
        except BLOCKED:
            return None  # part of a TLS record is nothing yet either
        return _BUFFER[:count].tobytes()

    async def wait(self) -> None:
        """Wait until there may be something. Raises trio.ClosedResourceError."""
        if self._sock.fileno() < 0:  # trio would take the number for one that is waited for, for ever
            raise trio.ClosedResourceError("it is closed")
        await trio.lowlevel.wait_readable(self._sock)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most `max_bytes`; b"" at the end. Raises httpcore.ReadError, ReadTimeout."""
        sock = self._sock
        try:
            with nullcontext() if timeout is None else trio.fail_after(timeout):
                if isinstance(sock, ssl.SSLSocket) and sock.pending():  # of which the descriptor says nothing
                    await trio.lowlevel.checkpoint()
                else:
                    await self.wait()  # an answer is never there when it was just asked for
                while True:
                    try:
                        return sock.recv(max_bytes)
                    except (BlockingIOError, ssl.SSLWantReadError):
                        await trio.lowlevel.wait_readable(sock)
                    except ssl.SSLWantWriteError:
                        await trio.lowlevel.wait_writable(sock)
        except trio.TooSlowError as error:
            raise httpcore.ReadTimeout from error
        except (OSError, trio.ClosedResourceError) as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it; waits only where it is not taken at once. Raises httpcore.WriteError, WriteTimeout."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            try:
                sent = self._sock.send(buffer)
            except BLOCKED:
                sent = 0
            if sent == len(buffer):
                return
            rest = memoryview(buffer)[sent:]
            with nullcontext() if timeout is None else trio.fail_after(timeout):
                while rest:
                    try:
                        rest = rest[self._sock.send(rest) :]
                    except (BlockingIOError, ssl.SSLWantWriteError):
                        await trio.lowlevel.wait_writable(self._sock)
                    except ssl.SSLWantReadError:
                        await trio.lowlevel.wait_readable(self._sock)
        except trio.TooSlowError as error:
            raise httpcore.WriteTimeout from error
        except (OSError, trio.ClosedResourceError) as error:
            raise httpcore.WriteError(str(error)) from error

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Encrypt it from here on; it is this same object. Raises httpcore.ConnectError, ConnectTimeout."""
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                tls = ssl_context.wrap_socket(
                    self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
                )
                self._sock = tls
                while True:
                    try:
                        tls.do_handshake()
                        return self
                    except ssl.SSLWantReadError:
                        await trio.lowlevel.wait_readable(tls)
                    except ssl.SSLWantWriteError:
                        await trio.lowlevel.wait_writable(tls)
        except trio.TooSlowError as error:
            self.close()
            raise httpcore.ConnectTimeout from error
        except (OSError, trio.ClosedResourceError) as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def close(self) -> None:
        """Close it, now; who waits for it is woken."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks; `wire` is this object."""
        match info:
            case "wire":
                return self
            case "socket":
                return self._sock
            case "ssl_object":
                return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
            case "is_readable":
                return self._sock.fileno() < 0 or _readable(self._sock)
        return None


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))

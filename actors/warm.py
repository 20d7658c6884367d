"""Where a client's connections come from; some are opened before they are needed.

Stands where httpcore's pool opens its connections, and hands out what is ready: TCP and TLS, and nothing said
on them. A request that finds nothing opens its own. What was not taken within its time, or was closed by the
provider meanwhile, is dropped. A handshake that is cancelled closes its connection, which httpcore's own way
forgets. Opening fails with httpcore's `ConnectError` and `ConnectTimeout`.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import httpcore
import trio
from httpcore._backends.trio import TrioBackend  # the public name of it picks a backend anew for each connection


class _Ready(NamedTuple):
    stream: httpcore.AsyncNetworkStream
    until: float


class Warm(httpcore.AsyncNetworkBackend):
    """The connections of one client; close it at the end.

    Args:
        kept_s: seconds that one is kept.
        inner: opens them; default httpcore's own for trio.
    """

    def __init__(self, kept_s: float, inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._inner = inner or TrioBackend()
        self._kept_s = kept_s
        self._ready: deque[_Ready] = deque()
        self._opening = self._waiting = 0
        self._changed = trio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._ready)

    async def open(self, host: str, port: int, context: ssl.SSLContext | None, timeout: float) -> None:
        """Open one; `context` is None for plain connections."""
        self._opening += 1
        try:
            stream: httpcore.AsyncNetworkStream = _Plain(await self._inner.connect_tcp(host, port, timeout))
            if context is not None:
                stream = await stream.start_tls(context, host, timeout)
            if self._closed:
                await stream.aclose()
            else:
                self._ready.append(_Ready(stream, trio.current_time() + self._kept_s))
        finally:
            self._opening -= 1
            self._changed.set()
            self._changed = trio.Event()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """One that is ready or about to be, else a new one."""
        while self._ready or self._opening > self._waiting:
            if not self._ready:
                self._waiting += 1
                try:
                    await self._changed.wait()  # bounded by the time for that one to open
                finally:
                    self._waiting -= 1
                continue
            stream, until = self._ready.popleft()
            if trio.current_time() < until and _open(stream):
                return _Ahead(stream)
            await stream.aclose()
        return _Plain(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """As without this."""
        return await self._inner.connect_unix_socket(path, timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        """As without this."""
        await self._inner.sleep(seconds)

    async def cool(self) -> None:
        """Close those whose time is over."""
        now = trio.current_time()
        while self._ready and self._ready[0].until <= now:
            await self._ready.popleft().stream.aclose()

    async def aclose(self) -> None:
        """Close all; what is being opened closes when it is."""
        self._closed = True
        while self._ready:
            await self._ready.popleft().stream.aclose()


class _Plain(httpcore.AsyncNetworkStream):
    """A connection without TLS so far."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self._stream.aclose()  # at once, and then goes on being cancelled
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Ahead(_Plain):
    """A connection that has all that it needs, TLS too where that is wanted."""

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return self._stream


def _open(stream: httpcore.AsyncNetworkStream) -> bool:
    """Whether the peer has not closed it. What may wait to be read are TLS 1.3's tickets: no sign of an end."""
    with socket.socket(fileno=socket.dup(stream.get_extra_info("socket").fileno())) as peeked:
        try:
            return bool(peeked.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False  # reset

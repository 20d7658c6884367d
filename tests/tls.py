"""A TLS end before a provider, with a certificate of an authority that nobody knows."""

from __future__ import annotations

from pathlib import Path

import h2.config
import h2.connection
import h2.events
import trio

from tests.certificates import Authority
from tests.scripts import say, written

Stream = trio.SSLStream[trio.SocketStream]


class Tls:
    """`serve` it in a nursery.

    Args:
        folder: where the certificate's file is written.
        port: the provider's, on loopback.
    """

    def __init__(self, folder: Path, port: int) -> None:
        authority = Authority(folder)
        self.file = str(authority.file)
        self.port = 0
        self.protocols: list[str | None] = []
        """What was negotiated with each client whose handshake succeeded."""
        self._to = port
        self._context = authority.server("h2", "http/1.1")

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
            self.protocols.append(tls.selected_alpn_protocol())
            if self.protocols[-1] == "h2":
                await answer_h2(tls)
            else:
                await self._pass_on(tls)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client does not trust us, or went away
        finally:
            await trio.aclose_forcefully(tls)

    async def _pass_on(self, tls: Stream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._to) as behind, trio.open_nursery() as nursery:
            nursery.start_soon(pump, tls, behind)
            await pump(behind, tls)
            nursery.cancel_scope.cancel()


async def answer_h2(tls: Stream) -> None:
    """Answer every request of an HTTP/2 connection with the same words."""
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    http.initiate_connection()
    await tls.send_all(http.data_to_send())
    while data := await tls.receive_some(65536):
        for event in http.receive_data(bytes(data)):
            if isinstance(event, h2.events.StreamEnded):
                head = [(":status", "200"), ("content-type", "text/event-stream")]
                http.send_headers(event.stream_id, head)
                body = b"".join(written(item, "\n") for item in say("by HTTP/2").items)
                http.send_data(event.stream_id, body + b"data: [DONE]\n\n", end_stream=True)
        await tls.send_all(http.data_to_send())


async def pump(source: trio.abc.ReceiveStream, to: trio.abc.SendStream) -> None:
    """Pass on what comes, to the end."""
    while data := await source.receive_some(65536):
        await to.send_all(data)

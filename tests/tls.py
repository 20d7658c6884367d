"""A TLS end before a provider, with a certificate that only its own file vouches for."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.scripts import say, written

Stream = trio.SSLStream[trio.SocketStream]


class Tls:
    """`serve` it in a nursery.

    Args:
        folder: where the certificate's file is written.
        port: the provider's, on loopback.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.file = str(folder / "ca.pem")
        self.port = 0
        self.protocols: list[str | None] = []
        """What was negotiated with each client whose handshake succeeded."""
        self._to = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(self.file, write_certificate(self.file))
        self._context.set_alpn_protocols(["h2", "http/1.1"])

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


def write_certificate(path: str) -> str:
    """A certificate of 127.0.0.1, signed by itself; its key's file is the answer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    Path(path).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    Path(f"{path}.key").write_bytes(key.private_bytes(*private))
    return f"{path}.key"

"""A client that reads nothing of a long answer, beside two that read all of it."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from actors.outbox import HIGH
from actors.turnlog import MERGE_CHARS
from tests.fakes import Script, Stall, say
from tests.peer import peer
from tests.service import Client, Frame, front_of, service, text_of

PIECE = 8192
BUFFER = 2**18  # bytes, of the kernel: by itself it would take 4 MB before anything waits


async def read_nothing_of(count: int, folder: Path) -> None:
    """It costs no more than its buffer, the others are not delayed, and in the end it gets everything in few frames.

    Args:
        count: pieces of the answer, PIECE characters each.
        folder: for the service's state.
    """
    pieces = [f"{number:08d}".ljust(PIECE, ".") for number in range(count)]
    quiet = {"chat": {"service": {"streaming": {"persistence": {"persist_deltas": False}}}}}
    replies = (say("hi"), Script((*pieces, Stall())))
    async with service(folder, *replies, settings=quiet) as s, s.client() as one:
        await one.say("hello")
        async with s.client() as other, peer(s) as slow:
            await other.send("resume", turn=1, seq=99)
            await other.alive()
            await slow.until("welcome")
            await slow.say("resume", turn=1, seq=99)
            await slow.say("ping")
            await slow.until("pong")
            outbox = front_of(s).sockets[max(front_of(s).sockets)].outbox
            outbox._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            most = 0
            await one.send("user_message", message="go")

            async def read(client: Client) -> None:
                nonlocal most
                size = 0
                while size < PIECE * count:
                    size += len((await client.next()).get("text", ""))
                    most = max(most, outbox.waiting)

            async with trio.open_nursery() as nursery:
                for client in (one, other):
                    client.seen.clear()
                    nursery.start_soon(read, client)
            whole = "".join(pieces)
            assert text_of(one.seen) == text_of(other.seen) == whole
            assert HIGH <= most <= HIGH + 2 * MERGE_CHARS, "it was full, and no more than one merged frame over"
            got: list[Frame] = []
            while not got or got[-1]["seq"] < count:
                frame = await slow.next()
                if frame["type"] == "assistant_delta":
                    assert frame["seq"] > (got[-1]["seq"] if got else 0)
                    got.append(frame)
            assert text_of(got) == whole
            assert len(got) < count / 2, "what it is behind comes in few frames"
            await one.send("stop")
            await one.until("turn_finished")

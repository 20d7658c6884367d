"""Where the user's browser comes back to from an authorization server: a page on this machine, for one answer.

Listens on the loopback address while somebody is asked, and no longer. Anything may come from a browser: only a
request for the one path that carries the `state` of this very question counts, every other one gets a page that says
so, and the wait goes on. What came (a code) is a secret; nothing of it is logged.

May assume that its waiter bounds it. Fails with OSError when a port is asked for and taken.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import partial

import trio

from actors.http import BadRequest, read_head, response

HOST = "127.0.0.1"  # not a name that may mean something else: RFC 8252, section 8.3
PATH = "/callback"
HEAD_S = 10.0  # for a request's head
HEAD_BYTES = 16 * 1024  # a code and a state are some hundred bytes
VISITORS = 16  # connections at a time; more wait in the kernel's queue

DONE = "Done. You can close this page."
REFUSED = "The authorization was refused. You can close this page."
FOREIGN = "This page belongs to no question that is open now. Please use the link that you were shown last."


@dataclass(frozen=True)
class Landed:
    """What the authorization server sent along."""

    code: str = field(default="", repr=False)
    state: str = field(default="", repr=False)
    iss: str | None = None
    error: str = ""
    """Its word for why there is no code: `access_denied` and the like; empty: there is one."""


class Redirect:
    """The page, while it is open. Made by `listen`."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self.port: int = listener.socket.getsockname()[1]
        self.uri = f"http://{HOST}:{self.port}{PATH}"

    async def landed(self, state: str) -> Landed:
        """Wait for whoever comes back with that `state`. No deadline in here."""
        found: list[Landed] = []
        arrived = trio.Event()
        places = trio.CapacityLimiter(VISITORS)

        async def visitor(stream: trio.SocketStream) -> None:
            async with stream, places:
                landed = await self._answer(stream, state)
            if landed is not None:
                found.append(landed)
                arrived.set()

        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_listeners, visitor, [self._listener], handler_nursery=nursery)
            nursery.start_soon(serve)
            await arrived.wait()
            nursery.cancel_scope.cancel()
        return found[0]

    async def aclose(self) -> None:
        """Listen no longer."""
        await self._listener.aclose()

    async def _answer(self, stream: trio.SocketStream, state: str) -> Landed | None:
        try:
            head = await read_head(stream, within=HEAD_S, max_bytes=HEAD_BYTES)
        except BadRequest as error:
            await _say(stream, error.status, "This is not a request that is answered here.")
            return None
        if head is None:
            return None
        query = head.query
        if head.path != PATH or head.method != "GET":
            await _say(stream, 404, "There is nothing here.")
        elif not secrets.compare_digest(query.get("state", "").encode(), state.encode()):
            await _say(stream, 400, FOREIGN)
        elif code := query.get("code"):
            await _say(stream, 200, DONE)
            return Landed(code, state, query.get("iss"))
        else:
            await _say(stream, 200, REFUSED)
            return Landed(state=state, iss=query.get("iss"), error=query.get("error") or "no code")
        return None


async def listen(port: int = 0) -> Redirect:
    """Open the page; port 0: any that is free. Raises OSError."""
    [listener] = await trio.open_tcp_listeners(port, host=HOST)
    return Redirect(listener)


async def _say(stream: trio.SocketStream, status: int, words: str) -> None:
    page = f"<!doctype html><meta charset=utf-8><title>mcp-actors</title><p>{words}</p>\n"
    headers = [("content-security-policy", "default-src 'none'")]
    data = response(status, page.encode(), "text/html; charset=utf-8", headers=headers)
    try:
        await stream.send_all(data)
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # whoever came has left; what it brought counts all the same

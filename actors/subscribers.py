"""Which sockets of a front are told when which resource changes.

A server's actor knows gateways, the gateway knows its sockets: the first socket that wants a resource makes the
gateway subscribe, the last that goes ends it. The actor's process may lose what it knew with its life, so everything
is said again when a server comes up. What can fail: `follow`, with a `Fault`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from actors.client_socket import Socket
from actors.front import Front
from protocol.client import ResourceChanged
from protocol.errors import Code, Fault
from protocol.mcp_server import ResourceUpdated, SubscribeResource, UnsubscribeResource

MOST = 32  # resources that one socket follows

Ask = Callable[[SubscribeResource], Awaitable[object]]


async def follow(front: Front, socket: Socket, server: str, uri: str, ask: Ask) -> None:
    """The socket is told from now on. Raises Fault."""
    if (server, uri) not in socket.follows and len(socket.follows) >= MOST:
        raise Fault(Code.OVERLOADED, f"This socket has subscribed to {MOST} resources already.")
    front.followers.setdefault((server, uri), set()).add(socket.number)
    socket.follows[server, uri] = None
    try:
        await ask(SubscribeResource(uri, to=front.ctx.path))
    except Fault:
        unfollow(front, socket, server, uri)
        raise


def unfollow(front: Front, socket: Socket, server: str, uri: str) -> None:
    """It is not told any more."""
    socket.follows.pop((server, uri), None)
    followers = front.followers.get((server, uri))
    if followers is None:
        return
    followers.discard(socket.number)
    if not followers:
        del front.followers[server, uri]
        front.ctx.ref(f"mcp/{server}").offer(UnsubscribeResource(uri, to=front.ctx.path))


def leave(front: Front, socket: Socket) -> None:
    """The socket is gone."""
    for server, uri in tuple(socket.follows):
        unfollow(front, socket, server, uri)


def tell(front: Front, message: ResourceUpdated) -> None:
    """A resource has changed."""
    followers = front.followers.get((message.server, message.uri))
    if followers is None:
        # they have gone while it was on its way, or before this process began
        front.ctx.ref(f"mcp/{message.server}").offer(UnsubscribeResource(message.uri, to=front.ctx.path))
        return
    for number in sorted(followers):
        front.tell(number, ResourceChanged(message.uri, message.server))


def again(front: Front, server: str) -> None:
    """The server's actor has come up: it may know nothing."""
    for name, uri in front.followers:
        if name == server:
            front.ctx.ref(f"mcp/{server}").offer(SubscribeResource(uri, to=front.ctx.path))

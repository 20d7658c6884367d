"""The verbs that reach MCP servers: calls by hand, prompts, completion, resources, and what was kept of results.

Each is one question to one server's actor, and the answer's frame; they take as long as the server, and whoever asks
runs them aside. What can fail is a `Fault`: the server's own, or what `asked` makes of one that does not answer.
"""

from __future__ import annotations

import base64
import logging
import secrets
from functools import partial
from typing import TypeVar

import trio

from actors import kept_results, offers, policy, subscribers
from actors.approvals import verdict_of
from actors.client_socket import Socket
from actors.front import Front
from actors.tool_call import asked, patience
from protocol.client import ServerFrame
from protocol.contents import SHOWN_CHARS
from protocol.contract_tools import (
    CompletedValue,
    CompleteValue,
    FilledMessage,
    FillPrompt,
    FollowResource,
    GetResult,
    KeptResult,
    ListPrompts,
    ListResources,
    ListTools,
    OpenResource,
    PromptFilled,
    ResourceRead,
    ResourceSubscribed,
    ToolFrame,
    ToolResult,
    UnfollowResource,
    UseTool,
)
from protocol.errors import Code, Fault
from protocol.mail import Request
from protocol.mcp_server import CallTool, CancelCall, CompleteArgument, GetPrompt, ReadResource, Tool

RESULT_PAGE = 512 * 1024  # bytes of what was kept, in one frame; as base64 they are a third more
TEXT_PAGE = 128 * 1024  # of a text: some characters have six bytes in JSON
RESULT_LEAST = 4  # bytes of a page: any character fits
LAST_BYTE = 2**53  # greater than any offset; clients may send any number

log = logging.getLogger("actors.gateway")

R = TypeVar("R")


async def answer(verb: ToolFrame, front: Front, socket: Socket) -> ServerFrame:
    """The frame that answers a verb. Raises Fault."""
    match verb:
        case ListTools():
            return offers.tools(verb, front.catalogues, front.merged)
        case ListPrompts():
            return offers.prompts(verb, front.catalogues)
        case ListResources():
            return offers.resources(verb, front.catalogues)
        case UseTool():
            return await _call(verb, front, socket)
        case FillPrompt():
            server = offers.server_of_prompt(verb.name, verb.server, front.catalogues)
            request = GetPrompt(verb.name, verb.arguments, conversation=_conversation(socket))
            filled = await _ask(front, server, request)
            messages = [FilledMessage(message.role, message.content) for message in filled.messages]
            return PromptFilled(verb.name, server, filled.description, messages, request_id=verb.request_id)
        case CompleteValue():
            return await _complete(verb, front)
        case OpenResource():
            server = offers.server_of_resource(verb.uri, verb.server, front.catalogues)
            contents = await _ask(front, server, ReadResource(verb.uri, conversation=_conversation(socket)))
            return ResourceRead(verb.uri, server, contents, request_id=verb.request_id)
        case FollowResource():
            server = offers.server_of_resource(verb.uri, verb.server, front.catalogues)
            await subscribers.follow(front, socket, server, verb.uri, partial(_ask, front, server))
            return ResourceSubscribed(verb.uri, server, subscribed=True, request_id=verb.request_id)
        case UnfollowResource():
            known = [name for name, uri in sorted(socket.follows) if uri == verb.uri]
            server = verb.server or (known[0] if known else "")
            subscribers.unfollow(front, socket, server, verb.uri)
            return ResourceSubscribed(verb.uri, server, subscribed=False, request_id=verb.request_id)
        case GetResult():
            return await _kept(verb, front, socket)


async def follow_on(front: Front, socket: Socket, follows: list[tuple[str, str]]) -> None:
    """A socket that comes from another front is told here what it was told there."""
    for server, uri in follows:
        try:
            await subscribers.follow(front, socket, server, uri, partial(_ask, front, server))
        except Fault as fault:
            log.info("socket %d: no longer told of %s: %s", socket.number, uri, fault.body.text)


def permitted(front: Front, server: str, tool: Tool) -> None:
    """Whether the tool may be called by hand. Where a person is to be asked, the one who calls is that person.

    Raises: Fault FORBIDDEN.
    """
    verdict = verdict_of(front, server, tool)
    if verdict.policy == policy.DENY:
        raise Fault(Code.FORBIDDEN, f"This tool may not be used here ({verdict.reason}).")


async def _call(verb: UseTool, front: Front, socket: Socket) -> ToolResult:
    if not front.taking:
        raise Fault(Code.SHUTTING_DOWN)
    target = front.merged.find(verb.tool_name)
    if target is None:
        raise Fault(Code.TOOL_NOT_FOUND, f"There is no tool named {verb.tool_name[:100]!r}.")
    server, tool = target
    permitted(front, server, tool)
    log.info("socket %d: tool %r of MCP server %r is called by hand", socket.number, tool.name, server)
    call = CallTool(
        call=f"hand-{secrets.token_hex(8)}",
        tool=tool.name,
        arguments=verb.arguments,
        to=front.ctx.path,
        conversation=_conversation(socket),
        check=True,
    )
    began, status = trio.current_time(), "cancelled"
    if socket.conversation is not None:
        front.by_hand[call.call] = socket.conversation  # what the server asks meanwhile, it asks there
    try:
        outcome = await asked(front, server, call, patience(front.snapshot, server))
        status = "completed" if outcome.ok else "failed"
    except Fault:
        status = "failed"
        raise
    except trio.Cancelled:
        front.ctx.ref(f"mcp/{server}").offer(CancelCall(call.call))
        raise
    finally:
        front.by_hand.pop(call.call, None)
        front.tally.tool_call(server, status)
    return ToolResult(
        tool_name=verb.tool_name,
        server=server,
        status="completed" if outcome.ok else "failed",
        result=outcome.text[:SHOWN_CHARS],
        elapsed_ms=int((trio.current_time() - began) * 1000),
        contents=outcome.contents,
        structured=outcome.structured,
        result_id=outcome.result_id,
        result_size=outcome.size,
        request_id=verb.request_id,
    )


async def _complete(verb: CompleteValue, front: Front) -> CompletedValue:
    if (verb.prompt is None) == (verb.template is None):
        raise Fault(Code.INVALID_MESSAGE, "Expected one of `prompt` and `template` - at `$.prompt`.")
    if verb.prompt is not None:
        server = offers.server_of_prompt(verb.prompt, verb.server, front.catalogues)
    else:
        server = offers.server_of_template(verb.template or "", verb.server, front.catalogues)
    request = CompleteArgument(verb.argument, verb.value, verb.prompt or "", verb.template or "", verb.known)
    found = await _ask(front, server, request)
    return CompletedValue(found.values, found.total, found.more, request_id=verb.request_id)


async def _kept(verb: GetResult, front: Front, socket: Socket) -> KeptResult:
    limit = RESULT_PAGE if verb.limit is None else verb.limit
    if not RESULT_LEAST <= limit <= RESULT_PAGE:
        text = f"Expected a number from {RESULT_LEAST} to {RESULT_PAGE} - at `$.limit`."
        raise Fault(Code.INVALID_MESSAGE, text)
    if not 0 <= verb.offset <= LAST_BYTE:
        raise Fault(Code.INVALID_MESSAGE, "Expected a number of bytes, 0 or more - at `$.offset`.")
    where = front.snapshot.state_dir, _conversation(socket), verb.result_id
    is_text = kept_results.is_text(verb.result_id)
    most = min(limit, TEXT_PAGE) if is_text else limit
    piece = await trio.to_thread.run_sync(kept_results.read, *where, verb.offset, most)
    end = piece.offset + len(piece.data)
    return KeptResult(
        result_id=verb.result_id,
        offset=piece.offset,
        size=piece.size,
        text=piece.data.decode("utf-8", "replace") if is_text else None,
        data=None if is_text else base64.b64encode(piece.data).decode(),
        next=end if end < piece.size else None,
        request_id=verb.request_id,
    )


async def _ask(front: Front, server: str, request: Request[R]) -> R:
    """A question that is answered once, and changes nothing."""
    if server not in front.snapshot.mcp.servers:
        raise Fault(Code.NOT_FOUND, f"There is no MCP server {server[:100]!r}.")
    return await asked(front, server, request, patience(front.snapshot, server))


def _conversation(socket: Socket) -> str:
    return socket.conversation.id if socket.conversation is not None else ""

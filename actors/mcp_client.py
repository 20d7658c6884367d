"""One connection to an MCP server: lists and calls through the MCP package's client.

Speaks our vocabulary on one side and the package's on the other, so that nothing of the package goes further.
What can fail: `Refused`, where the tools cannot be listed; of a call, only what `Connected.call` says.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import mcp_types as types
import trio
from mcp import Client, MCPError
from mcp.client.subscriptions import SubscriptionLost
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError

from actors.kept_results import Keep
from actors.mcp_asking import Asking
from actors.mcp_catalogue import catalogue, wire_form
from actors.mcp_wire import LOST, Wire
from actors.server_contents import TooLarge, contents_of, prompt_of
from actors.server_faults import ServerEnded
from actors.server_log import TO_MCP
from actors.tool_result import bounded, outcome_of, refused, weight
from protocol.errors import Code, Fault
from protocol.mcp_server import (
    Catalogue,
    CompleteArgument,
    Completion,
    FilledPrompt,
    ResourceContent,
    ToolOutcome,
)

RESOURCE_NOT_FOUND = -32002  # of the older era; the newer one says INVALID_PARAMS
LISTEN_PAUSE_S = 1.0  # before a subscription that the server ended is opened again; longer each time
LISTEN_PAUSE_MOST_S = 60.0
VALUES_MAX = 100  # of a completion; the protocol allows no more
VALUE_CHARS = 1000  # of one of them
THREAD_BYTES = 64 * 1024  # of a result: larger ones are worked on in a thread, since files are written too

log = logging.getLogger(__name__)

T = TypeVar("T")


class Connected:
    """A server after the handshake. Made by `actors.mcp_connect.connect`."""

    def __init__(self, name: str, client: Client, wire: Wire, asking: Asking, result_cap: int) -> None:
        self._name = name
        self._result_cap = result_cap
        self._client = client
        self._wire = wire
        self._asking = asking
        self._meta: types.RequestParamsMeta | None = None
        self._promised: dict[str, dict[str, Any]] = {}
        """Output schemas, by the tool's name."""
        self.broken_promises = 0
        """Results so far that did not fit their tool's output schema."""

    @property
    def version(self) -> str:
        """The protocol version in use."""
        return self._client.protocol_version

    @property
    def modern(self) -> bool:
        """Of the era that begins with `server/discover`."""
        return self.version in MODERN_PROTOCOL_VERSIONS

    @property
    def proved_legacy(self) -> bool:
        """It did not know the newer handshake and took the older one: better to begin with that next time."""
        return not self.modern

    @property
    def bad_lines(self) -> int:
        """Lines that were skipped so far."""
        return self._wire.carrier.skipped

    @property
    def transport(self) -> str:
        """stdio, http or sse."""
        return self._wire.carrier.transport

    @property
    def silent_s(self) -> float:
        """Seconds since the server said anything."""
        return trio.current_time() - self._wire.heard_at

    async def doubt(self) -> None:
        """Return when there is reason to ask whether the server is still there."""
        await self._wire.carrier.doubt()

    async def answers(self, within: float) -> bool:
        """Ask the cheapest question of its era; True as soon as it says anything at all, be it an error.

        Raises: ServerEnded, if the connection is lost again meanwhile.
        """
        session, heard_at = self._client.session, self._wire.heard_at
        question = session.send_discover(self.version) if self.modern else session.send_ping()
        with trio.move_on_after(within):
            try:
                await question
            except (MCPError, ValidationError) as error:
                if isinstance(error, MCPError) and error.code == LOST:
                    raise ServerEnded(f"MCP server {self._name!r} cuts its connections.") from error
                log.debug("MCP server %r answers a probe with an error: %s", self._name, error)
        return self._wire.heard_at > heard_at

    async def set_log_level(self, level: str) -> None:
        """Have the server log at that level of ours or above, if it can; it must not be relied on."""
        theirs: Any = TO_MCP[level]
        if self.modern:
            # Each request of this era says what may be logged while it is worked on.
            meta: Any = {types.LOG_LEVEL_META_KEY: theirs}
            self._meta = meta
        elif self._client.server_capabilities.logging is not None:
            request = types.SetLevelRequest(params=types.SetLevelRequestParams(level=theirs))
            try:
                await self._client.session.send_request(request, types.EmptyResult)
            except (MCPError, ValidationError) as error:
                log.debug("MCP server %r does not change its logging level: %s", self._name, error)

    async def catalogue(self) -> tuple[Catalogue, list[str]]:
        """All that the server offers, and what could not be listed, a line each.

        Raises: Refused, if the tools cannot be listed; failures with the rest are only told.
        """
        found, problems = await catalogue(self._name, self._client, self._wire)
        self._promised = {tool.name: tool.output_schema for tool in found.tools if tool.output_schema is not None}
        return found, problems

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        on_progress: Callable[[float, float | None, str], None],
        keep: Keep | None = None,
    ) -> ToolOutcome:
        """Run a tool once. No deadline in here; a cancelled call is cancelled at the server too.

        One that is refused until the user has been at an address is run once he has.

        Args:
            keep: keeps what is too large to be carried along.
        Raises: Fault TOOL_FAILED, if what came back is no answer to a tool call; ServerEnded, if the connection
        was lost before an answer came.
        """

        async def report(progress: float, total: float | None, message: str | None) -> None:
            on_progress(progress, total, message or "")

        try:
            try:
                result = await self._client.call_tool(tool, arguments, progress_callback=report, meta=self._meta)
            except MCPError as error:
                if error.code != types.URL_ELICITATION_REQUIRED or not await self._asking.cleared(error.error):
                    raise
                # It was refused before anything was done, and what was missing may be there now.
                result = await self._client.call_tool(tool, arguments, progress_callback=report, meta=self._meta)
        except MCPError as error:
            if self._wire.closed or error.code == LOST:
                raise ServerEnded(f"MCP server {self._name!r} ended during the call.") from error
            # The server's own words; the model may learn from them what to do better.
            return ToolOutcome(
                ok=False, text=bounded(error.message, self._result_cap) or f"error {error.code} without a message"
            )
        except (ValidationError, RuntimeError) as error:
            raise self._nonsense(error) from error
        plain = wire_form(result)
        outcome = await _aside(weight(plain), partial(outcome_of, plain, self._result_cap, keep))
        schema = self._promised.get(tool)
        if schema is None or not outcome.ok:
            return outcome
        checks: Any = await trio.to_thread.run_sync(importlib.import_module, "actors.schema_check")
        why = checks.mismatch(schema, plain.get("structuredContent"))
        if not why:
            return outcome
        self.broken_promises += 1
        log.warning("MCP server %r: what tool %r returned does not fit its output schema: %s", self._name, tool, why)
        return refused(outcome, why)

    async def read(self, uri: str, keep: Keep | None = None) -> list[ResourceContent]:
        """Read a resource. No deadline in here. Raises: Fault, ServerEnded; see `ReadResource`."""
        result = await self._asked(self._client.read_resource(uri, meta=self._meta))
        return await _aside(weight({"content": result.get("contents")}), partial(contents_of, result, keep=keep))

    async def prompt(self, name: str, arguments: dict[str, str], keep: Keep | None = None) -> FilledPrompt:
        """Fill in a prompt. No deadline in here. Raises: Fault, ServerEnded; see `GetPrompt`."""
        result = await self._asked(self._client.get_prompt(name, arguments, meta=self._meta))
        try:
            return await _aside(THREAD_BYTES, partial(prompt_of, result, keep=keep))
        except TooLarge as error:
            text = f"Prompt {name!r} of MCP server {self._name!r} cannot be shown: {error}."
            raise Fault(Code.TOOL_FAILED, text) from error

    async def complete(self, message: CompleteArgument) -> Completion:
        """What an argument may be. No deadline in here. Raises: Fault, ServerEnded; see `CompleteArgument`."""
        if self._client.server_capabilities.completions is None:
            return Completion([])
        of: types.PromptReference | types.ResourceTemplateReference = types.PromptReference(name=message.prompt)
        if message.template:
            of = types.ResourceTemplateReference(uri=message.template)
        argument = {"name": message.argument, "value": message.value}
        result = await self._asked(self._client.complete(of, argument, message.known or None))
        said = result.get("completion") or {}
        values = [str(value)[:VALUE_CHARS] for value in said.get("values", [])[:VALUES_MAX]]
        return Completion(values, said.get("total"), bool(said.get("hasMore")))

    async def follow_resource(self, uri: str, began: Callable[[], None], updated: Callable[[], None]) -> None:
        """Have the server tell of changes of a resource, until cancelled; then `unfollow_resource`.

        Args:
            began: called once the server agrees.
            updated: in the newer era called for each change; in the older one `connect` tells.
        Raises: Fault, when it refuses, or FORBIDDEN when it knows no subscriptions; ServerEnded.
        """
        offers = self._client.server_capabilities.resources
        if offers is None or not offers.subscribe:
            raise Fault(Code.FORBIDDEN, f"MCP server {self._name!r} does not tell of changes of its resources.")
        if self.modern:
            await self._listen(uri, began, updated)
            return
        session, params = self._client.session, types.SubscribeRequestParams(uri=uri)
        for pause in _pauses():
            try:
                await self._asked(session.send_request(types.SubscribeRequest(params=params), types.EmptyResult))
                break
            except ServerEnded:
                if self._wire.closed:
                    raise
            await trio.sleep(pause)  # over HTTP only that one request was lost
        began()
        await trio.sleep_forever()

    async def unfollow_resource(self, uri: str) -> None:
        """Tell the server that nobody listens any more; it need not agree."""
        if self.modern:
            return  # its stream has been closed
        request = types.UnsubscribeRequest(params=types.UnsubscribeRequestParams(uri=uri))
        try:
            await self._client.session.send_request(request, types.EmptyResult)
        except (MCPError, ValidationError, RuntimeError) as error:  # then it tells us in vain
            log.debug("MCP server %r: a resource was not unsubscribed: %s", self._name, error)

    async def _listen(self, uri: str, began: Callable[[], None], updated: Callable[[], None]) -> None:
        agreed, pauses = False, _pauses()
        while True:
            try:
                async with self._client.listen(resource_subscriptions=[uri]) as events:
                    if not events.honored.resource_subscriptions:
                        text = f"MCP server {self._name!r} does not tell of changes of {uri!r}."
                        raise Fault(Code.FORBIDDEN, text)
                    began()
                    agreed, pauses = True, _pauses()
                    async for _ in events:
                        updated()
            except SubscriptionLost as error:
                log.debug("MCP server %r: a subscription was lost: %s", self._name, error)
            except MCPError as error:
                if not (agreed or self._wire.closed or error.code == LOST):
                    raise self._fault(error) from error
                log.debug("MCP server %r: a subscription was ended: %s", self._name, error)
            except (ValidationError, RuntimeError) as error:
                raise self._nonsense(error) from error
            if self._wire.closed:
                raise ServerEnded(f"MCP server {self._name!r} ended while it was listened to.")
            await trio.sleep(next(pauses))
            updated()  # nobody knows what happened meanwhile

    async def _asked(self, asking: Awaitable[BaseModel]) -> dict[str, Any]:
        """The answer in its wire form. Raises: Fault, ServerEnded."""
        try:
            return wire_form(await asking)
        except MCPError as error:
            if self._wire.closed or error.code == LOST:
                raise ServerEnded(f"MCP server {self._name!r} ended while it was asked.") from error
            raise self._fault(error) from error
        except (ValidationError, RuntimeError) as error:
            raise self._nonsense(error) from error

    def _fault(self, error: MCPError) -> Fault:
        unknown = error.code in (types.INVALID_PARAMS, RESOURCE_NOT_FOUND)
        text = f"MCP server {self._name!r} says: {bounded(error.message, 500) or f'error {error.code}'}"
        return Fault(Code.NOT_FOUND if unknown else Code.TOOL_FAILED, text)

    def _nonsense(self, error: Exception) -> Fault:
        text = f"MCP server {self._name!r} gave an answer against the protocol: {error}"
        return Fault(Code.TOOL_FAILED, text[:500])

    async def follow(self, changed: Callable[[], None]) -> None:
        """In the modern era changes of the lists come by subscription: call `changed` for each, until cancelled."""
        offers = self._client.server_capabilities
        tools = bool(offers.tools and offers.tools.list_changed)
        resources = bool(offers.resources and offers.resources.list_changed)
        prompts = bool(offers.prompts and offers.prompts.list_changed)
        if not self.modern or not (tools or resources or prompts):
            return
        try:
            async with self._client.listen(
                tools_list_changed=tools, resources_list_changed=resources, prompts_list_changed=prompts
            ) as events:
                async for _ in events:
                    changed()
        except (MCPError, SubscriptionLost) as error:
            log.warning("MCP server %r will not tell when its tools change: %s", self._name, error)


def _pauses() -> Iterator[float]:
    """Seconds before each further try of a subscription."""
    pause = LISTEN_PAUSE_S
    while True:
        yield pause
        pause = min(2 * pause, LISTEN_PAUSE_MOST_S)


async def _aside(size: int, work: Callable[[], T]) -> T:
    """Do it here, or where it is large in a thread."""
    return await trio.to_thread.run_sync(work) if size >= THREAD_BYTES else work()

"""Messages of MCP as lines of a process: the carrier of servers that are commands.

Lines that are not JSON-RPC are skipped and counted, and fail the request that they seem to answer. What can
fail: `ServerEnded`, from the process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import mcp_types as types
import trio
from mcp.shared.message import SessionMessage

from actors.mcp_wire import Arrived, Unreadable, worth_a_line
from actors.stdio import Process, TooLong

_ID = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,18})\s*,')

log = logging.getLogger(__name__)


class Pipe:
    """Carries messages over a process's standard input and output."""

    transport = "stdio"

    def __init__(self, process: Process) -> None:
        self.skipped = 0
        self._process = process

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Nothing to do: the process runs."""
        yield

    async def send(self, item: SessionMessage) -> None:
        """Write a message. Raises ServerEnded."""
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        await self._process.write(line.encode("utf-8") + b"\n")

    async def arrived(self) -> list[Arrived]:
        """What the next lines hold. Raises ServerEnded."""
        found = (self._decoded(line) for line in await self._process.lines())
        return [item for item in found if item is not None]

    def forget(self, request: types.RequestId) -> None:
        """Nothing is held for it."""

    async def doubt(self) -> None:
        """There is none: the end of a process is known."""
        await trio.sleep_forever()

    def settle(self) -> None:
        """Lines are the same before and after."""

    def _decoded(self, line: bytes | TooLong) -> Arrived | None:
        if isinstance(line, TooLong):
            return self._unreadable(line.head, f"its answer has {line.size} bytes, more than a message may have")
        if not line or line.isspace():
            return None
        try:
            return types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            return self._unreadable(line, "its answer is not valid JSON-RPC")

    def _unreadable(self, line: bytes, why: str) -> Unreadable | None:
        """What cannot be read at least fails the request that it answers, if that can be seen."""
        self.skipped += 1
        if worth_a_line(self.skipped):
            log.warning("skipped a line of an MCP server (%d so far): %s: %r", self.skipped, why, line[:80])
        found = _ID.match(line)
        return None if found is None else Unreadable(int(found[1]), why)

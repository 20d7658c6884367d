"""A service whose keys of configuration are changed one by one while it runs: the data, and what walks it.

A `Sweep` is a service and rows in order; each row changes one key in the runtime file, as a person would, and
looks at the service from outside before and after that (tests/looks.py). A look is repeated where the effect
comes by itself (`comes=True`).

    async with watching(tmp_path, monkeypatch, sweep) as w:
        for row in sweep.rows:
            await show(w, row)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import yaml

from actors.configuration import Configuration
from actors.log_output import Output, started
from tests.fakes import Reply, by_message
from tests.peer import Peer
from tests.service import Client, Frame, Service, merge_into, service
from tests.tls import Tls

NOT_LOOKED_AT = ...  # as a row's `before`: nothing that could be seen in a moment
PROVIDER = "fake"  # what `<name>` in a key of a provider stands for


class Lines:
    """What the service has logged, read from the other end of its pipe."""

    def __init__(self, read: int, output: Output) -> None:
        self._read, self._output, self._rest = read, output, b""
        os.set_blocking(read, False)

    async def new(self) -> list[str]:
        """The lines since the last time."""
        await trio.to_thread.run_sync(self._output.flush)
        found = self._rest
        while part := self._some():
            found += part
        *lines, self._rest = found.split(b"\n")
        return [line.decode() for line in lines]

    def _some(self) -> bytes:
        try:
            return os.read(self._read, 65536)
        except BlockingIOError:
            return b""


class World:
    """A service, one socket in it, its log, and what a sweep prepares."""

    def __init__(self, s: Service, client: Client, lines: Lines, stack: AsyncExitStack) -> None:
        self.s = s
        self.client = client
        self.lines = lines
        self.stack = stack
        self.peer: Peer
        """A socket that answers nothing by itself."""
        self.tls: Tls
        self.other: Client
        """One more socket, opened before the changes."""

    async def change(self, changes: Mapping[str, Any]) -> None:
        """Edit the file as a person would. Of the runtime file: until sockets are told that it is in force."""
        if "mcpServers" in (edit := nested(changes)) or "settings" in edit:
            path = self.s.state / "servers_config.json"
            settings = json.loads(path.read_text())
            merge_into(settings, edit)
            path.write_text(json.dumps(settings))
            return
        path = self.s.state / "runtime_config.yaml"
        settings = yaml.safe_load(path.read_text())
        merge_into(settings, edit)
        path.write_text(yaml.safe_dump(settings))
        await self.client.until("config_changed")

    async def turn(self, message: str) -> list[Frame]:
        """A turn's frames; nothing that the log said before it is left."""
        await self.lines.new()
        return await self.client.say(message)


Look = Callable[[World], Awaitable[object]]


class Row(NamedTuple):
    """One key."""

    key: str
    value: Any
    """What it is changed to; a callable is given the world."""
    look: Look
    before: object
    after: object
    counts: str
    """The moment that the table of all keys must name: the look is made accordingly."""
    given: Mapping[str, Any] = {}
    """Keys that are changed before; values as of `value`."""
    comes: bool = False
    """The effect comes by itself some time after the change."""


class Sweep(NamedTuple):
    """One service."""

    rows: Sequence[Row]
    settings: Mapping[str, Any] = {}
    """By key, at the start."""
    servers: Mapping[str, Any] = {}
    replies: Sequence[Reply] = (by_message,)
    patches: Mapping[str, Any] = {}
    """Constants whose time no test should wait."""
    prepare: Callable[[World], Awaitable[None]] | None = None


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    made: dict[str, Any] = {}
    for key, value in changes.items():
        *parents, last = key.replace("llm.providers.<name>", f"llm.providers.{PROVIDER}").split(".")
        merge_into(made, _within(parents, {last: value}))
    return made


def _within(parents: Sequence[str], value: dict[str, Any]) -> dict[str, Any]:
    for parent in reversed(parents):
        value = {parent: value}
    return value


@asynccontextmanager
async def watching(folder: Path, monkeypatch: pytest.MonkeyPatch, sweep: Sweep) -> AsyncIterator[World]:
    """The sweep's service, with its log going to us."""
    for name, value in {"actors.watcher.POLL_S": 0.01, "actors.watcher.SETTLED_S": 0.01, **sweep.patches}.items():
        monkeypatch.setattr(name, value)
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, 1024 * 1024)
    try:
        with started(Configuration(folder / "first").snapshot({}), write, {}) as output:
            settings = nested(sweep.settings)
            async with AsyncExitStack() as stack:
                s = await stack.enter_async_context(
                    service(folder, *sweep.replies, settings=settings, servers=sweep.servers)
                )
                client = await stack.enter_async_context(s.client())
                w = World(s, client, Lines(read, output), stack)
                if sweep.prepare is not None:
                    await sweep.prepare(w)
                yield w
    finally:
        os.close(read)
        os.close(write)


async def show(w: World, row: Row) -> None:
    """Change the key, and see that it has its effect. Raises AssertionError."""
    if row.given:
        await w.change({key: _value(w, value) for key, value in row.given.items()})
    if row.before is not NOT_LOOKED_AT:
        await _sees(w, row, row.before, f"before {row.key} is changed")
    await w.change({row.key: _value(w, row.value)})
    await _sees(w, row, row.after, f"after {row.key} was changed")


def _value(w: World, value: Any) -> object:
    return value(w) if callable(value) else value


async def _sees(w: World, row: Row, expected: object, when: str) -> None:
    seen = await row.look(w)
    while row.comes and seen != expected:
        seen = await row.look(w)
    assert seen == expected, when

"""What is measured: our service, and what it is compared with. All speak the same few frames to the same client.

Ours is the real command with its own state directory. The references do less: they keep no history, store
nothing, offer no tools; each passes on what the model says as `assistant_delta` and `thinking_delta`, one
`turn_finished` after it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.bench.processes import Program, Stuck, python, started
from tests.bench.programs import Programs, Script, Upstream, Wrong

MOST_STREAMS = 5000  # at once; the shipped limit of connections to one provider is far lower, and would queue them
START_S = 60.0  # for a service to listen; a large store that was not closed is checked first


class Running(NamedTuple):
    """A started subject."""

    program: Program
    port: int
    path: str
    """Of its WebSocket, for a client that begins a conversation."""
    state: Path | None = None
    """Ours only: the state directory."""

    @property
    def pid(self) -> int:
        return self.program.pid


class Missing(Exception):
    """What a subject needs is not installed."""


def settings(upstream: Upstream, script: Script, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime configuration whose provider is the upstream."""
    pool = {"max_connections": MOST_STREAMS, "max_keepalive_connections": MOST_STREAMS}
    provider = {"base_url": upstream.base_url, "model": script.model, "api_key_env": None, "client": pool}
    made: dict[str, Any] = {
        "llm": {"active": "bench", "providers": {"bench": provider}},
        "logging": {"level": "WARNING"},
    }
    _merge(made, changes)
    return made


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


@contextmanager
def ours(
    upstream: Upstream,
    script: Script,
    changes: Mapping[str, Any] | None = None,
    *arguments: str,
    store: Path | None = None,
    env: Mapping[str, str] | None = None,
    servers: Mapping[str, Any] | None = None,
) -> Iterator[Running]:
    """The service, with all that ships on: history, reasoning, `persist_deltas`.

    Args:
        changes: merged into the runtime configuration.
        arguments: of the command.
        store: a database to begin with, which is copied.
        env: added to its environment.
        servers: `mcpServers`; none by default.
    """
    with TemporaryDirectory(prefix="bench-state-") as folder:
        state = Path(folder)
        write_settings(state, settings(upstream, script, changes or {}))
        (state / "servers_config.json").write_text(json.dumps({"mcpServers": servers or {}}))
        if store is not None:
            shutil.copyfile(store, state / "chat_history.db")
        with started(python("supervisors.main", "--state", folder, "--port", "0", *arguments), env) as program:
            said = re.fullmatch(r"listening on ws://[^:]+:(\d+)(/\S*)", program.line(START_S))
            assert said, program.log
            program.favour()
            with explained(program):
                yield Running(program, int(said[1]), said[2] + "?conversation=new", state)


def write_settings(state: Path, settings: Mapping[str, Any]) -> None:
    """Put the runtime configuration in place at once, as an editor does; JSON is YAML."""
    (state / "new.yaml").write_text(json.dumps(settings))
    (state / "new.yaml").rename(state / "runtime_config.yaml")


@contextmanager
def reference(name: str, upstream: Upstream, script: Script, programs: Programs) -> Iterator[Running]:
    """One of REFERENCES. Raises Missing."""
    for needed in REFERENCES[name]:
        if importlib.util.find_spec(needed) is None:
            raise Missing(f"{name} needs {needed}: uv sync --group bench")
    arguments = (str(upstream.port), script.model)
    command = (
        [programs.path("relay"), *arguments] if name == "c" else python(f"tests.bench.reference_{name}", *arguments)
    )
    with started(command) as program:
        with explained(program):
            yield Running(program, int(program.line(START_S).removeprefix("port ")), "/")


REFERENCES = {
    "c": (),
    "picows": ("picows", "uvloop"),
    "trio": ("trio_websocket", "httpx"),
    "fastapi": ("fastapi", "openai", "uvicorn", "uvloop", "websockets"),
}
"""Their names, cheapest first, and the packages that they need."""


class Variant(NamedTuple):
    """A way to run our service."""

    changes: Mapping[str, Any] = {}
    """Of the runtime configuration."""
    arguments: tuple[str, ...] = ()


MEMORY = {"chat": {"storage": {"type": "memory"}}}
OURS = {
    "ours": Variant(),
    "inline": Variant(arguments=("--inline",)),
    "memory": Variant(MEMORY),
    "inline-memory": Variant(MEMORY, ("--inline",)),
    "one-front": Variant(arguments=("--fronts", "1")),
    "two-fronts": Variant(arguments=("--fronts", "2")),
}
"""Our service, and other ways to run it, by name."""

TITLES = {
    "ours": "mcp-actors",
    "inline": "mcp-actors, one process",
    "c": "C, one epoll loop",
    "picows": "uvloop + picows",
    "trio": "trio + httpx, plain",
    "fastapi": "FastAPI + openai package",
    "memory": "mcp-actors, store in memory",
    "inline-memory": "mcp-actors, one process, store in memory",
    "one-front": "mcp-actors, one front",
    "two-fronts": "mcp-actors, two fronts",
}
"""What tables call them."""

USUAL = ("ours", "inline", "c", "picows", "trio", "fastapi")
"""What is measured where nothing else is asked for."""


@contextmanager
def subject(name: str, upstream: Upstream, script: Script, programs: Programs) -> Iterator[Running]:
    """Ours or a reference, by name. Raises Missing."""
    if name in OURS:
        with ours(upstream, script, OURS[name].changes, *OURS[name].arguments) as running:
            yield running
    else:
        with reference(name, upstream, script, programs) as running:
            yield running


@contextmanager
def explained(program: Program) -> Iterator[None]:
    """Whoever waits in vain for what the subject should have done is told what the subject has to say."""
    try:
        yield
    except (Stuck, Wrong) as error:
        error.add_note(f"{program.name} says: {program.log[-3000:] or 'nothing'}")
        raise

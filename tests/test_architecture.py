"""The tree shows the architecture: who may import whom, one importer per heavy library, sizes and names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from protocol.spec import Child, Group
from supervisors.tree import part, product

ROOT = Path(__file__).resolve().parents[1]
OURS = ("actors", "protocol", "Servers", "supervisors")
MOST_LINES = 480  # of a module: most have far less, none much more than 400

SERVERS = {
    "Servers/config_server.py",
    "Servers/demo_prompt_server.py",
    "Servers/demo_server.py",
    "Servers/models_server.py",
}

MCP_PROCESS = {
    "actors/mcp_asking.py",
    "actors/mcp_auth.py",
    "actors/mcp_catalogue.py",
    "actors/mcp_client.py",
    "actors/mcp_connect.py",
    "actors/mcp_exchange.py",
    "actors/mcp_http.py",
    "actors/mcp_machine.py",
    "actors/mcp_pipe.py",
    "actors/mcp_provider.py",
    "actors/mcp_sse.py",
    "actors/mcp_tls.py",
    "actors/mcp_wire.py",
}
"""Loaded in the process of the MCP servers only."""

IMPORTERS = {
    "apsw": {
        "actors/store.py",
        "actors/store_errors.py",
        "actors/store_thread.py",
        "actors/schema.py",
        "actors/rows.py",
        "actors/recovery.py",
        "actors/database_file.py",
    },
    "trio_websocket": {"actors/handshake.py", "supervisors/chat_link.py"},
    "wsproto": {"actors/wire.py"},
    "httpx": {"actors/provider.py"},
    "httpx2": {
        *("actors/mcp_exchange.py", "actors/mcp_http.py", "actors/mcp_sse.py"),
        *("actors/mcp_auth.py", "actors/mcp_provider.py"),  # what is added to its requests
        "actors/mcp_tls.py",  # whom it trusts
    },
    "h11": {"actors/http.py", "actors/http1.py"},  # http1: begins the next answer on a connection that is used again
    "yaml": {"actors/layers.py"},
    "dotenv": {"actors/environment.py"},
    "pydantic": {
        *("actors/settings.py", "actors/llm_settings.py"),
        *("actors/mcp_asking.py", "actors/mcp_catalogue.py", "actors/mcp_client.py", "actors/mcp_connect.py", *SERVERS),
        *("actors/mcp_auth.py", "actors/mcp_provider.py"),
    },
    "anyio": {"actors/mcp_http.py", *SERVERS},
    "mcp": {*MCP_PROCESS, *SERVERS},
    "mcp_types": {*MCP_PROCESS, *SERVERS},
    "jsonschema": {"actors/schema_check.py"},  # below mcp already, which checks results with it
    "referencing": {"actors/schema_check.py"},  # below jsonschema: so that it fetches nothing
    "xllamacpp": {"Servers/local_model.py"},
    "rich": {"supervisors/chat_screen.py"},
    "prompt_toolkit": {"supervisors/chat_prompt.py"},
    "h2": {"actors/http2.py"},  # and by httpcore, where client.http2 is on
    "httpcore": {
        "actors/answer.py",
        *("actors/http1.py", "actors/http2.py", "actors/pool.py", "actors/provider.py"),
        *("actors/raw_stream.py", "actors/warm.py"),
    },
}
"""Who may import a heavy library; nobody else."""


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def children(group: Group) -> Iterator[Child]:
    for child in group.children:
        if isinstance(child, Child):
            yield child
        else:
            yield from children(child)


@cache
def actors() -> set[str]:
    """Modules of the actors: those that the tree names, and those of its dynamic children."""
    tree = product(watcher={}, writer={}, local={}, gateway={}, reporter={})
    return {str(child.run).partition(":")[0] for child in children(tree)} | {"actors.session", "actors.mcp_server"}


@pytest.mark.parametrize("path", list(modules(*OURS)), ids=lambda path: str(path.relative_to(ROOT)))
def test_module(path: Path) -> None:
    package, name = path.parent.name, f"{path.parent.name}.{path.stem}"
    mine = {module.partition(".")[0] for module in imported(path)} & {*OURS, "tests"}
    allowed = {
        "protocol": {"protocol"},
        "actors": {"actors", "protocol"},
        "supervisors": {"supervisors", "protocol"},
        "Servers": set[str](),
    }
    assert mine <= allowed[package]
    if package == "actors":
        assert not {module for module in imported(path) if module in actors() - {name}}, "an actor imports another"
    for library, importers in IMPORTERS.items():
        if library in {module.partition(".")[0] for module in imported(path)}:
            assert str(path.relative_to(ROOT)) in importers, f"{library} has its importers"
    assert path.read_text().count("\n") <= MOST_LINES
    assert ast.get_docstring(parsed(path)), "a module says what it is for"
    assert path.stem not in {"utils", "util", "helpers", "manager", "base", "common"}


@pytest.mark.parametrize("name", sorted(actors()))
def test_an_actor_is_three_files_of_one_name(name: str) -> None:
    package, _, actor = name.partition(".")
    for path in (f"protocol/{actor}.py", f"{package}/{actor}.py", f"tests/test_{actor}.py"):
        assert (ROOT / path).is_file(), path
    assert callable(importlib.import_module(name).run)


def test_names_in_the_tree_resolve() -> None:
    for child in children(product(watcher={}, writer={}, local={}, gateway={}, reporter={})):
        for dotted in filter(None, (child.run, child.keep)):
            module, _, function = str(dotted).partition(":")
            assert callable(getattr(importlib.import_module(module), function)), dotted


HEAVY = ("apsw", "asyncio", "h11", "httpcore", "httpx", "httpx2", "mcp", "mcp_types", "pydantic", "xllamacpp", "yaml")
CARRIED = {
    "front": {"h11"},
    "store": {"apsw", "asyncio"},  # asyncio: apsw's own trio support imports it
    "llm": {"h11", "httpcore", "httpx"},
    "mcp": set[str](),  # until there is a server to connect to
}
"""Of these, what a process has loaded when it is ready."""


@pytest.mark.parametrize("role", CARRIED)
def test_a_process_carries_its_own_concern_only(role: str) -> None:
    names = [str(child.run).partition(":")[0] for child in children(part(role, Args()))]
    code = (
        f"import sys, {', '.join(['supervisors.worker', 'supervisors.roles', *names])};"
        f"print(*(name for name in {HEAVY} if name in sys.modules));"
        "print(*(name for name in ('argparse', 'supervisors.placement') if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, cwd=ROOT, check=True
    )
    heavy, needless = done.stdout.splitlines()
    assert set(heavy.split()) == CARRIED[role]
    assert not needless


class Args(dict[str, Any]):
    """For each actor, none."""

    def __missing__(self, _: str) -> Any:
        return {}


def test_every_direct_dependency_is_pinned_and_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    for dependency in project["project"]["dependencies"]:
        name, exact, _ = dependency.partition("==")
        assert exact, f"{dependency} is not pinned"
        [line] = [line for line in text.splitlines() if f'"{dependency}"' in line]
        assert "#" in line, f"{name} has no reason beside it"
    assert "exclude-newer" in project["tool"]["uv"]


def test_the_repository_names_no_machine_and_no_registry() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, timeout=20, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert "uv.lock" not in tracked.stdout.split()
    registry = re.compile(r"https?://[^ \"]+/(simple|packages/[0-9a-f]{2}/[0-9a-f]{2})/")
    for name in tracked.stdout.split():
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        assert not registry.search(text), name
        assert str(ROOT) + "/" not in text, name


def test_tests_do_not_sleep() -> None:
    for path in modules("tests"):
        if "bench" in path.parts or "soak" in path.parts:
            continue
        text = path.read_text()
        # trio's sleep is virtual time in modules with autojump tests; what it waits for there is the clock itself
        real = "time|anyio|asyncio" if "autojump" in text else "time|trio|anyio|asyncio"
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(rf"\b({real})\.sleep\(", line):
                assert "#" in line, f"{path.name}:{number}: a sleep without its reason"

"""The command line: `actors-main [run]` and `actors-main status`.

`run` reads the configuration, binds the port, starts the tree and prints one line on standard output when
turns can be taken; logs go to standard error. SIGTERM or SIGINT drains, a second one ends at once. Exit
codes: 0 after an ordered stop, 1 could not start, 70 a core part kept failing (start it again), 130/143
forced.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from protocol.gateway import StopTaking
from protocol.mail import MailError
from protocol.watcher import Snapshot
from supervisors.status import Node, render
from supervisors.supervisor import Escalated, Tree, running
from supervisors.tree import product

log = logging.getLogger("supervisors.main")

EXIT_CANNOT_START = 1
EXIT_SOFTWARE = 70  # EX_SOFTWARE of sysexits.h
INSTANCE = "service.json"  # in the state directory while the service runs: pid and address
LOCK = "service.lock"
STATUS_S = 5.0  # for a running service to answer `status`
FORCE_S = 15.0  # over the grace: for cut-off turns to be stored and shown


class CannotStart(Exception):
    """Why the service does not start, for the operator; no traceback."""


def main() -> None:
    """Entry point of `actors-main`."""
    arguments = parser().parse_args()
    try:
        sys.exit(arguments.command(arguments))
    except CannotStart as error:
        print(f"actors-main: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        sys.exit(EXIT_CANNOT_START)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="actors-main", description="A chat backend: WebSocket clients talk with LLMs that use MCP tools."
    )
    run_options(top)
    top.set_defaults(command=run)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    run_parser = commands.add_parser("run", help="run the service (the default)")
    run_options(run_parser)
    run_parser.set_defaults(command=run)
    status_parser = commands.add_parser("status", help="show the parts of a running service and how they are")
    state_option(status_parser)
    status_parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    status_parser.set_defaults(command=status)
    return top


def state_option(to: argparse.ArgumentParser) -> None:
    """Add `--state`."""
    to.add_argument(
        "--state", metavar="DIR", default=argparse.SUPPRESS, help="where everything is kept (default: ./state)"
    )


def run_options(to: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    state_option(to)
    to.add_argument("--host", default=argparse.SUPPRESS, help="address to listen on (overrides the configuration)")
    to.add_argument(
        "--port", type=int, default=argparse.SUPPRESS, help="port to listen on, 0 for any free one (overrides likewise)"
    )
    to.add_argument("--inline", action="store_true", help="everything in one process (the default for now)")


def state_dir(arguments: argparse.Namespace) -> Path:
    """The state directory, absolute."""
    return Path(getattr(arguments, "state", "state")).resolve()


# run


def run(arguments: argparse.Namespace) -> int:
    """Run the service until it is told to stop."""
    state = state_dir(arguments)
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CannotStart(f"the state directory cannot be made: {error}; choose another with --state DIR") from error
    websocket = {key: getattr(arguments, key) for key in ("host", "port") if hasattr(arguments, key)}
    overrides: dict[str, Any] = {"chat": {"websocket": websocket}} if websocket else {}
    configuration = importlib.import_module("actors.configuration")
    configuration.load_environment(Path.cwd(), state)
    files = configuration.Configuration(state)
    try:
        snapshot: Snapshot = files.snapshot(overrides)
    except importlib.import_module("actors.layers").ConfigurationError as error:
        raise CannotStart("; ".join(error.problems)) from error
    start_logging(snapshot)
    with only_one(state):
        return trio.run(serve, state, overrides, snapshot, files.said)


def start_logging(snapshot: Snapshot) -> None:
    """Logs go to standard error, in the configured form."""
    logging.basicConfig(level=snapshot.logging.level, format=snapshot.logging.format, stream=sys.stderr, force=True)
    for library in ("httpx", "httpx2", "httpcore", "trio-websocket", "mcp"):
        # theirs say what ours say already, and may quote what they send
        logging.getLogger(library).setLevel(logging.WARNING)


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the state directory: two services in one would answer with each other's conversations."""
    try:
        file = (state / LOCK).open("a")
    except OSError:
        # a read-only directory cannot be held; the store says what is wrong with it
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStart(
                f"a service runs already with the state directory {state}; see `actors-main status`, "
                "or choose another with --state DIR"
            ) from error
        yield


async def serve(state: Path, overrides: dict[str, Any], snapshot: Snapshot, said: object) -> int:
    """Run the tree until a signal comes or it gives up."""
    listeners = await listen(snapshot)
    host, port = listeners[0].socket.getsockname()[:2]
    trees: list[Tree] = []
    tree_spec = product(
        # what the first reading did to the files is told by the watcher, which reports all problems
        watcher={"state_dir": str(state), "overrides": overrides, "said": said},
        writer={"path": database(state, snapshot), "type": snapshot.storage.type},
        local={"state_dir": str(state)},
        gateway={
            "listeners": listeners,
            "loopback": is_loopback(snapshot),
            "status": lambda: msgspec.json.encode(trees[0].status()) if trees else b"{}",
        },
    )
    try:
        # the handlers come first: a signal during the start must not cut it off half-way
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with running(tree_spec) as tree:
                trees.append(tree)
                with published(state, shown(host), port):
                    if await stores(tree):
                        print(  # noqa: T201 - the one line of standard output
                            f"listening on ws://{shown(host)}:{port}{snapshot.websocket.endpoint}", flush=True
                        )
                    return await until_told(tree, signals, snapshot.drain_s)
    except Escalated as error:
        log.critical("the service could not start: %s", error)
        return EXIT_SOFTWARE
    finally:
        for listener in listeners:
            await listener.aclose()


async def stores(tree: Tree) -> bool:
    """Whether the store is open, so that turns can be taken; says so if not."""
    state = tree.slots["store/writer"]
    if state.status.name == "PARKED":
        log.error("no turns can be taken: the store does not open; see `actors-main status`")
        return False
    return True


async def until_told(tree: Tree, signals: Any, grace_s: float) -> int:
    """Wait for a signal or the tree's failure, then drain. Returns the exit code."""
    forced: list[int] = []
    async with trio.open_nursery() as nursery:

        async def watch_failure() -> None:
            await tree.failed.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch_failure)
        async for number in signals:
            if forced:
                log.warning("forced to end at once by a second %s", signal.Signals(number).name)
                os._exit(128 + number)  # children end with their leash; the store is crash-safe
            forced.append(number)
            log.info("%s: stopping; running turns get %g s", signal.Signals(number).name, grace_s)
            nursery.start_soon(drain, tree, grace_s, nursery.cancel_scope)
    if tree.failed.is_set():
        log.critical("a core part kept failing, the service ends: %s", tree.error)
        return EXIT_SOFTWARE
    return 0


async def drain(tree: Tree, grace_s: float, done: trio.CancelScope) -> None:
    """Let running turns end, then let the tree stop."""
    try:
        cut = await tree.ref("front/gateway").ask(StopTaking(grace_s=grace_s), within=grace_s + FORCE_S, again=True)
        if cut:
            log.warning("%d turns did not end in time and are kept as interrupted", cut)
    except MailError as error:
        log.warning("the gateway did not answer while stopping: %s", error)
    done.cancel()


async def listen(snapshot: Snapshot) -> list[trio.SocketListener]:
    """Bind the configured address."""
    websocket = snapshot.websocket
    if not is_loopback(snapshot) and not websocket.allow_unauthenticated:
        raise CannotStart(
            f"{websocket.host} can be reached from other machines, and nobody is asked who they are; listen on "
            "127.0.0.1 behind a proxy that does, or set chat.websocket.allow_unauthenticated: true"
        )
    try:
        return await trio.open_tcp_listeners(websocket.port, host=websocket.host, backlog=4096)
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {websocket.host}:{websocket.port}: {error.strerror or error}; "
            "choose another port with --port (0: any free one)"
        ) from error


def is_loopback(snapshot: Snapshot) -> bool:
    """Whether the configured host is this machine only."""
    loopback: bool = importlib.import_module("actors.http").is_loopback(snapshot.websocket.host)
    return loopback


def shown(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def database(state: Path, snapshot: Snapshot) -> str:
    """Absolute path of the database."""
    return str((state / snapshot.storage.db_path).resolve())


@contextlib.contextmanager
def published(state: Path, host: str, port: int) -> Iterator[None]:
    """While it runs, `actors-main status` finds the service by a file in the state directory."""
    path = state / INSTANCE
    try:
        path.write_text(json.dumps({"pid": os.getpid(), "host": host, "port": port}) + "\n")
    except OSError as error:
        log.warning("`actors-main status` will not find this service: %s", error)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a read-only directory; a stale file is recognised by its pid
            path.unlink(missing_ok=True)


# status


def status(arguments: argparse.Namespace) -> int:
    """Print the tree of the running service."""
    state = state_dir(arguments)
    try:
        instance = json.loads((state / INSTANCE).read_text())
        body = fetch(instance["host"].strip("[]"), instance["port"])
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        raise CannotStart(f"no service runs with the state directory {state} ({error})") from error
    if arguments.json:
        print(body.decode())  # noqa: T201 - this is the command line
    else:
        print(render(msgspec.json.decode(body, type=Node)))  # noqa: T201
    return 0


def fetch(host: str, port: int) -> bytes:
    """GET /status. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=STATUS_S)
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise http.client.HTTPException(f"it answered {answer.status}")
    return body


if __name__ == "__main__":
    main()

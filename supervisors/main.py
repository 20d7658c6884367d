"""The command line: `actors-main [run]`, `actors-main status` and `actors-main restart PATH`.

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
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from protocol.errors import Fault
from protocol.reporter import PartState, RestartPart
from protocol.watcher import Snapshot
from supervisors import config_commands, inline, interpreter
from supervisors.address import INSTANCE, CannotStart, shown
from supervisors.inline import Start
from supervisors.service import EXIT_SOFTWARE
from supervisors.status import Node, render

log = logging.getLogger("supervisors.main")

EXIT_CANNOT_START = 1
LOCK = "service.lock"
MOST_FRONTS = 256  # each takes 40 MB and more; a mistake is to be found before the memory is gone
WATCH_S = 1.0  # between two looks of `status --watch`
CLEAR = "\x1b[H\x1b[2J"  # the cursor home, the screen empty
STATUS_S = 5.0  # for a running service to answer `status`
MOST_BYTES = 64 * 2**20  # of such an answer; what answers may be something else
OK, UNAVAILABLE = 200, 503


def main() -> None:
    """Entry point of `actors-main`."""
    arguments = parser().parse_args()
    try:
        sys.exit(arguments.command(arguments))
    except CannotStart as error:
        print(f"actors-main: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        sys.exit(EXIT_CANNOT_START)
    except KeyboardInterrupt:  # before there was a service that could stop in order
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `actors-main status | head`; at exit Python would try to write the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


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
    status_parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    status_parser.set_defaults(command=status)
    chat_parser = commands.add_parser(
        "chat",
        help="talk with a running service in the terminal",
        description="Talk with a running service in the terminal. If standard input or output is no terminal, "
        "standard input is one message and its answer goes to standard output: `echo hi | actors-main chat`.",
    )
    state_option(chat_parser)
    chat_parser.add_argument("--url", help="address of the service (default: the one that runs with --state)")
    chat_parser.add_argument(
        "--conversation", metavar="ID", help="go on with that conversation; `new` begins one (default: the service's)"
    )
    chat_parser.set_defaults(command=chat)
    restart_parser = commands.add_parser(
        "restart",
        help="stop one part of a running service and start it anew",
        description="Stop one part of a running service and start it anew, also one that is parked: an MCP server "
        "(mcp/NAME), a process (llm), any path that `actors-main status` shows. Exit codes: 0 it runs again, 1 it does "
        "not, or there is no such part.",
    )
    state_option(restart_parser)
    restart_parser.add_argument("path", metavar="PATH", help="such as mcp/demo")
    restart_parser.set_defaults(command=restart)
    config_commands.add_to(commands, state_option)
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
    to.add_argument("--inline", action="store_true", help="everything in one process")
    to.add_argument(
        "--fronts",
        type=number_of_fronts,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that clients are spread over (default: one per core)",
    )


def number_of_fronts(text: str) -> int:
    """What `--fronts` may be. Raises ArgumentTypeError."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST_FRONTS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MOST_FRONTS} (got {text[:20]!r})")
    return number


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
    # held before anything is read: the first reading may set a broken file aside, which is for one service to do
    with only_one(state):
        configuration = importlib.import_module("actors.configuration")
        environment = configuration.load_environment(Path.cwd(), state)
        files = configuration.Configuration(state)
        try:
            snapshot: Snapshot = files.snapshot(overrides)
        except importlib.import_module("actors.layers").ConfigurationError as error:
            raise CannotStart("; ".join(error.problems)) from error
        with start_logging(snapshot):
            allow_descriptors()
            start = Start(state, overrides, snapshot, files.said, environment)
            interpreter.allow()
            if arguments.inline:
                return trio.run(inline.serve, start)
            placement = importlib.import_module("supervisors.placement")
            code: int = trio.run(placement.serve, start, arguments.fronts)
            return code


@contextlib.contextmanager
def start_logging(snapshot: Snapshot) -> Iterator[None]:
    """While it runs, logs go to standard error in the configured form; at the end all is written, whatever ends it.

    Raises SystemExit after an unexpected error, which is told in the log.
    """
    if sys.stderr is None:
        yield  # closed by whoever started us: its number may be anybody's file now
        return
    output = importlib.import_module("actors.log_output")
    with output.started(snapshot, sys.stderr.fileno(), os.environ):
        try:
            yield
        except CannotStart:
            raise
        except Exception:  # boundary: the last one, and its words belong into the log like all others
            log.critical("the service failed", exc_info=True)
            sys.exit(EXIT_SOFTWARE)


def allow_descriptors() -> None:
    """Take what the system allows: a socket is a descriptor, and 1,024, the usual default, are few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:  # unlimited is refused by some systems
        log.debug("the number of descriptors stays as it was: %s", error)


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


# status


def status(arguments: argparse.Namespace) -> int:
    """Print the tree of the running service, and what an operator should know; with `--watch` again and again."""
    while True:
        text = status_text(arguments)
        sys.stdout.write(CLEAR + text if arguments.watch and not arguments.json else text)
        sys.stdout.flush()
        if not arguments.watch:
            return 0
        time.sleep(WATCH_S)  # a person looks on


def status_text(arguments: argparse.Namespace) -> str:
    """What `status` prints. Raises CannotStart."""
    host, port = running_service(state_dir(arguments))
    try:
        body = fetch(host, port, "/status", OK)
        node = msgspec.json.decode(body, type=Node)
        ready = msgspec.json.decode(fetch(host, port, "/readyz", OK, UNAVAILABLE), type=Ready)
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        raise CannotStart(f"the service at {shown(host)}:{port} does not say how it is: {error}") from error
    if arguments.json:
        return body.decode() + "\n"
    lines = [f"! not ready: {reason}" for reason in ready.reasons] + [f"! {note}" for note in ready.notes]
    return "\n".join([*lines, "", render(node)]) if lines else render(node)


class Ready(msgspec.Struct, frozen=True):
    """What `/readyz` answers."""

    ready: bool
    """Turns are taken."""
    reasons: list[str]
    """Why not."""
    notes: list[str]
    """What is wrong although turns may be taken: parts that are down, configuration that is not in force."""


class Instance(msgspec.Struct, frozen=True):
    """The file by which a running service is found."""

    pid: int
    host: str
    port: int


def running_service(state: Path) -> tuple[str, int]:
    """Host and port of the service with that state directory. Raises CannotStart when there is none."""
    try:
        found = msgspec.json.decode((state / INSTANCE).read_bytes(), type=Instance)
    except (OSError, msgspec.MsgspecError) as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({error})"
        raise CannotStart(
            f"no service runs with the state directory {state}{why}; start one with `actors-main`, "
            "or name another with --state DIR"
        ) from error
    try:
        os.kill(found.pid, 0)
    except PermissionError:
        pass  # it runs, and is another user's
    except (ProcessLookupError, OverflowError) as error:
        raise CannotStart(
            f"no service runs with the state directory {state}: the last one (pid {found.pid}) was ended by force"
        ) from error
    return found.host.strip("[]"), found.port


def fetch(host: str, port: int, path: str, *accepted: int) -> bytes:
    """GET a page. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=STATUS_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(MOST_BYTES)
    finally:
        connection.close()
    if answer.status not in accepted:
        said = body[:200].decode("utf-8", "replace").strip()
        raise http.client.HTTPException(f"{path} answered {answer.status}: {said}")
    return body


# restart


def restart(arguments: argparse.Namespace) -> int:
    """Have a part of the running service restarted. Raises CannotStart: it was not."""
    state = state_dir(arguments)
    running_service(state)  # says it best when there is none
    service = importlib.import_module("actors.config_client").find(state)
    if service is None:
        raise CannotStart(f"the service with the state directory {state} takes no orders; see its log")
    try:
        part: PartState = service.ask(RestartPart(arguments.path))
    except (Fault, OSError) as error:
        said = f"{error.body.text} {error.body.hint}" if isinstance(error, Fault) else str(error)
        raise CannotStart(f"{arguments.path} was not restarted: {said}") from error
    if part.last_error:
        raise CannotStart(f"{part.path} was restarted and is {part.state} again: {part.last_error}")
    how = "was restarted and is running" if part.state == "running" else f"is being restarted, and {part.state} now"
    print(f"{part.path} {how}")  # noqa: T201 - this is the command line
    return 0


# chat


def chat(arguments: argparse.Namespace) -> int:
    """Talk with a running service."""
    # its libraries are of no use to a service, and take a moment to load
    client = importlib.import_module("supervisors.chat")
    code: int = client.main(state_dir(arguments) / INSTANCE, arguments.url, arguments.conversation)
    return code


if __name__ == "__main__":
    main()

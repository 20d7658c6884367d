"""`actors-main chat`: a terminal client of a running service.

In a terminal: a prompt, answers as Markdown while they come, Ctrl-C to stop one. Otherwise standard input is
one message, and its answer goes to standard output as it comes, byte for byte; errors go to standard error.
It speaks the client protocol and nothing else, so the service may be anywhere. The service owns the turn:
leaving never stops it. Exit codes: 0 done, 1 failed or no service, 130 left or stopped by Ctrl-C, 128 + n
ended by signal n.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import trio

from supervisors.chat_client import INTERRUPTED, Client
from supervisors.chat_link import Unreachable
from supervisors.chat_talk import Note
from supervisors.chat_turn import Aside, Frame, Turn

FAILED = 1
ENDPOINT = "/ws/chat"  # of a service that does not say another
PIPE_PATIENCE_S = 60.0  # without a connection, where nobody watches
HISTORY = "chat_input_history"  # in the state directory


def main(instance: Path, url: str | None, conversation: str | None) -> int:
    """Chat until the person leaves, or until the message on standard input is answered. Returns the exit code.

    Args:
        instance: the file by which a running service says where it is.
        url: of a service, instead of that.
        conversation: its id, or `new`; None: what the service has as default.
    """
    wanted = quote(conversation or "", safe="")
    try:
        address = address_of(instance, url)
        if interactive():
            client = Client(address, wanted)
            # what draws and reads lines takes a moment to load, and is of no use in a pipe
            terminal = importlib.import_module("supervisors.chat_terminal")
            return _end(client, trio.run(terminal.run, client, instance.parent / HISTORY))
        message = sys.stdin.buffer.read().decode("utf-8", "replace").strip("\n")
        if not message.strip():
            return complain("there is no message on standard input")
        client = Client(address, wanted, PIPE_PATIENCE_S, only_mine=True)
        return _end(client, trio.run(client.run, partial(ask_once, client, message)))
    except Unreachable as error:
        return complain(str(error))
    except KeyboardInterrupt:  # before the handlers are there: while standard input is read
        return INTERRUPTED


def interactive() -> bool:
    """Whether a person sits there, at a terminal that can be drawn on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def complain(text: str, hint: str = "") -> int:
    """Say on standard error what went wrong."""
    print(f"actors-main chat: {text}", file=sys.stderr)  # noqa: T201 - this is the command line
    if hint:
        print(hint, file=sys.stderr)  # noqa: T201
    return FAILED


def _end(client: Client, code: int) -> int:
    """Say why there was no going on, if so. Returns the exit code."""
    return complain(client.link.failure) if client.link.failure else code


def address_of(instance: Path, url: str | None) -> Callable[[], str]:
    """Where the service is, looked up each time it is asked. Raises Unreachable, also when called."""
    if url is not None:
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        if scheme not in ("ws", "wss") or not parts.hostname:
            raise Unreachable(f"{url!r} is not the address of a service, such as ws://127.0.0.1:8000{ENDPOINT}")
        whole = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") or ENDPOINT, "", ""))
        return lambda: whole

    def published() -> str:
        try:
            running = json.loads(instance.read_text())
            host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(running["host"], running["host"])  # noqa: S104
            return f"ws://{host}:{running['port']}{running.get('endpoint', ENDPOINT)}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(
                f"no service runs with the state directory {instance.parent}; start one with `actors-main`, "
                "name another with --state DIR, or give its address with --url"
            ) from error

    published()
    return published


# In a pipe.


async def ask_once(client: Client, message: str) -> None:
    """Send the message, write its answer as it comes, and set the exit code."""
    talk, link = client.talk, client.link
    while not (talk.in_step or link.failure):
        await client.changes.wait()
    if not link.failure:
        talk.say(message)
    written = 0
    while not link.failure:
        for name, asked in talk.asked.items():
            if asked.turn is not None and name not in client.told:
                client.told.add(name)
                complain(waiting(asked))
        turn = talk.to_show(mine=True)
        if turn is not None and len(turn.text) > written:
            text = turn.text[written:]
            written += len(text)
            if not await _write(text):
                client.code = FAILED  # nobody reads it
                return
        elif turn is not None and turn.over:
            client.code = await _closed(client, turn)
            return
        elif talk.refused:
            note = next(note for note in talk.notes if isinstance(note, Note) and note.error)
            client.code = complain(note.text, note.hint)
            return
        else:
            await client.changes.wait()


def waiting(asked: Frame) -> str:
    """What the answer waits for, which nobody can give through a pipe; on one line, whatever a server wrote."""
    if asked.type == "question":
        text = f"{asked.server} asks: {asked.message} Another client can answer, in this conversation."
    else:
        text = f"{asked.tool_name} ({asked.server}) waits for approval; another client can give it"
    return "".join(char if char.isprintable() else " " for char in text)


async def _closed(client: Client, turn: Turn) -> int:
    """End the output; what was not well goes to standard error. Returns the exit code."""
    if turn.text and not turn.text.endswith("\n"):
        await _write("\n")
    for aside in turn.items:
        if isinstance(aside, Aside):
            complain(aside.text)
    if turn.outcome == "completed":
        return 0
    if turn.outcome == "stopped" and client.stopped:
        return INTERRUPTED
    error = turn.error
    return complain(error.error_message, error.hint or "") if error else complain(f"the answer was {turn.outcome}")


async def _write(text: str) -> bool:
    """Write to standard output; False if it was closed.

    In a thread that is left behind when the program ends: a reader that stalls must hold up neither signals
    nor the connection. Past Python's buffers, whose locks such a thread would keep.
    """
    return await trio.to_thread.run_sync(_write_all, text.encode("utf-8", "replace"), abandon_on_cancel=True)


def _write_all(data: bytes) -> bool:
    try:
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
    except OSError:
        return False
    return True

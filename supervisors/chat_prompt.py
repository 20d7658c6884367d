"""The terminal client's input line: editing, history, paste. The importer of prompt_toolkit.

The library runs an asyncio loop of its own in a worker thread while somebody may type. It holds the terminal
only for that time: `read` returns when a line is there, or when it was called off because something wants
the screen; what was typed so far is kept and is there again the next time. The thread always ends with
`read`, also when that is cancelled. Between reads the terminal is quiet: what is typed ahead is not echoed,
and Ctrl-C is a signal.
"""

from __future__ import annotations

import contextlib
import enum
import os
import termios
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "


class End(enum.Enum):
    """Why there is no line."""

    SCREEN = "something wants the screen"
    CTRL_C = "Ctrl-C"
    CTRL_D = "Ctrl-D, or the terminal is gone"


class _Interrupted(Exception):
    """Ctrl-C; not KeyboardInterrupt, which asyncio lets out through its own machinery."""


class Prompt:
    """The input line.

    Args:
        commands: completed by Tab where a line begins with them.
        history: file of earlier lines; None: only this run's.
    """

    def __init__(self, commands: Sequence[str], history: Path | None) -> None:
        self.draft = ""
        """What will stand in the line at the next read."""
        self._cursor: int | None = None
        self._leave = False
        self._session: PromptSession[str | None] = PromptSession(
            PROMPT,
            multiline=True,  # a pasted text keeps its lines; Enter sends all the same
            key_bindings=_bindings(),
            prompt_continuation=lambda width, number, wrapped: " " * width,
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=Condition(lambda: False),
            history=_history(history),
            interrupt_exception=_Interrupted,
        )

    async def read(self, until: Callable[[], Awaitable[None]]) -> str | End:
        """A line, or why there is none; called off when `until` returns."""
        self._leave = False

        async def watch() -> None:
            try:
                await until()
            finally:
                self._call_off()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            line = await trio.to_thread.run_sync(self._prompt)  # ends soon: a cancellation calls it off as well
            nursery.cancel_scope.cancel()
        return line

    # In the worker thread.

    def _prompt(self) -> str | End:
        text, cursor = self.draft, self._cursor
        self.draft, self._cursor = "", None
        self._session.app.erase_when_done = False
        try:
            line = self._session.prompt(
                default=Document(text, cursor), pre_run=self._leave_if_wanted, handle_sigint=False
            )
        except _Interrupted:
            return End.CTRL_C
        except (EOFError, OSError, termios.error):
            return End.CTRL_D  # the last two: the terminal was closed
        return End.SCREEN if line is None else line

    def _leave_if_wanted(self) -> None:
        app = self._session.app
        if not self._leave or app.future is None or app.future.done():
            return
        document = self._session.default_buffer.document
        self.draft, self._cursor = document.text, document.cursor_position
        app.erase_when_done = True
        app.exit(result=None)

    # In trio's thread.

    def _call_off(self) -> None:
        self._leave = True
        # before the loop is there, pre_run sees the flag
        if (loop := self._session.app.loop) is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                loop.call_soon_threadsafe(self._leave_if_wanted)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    @bindings.add("c-j")  # what was typed before the terminal was quiet
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()  # e.g. the state directory of another user
    return FileHistory(path)


class Quiet:
    """A terminal without echo and line editing; Enter stays what it is for the input line.

    Args:
        fd: of the terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before = termios.tcgetattr(fd)

    def enter(self) -> None:
        """Make it quiet; again after the program was stopped and goes on, since shells restore their own mode."""
        mode = termios.tcgetattr(self._fd)
        mode[0] &= ~termios.ICRNL
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)

    def leave(self) -> None:
        """As it was found."""
        with contextlib.suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)


@contextlib.contextmanager
def quiet(fd: int) -> Iterator[Quiet]:
    """Keep a terminal quiet, and restore it."""
    terminal = Quiet(fd)
    terminal.enter()
    try:
        yield terminal
    finally:
        terminal.leave()

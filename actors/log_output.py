"""The way of log lines out of the process: a bounded queue, and one thread that writes it to a descriptor.

A line is made in the task that logs, and put into the queue; that never waits for the reader of the log. When
he does not keep up the oldest lines are dropped, and the log says how many. The thread never blocks in a write
for ever: it asks the kernel first, and writes no more than a pipe takes whole. So the end is bounded too: what
nobody read within `FLUSH_S` is lost. Of levels: ours follow the configuration, those of libraries are never
below WARNING, since at DEBUG some of them quote the headers that they send.

What can fail is the writing (nobody reads any more, the disk is full): these lines count as dropped.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from actors.hidden import hidden, without
from actors.log_lines import Json, Line, Text
from protocol.watcher import Logging, Snapshot

QUEUE_BYTES = 1024 * 1024  # some thousand lines: seconds of a busy service, and nothing against its memory
LINE_BYTES = 64  # what a queued line costs beside its text
FLUSH_S = 2.0  # for the reader to take what waits at the end
LOOK_S = 0.2  # how often the thread looks whether it shall end while nobody reads
BATCH_BYTES = 64 * 1024  # taken out of the queue at once

OURS = ("actors", "protocol", "Servers", "supervisors")
GROUPS: dict[str, tuple[str, ...]] = {
    "chat": ("actors.session", "actors.gateway", "actors.front", "actors.llm"),
    "mcp": (
        *("actors.mcp", "actors.mcp_client", "actors.mcp_connect", "actors.mcp_exchange", "actors.mcp_pipe"),
        *("actors.mcp_server", "actors.mcp_sse", "actors.server_resources"),
    ),
    "connection_pool": ("actors.streamer", "actors.provider"),
}
"""The original backend's groups of modules, as loggers of ours."""

log = logging.getLogger("actors.logs")


class Output(logging.Handler):
    """Writes records as lines to a descriptor, which stays open; `start` it, and `close` it at the end.

    Args:
        descriptor: of a file, pipe, terminal or socket.
        limit: bytes of lines that may wait.
    """

    def __init__(self, descriptor: int, limit: int = QUEUE_BYTES) -> None:
        super().__init__()
        self.line: Line = Text("%(message)s", str)
        """Makes the line of a record."""
        self._descriptor = descriptor
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._writing = False
        self._torn = False
        self._closing = False
        self._deadline = float("inf")
        # Reentrant, as Handler's own lock: a finaliser may log wherever memory is allocated.
        self._changed = threading.Condition(threading.RLock())
        # Daemonic only so that not even a write that blocks against all expectation keeps the process.
        self._thread = threading.Thread(target=self._write_all, name="log output", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line; never waits, never raises."""
        try:
            self._put(self.line(record))
        except Exception:  # noqa: BLE001 - the boundary: a wrong call of the logger is told in the log
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell of a record that no line could be made of. Handler's own would write past the queue, and wait."""
        kind = getattr(sys.exc_info()[0], "__name__", "error")
        where = f"{record.module}:{record.lineno}"
        self._say(logging.ERROR, "a line of the logger %s, at %s, could not be made: %s", record.name, where, kind)

    def flush(self) -> None:
        """Wait until all lines are written, FLUSH_S at most."""
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._lines or self._writing) or not self._thread.is_alive(), timeout=FLUSH_S
            )

    def close(self) -> None:
        """Write what waits, FLUSH_S at most, and end the thread. Lines that come later are lost."""
        with self._changed:
            self._closing = True
            self._deadline = min(self._deadline, time.monotonic() + FLUSH_S)
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(FLUSH_S + 2 * LOOK_S)
        super().close()

    def _say(self, level: int, text: str, *values: object) -> None:
        record = logging.LogRecord(log.name, level, __file__, 0, text, values, None)
        record.actor = "logs"
        self._put(self.line(record))

    def _put(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._closing:
                return
            self._lines.append(data)
            self._size += len(data) + LINE_BYTES
            while self._size > self._limit and len(self._lines) > 1:
                self._size -= len(self._lines.popleft()) + LINE_BYTES
                self._dropped += 1
            self._changed.notify_all()

    # In the thread.

    def _write_all(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while batch := self._take():
            done = self._write(poll, b"".join(batch))
            self._torn = not done  # the next line begins behind the rest of one, or of none
            with self._changed:
                self._writing = False
                self._dropped += 0 if done else len(batch)
                self._changed.notify_all()

    def _take(self) -> list[bytes]:
        """The next lines, as soon as there are some; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closing)
            dropped, self._dropped = self._dropped, 0
            batch: list[bytes] = []
            size = 0
            while self._lines and size < BATCH_BYTES:
                size += len(self._lines[0])
                batch.append(self._lines.popleft())
            self._size -= size + LINE_BYTES * len(batch)
            self._writing = bool(batch)
        if dropped and batch:
            text = "%d lines of this log were dropped here: they could not be written, or were not read fast enough"
            record = logging.LogRecord(log.name, logging.WARNING, __file__, 0, text, (dropped,), None)
            record.actor = "logs"
            mark = "\n" if self._torn else ""
            batch.insert(0, f"{mark}{self.line(record)}\n".encode("utf-8", "backslashreplace"))
        return batch

    def _write(self, poll: select.poll, data: bytes) -> bool:
        """Write all of it; False when it cannot be written, or was not read when all has to end."""
        rest, at = memoryview(data), 0
        while at < len(data):
            while not poll.poll(LOOK_S * 1000):
                if time.monotonic() >= self._deadline:
                    return False
            # A pipe that can take something takes this much without waiting, and in one piece: whole lines, for
            # other processes of the service write to it too.
            end = at + select.PIPE_BUF
            end = data.rfind(b"\n", at, end) + 1 or end
            try:
                at += os.write(self._descriptor, rest[at:end])
            except BlockingIOError:
                continue  # somebody made the descriptor non-blocking: asked again
            except OSError:
                return False  # the reader is gone, the disk is full: there is nowhere to say it
        return True


class Levels:
    """The levels of the process's loggers, as configured; those that were there before come back at the end."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def apply(self, logging_: Logging) -> None:
        """Give each logger its level; what is not named any more follows those above it again."""
        wanted = levels(logging_)
        for name in self._before.keys() - wanted.keys():
            logging.getLogger(name).setLevel(self._before.pop(name))
        for name, level in wanted.items():
            logger = logging.getLogger(name)
            self._before.setdefault(name, logger.level)
            if logger.level != level:
                logger.setLevel(level)

    def restore(self) -> None:
        """As it was before the first `apply`."""
        for name, level in self._before.items():
            logging.getLogger(name).setLevel(level)
        self._before.clear()


def levels(logging_: Logging) -> dict[str, int]:
    """Levels by logger (`""`: of all others), from the general to the particular."""
    number = logging.getLevelNamesMapping()
    found = {"": number[logging_.level], **dict.fromkeys(OURS, number[logging_.level])}
    # A group counts less than a module of it, whichever stands first in the file.
    order = sorted(logging_.modules, key=lambda name: (name not in GROUPS, name.count(".")))
    for name in order:
        found.update(dict.fromkeys(_loggers(name), number[logging_.modules[name]]))
    return {
        name: level if name.partition(".")[0] in OURS else max(level, logging.WARNING) for name, level in found.items()
    }


def _loggers(name: str) -> tuple[str, ...]:
    if name in GROUPS:
        return GROUPS[name]
    if "." in name or name in OURS:
        return (name,)
    # `streamer`: the module, and the supervisor's logger of the actor `llm/streamer`; or a library of that name.
    same = [known for known in tuple(logging.root.manager.loggerDict) if known.rpartition(".")[2] == name]
    return (name, f"actors.{name}", f"supervisors.{name}", *same)


def outputs() -> list[Output]:
    """Where this process's log goes, if it is ours; a process that logs in its own way has none."""
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, Output)]


_levels = Levels()  # of this process's loggers, which are one set too


def configure(snapshot: Snapshot, environment: Mapping[str, str]) -> bool:
    """Let the log of this process be as configured; False, and nothing done, where it is not ours."""
    found = outputs()
    if found:
        _levels.apply(snapshot.logging)
    for output in found:
        clean = partial(without, values=hidden(snapshot, environment))
        output.line = Json(clean) if snapshot.logging.json else Text(snapshot.logging.format, clean)
    return bool(found)


@contextmanager
def started(
    snapshot: Snapshot, descriptor: int, environment: Mapping[str, str], *, limit: int = QUEUE_BYTES
) -> Iterator[Output]:
    """While it runs, all that is logged goes to the descriptor: uncaught errors of threads and warnings too."""
    root = logging.getLogger()
    output = Output(descriptor, limit)
    hooks = threading.excepthook, sys.unraisablehook
    root.addHandler(output)
    configure(snapshot, environment)
    output.start()
    threading.excepthook, sys.unraisablehook = _thread_failed, _unraisable
    logging.captureWarnings(True)
    try:
        yield output
    finally:
        logging.captureWarnings(False)
        threading.excepthook, sys.unraisablehook = hooks
        root.removeHandler(output)
        _levels.restore()
        output.close()


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is None or isinstance(failure.exc_value, SystemExit):
        return
    name = failure.thread.name if failure.thread is not None else "unknown"
    log.critical("the thread %r failed", name, exc_info=failure.exc_value)


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    # Not its repr: it may be half gone, and what it shows is not ours to know.
    name = getattr(failure.object, "__qualname__", type(failure.object).__name__)
    log.error("%s %s", failure.err_msg or "Exception ignored in", name, exc_info=failure.exc_value)

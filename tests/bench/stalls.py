"""Who stands still beside running streams: how late the deltas of the others are then, against the time before.

A client that does not read what it was sent, an upstream that has stopped in mid-answer, and a front that is stopped
as a whole (SIGSTOP, for less than it may miss pings). Each is measured in a service of its own, in windows that take
turns: nobody stands still, somebody does. The streams that are measured are at the other front where one is stopped:
the load of each front is connected while the other one is stopped, since who is stopped takes no connection.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import connect

from tests.bench.crash import processes, tree
from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.programs import Load, Programs, Script, Upstream, compiled, load, upstream
from tests.bench.relay import BEGIN_S, END_S, SETTLE_S
from tests.bench.retention import WITHIN_MS, WITHIN_RATIO
from tests.bench.subjects import Running, ours

STREAMS = 100
RATE = 50
WAITING = 20_000  # tokens that the client does not read
SMALL_BUFFER = 4096  # bytes that its kernel takes for it
TAKEN_S = 0.5  # for a window to begin after somebody has begun or ceased to stand still
WINDOWS = 3  # of each kind, in one service

Pair = tuple[float, float]
"""p99 in milliseconds: nobody stood still, somebody did."""


def run(options: Options) -> str:
    """The table."""
    streams, seconds = options.of(STREAMS, 5), options.seconds
    rows: list[tuple[str, ...]] = []
    with compiled() as programs:
        for name, measure in {"a client": client, "an upstream": silent, "a front": front}.items():
            pairs: list[Pair] = []
            for number in range(options.repetitions):
                pairs += measure(programs, streams, seconds)
                options.say(f"{number + 1}. {name}: {pairs}")
            ratios = [with_it / without for without, with_it in pairs]
            more = [with_it - without for without, with_it in pairs]
            met = middle(ratios) <= WITHIN_RATIO or middle(more) < WITHIN_MS
            before, after = zip(*pairs, strict=True)
            told = (spread(list(before), 2), spread(list(after), 2), spread(ratios, 2), spread(more, 2))
            rows.append((name, *told, "met" if met else "missed"))
    heads = ("who stands still", "p99 ms before", "p99 ms then", "ratio", "ms more", "budget")
    return (
        f"{table(heads, rows)}\n\n{streams} streams of {RATE} tokens a second; "
        f"the budget is a ratio of {WITHIN_RATIO} or {WITHIN_MS:g} ms."
    )


def middle(figures: list[float]) -> float:
    """The median, the higher one of two."""
    return sorted(figures)[len(figures) // 2]


def script_of(seconds: float) -> Script:
    """Streams that last for all windows."""
    lasts = SETTLE_S + 2 * WINDOWS * (seconds + 2 * TAKEN_S) + 5.0
    return Script(RATE, int(RATE * lasts), RATE)


def windows(running: Load, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> list[Pair]:
    """So many pairs of windows. Raises Stuck, Wrong."""
    found: list[Pair] = []
    for _ in range(WINDOWS):
        without = window(running, seconds)
        begin()
        with_it = window(running, seconds)
        end()
        found.append((without, with_it))
    return found


def window(running: Load, seconds: float) -> float:
    """The p99 of one, in milliseconds. Raises Stuck, Wrong."""
    time.sleep(TAKEN_S)
    running.mark()
    time.sleep(seconds)
    p99_us: float = running.mark()["p99_us"]
    return p99_us / 1000


@contextmanager
def streaming(programs: Programs, source: Upstream, service: Running, streams: int, script: Script) -> Iterator[Load]:
    """The streams run, and are whole at the end. Raises Stuck, Wrong."""
    with load(programs, service.port, service.path, streams, script) as running:
        running.ready(BEGIN_S)
        running.go(BEGIN_S)
        time.sleep(SETTLE_S)
        yield running
        running.finish(END_S)


def client(programs: Programs, streams: int, seconds: float) -> list[Pair]:
    """A client asks for a long answer and reads nothing of it."""
    script = script_of(seconds)
    with (
        upstream(programs) as source,
        ours(source, script) as service,
        streaming(programs, source, service, streams, script) as running,
    ):
        change(service, {"bench": {"model": Script(0, WAITING, 0).model}})
        held: list[Any] = []

        def begin() -> None:
            raw = socket.create_connection(("127.0.0.1", service.port))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            # its reading thread stops at the first frame that nobody takes
            held.append(connect(address(service), sock=raw, max_queue=1, close_timeout=0.1))
            ask(held[-1])
            made = -1
            while made < (made := source.mark()["running"]) or made > streams:
                time.sleep(TAKEN_S)  # its answer has been made, and waits for it

        def end() -> None:
            held.pop().socket.close()

        return windows(running, seconds, begin, end)


def silent(programs: Programs, streams: int, seconds: float) -> list[Pair]:
    """Another provider stops in mid-answer."""
    script = script_of(seconds)
    with upstream(programs) as source, upstream(programs) as other, ours(source, script) as service:
        other.hold()
        held: list[Any] = []

        def begin() -> None:
            held.append(connect(address(service)))
            ask(held[-1])
            until(held[-1], "thinking_delta")

        def end() -> None:
            held.pop().close()  # its turn goes on standing still, as it would; the next one is one more

        with streaming(programs, source, service, streams, script) as running:
            change(service, {"bench": {"base_url": other.base_url}})  # what runs goes on at the first one
            found = windows(running, seconds, begin, end)
        other.release()
        return found


def front(programs: Programs, streams: int, seconds: float) -> list[Pair]:
    """One of two fronts is stopped, with streams of its own."""
    script = script_of(seconds)
    with upstream(programs) as source, ours(source, script, None, "--fronts", "2") as service:
        pids = [int(node["pid"]) for node in processes(tree(service)) if str(node["path"]).startswith("fronts/")]
        stopped, other = pids
        with at(other, stopped), load(programs, service.port, service.path, streams, script) as beside:
            beside.ready(BEGIN_S)
            beside.go(BEGIN_S)
            os.kill(other, signal.SIGCONT)
            os.kill(stopped, signal.SIGSTOP)
            with streaming(programs, source, service, streams, script) as running:
                os.kill(stopped, signal.SIGCONT)
                found = windows(
                    running,
                    min(seconds, 5.0),  # a front that answers no ping for longer is replaced
                    lambda: os.kill(stopped, signal.SIGSTOP),
                    lambda: os.kill(stopped, signal.SIGCONT),
                )
            beside.finish(END_S)
        return found


@contextmanager
def at(*pids: int) -> Iterator[None]:
    """The first one is stopped; all of them go on after the block."""
    os.kill(pids[0], signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def address(service: Running) -> str:
    """Of its WebSocket, for a new conversation."""
    return f"ws://127.0.0.1:{service.port}{service.path}"


def ask(client: Any) -> None:
    """A user's message."""
    client.send(json.dumps({"type": "user_message", "message": "Go on."}))


def until(client: Any, kind: str) -> None:
    """Read up to a frame of that type. Raises TimeoutError."""
    while json.loads(client.recv(BEGIN_S))["type"] != kind:
        pass


def change(service: Running, providers: dict[str, Any]) -> None:
    """Change the configuration of providers. Raises TimeoutError."""
    with connect(address(service)) as client:
        client.send(json.dumps({"type": "set_config", "changes": {"llm": {"providers": providers}}}))
        until(client, "config_changed")


__all__ = ["run"]

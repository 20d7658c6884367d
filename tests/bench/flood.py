"""What a tool server can do to others: how late the deltas of running streams are while it floods us.

Another conversation's tool returns 50 MB again and again, or fills its standard output with notifications as fast as
they are taken. Each is measured in a service of its own, in windows that take turns: without it (calls of half a second
that return a word, one after the other), with it. The server
is `tests/odd_servers.py`; what it sends is parsed by the process of all servers, and `isolate` gives it one of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.bench.crash import tree
from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import Stuck
from tests.bench.programs import Programs, Script, compiled, upstream
from tests.bench.relay import BEGIN_S
from tests.bench.retention import WITHIN_MS, WITHIN_RATIO
from tests.bench.stalls import Pair, address, ask, change, middle, script_of, streaming, windows
from tests.bench.start import OFFERED_S, flat
from tests.bench.subjects import Running, ours

STREAMS = 100
RATE = 50
FLOODING, CALM = Script(0, 1, tool="hello"), Script(0, 1, tool="count")
ODD = str(Path(__file__).parents[1] / "odd_servers.py")
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "results of 50 MB": ("big", "50000000", {}),
    "a full standard output": ("floods", "0.5", {}),
    "the same, isolated": ("floods", "0.5", {"isolate": True}),
}
"""What it does: the server's mode, its argument (bytes; seconds of a call), and more of its entry."""


def run(options: Options) -> str:
    """The table."""
    streams, seconds = options.of(STREAMS, 5), options.seconds
    rows: list[tuple[str, ...]] = []
    with compiled() as programs:
        for name, kind in KINDS.items():
            if options.only and name not in options.only:
                continue
            pairs: list[Pair] = []
            calls = 0
            for number in range(options.of(-(-options.repetitions // 3), 1)):  # a service has three pairs of windows
                found, made = measure(programs, kind, streams, seconds)
                pairs, calls = pairs + found, calls + made
                options.say(f"{number + 1}. {name}: {made} calls, {found}")
            without, with_it = zip(*pairs, strict=True)
            ratios = [late / usual for usual, late in pairs]
            more = [late - usual for usual, late in pairs]
            met = middle(ratios) <= WITHIN_RATIO or middle(more) < WITHIN_MS
            figures = (spread(list(without), 2), spread(list(with_it), 2), spread(ratios, 2), spread(more, 2))
            rows.append((name, *figures, str(calls), "met" if met else "missed"))
    heads = ("a server sends", "p99 ms without", "p99 ms with it", "ratio", "ms more", "calls", "budget")
    return (
        f"{table(heads, rows)}\n\n{streams} streams of {RATE} tokens a second; "
        f"the budget is a ratio of {WITHIN_RATIO} or {WITHIN_MS:g} ms."
    )


def measure(
    programs: Programs, kind: tuple[str, str, dict[str, Any]], streams: int, seconds: float
) -> tuple[list[Pair], int]:
    """Pairs of windows, and how many calls there were. Raises Stuck, Wrong."""
    mode, argument, more = kind
    servers = {"odd": {"command": "python", "args": ["-I", "-S", ODD, mode, argument], **more}}
    script = script_of(seconds)
    with (
        upstream(programs) as source,
        ours(source, script, servers=servers) as service,
        streaming(programs, source, service, streams, script) as running,
    ):
        offered(service)

        def calls(how: Script) -> None:
            caller.end()
            change(service, {"bench": {"model": how.model}})  # what runs goes on with the other one
            caller.begin()

        caller = Caller(service)
        try:
            calls(CALM)
            return windows(running, seconds, lambda: calls(FLOODING), lambda: calls(CALM)), caller.calls
        finally:
            caller.end()


def offered(service: Running) -> None:
    """Wait until the server is connected. Raises Stuck."""
    until = time.monotonic() + OFFERED_S
    while not any(node["path"] == "mcp/odd" and node["facts"].get("tools") for node in flat(tree(service))):
        if time.monotonic() > until:
            raise Stuck(f"the server is not connected after {OFFERED_S:g} s: {service.program.log[-2000:]}")
        time.sleep(0.05)


class Caller:
    """A client whose turns call the tool, one after the other."""

    def __init__(self, service: Running) -> None:
        self.calls = 0
        """That were answered."""
        self._service = service
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """From now on."""
        self._enough.clear()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def end(self) -> None:
        """After the turn that runs."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _talk(self) -> None:
        while not self._enough.is_set():
            with connect(address(self._service), max_size=None) as client:  # a new conversation each time
                ask(client)
                for frame in frames(client):
                    ended = frame["type"] == "tool_execution" and frame["status"] != "executing"
                    if ended and frame["status"] != "completed":
                        raise Stuck(f"the call did not do what it was to do: {str(frame)[:500]}")
                    self.calls += ended


def frames(client: Any) -> Iterator[dict[str, Any]]:
    """What comes until the turn is over. Raises TimeoutError."""
    while True:
        frame = json.loads(client.recv(BEGIN_S))
        yield frame
        if frame["type"] == "turn_finished":
            return


__all__ = ["run"]

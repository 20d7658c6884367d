"""MCP servers: the start with three of them, what everything then takes, and what a tool call costs a turn.

`ready` is when the service says that it takes turns, `offered` when the tree, which is a second behind at most, shows
the tools of all three servers (those of Servers.demo_server, each a process of its own). A turn with a tool call is
two requests to the model and a call between them, journaled before and after; measured as the time to the first
token, one turn after the other.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench.crash import Node, processes, tree
from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import Stuck, cpu_s, rss_kb
from tests.bench.programs import Programs, Script, compiled, load, upstream
from tests.bench.relay import BEGIN_S
from tests.bench.subjects import Running, ours

SERVERS = {f"demo{number}": {"command": "python", "args": ["-m", "Servers.demo_server"]} for number in (1, 2, 3)}
TOOL = "demo2__add"  # as the model knows it: the others have one of that name
PLAIN = Script(0, 5, 1)
CALLING = PLAIN._replace(tool=TOOL)
SOCKETS = 20
TURNS = 200
WARM = 40
OFFERED_S = 60.0
LOOK_S = 0.05


TITLES = {
    "ready_s": "ready, s",
    "offered_s": "all tools offered, s",
    "cpu_s": "processor time until then, s",
    "front_mb": "RSS of a front, MB",
    "ours_mb": "RSS of the service without the servers, MB",
    "all_mb": "RSS with the servers, MB",
}
"""Rows of the first table."""


class Begun(NamedTuple):
    """A start."""

    ready_s: float
    offered_s: float
    cpu_s: float
    """Of all processes, servers too, until then."""
    front_mb: float
    """The largest of them."""
    ours_mb: float
    """All processes of the service, without the servers."""
    all_mb: float


def run(options: Options) -> str:
    """Both tables."""
    begun: list[Begun] = []
    calls: dict[str, list[tuple[float, float]]] = {"with a tool call": [], "without": []}
    turns = options.of(TURNS, 4)
    with compiled() as programs:
        for number in range(options.repetitions):
            for (name, found), script in zip(calls.items(), (CALLING, PLAIN), strict=True):
                began, answered = measure(programs, script, turns)
                begun.append(began)
                found.append(answered)
                options.say(f"{number + 1}. {name}: {answered}, {began}")
    rows = [(title, spread([getattr(one, field) for one in begun], 2)) for field, title in TITLES.items()]
    started = table(("start with three servers", ""), rows)
    heads = ("time to first token of a turn", "p50 ms", "p99 ms")
    told = [
        (name, spread([p50 for p50, _ in found], 2), spread([p99 for _, p99 in found], 2))
        for name, found in calls.items()
    ]
    more = median(p50 for p50, _ in calls["with a tool call"]) - median(p50 for p50, _ in calls["without"])
    return f"{started}\n\n{table(heads, told)}\n\nA tool call adds {more:.2f} ms; {turns} turns a run."


def measure(programs: Programs, script: Script, turns: int) -> tuple[Begun, tuple[float, float]]:
    """One start, and p50 and p99 of the time to the first token in milliseconds. Raises Stuck, Wrong."""
    began = time.monotonic()
    with upstream(programs) as source, ours(source, script, servers=SERVERS) as service:
        ready = time.monotonic() - began
        start = offered(service, began, ready)
        sockets = min(SOCKETS, turns)
        with load(programs, service.port, service.path, sockets, script) as asking:
            asking.ready(BEGIN_S)
            asking.serial(min(WARM, turns), BEGIN_S)
            answered = asking.serial(turns, BEGIN_S + turns)
        assert service.state is not None
        service.program.end()
        if script.tool:
            calls = calls_made(service.state / "chat_history.db")
            # a front that has not heard of the tools yet fails calls for a moment; none of those was measured
            assert calls.pop("completed", 0) >= turns, calls
    return start, (answered["p50_us"] / 1000, answered["p99_us"] / 1000)


def offered(service: Running, began: float, ready: float) -> Begun:
    """Wait until all servers are connected. Raises Stuck."""
    while time.monotonic() - began < OFFERED_S:
        root = tree(service)
        if sum(node["facts"].get("tools", 0) > 0 for node in flat(root)) == len(SERVERS):
            after = time.monotonic() - began
            pids = {service.pid: "root"} | {int(node["pid"]): str(node["path"]) for node in processes(root)}
            own = {path: own_rss_mb(pid) for pid, path in pids.items()}
            fronts = [size for path, size in own.items() if path.startswith("front")] or [own["root"]]
            return Begun(ready, after, cpu_s(service.pid), max(fronts), sum(own.values()), rss_kb(service.pid) / 1024)
        time.sleep(LOOK_S)
    raise Stuck(f"the servers are not connected after {OFFERED_S:g} s: {service.program.log[-2000:]}")


def flat(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for child in node["children"]:
        yield from flat(child)


def own_rss_mb(pid: int) -> float:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def calls_made(database: Path) -> dict[str, int]:
    """How the tool calls in a closed store ended, and how many so; the whole event where one did not complete."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        query = (
            "SELECT CASE json_extract(body, '$.status') WHEN 'completed' THEN 'completed' ELSE body END, count(*) "
            "FROM event WHERE kind = 'tool_ended' GROUP BY 1"
        )
        return dict(db.execute(query).fetchall())

"""MCP servers: what a tool call costs a turn, with three servers connected.

A turn with a tool call is two requests to the model and a call between them, journaled before and after; measured as
the time to the first token, one turn after the other.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from statistics import median

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.programs import Programs, Script, compiled, load, upstream
from tests.bench.relay import BEGIN_S
from tests.bench.start import SERVERS, offered
from tests.bench.subjects import ours

TOOL = "demo2__add"  # as the model knows it: the others have one of that name
PLAIN = Script(0, 5, 1)
CALLING = PLAIN._replace(tool=TOOL)
SOCKETS = 20
TURNS = 200
WARM = 40


def run(options: Options) -> str:
    """The table."""
    calls: dict[str, list[tuple[float, float]]] = {"with a tool call": [], "without": []}
    turns = options.of(TURNS, 4)
    with compiled() as programs:
        for number in range(options.repetitions):
            for (name, found), script in zip(calls.items(), (CALLING, PLAIN), strict=True):
                found.append(measure(programs, script, turns))
                options.say(f"{number + 1}. {name}: {found[-1]}")
    heads = ("time to first token of a turn", "p50 ms", "p99 ms")
    told = [
        (name, spread([p50 for p50, _ in found], 2), spread([p99 for _, p99 in found], 2))
        for name, found in calls.items()
    ]
    more = median(p50 for p50, _ in calls["with a tool call"]) - median(p50 for p50, _ in calls["without"])
    return f"{table(heads, told)}\n\nA tool call adds {more:.2f} ms; {turns} turns a run."


def measure(programs: Programs, script: Script, turns: int) -> tuple[float, float]:
    """p50 and p99 of the time to the first token in milliseconds. Raises Stuck, Wrong."""
    with upstream(programs) as source, ours(source, script, servers=SERVERS) as service:
        offered(service, len(SERVERS))
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
    return answered["p50_us"] / 1000, answered["p99_us"] / 1000


def calls_made(database: Path) -> dict[str, int]:
    """How the tool calls in a closed store ended, and how many so; the whole event where one did not complete."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        query = (
            "SELECT CASE json_extract(body, '$.status') WHEN 'completed' THEN 'completed' ELSE body END, count(*) "
            "FROM event WHERE kind = 'tool_ended' GROUP BY 1"
        )
        return dict(db.execute(query).fetchall())

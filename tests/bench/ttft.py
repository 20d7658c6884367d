"""Time to the first token over the upstream's own, of an idle service: one question after the other.

The upstream answers at once, and its connections are kept, so what is left is the subject's own: reading the
question, storing it, asking, relaying. Each question goes to the next of many conversations, whose histories so stay
short. The upstream's own time is measured by the same client over plain HTTP, and its median is subtracted.
"""

from __future__ import annotations

from typing import Any

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.programs import Programs, Script, Upstream, compiled, load, upstream
from tests.bench.relay import BEGIN_S, rotated
from tests.bench.subjects import TITLES, USUAL, Missing, subject

SOCKETS = 40
TURNS = 400
WARM = 80  # before: connections are made, code is run for the first time
SCRIPT = Script(0, 5, 1)
TURN_S = 0.5  # at most, on average
NAMES = (*USUAL, "memory", "inline-memory")


def run(options: Options) -> str:
    """The table."""
    found: dict[str, list[tuple[float, float]]] = {}
    own: list[float] = []
    names = [name for name in TITLES if name in (options.only or NAMES)]
    turns = options.of(TURNS, 5)
    with compiled() as programs:
        for number in range(options.repetitions):
            for name in rotated(names, number):
                with upstream(programs) as source:
                    direct = ask(programs, source.port, "direct", turns)["p50_us"]
                    try:
                        answered = measure(programs, source, name, turns)
                    except Missing as error:
                        options.say(str(error))
                        continue
                own.append(direct / 1000)
                more = [(answered[key] - direct) / 1000 for key in ("p50_us", "p99_us")]
                options.say(f"{number + 1}. {name}: p50 {more[0]:.2f} ms, p99 {more[1]:.2f} ms")
                found.setdefault(name, []).append((more[0], more[1]))
    rows = [
        (TITLES[name], spread([p50 for p50, _ in found[name]], 2), spread([p99 for _, p99 in found[name]], 2))
        for name in names
        if name in found
    ]
    heads = ("time to first token", "p50 ms", "p99 ms")
    return f"{table(heads, rows)}\n\nOver the upstream's own {spread(own, 2)} ms; {turns} questions a run."


def measure(programs: Programs, source: Upstream, name: str, turns: int) -> dict[str, Any]:
    """One run of one subject. Raises Missing, Stuck, Wrong."""
    with subject(name, source, SCRIPT, programs) as service:
        return ask(programs, service.port, service.path, turns)


def ask(programs: Programs, port: int, path: str, turns: int) -> dict[str, Any]:
    """Questions one after the other; quantiles."""
    with load(programs, port, path, 1 if path == "direct" else min(SOCKETS, turns), SCRIPT) as asking:
        asking.ready(BEGIN_S)
        asking.serial(min(WARM, turns), BEGIN_S)
        return asking.serial(turns, BEGIN_S + TURN_S * turns)

"""What a second front costs: processor time per token of two fronts against one, each with the same load.

One front relays a number of paced streams, two relay twice as many. Pairs are interleaved, and the ratio is that of
each pair. Which front a stream is at is the kernel's choice, so a pair's fronts are loaded equally on average only.
"""

from __future__ import annotations

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.programs import compiled
from tests.bench.relay import Cost, Kind, measure

STREAMS = 200  # per front
RATE = 50
SUBJECTS = {"one-front": 1, "two-fronts": 2}


def run(options: Options) -> str:
    """Both rows, and the ratio."""
    streams = options.of(STREAMS, 5)
    costs: dict[str, list[Cost]] = {name: [] for name in SUBJECTS}
    with compiled() as programs:
        for number in range(options.repetitions):
            for name, fronts in SUBJECTS.items():
                kind = Kind(f"{fronts * streams} streams", fronts * streams, RATE, 0)
                cost = measure(programs, name, kind, options.seconds)
                options.say(f"{number + 1}. {kind.title}: {fronts}: {cost}")
                costs[name].append(cost)
    rows = [
        (f"{fronts} x {streams} streams of {RATE}/s", spread([cost.cpu_us for cost in costs[name]]))
        for name, fronts in SUBJECTS.items()
    ]
    ratios = [two.cpu_us / one.cpu_us for one, two in zip(costs["one-front"], costs["two-fronts"], strict=True)]
    return f"{table(('fronts', 'µs CPU/token'), rows)}\n\nTwo fronts against one: {spread(ratios, 2)} times."

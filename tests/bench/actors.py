"""What actors cost: a message, a question with its answer, a start. One process, actors that do nothing."""

from __future__ import annotations

from statistics import median

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import python, started

MESSAGES = 100_000
WITHIN_S = 120.0
ROWS = {
    "offer_us": "a message, offered and taken",
    "ask_us": "a question and its answer, with a deadline",
    "start_us": "start of an actor, to its first answer",
}


def run(options: Options) -> str:
    """The table."""
    found: dict[str, list[float]] = {key: [] for key in ROWS}
    for _ in range(options.repetitions):
        with started(python("tests.bench.echo", "mail", str(options.of(MESSAGES, 2000)))) as program:
            said = program.answer(WITHIN_S)
        for key, values in found.items():
            values.append(said[key])
    rows = [(ROWS[key], spread(values, 2), f"{1e6 / median(values):,.0f}") for key, values in found.items()]
    return table(("actors", "µs", "per second"), rows)

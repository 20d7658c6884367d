"""The command: measures one table and writes it as Markdown to standard output.

    uv run --group bench python -m tests.bench TABLE

Linux only, with a C compiler. The machine should have nothing else to do: each table ends with its load averages.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.options import Options
from tests.bench.processes import Program, uptime
from tests.bench.programs import NoCompiler
from tests.bench.relay import LOADS
from tests.bench.subjects import Missing

TABLES = ("relay", "ttft", "idle", "store", "retention", "crash", "actors", "mcp", "fronts", "stalls", "flood", "start")
"""Each is a module here with `run(options) -> str`."""


REALTIME = "; all parts at real-time priority"


class Given(argparse.Namespace):
    """The command line's words."""

    table: str
    repetitions: int
    seconds: float
    only: Sequence[str]
    loads: Sequence[str]
    small: bool
    profile: Path | None
    svg: Path | None
    realtime: bool


def main() -> int:
    """Entry point."""
    given = parsed(sys.argv[1:])
    options = Options(
        repetitions=given.repetitions,
        seconds=given.seconds,
        only=tuple(given.only),
        loads=tuple(given.loads),
        small=given.small,
        profile=given.profile,
        svg=given.svg,
    )
    Program.realtime = given.realtime
    before = uptime()
    try:
        made = importlib.import_module(f"tests.bench.{given.table}").run(options)
    except (NoCompiler, Missing) as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command's output
        return 1
    print(f"{made}\n\nMachine: {before} before, {uptime()} after{REALTIME * given.realtime}.")  # noqa: T201 - likewise
    return 0


def parsed(arguments: Sequence[str]) -> Given:
    """The command line. Raises SystemExit."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--repetitions", type=int, default=5, help="interleaved; the median counts (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement (default: 5)")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="subjects to measure")
    parser.add_argument(
        "--loads", nargs="+", default=(), choices=LOADS, help="relay: which (default: all but the largest)"
    )
    parser.add_argument("--small", action="store_true", help="few of everything: whether it works")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="put profiles of our service there: relay, store")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw it, too: relay, idle")
    parser.add_argument(
        "--realtime", action="store_true", help="nobody else runs before us: for latencies on a busy machine"
    )
    return parser.parse_args(arguments, namespace=Given())


if __name__ == "__main__":
    sys.exit(main())

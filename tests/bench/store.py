"""The store: durable messages a second, and what storing running answers costs the service.

The first table is the writer alone, with 100 producers (tests/bench/producers.py), each of which waits for its
commit; runs are interleaved. The second is the whole service under 100 paced streams, once with each type of store,
in which `persist_deltas` is switched on and off by turns while they run: what a tick of 200 ms and its commits cost
all processes, and of them the store and the fronts. `--only writer` or `--only service` makes one of the tables.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import own_cpu_s, python, roles, started
from tests.bench.programs import Load, Programs, Script, compiled, load, upstream
from tests.bench.relay import END_S, Cost, Kind, begin, window_of
from tests.bench.subjects import Running, ours, settings, write_settings

PRODUCERS = 100
STREAMS = 100
RATE = 50
START_S = 30.0  # for the producers' process to begin and to end
ALONE = {
    "turns, auto_persist": ("auto_persist", "turns"),
    "turns, memory": ("memory", "turns"),
    "single events, auto_persist": ("auto_persist", "events"),
    "single events, memory": ("memory", "events"),
}
"""The first table's rows: type of the store, what is sent."""
CHANGED_S = 1.5  # for an edit of the configuration to be in force everywhere
TYPES = ("auto_persist", "memory")
WRITER, SERVICE = "writer", "service"
"""The tables, as `--only` names them."""


class Stored(NamedTuple):
    """One run of the writer alone."""

    messages_s: float
    cpu_us: float
    """Per message, the producers' share included."""
    store_us: float
    """Of that in the threads of the database: the rest is the writer's loop, and what the producers do."""
    per_commit: float
    written_kb: float
    """Per message, to the disk."""


class Within(NamedTuple):
    """A window of the whole service."""

    cost: Cost
    store: float
    """Cores that its process has used."""
    fronts: float


def run(options: Options) -> str:
    """Both tables."""
    tables: list[str] = []
    if not options.only or WRITER in options.only:
        alone: dict[str, list[Stored]] = {name: [] for name in ALONE}
        for number in range(options.repetitions):
            for name, (kind, what) in ALONE.items():
                alone[name].append(produce(kind, what, options))
                options.say(f"{number + 1}. {name}: {alone[name][-1]}")
        tables.append(told_alone(alone))
    if not options.only or SERVICE in options.only:
        with compiled() as programs:
            within = {key: found for kind in TYPES for key, found in switched(programs, options, kind).items()}
        tables.append(told_within(within, options.of(STREAMS, 5)))
    return "\n\n".join(tables)


def produce(kind: str, what: str, options: Options) -> Stored:
    """One run of the writer alone."""
    with TemporaryDirectory(prefix="bench-store-") as folder:
        arguments = [folder, kind, what, str(options.of(PRODUCERS, 5)), str(options.seconds)]
        if options.profile is not None:
            options.profile.mkdir(parents=True, exist_ok=True)
            arguments.append(str(options.profile / f"producers-{kind}-{what}.prof"))
        with started(python("tests.bench.producers", *arguments)) as program:
            said = program.answer(START_S + options.seconds)
    return Stored(
        said["messages"] / said["seconds"],
        said["cpu_s"] / said["messages"] * 1e6,
        said["store_cpu_s"] / said["messages"] * 1e6,
        said["messages"] / said["commits"],
        said["written"] / said["messages"] / 1024,
    )


def switched(programs: Programs, options: Options, storage: str) -> dict[str, list[Within]]:
    """One run of the service, measured with deltas stored and without by turns: by what the rows are called."""
    kind = Kind("", options.of(STREAMS, 5), RATE, 0)
    windows = 2 * options.repetitions
    tokens = int(RATE * (options.seconds + CHANGED_S + 0.5) * windows)
    script = Script(RATE, tokens, tokens // 10)
    chat: dict[str, Any] = {"storage": {"type": storage}}
    found: dict[str, list[Within]] = {}
    with (
        upstream(programs) as source,
        ours(source, script, {"chat": chat}) as service,
        load(programs, service.port, service.path, kind.streams, script) as streams,
    ):
        assert service.state is not None
        begin(source, streams)
        source.release()
        for window in range(windows):
            deltas = window % 2 == 0
            chat["service"] = {"streaming": {"persistence": {"persist_deltas": deltas}}}
            write_settings(service.state, settings(source, script, {"chat": chat}))
            time.sleep(CHANGED_S)
            name = f"{storage}, persist_deltas {'on' if deltas else 'off'}"
            found.setdefault(name, []).append(measured(service, streams, options.seconds))
            options.say(f"{window + 1}. {name}: {found[name][-1]}")
        streams.finish(END_S)
    return found


def measured(service: Running, streams: Load, seconds: float) -> Within:
    """So many seconds of running streams. Raises Stuck, Wrong."""
    processes, began = roles(service.pid), time.monotonic()
    used = {role: -own_cpu_s(pid) for role, pid in processes.items()}
    cost = window_of(service, streams, seconds)
    took = time.monotonic() - began
    cores = {role: (used[role] + own_cpu_s(pid)) / took for role, pid in processes.items()}
    return Within(cost, cores["store"], sum(cores[role] for role in cores if role.startswith("front")))


def told_alone(alone: Mapping[str, list[Stored]]) -> str:
    """The first table."""
    rows = [
        (
            name,
            spread([run.messages_s for run in runs], 0),
            spread([run.cpu_us for run in runs]),
            spread([run.store_us for run in runs]),
            spread([run.per_commit for run in runs], 0),
            spread([run.written_kb for run in runs]),
        )
        for name, runs in alone.items()
    ]
    heads = (f"{PRODUCERS} producers", "messages/s", "µs CPU/message", "of it the database")
    return table((*heads, "messages/commit", "KB written/message"), rows)


def told_within(within: Mapping[str, list[Within]], streams: int) -> str:
    """The second table."""
    least = min((median(run.cost.cores for run in runs) for runs in within.values()), default=0.0)

    def share(cores: list[float]) -> str:
        return spread([100 * one * 100 / streams for one in cores], 2)

    rows = [
        (
            name,
            share([run.cost.cores for run in runs]),
            share([run.cost.cores - least for run in runs]),
            share([run.store for run in runs]),
            share([run.fronts for run in runs]),
            spread([run.cost.cpu_us for run in runs]),
            spread([run.cost.p50_ms for run in runs], 2),
            spread([run.cost.p99_ms for run in runs], 2),
        )
        for name, runs in within.items()
    ]
    heads = (f"{streams} streams of {RATE}/s", "all", "more than the least", "store", "fronts", "µs CPU/token")
    return table((*heads, "p50 ms", "p99 ms"), rows) + "\n\nProcesses: % of a core per 100 streams."

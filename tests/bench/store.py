"""The store: durable messages a second, and what storing running answers costs the service.

The first table is the writer alone, with 100 producers (tests/bench/producers.py), each of which waits for its
commit. The second is the whole service under 100 paced streams: as it ships, without `persist_deltas`, and with a
store in memory. The difference is what a tick of 200 ms and its commits cost. Interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import python, started
from tests.bench.programs import Programs, Script, compiled, load, upstream
from tests.bench.relay import BEGIN_S, Cost, Kind, watched
from tests.bench.subjects import ours

PRODUCERS = 100
STREAMS = 100
RATE = 20  # the tick's cost hardly depends on it, and the rest of the service's does
START_S = 30.0  # for the producers' process to begin and to end
ALONE = {
    "turns, auto_persist": ("auto_persist", "turns"),
    "turns, memory": ("memory", "turns"),
    "single events, auto_persist": ("auto_persist", "events"),
    "single events, memory": ("memory", "events"),
}
"""The first table's rows: type of the store, what is sent."""
WITHIN: dict[str, Mapping[str, Any]] = {
    "as it ships": {},
    "persist_deltas off": {"chat": {"service": {"streaming": {"persistence": {"persist_deltas": False}}}}},
    "store in memory": {"chat": {"storage": {"type": "memory"}}},
}
"""The second table's rows: changes of the configuration."""


class Stored(NamedTuple):
    """One run of the writer alone."""

    messages_s: float
    cpu_us: float
    """Per message, the producers' share included."""
    per_commit: float
    written_kb: float
    """Per message, to the disk."""


def run(options: Options) -> str:
    """Both tables."""
    alone: dict[str, list[Stored]] = {name: [] for name in ALONE}
    within: dict[str, list[Cost]] = {name: [] for name in WITHIN}
    with compiled() as programs:
        for number in range(options.repetitions):
            for name, (kind, what) in ALONE.items():
                alone[name].append(produce(kind, what, options))
                options.say(f"{number + 1}. {name}: {alone[name][-1]}")
            for name, changes in WITHIN.items():
                within[name].append(serve(programs, changes, options))
                options.say(f"{number + 1}. {name}: {within[name][-1]}")
    return "\n\n".join((told_alone(alone), told_within(within, options.of(STREAMS, 5))))


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
        said["messages"] / said["commits"],
        said["written"] / said["messages"] / 1024,
    )


def serve(programs: Programs, changes: Mapping[str, Any], options: Options) -> Cost:
    """One run of the service."""
    kind = Kind("", options.of(STREAMS, 5), RATE, 0)
    tokens = int(RATE * (options.seconds + 2))
    script = Script(RATE, tokens, tokens // 10)
    with (
        upstream(programs) as source,
        ours(source, script, changes) as service,
        load(programs, service.port, service.path, kind.streams, script) as streams,
    ):
        streams.ready(BEGIN_S)
        source.hold()
        streams.go(BEGIN_S)
        return watched(service, source, streams, kind, options.seconds)


def told_alone(alone: Mapping[str, list[Stored]]) -> str:
    """The first table."""
    rows = [
        (
            name,
            spread([run.messages_s for run in runs], 0),
            spread([run.cpu_us for run in runs]),
            spread([run.per_commit for run in runs], 0),
            spread([run.written_kb for run in runs]),
        )
        for name, runs in alone.items()
    ]
    heads = (f"{PRODUCERS} producers", "messages/s", "µs CPU/message", "messages/commit", "KB written/message")
    return table(heads, rows)


def told_within(within: Mapping[str, list[Cost]], streams: int) -> str:
    """The second table."""
    plain = within["persist_deltas off"]
    rows = [
        (
            name,
            spread([run.cores * 100 for run in runs]),
            spread([run.cpu_us for run in runs]),
            spread([(run.cores - other.cores) * 100 * 100 / streams for run, other in zip(runs, plain, strict=True)]),
            spread([run.p50_ms for run in runs], 2),
            spread([run.p99_ms for run in runs], 2),
        )
        for name, runs in within.items()
    ]
    more = "% of a core more than without, per 100 streams"
    return table((f"{streams} streams of {RATE}/s", "% of a core", "µs CPU/token", more, "p50 ms", "p99 ms"), rows)

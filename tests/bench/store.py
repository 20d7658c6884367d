"""The store: durable messages a second, and what storing running answers costs the service.

The first table is the writer alone, with 100 producers (tests/bench/producers.py), each of which waits for its
commit; runs are interleaved. The second is the whole service under 100 paced streams, in which `persist_deltas` is
switched on and off by turns while they run: the difference is what a tick of 200 ms and its commits cost. Beside it
the same with a store in memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import python, started
from tests.bench.programs import Programs, Script, compiled, load, upstream
from tests.bench.relay import END_S, Cost, Kind, begin, window_of
from tests.bench.subjects import OURS, ours, settings, write_settings

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
CHANGED_S = 1.5  # for an edit of the configuration to be in force everywhere
ON, OFF, MEMORY_STORE = "persist_deltas on", "persist_deltas off", "store in memory"
"""The second table's rows."""


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
    for number in range(options.repetitions):
        for name, (kind, what) in ALONE.items():
            alone[name].append(produce(kind, what, options))
            options.say(f"{number + 1}. {name}: {alone[name][-1]}")
    with compiled() as programs:
        within = switched(programs, options)
        within[MEMORY_STORE] = switched(programs, options, OURS["memory"].changes)[ON]
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


def switched(programs: Programs, options: Options, changes: Mapping[str, Any] | None = None) -> dict[str, list[Cost]]:
    """One run of the service, measured with deltas stored and without by turns."""
    kind = Kind("", options.of(STREAMS, 5), RATE, 0)
    windows = 2 * options.repetitions
    tokens = int(RATE * (options.seconds + CHANGED_S + 0.5) * windows)
    script = Script(RATE, tokens, tokens // 10)
    found: dict[str, list[Cost]] = {ON: [], OFF: []}
    with (
        upstream(programs) as source,
        ours(source, script, changes) as service,
        load(programs, service.port, service.path, kind.streams, script) as streams,
    ):
        assert service.state is not None
        begin(source, streams)
        source.release()
        for window in range(windows):
            name = (ON, OFF)[window % 2]
            persistence = {"persist_deltas": name == ON}
            wanted = {**(changes or {}), "chat": {**(changes or {}).get("chat", {})}}
            wanted["chat"]["service"] = {"streaming": {"persistence": persistence}}
            write_settings(service.state, settings(source, script, wanted))
            time.sleep(CHANGED_S)
            found[name].append(window_of(service, streams, options.seconds))
            options.say(f"{window + 1}. {name}: {found[name][-1]}")
        streams.finish(END_S)
    return found


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
    plain = within[OFF]
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

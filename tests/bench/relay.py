"""What relaying a token costs: processor time of all processes of the service, and how late tokens are.

Loads: 50 and 400 streams of 50 tokens a second, and 50 streams as fast as they are taken; if asked for, 2,000 streams
of 10 tokens a second. Tokens of paced streams
come each at its own moment, which wakes everybody for each; of 400 streams also in the lumps of a sender with timers
of a millisecond, as most have: about 20 tokens at once. Paced loads are measured while all streams run, without
their beginnings and ends; the flat-out one from its release to its last frame, so with the ends of its turns. Every
token is checked, and of our service the end of every stream. Our service does all that it ships with (history,
reasoning, `persist_deltas`); the references relay and nothing else. Interleaved: each subject once per repetition,
in an order that rotates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.bench import profiles
from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.picture import Chart, svg
from tests.bench.processes import TICKS, Stuck, cpu_s, rss_kb
from tests.bench.programs import Load, Programs, Script, Upstream, Wrong, compiled, load, upstream
from tests.bench.subjects import TITLES, USUAL, Missing, Running, ours, subject

BEGIN_S = 60.0  # for all sockets to be welcomed, or all streams to begin
SETTLE_S = 1.0  # after their release
END_S = 300.0  # for what a slow subject still has to relay


class Kind(NamedTuple):
    """A load."""

    title: str
    streams: int
    rate: int
    tokens: int
    """Of a stream, where there is no pace."""
    grain_us: int = 0
    """Tokens leave the upstream at multiples of this only."""


LOADS = {
    "50": Kind("50 streams of 50/s", 50, 50, 0),
    "400": Kind("400 streams of 50/s", 400, 50, 0),
    "lumps": Kind("400 streams of 50/s in lumps", 400, 50, 0, grain_us=1000),
    "flat": Kind("50 streams flat out", 50, 0, 4000),
    "2000": Kind("2,000 streams of 10/s", 2000, 10, 0),
}
"""By name; the last only where it is asked for: it takes a minute to begin."""
USUALLY = ("50", "400", "lumps", "flat")
SMALL = (Kind("5 streams of 50/s", 5, 50, 0), Kind("5 streams flat out", 5, 0, 500))


class Cost(NamedTuple):
    """One run."""

    cpu_us: float
    """Processor time per token, all processes of the subject."""
    cores: float
    """Processor time per second."""
    tokens_s: float
    """Tokens relayed per second."""
    frames_per_token: float
    p50_ms: float
    p99_ms: float
    rss_mb: float
    """At the end of the measurement."""


def run(options: Options) -> str:
    """The table of each load."""
    kinds = SMALL if options.small else tuple(LOADS[name] for name in options.loads or USUALLY)
    names = [name for name in TITLES if name in (options.only or USUAL)]
    costs: dict[tuple[str, str], list[Cost]] = {}
    with compiled() as programs:
        for number in range(options.repetitions):
            for kind in kinds:
                for name in rotated(names, number):
                    try:
                        cost = measure(programs, name, kind, options.seconds)
                    except (Missing, Stuck, Wrong) as error:
                        options.say("\n".join((f"{kind.title}: {name}: {error}", *getattr(error, "__notes__", ()))))
                        continue
                    options.say(f"{number + 1}. {kind.title}: {name}: {cost}")
                    costs.setdefault((kind.title, name), []).append(cost)
        for kind in kinds if options.profile is not None else ():
            assert options.profile is not None
            told = profile(programs, kind, options.seconds, options.profile)
            (options.profile / f"{kind.title.replace(' ', '-').replace('/', '-')}.md").write_text(told)
    if options.svg is not None:
        options.svg.write_text(picture(kinds, names, costs))
    parts = [report(kind, {name: costs.get((kind.title, name), []) for name in names}) for kind in kinds]
    return "\n\n".join(parts)


def rotated(names: list[str], by: int) -> list[str]:
    """The same names, beginning with another."""
    by %= len(names)
    return names[by:] + names[:by]


def measure(programs: Programs, name: str, kind: Kind, seconds: float) -> Cost:
    """One run of one subject under one load. Raises Missing, Stuck, Wrong."""
    script = scripted(kind, seconds)
    with (
        upstream(programs, kind.grain_us) as source,
        subject(name, source, script, programs) as service,
        load(programs, service.port, service.path, kind.streams, script) as streams,
    ):
        begin(source, streams)
        return watched(service, source, streams, kind, seconds)


def profile(programs: Programs, kind: Kind, seconds: float, folder: Path) -> str:
    """The largest costs of our service under one load. Raises Stuck, Wrong."""
    script = scripted(kind, seconds)
    with (
        upstream(programs, kind.grain_us) as source,
        ours(source, script, env=profiles.environment(folder)) as service,
        load(programs, service.port, service.path, kind.streams, script) as streams,
    ):
        begin(source, streams)
        streams.mark()
        source.release()
        time.sleep(SETTLE_S if kind.rate else 0)
        streams.mark()
        with profiles.sampling(service.pid, folder) as sampled:
            time.sleep(seconds)
            tokens = streams.mark()["tokens"]
        streams.finish(END_S)
    return sampled.tell(tokens)


def scripted(kind: Kind, seconds: float) -> Script:
    """What the upstream is to send."""
    tokens = kind.tokens or int(kind.rate * (SETTLE_S + seconds + 1.0))
    return Script(kind.rate, tokens, tokens // 10)


def begin(source: Upstream, streams: Load) -> None:
    """All streams have begun, and wait for their release. Raises Stuck, Wrong."""
    streams.ready(BEGIN_S)
    source.hold()
    streams.go(BEGIN_S)


def watched(service: Running, source: Upstream, streams: Load, kind: Kind, seconds: float) -> Cost:
    """From the release to the end of all streams, or while they run. Raises Stuck, Wrong."""
    streams.mark()
    used = cpu_s(service.pid)
    source.release()
    if kind.rate:
        time.sleep(SETTLE_S)
        cost = window_of(service, streams, seconds)
        if service.state is not None:
            streams.finish(END_S)  # a reference may take minutes for what it has fallen behind
        return cost
    marked = streams.finish(END_S)
    return cost_of(service, marked, cpu_s(service.pid) - used)


def window_of(service: Running, streams: Load, seconds: float) -> Cost:
    """So many seconds of running streams. Raises Stuck, Wrong."""
    streams.mark()
    used = cpu_s(service.pid)
    time.sleep(seconds)
    marked = streams.mark()
    return cost_of(service, marked, cpu_s(service.pid) - used)


def cost_of(service: Running, marked: dict[str, Any], used_s: float) -> Cost:
    """What the load client saw, for so much processor time."""
    tokens = max(marked["tokens"], 1)
    used_s = max(used_s, 1 / TICKS)  # less than that is not seen
    return Cost(
        cpu_us=used_s / tokens * 1e6,
        cores=used_s / marked["seconds"],
        tokens_s=tokens / marked["seconds"],
        frames_per_token=marked["frames"] / tokens,
        p50_ms=marked["p50_us"] / 1000,
        p99_ms=marked["p99_us"] / 1000,
        rss_mb=rss_kb(service.pid) / 1024,
    )


def picture(kinds: Sequence[Kind], names: Sequence[str], costs: Mapping[tuple[str, str], Sequence[Cost]]) -> str:
    """Processor time and lateness of all, as SVG."""

    def chart(title: str, figure: Callable[[Cost], float]) -> Chart:
        groups = {
            kind.title: {
                TITLES[name]: median(map(figure, costs[kind.title, name]))
                for name in names
                if (kind.title, name) in costs
            }
            for kind in kinds
        }
        return Chart(title, groups)

    charts = (
        chart("Processor time per token, microseconds", lambda cost: cost.cpu_us),
        chart("Tokens are later than they were sent by, median, milliseconds", lambda cost: cost.p50_ms),
        chart("... of 99 percent, milliseconds", lambda cost: cost.p99_ms),
    )
    return svg(charts, [TITLES[name] for name in names])


def report(kind: Kind, costs: dict[str, list[Cost]]) -> str:
    """The table of one load."""
    rows = [
        (
            TITLES[name],
            spread([cost.cpu_us for cost in runs]),
            spread([1e6 / cost.cpu_us for cost in runs], 0),
            spread([cost.tokens_s for cost in runs], 0),
            spread([cost.cores for cost in runs], 2),
            spread([cost.frames_per_token for cost in runs], 2),
            spread([cost.p50_ms for cost in runs], 2),
            spread([cost.p99_ms for cost in runs], 2),
            spread([cost.rss_mb for cost in runs], 0),
        )
        for name, runs in costs.items()
        if runs
    ]
    heads = ("", "µs CPU/token", "tokens per CPU s", "tokens/s", "cores", "frames/token", "p50 ms", "p99 ms", "RSS MB")
    return f"**{kind.title}**\n\n{table((kind.title, *heads[1:]), rows)}"

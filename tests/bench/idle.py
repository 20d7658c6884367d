"""Memory: of the service when nothing happens, per idle socket, per running stream.

Resident memory of all processes of the subject, shared pages counted for each. Idle sockets are welcomed and in a
conversation of their own; streams get a token a second and are looked at while all run. Each is the growth over the
same service before, divided by their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.picture import Chart, svg
from tests.bench.processes import family, rss_kb
from tests.bench.programs import Programs, Script, Upstream, compiled, load, upstream
from tests.bench.relay import BEGIN_S, begin, rotated
from tests.bench.subjects import TITLES, USUAL, Missing, Running, subject

IDLE = 5000
STREAMS = 500
SCRIPT = Script(1, 40, 4)
RUN_S = 5.0  # that streams run before they are looked at
WARM = 20  # sockets before anything is measured
WARM_S = 1.0  # of the answer that runs before others are measured


class Memory(NamedTuple):
    """One run."""

    empty_mb: float
    processes: int
    idle_kb: float
    """Per socket."""
    stream_kb: float
    """Per stream, its socket included."""


def run(options: Options) -> str:
    """The table."""
    found: dict[str, list[Memory]] = {}
    names = [name for name in TITLES if name in (options.only or USUAL)]
    with compiled() as programs:
        for number in range(options.repetitions):
            for name in rotated(names, number):
                try:
                    memory = measure(programs, name, options.of(IDLE, 50), options.of(STREAMS, 10))
                except Missing as error:
                    options.say(str(error))
                    continue
                options.say(f"{number + 1}. {name}: {memory}")
                found.setdefault(name, []).append(memory)
    rows = [
        (
            TITLES[name],
            spread([memory.empty_mb for memory in found[name]]),
            str(found[name][0].processes),
            spread([memory.idle_kb for memory in found[name]]),
            spread([memory.stream_kb for memory in found[name]]),
        )
        for name in names
        if name in found
    ]
    if options.svg is not None:
        figures: dict[str, Callable[[Memory], float]] = {
            "empty, MB": lambda memory: memory.empty_mb,
            "idle socket, KB": lambda memory: memory.idle_kb,
            "running stream, KB": lambda memory: memory.stream_kb,
        }
        groups = {
            title: {TITLES[name]: median(map(figure, found[name])) for name in found}
            for title, figure in figures.items()
        }
        options.svg.write_text(svg([Chart("Resident memory", groups)], [TITLES[name] for name in names]))
    return table(("memory", "empty MB", "processes", "KB/idle socket", "KB/running stream"), rows)


def measure(programs: Programs, name: str, sockets: int, streams: int) -> Memory:
    """One run of one subject. Raises Missing, Stuck, Wrong."""
    with upstream(programs) as source, subject(name, source, SCRIPT, programs) as service:
        empty, processes = rss_kb(service.pid), len(family(service.pid))
        before = warmed(programs, service)
        with load(programs, service.port, service.path, sockets, SCRIPT) as idle:
            idle.ready(BEGIN_S)
            of_idle = rss_kb(service.pid) - before
    # another service, since what the first has freed would be used again and not be seen
    with upstream(programs) as source, subject(name, source, SCRIPT, programs) as service:
        warmed(programs, service)
        before = asked(programs, service, source)
        with load(programs, service.port, service.path, streams, SCRIPT) as running:
            begin(source, running)
            source.release()
            time.sleep(RUN_S)
            of_streams = rss_kb(service.pid) - before
    return Memory(empty / 1024, processes, of_idle / sockets, of_streams / streams)


def warmed(programs: Programs, service: Running) -> int:
    """Its memory in KiB once a few clients have been there: what is made once is made."""
    with load(programs, service.port, service.path, WARM, SCRIPT) as some:
        some.ready(BEGIN_S)
    return rss_kb(service.pid)


def asked(programs: Programs, service: Running, source: Upstream) -> int:
    """Its memory in KiB once an answer runs: what the first one takes is not taken for each of them."""
    with load(programs, service.port, service.path, 1, SCRIPT) as one:
        begin(source, one)
        source.release()
        time.sleep(WARM_S)
        return rss_kb(service.pid)

"""Retention beside running streams: how late deltas are while a sweep runs, against the same run without it.

Each run begins with a copy of the same store of 100,000 events, most of them over the limits, and has clients in
old conversations beside the streams. With the sweep, its interval is a few seconds, so that it begins when all
streams run, and is measured from there to its end. Pairs are interleaved, the order alternates. After each run the
store is read: saved and live conversations must be what they were.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from websockets.sync.client import connect

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.prefill import Prefilled, contents, count, prefill
from tests.bench.processes import Stuck, cpu_s
from tests.bench.programs import Programs, Script, compiled, load, upstream
from tests.bench.relay import begin
from tests.bench.subjects import Running, ours

STREAMS = 50
RATE = 50
EVENTS = 3  # of a stream's turn
LIVE = 20  # old conversations with a client in each
LONGEST_S = 90.0  # a sweep is waited for that long
SWEPT_PER_S = 4000  # events, at least: the streams of a run with a sweep last accordingly ...
MORE_S = 3.0  # ... and this much longer
FIRST_S = 6.0  # after the start of the service the sweep begins, and so does the measurement
SWEPT = "retention removed"  # what the service logs at a sweep's end
NEVER_S = 1e6
WITHIN_RATIO, WITHIN_MS = 1.10, 1.0  # the budget: either


class Run(NamedTuple):
    """One run."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    seconds: float
    cores: float
    """Processor time used per second."""
    removed: int
    """Events."""


def run(options: Options) -> str:
    """The table, and the verdict."""
    pairs: list[tuple[Run, Run]] = []
    seconds = options.seconds
    with compiled() as programs, TemporaryDirectory(prefix="bench-store-") as folder:
        store = prefill(Path(folder) / "prefilled.db", options.of(100_000, 2_000), options.of(LIVE, 2))
        options.say(f"a store of {store.events} events")
        for number in range(options.repetitions):
            runs: dict[bool, Run] = {}
            # the first sweep says how long the runs without one are
            for sweeping in (True, False) if number % 2 == 0 else (False, True):
                runs[sweeping] = measure(programs, store, options.of(STREAMS, 5), None if sweeping else seconds)
                options.say(f"pair {number + 1}, {'with' if sweeping else 'without'} a sweep: {runs[sweeping]}")
                seconds = runs[sweeping].seconds
            pairs.append((runs[True], runs[False]))
    return report(pairs, store)


class Late(Exception):
    """A run says nothing: what was to be there before the sweep came after it began."""


def measure(programs: Programs, store: Prefilled, streams: int, seconds: float | None) -> Run:
    """One run of so many seconds; None: with a sweep, until it has ended. Raises Late."""
    longest = MORE_S + store.events / SWEPT_PER_S
    script = Script(RATE, int(RATE * ((seconds or longest) + FIRST_S)), RATE)
    with (
        upstream(programs) as source,
        ours(source, script, interval(FIRST_S if seconds is None else NEVER_S), store=store.path) as service,
    ):
        begins = time.monotonic() + FIRST_S
        with (
            clients(service, store.live),
            load(programs, service.port, service.path, streams, script) as running,
        ):
            begin(source, running)
            source.release()
            if seconds is None and time.monotonic() > begins:
                raise Late("the clients were not there before the sweep began: the machine is too busy")
            time.sleep(max(begins - time.monotonic(), 0))
            running.mark()
            used = cpu_s(service.pid)
            if seconds is None:
                wait_for(service, SWEPT)
            else:
                time.sleep(seconds)
            used = cpu_s(service.pid) - used
            marked = running.mark()
            running.finish(LONGEST_S)
            # looked at while the clients are there: what they have left may be removed
            assert service.state is not None
            database = service.state / "chat_history.db"
            for what, kept in (("live", store.live), ("saved", store.saved)):
                before, after = contents(store.path, kept), contents(database, kept)
                gone = [name for name, rows in before.items() if rows != after[name]]
                assert not gone, f"of {len(kept)} {what} conversations retention has changed {len(gone)}: {gone[:5]}"
            removed = store.events + streams * EVENTS - count(database)
        p50_ms, p99_ms, max_ms = (marked[name] / 1000 for name in ("p50_us", "p99_us", "max_us"))
    return Run(p50_ms, p99_ms, max_ms, marked["seconds"], used / marked["seconds"], removed)


def interval(seconds: float) -> dict[str, object]:
    """The changes that say how often there is a sweep, and that its end is logged."""
    return {
        "chat": {"storage": {"persistence": {"retention": {"cleanup_interval_minutes": seconds / 60}}}},
        "logging": {"level": "WARNING", "modules": {"writer": "INFO"}},
    }


def wait_for(service: Running, words: str) -> None:
    """Until the service's log has those words. Raises Stuck."""
    until = time.monotonic() + LONGEST_S
    while words not in service.program.log:
        if time.monotonic() > until:
            raise Stuck(f"no {words!r} within {LONGEST_S:g} s: {service.program.log[-2000:]}")
        time.sleep(0.05)


@contextmanager
def clients(service: Running, conversations: list[str]) -> Iterator[None]:
    """A client in each of those conversations, which says nothing."""
    with ExitStack() as stack:
        address = f"ws://127.0.0.1:{service.port}{service.path.partition('?')[0]}"
        for name in conversations:
            socket = stack.enter_context(connect(f"{address}?conversation={name}", open_timeout=LONGEST_S))
            assert f'"{name}"' in str(socket.recv(LONGEST_S)), "the conversation could not be entered"
        yield


def report(pairs: list[tuple[Run, Run]], store: Prefilled) -> str:
    """The table of all runs, and whether the budget was met."""
    rows = [
        (
            title,
            spread([r.p50_ms for r in runs], 2),
            spread([r.p99_ms for r in runs], 2),
            spread([r.max_ms for r in runs]),
            spread([r.cores for r in runs], 2),
            spread([r.seconds for r in runs]),
            spread([r.removed for r in runs], 0),
        )
        for title, runs in zip(("with a sweep", "without"), map(list, zip(*pairs, strict=True)), strict=True)
    ]
    ratios = [swept.p99_ms / plain.p99_ms for swept, plain in pairs]
    more = [swept.p99_ms - plain.p99_ms for swept, plain in pairs]
    met = sorted(ratios)[len(ratios) // 2] <= WITHIN_RATIO or sorted(more)[len(more) // 2] < WITHIN_MS
    return "\n".join(
        (
            table(("", "p50 ms", "p99 ms", "max ms", "cores", "seconds", "events removed"), rows),
            "",
            f"A store of {store.events:,} events, {STREAMS} streams of {RATE} tokens a second. p99 with a sweep "
            f"over p99 without: {spread(ratios, 2)}, difference {spread(more, 2)} ms in {len(pairs)} pairs; the budget "
            f"(ratio at most {WITHIN_RATIO} or less than {WITHIN_MS:g} ms) is {'met' if met else 'missed'}. All "
            f"{len(store.saved)} saved and {len(store.live)} live conversations were untouched in every run.",
        )
    )

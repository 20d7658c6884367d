"""The benchmark works: each of its tables in the smallest run that says something, and its own arithmetic.

What it measures is nobody's promise here; that its load is checked and its figures come from what ran is.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import idle, relay, retention, start, store, ttft
from tests.bench.__main__ import TABLES, parsed
from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.picture import Chart, svg
from tests.bench.prefill import count, prefill
from tests.bench.processes import started
from tests.bench.profiles import Sampled
from tests.bench.programs import NoCompiler, Programs, Script, Wrong, compiled, load, upstream
from tests.bench.subjects import TITLES, Missing, ours

TINY = Options(repetitions=1, seconds=0.3, small=True)
FLAT_OUT = relay.Kind("as fast as they are taken", 3, 0, 200)


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    try:
        with compiled() as found:
            yield found
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["c", "picows"])
def test_references_relay_every_token(programs: Programs, name: str) -> None:
    try:
        cost = relay.measure(programs, name, FLAT_OUT, TINY.seconds)
    except Missing as error:
        pytest.skip(str(error))
    assert cost.tokens_s > 0
    assert 0 < cost.frames_per_token <= 1.1
    assert f"| {TITLES[name]} |" in relay.report(FLAT_OUT, {"ours": [], name: [cost._replace(cpu_us=1.0)]})


def test_a_stream_that_is_not_what_was_sent_is_noticed(programs: Programs) -> None:
    sent, expected = Script(0, 20, 5), Script(0, 20, 4)
    relaying = [programs.path("relay")]
    with upstream(programs) as source, started([*relaying, str(source.port), sent.model]) as program:
        port = int(program.line(5).removeprefix("port "))
        with load(programs, port, "/", 1, expected) as streams:
            streams.ready(5)
            with pytest.raises(Wrong, match="1 times; first socket 0, token 4: not the next token:  4:"):  # noqa: PT012 - either
                streams.go(5)
                streams.finish(5)


def test_time_to_the_first_token_and_memory(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "RUN_S", 0.1)
    with upstream(programs) as source:
        assert ttft.ask(programs, source.port, "direct", 5)["p50_us"] > 0
        assert ttft.measure(programs, source, "c", 5)["p99_us"] > 0
    memory = idle.measure(programs, "c", 200, 100)
    assert memory.processes == 1
    assert memory.stream_kb > 0


def test_our_service_relays_every_token_while_a_sweep_runs(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MORE_S", 0.5)
    monkeypatch.setattr(retention, "ours", lambda *given, **more: ours(*given, "--inline", **more))  # starts sooner
    prefilled = prefill(tmp_path / "store.db", 1000, 2)
    assert count(prefilled.path) == prefilled.events
    swept = None
    for first_s in (2.0, 8.0, 30.0):  # on a busy machine the clients take longer to be there
        monkeypatch.setattr(retention, "FIRST_S", first_s)
        with suppress(retention.Late):
            swept = retention.measure(programs, prefilled, 2, None)
            break
    assert swept is not None
    assert 0 < swept.removed < prefilled.events
    assert "2 live conversations were untouched" in retention.report([(swept, swept)], prefilled)


def test_messages_of_many_producers_are_counted() -> None:
    stored = store.produce("memory", "turns", TINY)
    assert stored.messages_s > 0
    assert stored.written_kb == 0


def test_a_start_is_told_with_its_processes(programs: Programs) -> None:
    with upstream(programs) as source:
        begun = start.measure(source, "without servers")
    assert 0 < begun.listening_s <= begun.ready_s <= begun.offered_s
    assert begun.ready_cpu_s > 0
    assert {"root", "store", "llm", "mcp"} < begun.rss_mb.keys()
    assert min(begun.rss_mb.values()) > 1


def test_every_table_of_the_command_line_is_there() -> None:
    for name in TABLES:
        given = parsed([name, "--svg", "x.svg", "--repetitions", "2"])
        assert (given.table, given.svg, given.repetitions, given.realtime) == (name, Path("x.svg"), 2, False)
        assert callable(importlib.import_module(f"tests.bench.{name}").run)


def test_figures_are_told_with_their_spread() -> None:
    assert spread([3.0]) == "3.0"
    assert spread([3.0, 1.0, 2000.0], 0) == "3 (1-2,000)"
    assert table(("what", "ms"), [("a", "1")]) == "| what | ms |\n| --- | ---: |\n| a | 1 |"


def test_a_picture_is_an_image_with_every_figure() -> None:
    found = {"a & b": {"ours": 12.0, "theirs": 150.0}, "c": {"ours": 0.25}}
    drawn = ElementTree.fromstring(svg([Chart("µs", found), Chart("ms", found)], ["ours", "theirs"]))  # noqa: S314 - ours
    words = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("12") == words.count("150") == words.count("0.25") == words.count("a & b") == 2
    assert words[-2:] == ["ours", "theirs"]


def test_a_profile_gives_time_to_lines_and_to_functions() -> None:
    sampled = Sampled()
    sampled.raw = "# 1000\nrun (a.py:1);step (a.py:7) 6000\nrun (a.py:2) 2000\n# 1000\n"
    told = sampled.tell(tokens=2)
    assert told.startswith("4.0 µs per token in all, 1.0 of it collecting garbage; 2 tokens")
    assert "| `step (a.py:7)` | 3.00 | 75.0 % |" in told
    assert "| `run (a.py)` | 4.00 | 100.0 % |" in told

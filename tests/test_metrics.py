"""`/metrics` as somebody else reads it: the format by a parser of its own, the numbers by what has happened."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.metrics import PREFIX, TABLE, gateways, of_tree, render, tree_of
from protocol.gateway import Figure, GetFigures
from protocol.spec import Status
from tests.fakes import Script, Stall, ask_tool, fail, say
from tests.service import LIGHT, Service, service

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+)", re.DOTALL)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|\Z)')
UNESCAPED = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}


class Family(NamedTuple):
    """One metric, read."""

    kind: str
    words: str
    samples: dict[frozenset[tuple[str, str]], float]


def parsed(text: str) -> dict[str, Family]:
    """The format's rules: HELP, TYPE, then the samples of one name together; each label set once; a last line break."""
    assert text == "" or text.endswith("\n")
    families: dict[str, Family] = {}
    current = helped = ""
    for line in text.split("\n")[:-1]:  # and nothing else ends a line
        if line.startswith("# HELP "):
            name, _, words = line.removeprefix("# HELP ").partition(" ")
            assert name not in families
            assert not re.search(r"\\[^\\n]", words)
            helped = name
            families[name] = Family("", words, {})
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name == helped
            assert kind in ("counter", "gauge", "histogram", "summary", "untyped")
            families[name] = families[name]._replace(kind=kind)
            current = name
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            name, inside, value = found.groups()
            assert name == current
            labels: dict[str, str] = {}
            while inside:
                label = LABEL.match(inside)
                assert label, inside
                assert label[1] not in labels
                labels[label[1]] = re.sub(r'\\["\\n]', lambda mark: UNESCAPED[mark[0]], label[2])
                inside = inside[label.end() :]
            key = frozenset(labels.items())
            assert key not in families[name].samples
            families[name].samples[key] = float(value)
    return families


def value(families: dict[str, Family], name: str, **labels: str) -> float:
    """A sample's value; 0 where there is none."""
    family = families.get(PREFIX + name)
    return family.samples.get(frozenset(labels.items()), 0) if family is not None else 0


NAMES = st.sampled_from(sorted(TABLE))
LABELS = st.dictionaries(st.sampled_from(["provider", "model", "kind"]), st.text(st.characters(codec="utf-8")))
VALUES = st.one_of(st.integers(0, 2**60), st.floats(0, 1e300), st.just(math.inf))


@given(st.lists(st.builds(Figure, NAMES, VALUES, LABELS), max_size=6))
def test_whatever_the_labels_the_text_can_be_read_and_sums_are_right(figures: list[Figure]) -> None:
    families = parsed(render(figures))
    assert set(families) == {PREFIX + figure.name for figure in figures}
    for figure in figures:
        same = [f.value for f in figures if (f.name, f.labels) == (figure.name, figure.labels)]
        assert value(families, figure.name, **figure.labels) == pytest.approx(sum(same))


def test_every_metric_is_explained_and_named_after_its_type() -> None:
    families = parsed(render([Figure(name, 1, {}) for name in TABLE]))
    assert list(families) == [PREFIX + name for name in TABLE]
    for name, family in families.items():
        assert family.words
        assert (family.kind == "counter") == name.endswith("_total")
        assert family.samples == {frozenset(): 1.0}
    assert parsed(render([Figure("of another version", 1, {})])) == {}


def test_sessions_and_fronts_are_summed() -> None:
    def actor(path: str, restarts: int) -> dict[str, object]:
        mail = {"depth": 1, "oldest_s": 0.5, "taken": 2, "refused": 0}
        return {"path": path, "kind": "actor", "state": "running", "restarts": restarts, "mailbox": mail}

    parts = [actor("front/sessions/aa", 1), actor("front/sessions/bb", 2), actor("front/gateway", 0)]
    process = {"path": "fronts/front2", "kind": "process", "state": "parked", "restarts": 4, "rss_bytes": 7}
    process["children"] = [actor("front2/gateway", 3)]
    tree = tree_of(msgspec.json.encode({"path": "", "kind": "group", "children": [*parts, process]}))
    assert gateways(tree) == ["front/gateway", "front2/gateway"]
    families = parsed(render(of_tree(tree)))
    assert value(families, "restarts_total", actor="front/sessions") == 3
    assert value(families, "mailbox_depth", actor="front/sessions") == 2
    assert value(families, "restarts_total", actor="front2/gateway") == 3
    assert value(families, "restarts_total", actor="fronts/front2") == 4
    assert families[PREFIX + "actor_up"].samples[frozenset({("actor", "fronts/front2")})] == 0
    assert value(families, "process_resident_memory_bytes", process="fronts/front2") == 7


async def scraped(s: Service) -> tuple[dict[str, Family], str]:
    status, headers, body = await s.get("/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parsed(body.decode()), body.decode()


async def test_the_numbers_are_those_of_what_has_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "planted-secret-4711")
    client_options = {"prices": {"input": 1.0, "output": 10.0}, "headers": {"X-Key": "${PLANTED}"}}
    settings = {"llm": {"providers": {"fake": {"client": client_options}}}}
    used = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 50}}
    replies = (
        ask_tool("add", {"a": 1, "b": 2}),
        say("three", usage=used),
        fail(500),
        ask_tool("nothing like it"),
        say("x", usage=None),
        Script(("a", Stall())),
    )
    async with service(tmp_path, *replies, settings=settings, servers=LIGHT) as s, s.client() as client:
        for text in ("1+2?", "fails", "unknown tool"):
            await client.say(text)
        await client.send("user_message", message="runs")
        await client.until("assistant_delta")
        families, text = await scraped(s)
        assert value(families, "turns_total", outcome="completed") == 2
        assert value(families, "turns_total", outcome="failed") == 1
        assert value(families, "running_turns") == 1
        assert value(families, "sockets") == 1
        of_fake = {"provider": "fake", "model": "fake-1"}
        # three answers of 11 and 7 tokens said so, and the one above
        assert value(families, "tokens_total", kind="input", **of_fake) == 11 * 2 + 100
        assert value(families, "tokens_total", kind="output", **of_fake) == 7 * 2 + 10
        assert value(families, "tokens_total", kind="cached", **of_fake) == 50
        assert value(families, "cost_total", **of_fake) == pytest.approx((122 * 1.0 + 24 * 10.0) / 1e6)
        assert value(families, "llm_requests_total", provider="fake", outcome="finished") == 4
        assert value(families, "llm_requests_total", provider="fake", outcome="LLM_UNAVAILABLE") == 1
        assert value(families, "tool_calls_total", server="demo", outcome="completed") == 1
        assert value(families, "tool_calls_total", server="", outcome="failed") == 1
        assert value(families, "actor_up", actor="store/writer") == 1
        assert value(families, "actor_up", actor="front/sessions") == 1
        assert value(families, "restarts_total", actor="llm/streamer") == 0
        assert value(families, "store_commits_total") > 3
        assert value(families, "store_file_bytes") > 1000
        assert value(families, "process_resident_memory_bytes", process="root") > 10**6
        # nothing of a conversation, its owner, or what was said; no secret
        labels = {word for family in families.values() for sample in family.samples for _, word in sample}
        assert "local" not in labels
        for word in (client.conversation, "three", "planted-secret", "1+2"):
            assert word not in text

        def crash(message: object) -> None:
            s.tree.tap("llm/streamer", None)
            raise RuntimeError("on purpose")

        s.tree.tap("llm/streamer", crash)
        s.ref("llm/streamer").nudge()
        await s.tree.reached("llm/streamer", Status.RUNNING, incarnation=2)
        await client.until("turn_finished")
        families, _ = await scraped(s)
        assert value(families, "restarts_total", actor="llm/streamer") == 1
        assert value(families, "llm_requests_total", provider="fake", outcome="lost") == 1
        assert value(families, "turns_total", outcome="interrupted") == 1
        # what another front would be asked
        figures = await s.ref("front/gateway").ask(GetFigures(), within=5)
        assert Figure("turns_total", 2, {"outcome": "completed"}) in figures

"""`GET /metrics`: what the fronts have counted and what the supervisor tree says, as Prometheus text.

Pure. The format is https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4). Conversations have
no series of their own: what their sessions do is summed, since ids come and go without end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import msgspec

from protocol.gateway import Figure

PREFIX = "mcp_actors_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TABLE: dict[str, tuple[str, str]] = {
    "turns_total": ("counter", "Turns that have ended, by outcome."),
    "running_turns": ("gauge", "Turns that run and can be seen by clients."),
    "sockets": ("gauge", "WebSocket clients."),
    "conversations": ("gauge", "Conversations that are held in memory."),
    "llm_requests_total": ("counter", "Requests to models that have ended: finished, lost, or the code of the error."),
    "tokens_total": ("counter", "Tokens, as providers count them. Cached ones are among input, reasoning in output."),
    "cost_total": ("counter", "What answers cost, in the currency of the configured prices."),
    "tool_calls_total": ("counter", "Tool calls that have ended, by outcome; without server: of unknown tools."),
    "actor_up": ("gauge", "How many of an actor, or process, run: 1 where there is one of that name."),
    "restarts_total": ("counter", "Starts of an actor, or process, after its first."),
    "mailbox_depth": ("gauge", "Messages that wait for an actor."),
    "mailbox_oldest_seconds": ("gauge", "How long the message at the head has waited."),
    "mailbox_taken_total": ("counter", "Messages that an actor has taken."),
    "mailbox_refused_total": ("counter", "Messages that were not taken because the mailbox was full."),
    "process_resident_memory_bytes": ("gauge", "Memory of a process."),
    "process_loop_lag_seconds": ("gauge", "How late a process came to what was due, at worst, lately."),
    "process_dead_letters_total": ("counter", "Messages to addresses that nobody has."),
    "store_commits_total": ("counter", "Transactions of the store since its writer began."),
    "store_operations_total": ("counter", "Operations in them."),
    "store_last_commit_seconds": ("gauge", "How long the last transaction took."),
    "store_file_bytes": ("gauge", "Size of the database."),
    "store_log_bytes": ("gauge", "Size of its write-ahead log."),
}
"""Every metric: its type, and what it says."""

SCALE = {"store_last_commit_seconds": 0.001}
STORE_FACTS = {
    "commits": "store_commits_total",
    "operations": "store_operations_total",
    "last_commit_ms": "store_last_commit_seconds",
    "file_bytes": "store_file_bytes",
    "log_bytes": "store_log_bytes",
}
"""What the writer says of itself, and where it is here."""


class Mail(msgspec.Struct, frozen=True):
    """Of an actor's mailbox in the status."""

    depth: int = 0
    oldest_s: float = 0.0
    taken: int = 0
    refused: int = 0


class Part(msgspec.Struct, frozen=True):
    """What is read here of the supervisor tree's record."""

    name: str = ""
    path: str = ""
    kind: str = ""
    state: str = ""
    restarts: int = 0
    mailbox: Mail | None = None
    facts: dict[str, str | int | float | bool] = {}
    children: list[Part] = []
    rss_bytes: int | None = None
    loop_lag_ms: float | None = None
    dead_letters: int | None = None


_decode = msgspec.json.Decoder(Part).decode


def tree_of(status: bytes) -> Part:
    """The status as JSON, read. Raises msgspec.MsgspecError for what is none."""
    return _decode(status)


def gateways(tree: Part) -> list[str]:
    """Addresses of all gateways: each counts for its own process."""
    return [part.path for part in _walk(tree) if part.kind == "actor" and part.path.endswith("/gateway")]


def of_tree(tree: Part) -> Iterator[Figure]:
    """What the tree says; the sessions of a front are one actor, and a process is one too."""
    for part in _walk(tree):
        if part.rss_bytes is not None:
            process = {"process": part.path or "root"}
            yield Figure("process_resident_memory_bytes", part.rss_bytes, process)
            yield Figure("process_loop_lag_seconds", (part.loop_lag_ms or 0.0) / 1000, process)
            yield Figure("process_dead_letters_total", part.dead_letters or 0, process)
        if part.kind not in ("actor", "process"):
            continue
        front, sessions, _ = part.path.partition("/sessions/")
        actor = {"actor": f"{front}/sessions" if sessions else part.path}
        yield Figure("actor_up", int(part.state == "running"), actor)
        yield Figure("restarts_total", part.restarts, actor)
        if part.mailbox is not None:
            yield Figure("mailbox_depth", part.mailbox.depth, actor)
            yield Figure("mailbox_oldest_seconds", part.mailbox.oldest_s, actor)
            yield Figure("mailbox_taken_total", part.mailbox.taken, actor)
            yield Figure("mailbox_refused_total", part.mailbox.refused, actor)
        if part.path == "store/writer":
            for fact, name in STORE_FACTS.items():
                if isinstance(value := part.facts.get(fact), int | float):
                    yield Figure(name, value * SCALE.get(name, 1), {})


def _walk(part: Part) -> Iterator[Part]:
    yield part
    for child in part.children:
        yield from _walk(child)


def render(figures: Iterable[Figure]) -> str:
    """The text; figures of one name and labels are one sample, their sum."""
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {name: {} for name in TABLE}
    for figure in figures:
        found = samples.get(figure.name)
        if found is None:
            continue  # of a front of another version
        labels = tuple(sorted(figure.labels.items()))
        found[labels] = found.get(labels, 0) + figure.value
    lines: list[str] = []
    for name, (kind, words) in TABLE.items():
        if samples[name]:
            lines += [f"# HELP {PREFIX}{name} {_words(words)}", f"# TYPE {PREFIX}{name} {kind}"]
            lines += [f"{PREFIX}{name}{_labels(labels)} {number(value)}" for labels, value in samples[name].items()]
    return "".join(f"{line}\n" for line in lines)


def _words(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    pairs = [f'{name}="{_quoted(value)}"' for name, value in labels]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def number(value: float) -> str:
    """A value as the format wants it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))

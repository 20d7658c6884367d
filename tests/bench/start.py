"""The start: how soon turns are taken, what it costs, and what each process then holds; without and with MCP servers.

`listening` is the line on standard output, `ready` when /readyz says so, `offered` when the tree, which is a second
behind at most, shows the tools of all three servers (those of Servers.demo_server, each a process of its own, which
counts as processor time only). Memory is resident, shared pages counted for each process. The first start of all is not
counted: it may have to compile.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.crash import ANSWER_S, Node, processes, tree
from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import Stuck, cpu_s
from tests.bench.programs import Script, Upstream, compiled, upstream
from tests.bench.subjects import Running, ours

SERVERS = {f"demo{number}": {"command": "python", "args": ["-m", "Servers.demo_server"]} for number in (1, 2, 3)}
SUBJECTS = {"without servers": {}, "with three servers": SERVERS}
SCRIPT = Script(0, 5, 1)
OFFERED_S = 60.0
LOOK_S = 0.01
TITLES = {
    "listening_s": "listening, s",
    "ready_s": "ready, s",
    "ready_cpu_s": "processor time until then, s",
    "offered_s": "all tools offered, s",
    "offered_cpu_s": "processor time until then, s",
}
"""Rows of the table, above those of the processes."""


class Begun(NamedTuple):
    """A start."""

    listening_s: float
    ready_s: float
    ready_cpu_s: float
    """Of all processes until then."""
    offered_s: float
    offered_cpu_s: float
    """Likewise, with the servers'."""
    rss_mb: dict[str, float]
    """At the end, by path of the process; the servers' own are not ours."""


def run(options: Options) -> str:
    """The table."""
    found: dict[str, list[Begun]] = {name: [] for name in SUBJECTS}
    with compiled() as programs, upstream(programs) as source:
        measure(source, "without servers")
        for number in range(options.repetitions):
            for name, begun in found.items():
                begun.append(measure(source, name))
                options.say(f"{number + 1}. {name}: {begun[-1]}")
    rows = [
        (title, *(spread([getattr(one, field) for one in begun], 2) for begun in found.values()))
        for field, title in TITLES.items()
    ]
    sums = [[sum(one.rss_mb.values()) for one in begun] for begun in found.values()]
    rows.append(("RSS of all processes, MB", *(spread(values) for values in sums)))
    rows += [
        (f"RSS of `{path}`, MB", *(spread([one.rss_mb[path] for one in begun]) for begun in found.values()))
        for path in found["without servers"][0].rss_mb
    ]
    return table(("start", *SUBJECTS), rows)


def measure(source: Upstream, name: str) -> Begun:
    """One start. Raises Stuck."""
    servers = SUBJECTS[name]
    began = time.monotonic()
    with ours(source, SCRIPT, servers=servers) as service:
        listening = time.monotonic() - began
        while not takes_turns(service):
            time.sleep(LOOK_S)
        ready, ready_cpu = time.monotonic() - began, cpu_s(service.pid)
        root = offered(service, len(servers))
        pids = {"root": service.pid} | {str(node["path"]): int(node["pid"]) for node in processes(root)}
        after = time.monotonic() - began
        sizes = {path: own_rss_mb(pid) for path, pid in pids.items()}
        return Begun(listening, ready, ready_cpu, after, cpu_s(service.pid), sizes)


def takes_turns(service: Running) -> bool:
    """What /readyz says. Raises OSError."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/readyz", timeout=ANSWER_S) as answer:
            return bool(json.load(answer)["ready"])
    except urllib.error.HTTPError:
        return False  # 503, with the reasons


def offered(service: Running, servers: int) -> Node:
    """Wait until all servers are connected; the tree then. Raises Stuck."""
    began = time.monotonic()
    while time.monotonic() - began < OFFERED_S:
        root = tree(service)
        if sum(node["facts"].get("tools", 0) > 0 for node in flat(root)) == servers:
            return root
        time.sleep(LOOK_S)
    raise Stuck(f"the servers are not connected after {OFFERED_S:g} s: {service.program.log[-2000:]}")


def flat(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for child in node["children"]:
        yield from flat(child)


def own_rss_mb(pid: int) -> float:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0

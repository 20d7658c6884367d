"""After a crash: how soon an actor runs again, how soon a killed process does, and what a client notices.

An actor: from its exception to its next incarnation, the median of 20 that crash one after the other. A process: it
is killed (SIGKILL) while the service is idle; `back` is when the tree shows its successor running, `answered` when a
question that was asked at that moment, and again after each failure, had its answer: by the same socket unless it was
closed.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.bench.figures import spread, table
from tests.bench.options import Options
from tests.bench.processes import Stuck, python, started
from tests.bench.programs import Script, compiled, upstream
from tests.bench.subjects import Running, ours

ACTORS = 20
WITHIN_S = 60.0
LOOK_S = 0.01  # between two looks at the tree
AGAIN_S = 0.01  # before a question that failed is asked again
ANSWER_S = 5.0  # for an answer; then it is asked again
Node = dict[str, Any]


def run(options: Options) -> str:
    """Both tables."""
    actor: list[float] = []
    back: dict[str, list[float]] = {}
    answered: dict[str, list[float]] = {}
    for number in range(options.repetitions):
        with started(python("tests.bench.echo", "crash", str(options.of(ACTORS, 3)))) as program:
            actor.append(program.answer(WITHIN_S)["crash_us"])
        with compiled() as programs, upstream(programs) as source, ours(source, Script(0, 5, 0)) as service:
            names = [node["path"] for node in processes(tree(service))]
            for name in names[:1] if options.small else names:
                back.setdefault(name, []).append(comes_back(service, name))
                answered.setdefault(name, []).append(answers(service, name))
                options.say(f"{number + 1}. {name}: {back[name][-1]:.0f} ms, {answered[name][-1]:.0f} ms")
    parts = [table(("crash of", "running again, µs"), [("an actor", spread(actor, 0))])]
    if back:
        rows = [(f"`{name}`", spread(back[name], 0), spread(answered[name], 0)) for name in back]
        parts.append(table(("SIGKILL of", "back, ms", "answered, ms"), rows))
    return "\n\n".join(parts)


def tree(service: Running) -> Node:
    """The service's parts as they are. Raises OSError, HTTPException."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/status", timeout=ANSWER_S) as answer:
        found: Node = json.load(answer)
        return found


def processes(node: Node) -> Iterator[Node]:
    """The nodes that are processes of their own."""
    for child in node["children"]:
        if child["kind"] == "process":
            yield child
        yield from processes(child)


def kill(service: Running, name: str) -> int:
    """Kill that process; its number."""
    pid = next(int(node["pid"]) for node in processes(tree(service)) if node["path"] == name)
    os.kill(pid, signal.SIGKILL)
    return pid


def comes_back(service: Running, name: str) -> float:
    """Milliseconds from the end of a process to its successor. Raises Stuck."""
    killed = kill(service, name)
    began = time.monotonic()
    while time.monotonic() - began < WITHIN_S:
        try:
            for node in processes(tree(service)):
                if node["path"] == name and node["state"] == "running" and node["pid"] not in (None, killed):
                    return (time.monotonic() - began) * 1000
        except (OSError, http.client.HTTPException):
            pass  # the part that answers is the one that was killed
        time.sleep(LOOK_S)
    raise Stuck(f"{name} did not come back: {service.program.log[-2000:]}")


def answers(service: Running, name: str) -> float:
    """Milliseconds from the end of a process to the answer of a question. Raises Stuck."""
    address = f"ws://127.0.0.1:{service.port}{service.path}"
    socket = connect(address, open_timeout=ANSWER_S)
    try:
        assert turn(socket, "before"), "the service answers before"
        kill(service, name)
        began = time.monotonic()
        for attempt in range(int(WITHIN_S / AGAIN_S)):
            try:
                if turn(socket, f"after-{attempt}"):
                    return (time.monotonic() - began) * 1000
            except (ConnectionClosed, OSError):
                socket.close()
                socket = connected(address, began)
            time.sleep(AGAIN_S)
    finally:
        socket.close()
    raise Stuck(f"no answer after {name} was killed: {service.program.log[-2000:]}")


def connected(address: str, began: float) -> ClientConnection:
    """Another socket. Raises Stuck."""
    while time.monotonic() - began < WITHIN_S:
        try:
            return connect(address, open_timeout=ANSWER_S)
        except OSError:
            time.sleep(AGAIN_S)  # nobody takes connections yet; a TimeoutError is one
    raise Stuck("no socket could be opened")


def turn(socket: ClientConnection, name: str) -> bool:
    """Ask, and read to the end of the turn; whether it was answered. Raises ConnectionClosed, TimeoutError."""
    socket.send(json.dumps({"type": "user_message", "message": "What time is it?", "request_id": name}))
    while True:
        frame = json.loads(socket.recv(ANSWER_S))
        if frame["type"] == "turn_finished":
            return bool(frame["outcome"] == "completed")
        if frame["type"] == "error" and "turn" not in frame:
            return False

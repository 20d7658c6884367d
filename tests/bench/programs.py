"""The benchmark's own programs in C: the upstream, the load client, and a relay as a yardstick.

They are compiled once per run into a temporary directory, with the machine's `cc -O2`. Python cannot play these
parts: an upstream of 40,000 tokens a second would take more processor time than what it is to measure.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.processes import Program, started

SOURCES = Path(__file__).parent / "native"
WITHIN_S = 20.0  # for a program to answer a command that needs nobody else
WARNINGS = ("-Wall", "-Wextra", "-Werror")


class NoCompiler(Exception):
    """This machine has no C compiler, and the benchmark's own programs are in C."""


class Programs:
    """The compiled programs.

    Args:
        folder: where they are put; made by the caller.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._compiler = compiler()

    def path(self, name: str) -> str:
        """A program, compiled when it is first asked for. Raises NoCompiler, CalledProcessError."""
        program = self._folder / name
        if not program.exists():
            source = SOURCES / f"{name}.c"
            subprocess.run([self._compiler, "-O2", *WARNINGS, "-o", str(program), str(source)], check=True)
        return str(program)


@contextmanager
def compiled() -> Iterator[Programs]:
    """The programs, in a directory that is gone after the block. Raises NoCompiler."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Programs(Path(folder))


def compiler() -> str:
    """The machine's C compiler. Raises NoCompiler."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise NoCompiler(
            "The upstream and the load client of the benchmarks are C programs, and there is no C compiler "
            "(cc, gcc or clang) here. Install one, e.g. `apt-get install gcc libc6-dev`."
        )
    return found


class Script(NamedTuple):
    """What the upstream answers with; its `model` says so."""

    rate: int
    """Tokens per second of one stream; 0: as fast as they are taken."""
    tokens: int
    thinking: int = 0
    """How many of the first are reasoning."""
    tool: str = ""
    """Called first, with {"a": 1, "b": 2}."""

    @property
    def model(self) -> str:
        """The model that asks for it."""
        return f"bench-{self.rate}-{self.tokens}-{self.thinking}" + (f"-{self.tool}" if self.tool else "")


class Upstream:
    """The running upstream."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.port = int(program.line(WITHIN_S).removeprefix("port "))

    @property
    def base_url(self) -> str:
        """As a provider's."""
        return f"http://127.0.0.1:{self.port}/v1"

    def hold(self) -> None:
        """Streams stop after their first token until `release`."""
        self.program.ask("hold", WITHIN_S)

    def release(self) -> None:
        """All streams go on, at their pace."""
        self.program.ask("release", WITHIN_S)

    def mark(self) -> dict[str, Any]:
        """`made` tokens so far, worst lateness since the last mark `late_us`, streams `running`."""
        return self.program.ask("mark", WITHIN_S)


@contextmanager
def upstream(programs: Programs, grain_us: int = 0) -> Iterator[Upstream]:
    """An upstream for the block; with a grain, tokens of all streams leave together so often."""
    with started([programs.path("upstream"), str(grain_us)]) as program:
        yield Upstream(program)


class Load:
    """The running load client. Its answers are those of native/client.c."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def ready(self, within: float) -> None:
        """All sockets are welcomed. Raises Stuck, Wrong."""
        right(self._program.answer(within))

    def go(self, within: float) -> None:
        """Ask on every socket, a few at a time; returns when every stream has begun. Raises Stuck, Wrong."""
        right(self._program.ask("go", within))

    def mark(self) -> dict[str, Any]:
        """What came since the last mark. Raises Stuck, Wrong."""
        return right(self._program.ask("mark", WITHIN_S))

    def finish(self, within: float) -> dict[str, Any]:
        """When every stream has ended: what came since the last mark. Raises Stuck, Wrong."""
        return right(self._program.ask("finish", within))

    def serial(self, turns: int, within: float) -> dict[str, Any]:
        """So many turns one after the other; quantiles of the time to the first token. Raises Stuck, Wrong."""
        return right(self._program.ask(f"serial {turns}", within))


class Wrong(Exception):
    """A stream was not what the upstream had sent."""


def right(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, if everything in it was right. Raises Wrong."""
    if answer["wrong"]:
        raise Wrong(f"{answer['wrong']} times; first {answer.get('complaint', '')}")
    return answer


@contextmanager
def load(programs: Programs, port: int, path: str, sockets: int, script: Script) -> Iterator[Load]:
    """A load client for the block; its sockets connect at once."""
    arguments = (str(port), path, str(sockets), str(script.tokens), str(script.thinking), str(script.rate))
    with started([programs.path("client"), *arguments]) as program:
        yield Load(program)

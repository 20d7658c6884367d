"""The rules of this suite, and what enforces them.

- Loopback and port 0 only. A process that a test starts is ended by its pid by the same test.
- No sleeping as synchronisation: wait for an event, a message, an answer. Time itself is tested with the
  autojump clock (`@pytest.mark.autojump`) wherever every peer lives in the same trio run; children and
  SQLite get the real clock, since autojump jumps over them.
- Every async test runs under `fail_after` (40 s, or `@pytest.mark.seconds(n)`).
- Warnings are errors. No test leaves a task, a thread, a child process or a descriptor behind.
- Tests assert order, counts and content; never how long something took.
- Property tests draw the same examples in every run. `pytest --hypothesis-profile=soak` draws thirty times as
  many, at random; long counts are in tests/soak/, which runs only when it is named.
- Processes wait for each other more than they compute, so `-n auto` makes more workers than there are cores.
- Child processes of ours are forks of one that has imported everything (tests/forks.py), but for those that show
  how an interpreter starts; scenarios that need the same service of several processes share one.
- Where the environment wants no bytecode beside the sources it is kept in .pytest_cache/: two hundred processes
  that compile everything anew take longer than all tests.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from tests import forks

ROOT = Path(__file__).resolve().parents[1]
if sys.dont_write_bytecode:
    cache = str(ROOT / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of the workers and children too
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = cache
    sys.dont_write_bytecode = False

# How long a machine takes to draw an example says nothing about us.
TIMELESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("suite", TIMELESS, derandomize=True, max_examples=60)
settings.register_profile("soak", TIMELESS, derandomize=False, max_examples=2000)
settings.load_profile("suite")
# Numbers and words of our own sources are no examples: which modules are loaded would decide about what is drawn.
providers._get_local_constants = Constants

MORE_WORKERS = 3  # than cores: tests wait for processes and disks; each worker costs 3 s for what it imports

LONG = {"test_processes.py", "test_server_faults.py", "test_approvals.py", "test_bench.py", "test_keys.py"}

DEFAULT_S = 40.0  # the slowest honest test takes a few seconds on two busy cores; only what hangs runs this out


gc.disable()  # while everything is imported and collected: nothing of it is garbage


def pytest_collection_finish() -> None:
    """What is there now stays to the end: the collector need not look at it time and again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: at the end there are short ones for whoever has time."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_sessionstart(session: pytest.Session) -> None:
    """One process forks for all workers."""
    if getattr(session.config.option, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        forks.begin()


def pytest_sessionfinish() -> None:
    """It ends with the tests."""
    forks.end()


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`."""
    return len(os.sched_getaffinity(0)) + MORE_WORKERS


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests under trio with a bound."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    marker = pyfuncitem.get_closest_marker("seconds")
    bound = float(marker.args[0]) if marker else DEFAULT_S
    autojump = pyfuncitem.get_closest_marker("autojump") is not None
    names = inspect.signature(function).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def bounded() -> None:
        with trio.fail_after(bound if not autojump else 1_000_000):
            await function(**arguments)

    clock = trio.testing.MockClock(autojump_threshold=0) if autojump else None
    trio.run(bounded, clock=clock, strict_exception_groups=True)
    return True


def _children() -> set[int]:
    children: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                children.update(map(int, file.read().split()))
        except FileNotFoundError:
            continue  # the thread has ended
    return children


def _descriptors() -> dict[str, str]:
    found: dict[str, str] = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No child process, no thread of ours, no socket or pipe outlives the test that made it."""
    children, threads, descriptors = _children(), set(threading.enumerate()), _descriptors()
    yield
    assert _children() <= {*children, forks.pid()}, "the test left child processes behind"
    # trio keeps idle worker threads for 10 s by design; they belong to nobody.
    left = {t for t in threading.enumerate() if t not in threads and not t.name.startswith("Trio thread")}
    assert not {t for t in left if t.is_alive() and not t.daemon}, f"the test left threads behind: {left}"
    new = {fd: name for fd, name in _descriptors().items() if descriptors.get(fd) != name and not forks.belongs(fd)}
    leaked = {fd: name for fd, name in new.items() if name.startswith(("socket:", "pipe:", "anon_inode:[eventpoll]"))}
    assert not leaked, f"the test left descriptors behind: {leaked}"


@pytest.fixture
def quiet_gateway(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a peer does is logged as something that an operator would have to look at."""
    yield
    records = [r for r in caplog.get_records("call") if r.name.startswith(("actors.gateway", "actors.front", "trio"))]
    assert [r.getMessage() for r in records if r.levelno >= logging.WARNING or r.exc_info] == []


@pytest.fixture
def shared() -> Path:
    """The material beside a checkout in development and CI; a test that needs it skips without."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside this checkout (recorded material for development)")
    return folder

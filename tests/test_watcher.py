"""The watcher: edits come into force, mistakes do not, and a crash of it loses nobody."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import trio

import actors.watcher
from actors.configuration import RUNTIME, Configuration
from protocol.mail import Gone, Mailbox
from protocol.spec import Child, Context, Group, Status
from protocol.watcher import Configured, GetSnapshot, SetLocalModel, Snapshot, Subscribe
from supervisors.supervisor import running
from tests.watched import has_port, has_version, house, port


class Boom(Exception):
    """What the tests raise in the watcher."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps at shorter intervals: the clock must be the real one, files have no other."""
    monkeypatch.setattr(actors.watcher, "POLL_S", 0.02)
    monkeypatch.setattr(actors.watcher, "SETTLED_S", 0.02)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_a_subscriber_is_told_at_once_and_an_asker_answered(state: Path) -> None:
    async with house(state) as watched:
        told = await watched.until(lambda snapshot: True)
        assert told.version == 1
        assert told == await watched.ask()
        assert (state / RUNTIME).is_file()


async def test_edits_in_place_replaces_and_swapped_links_come_into_force(state: Path, tmp_path: Path) -> None:
    async with house(state) as watched:
        watched.write(port(8001))
        assert (await watched.until(has_port(8001))).version == 2
        watched.replace(port(8002))
        assert (await watched.until(has_port(8002))).version == 3
        for number in (8003, 8004):
            (tmp_path / f"{number}.yaml").write_text(port(number))
        (state / RUNTIME).unlink()
        (state / RUNTIME).symlink_to(tmp_path / "8003.yaml")
        await watched.until(has_port(8003))
        (state / "link").symlink_to(tmp_path / "8004.yaml")
        os.replace(state / "link", state / RUNTIME)
        await watched.until(has_port(8004))
        # And the file behind the link.
        (tmp_path / "8004.yaml").write_text(port(8005))
        await watched.until(has_port(8005))
        versions = [snapshot.version for snapshot in watched.told]
        assert versions == sorted(versions)
        assert max(later - before for before, later in itertools.pairwise(versions)) <= 1


async def test_the_servers_file_is_watched_too_and_the_one_named_later(state: Path, tmp_path: Path) -> None:
    async with house(state) as watched:
        (state / "servers_config.json").write_text('{"mcpServers": {"one": {"command": "c"}}}')
        await watched.until(lambda snapshot: list(snapshot.mcp.servers) == ["one"])
        (tmp_path / "two.json").write_text('{"mcpServers": {"two": {"command": "c"}}}')
        watched.write(f"mcp: {{config_file: {tmp_path}/two.json}}")
        await watched.until(lambda snapshot: list(snapshot.mcp.servers) == ["two"])
        (tmp_path / "two.json").write_text('{"mcpServers": {"three": {"command": "c"}}}')
        await watched.until(lambda snapshot: list(snapshot.mcp.servers) == ["three"])


@pytest.mark.parametrize("text", ["", "chat: {", port(70000), "\t"])
async def test_a_mistake_changes_nothing_is_reported_and_set_right_again(state: Path, text: str) -> None:
    async with house(state) as watched:
        watched.write(port(8001))
        good = await watched.until(has_port(8001))
        watched.write(text)
        bad = await watched.until(lambda snapshot: bool(snapshot.problems))
        assert (bad.version, bad.websocket) == (good.version, good.websocket)
        assert bad.problems[0].startswith(f"{RUNTIME}:1:")
        assert (state / RUNTIME).read_text() == text
        node = watched.tree.status()
        assert _facts(node)["problems"] == 2
        watched.write(port(8001))
        assert (await watched.until(lambda snapshot: not snapshot.problems)).version == good.version
        assert "problem" not in _facts(watched.tree.status())


def _facts(root: Any) -> dict[str, Any]:
    return next(dict(child.facts) for child in root.children if child.name == "watcher")


async def test_a_crash_loses_neither_subscribers_nor_the_version(state: Path) -> None:
    async with house(state) as watched:
        watched.write(port(8001))
        await watched.until(has_port(8001))

        def boom(message: object) -> None:
            if isinstance(message, GetSnapshot):
                raise Boom

        watched.tree.tap("watcher", boom)
        with pytest.raises(Gone):
            await watched.ask()
        watched.tree.tap("watcher", None)
        await watched.tree.reached("watcher", Status.RUNNING, incarnation=2)
        assert (await watched.ask()).version == 2
        # What was edited is seen by the new incarnation, and no file was set aside by its start.
        watched.write("chat: {")
        await watched.until(lambda snapshot: bool(snapshot.problems))
        watched.write(port(8002))
        assert (await watched.until(has_port(8002))).version == 3
        assert not [name for name in os.listdir(state) if "broken" in name]


async def test_the_command_line_stays_above_edits(state: Path) -> None:
    async with house(state, {"chat": {"websocket": {"port": 0}}}) as watched:
        watched.write("chat: {websocket: {port: 8001, host: localhost}}\n")
        told = await watched.until(lambda snapshot: snapshot.websocket.host == "localhost")
        assert told.websocket.port == 0


async def test_an_edit_that_does_not_fit_the_command_line_changes_nothing(state: Path) -> None:
    Configuration(state).save_runtime_config(
        {"llm": {"providers": {"mine": {"base_url": "http://[::1]", "model": "m"}}}}
    )
    async with house(state, {"llm": {"active": "mine"}}) as watched:
        before = await watched.until(lambda snapshot: snapshot.llm.active == "mine")
        watched.write(port(8001))
        told = await watched.until(lambda snapshot: bool(snapshot.problems))
        assert (told.version, told.llm) == (before.version, before.llm)
        assert told.problems == ["command line: llm.active: names no provider of llm.providers (there are: openrouter)"]


async def test_wrong_overrides_park_it(state: Path) -> None:
    async with house(state, {"chat": {"websocket": {"port": "x"}}}) as watched:
        await watched.tree.reached("watcher", Status.PARKED)
        with pytest.raises(Gone):
            await watched.ask()


async def test_the_local_model_comes_and_goes(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    async with house(state) as watched:
        watcher = watched.tree.ref("watcher")
        watcher.offer(SetLocalModel("http://127.0.0.1:1/v1", "tiny"))
        told = await watched.until(lambda snapshot: snapshot.llm.active == "local")
        assert told.version == 1  # no version: nobody changed the file
        assert told.llm.providers["local"].model == "tiny"
        # An edit keeps it; a provider that needs no key takes its place; neither is in the file.
        watched.write(port(8001))
        assert (await watched.until(has_port(8001))).llm.active == "local"
        watched.write('llm: {active: mine, providers: {mine: {base_url: "http://127.0.0.1", model: m}}}')
        assert "local" not in (await watched.until(lambda snapshot: snapshot.llm.active == "mine")).llm.providers
        watched.write("{}")
        await watched.until(lambda snapshot: snapshot.llm.active == "local")
        watcher.offer(SetLocalModel(None))
        assert "local" not in (await watched.until(lambda snapshot: snapshot.llm.active == "openrouter")).llm.providers


async def test_a_number_that_changes_its_type_only_is_a_change(state: Path) -> None:
    async with house(state) as watched:
        for version, value in enumerate(("1", "1.0", "true"), 2):
            watched.write(f"llm: {{providers: {{openrouter: {{seed: {value}}}}}}}")
            await watched.until(has_version(version))


async def test_a_subscriber_that_was_full_is_told_later(state: Path) -> None:
    first = trio.Event()
    told: list[Snapshot] = []
    done = trio.Event()

    async def busy(box: Mailbox[Any], ctx: Context) -> None:
        watcher = ctx.ref("watcher")
        async for message in box:
            if message == "work":
                # The mailbox holds one message, and it is taken by the next "work".
                ctx.ref(ctx.path).offer("more")
                await watcher.send(Subscribe(ctx.path))
                await watcher.ask(GetSnapshot(), within=5)
                first.set()
            elif isinstance(message, Configured):
                told.append(message.snapshot)
                done.set()

    watcher = Child("watcher", "actors.watcher:run", keep="actors.watcher:keep", args={"state_dir": str(state)})
    async with running(Group("root", (watcher, Child("busy", busy, mailbox=1)))) as tree:
        tree.ref("busy").offer("work")
        await first.wait()
        await done.wait()
        assert [snapshot.version for snapshot in told] == [1]


async def test_it_runs_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with house(tmp_path / "file" / "state") as watched:
        told = await watched.until(lambda snapshot: True)
        assert any("cannot be written" in line for line in told.problems)

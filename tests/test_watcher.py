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
from actors.layers import parse
from protocol.errors import Code, Fault
from protocol.mail import Gone, Mailbox
from protocol.spec import Child, Context, Group, Status
from protocol.watcher import (
    Configured,
    GetConfig,
    GetSnapshot,
    ListVersions,
    Rollback,
    SetLocalModel,
    Snapshot,
    Subscribe,
)
from supervisors.supervisor import running
from tests.watched import House, has_port, has_version, house, port


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
        assert told.problems == [
            "command line: llm.active: names no provider of llm.providers (there are: openrouter, openai, groq)"
        ]


async def test_wrong_overrides_park_it(state: Path) -> None:
    async with house(state, {"chat": {"websocket": {"port": "x"}}}) as watched:
        await watched.tree.reached("watcher", Status.PARKED)
        with pytest.raises(Gone):
            await watched.ask()


async def test_the_local_model_comes_and_goes(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    async with house(state) as watched:
        watcher = watched.tree.ref("watcher")
        await watched.until(lambda snapshot: snapshot.llm.loading)  # its actor has said nothing yet
        watcher.offer(SetLocalModel("http://127.0.0.1:1/v1", "tiny"))
        told = await watched.until(lambda snapshot: snapshot.llm.active == "local")
        assert not told.llm.loading
        assert told.version == 1  # no version: nobody changed the file
        assert told.llm.providers["local"].model == "tiny"
        # An edit keeps it; a provider that needs no key takes its place; neither is in the file.
        watched.write(port(8001))
        assert (await watched.until(has_port(8001))).llm.active == "local"
        watched.write('llm: {active: mine, providers: {mine: {base_url: "http://127.0.0.1", model: m}}}')
        assert "local" not in (await watched.until(lambda snapshot: snapshot.llm.active == "mine")).llm.providers
        watched.write("{}")
        await watched.until(lambda snapshot: snapshot.llm.active == "local")
        watcher.offer(SetLocalModel(None, expected=True))
        await watched.until(lambda snapshot: snapshot.llm.loading)
        watcher.offer(SetLocalModel(None))
        told = await watched.until(lambda snapshot: not snapshot.llm.loading)
        assert told.llm.active == "openrouter"
        assert "local" not in told.llm.providers


async def test_who_answers_without_a_key_is_logged_once(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    missing = "the provider 'openrouter' has no key: set OPENROUTER_API_KEY in the environment or .env"

    def said() -> list[str]:
        return [record.message for record in caplog.records if "has no key" in record.message]

    async with house(state) as watched:
        watcher = watched.tree.ref("watcher")
        await watched.until(lambda snapshot: snapshot.llm.loading)
        assert said() == []  # a model here may step in
        watcher.offer(SetLocalModel("http://127.0.0.1:1/v1", "tiny"))
        await watched.until(lambda snapshot: snapshot.llm.active == "local")
        stands_in = f"{missing}; until then the small model on this machine answers"
        assert said() == [stands_in]
        watched.write(port(8001))
        await watched.until(has_port(8001))
        assert said() == [stands_in]
        watcher.offer(SetLocalModel(None))
        await watched.until(lambda snapshot: snapshot.llm.active == "openrouter")
        assert said() == [stands_in]  # that the model ended is told by whoever ran it
        watched.write('llm: {active: mine, providers: {mine: {base_url: "http://127.0.0.1", model: m}}}')
        await watched.until(lambda snapshot: snapshot.llm.active == "mine")
        watched.write("{}")
        await watched.until(lambda snapshot: snapshot.llm.active == "openrouter")
        assert said() == [stands_in, missing]


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


# Changing.


async def test_a_change_is_saved_and_in_force_when_it_is_answered(state: Path) -> None:
    async with house(state) as watched:
        view = await watched.set({"chat": {"websocket": {"port": 8001}}}, author="client:ann")
        assert (view.version, view.config["chat"]["websocket"]["port"]) == (2, 8001)
        assert (await watched.ask()).version == 2
        assert (await watched.until(has_port(8001))).version == 2
        saved = parse((state / RUNTIME).read_text("utf-8"), RUNTIME).data
        assert saved["chat"] == {"websocket": {"port": 8001}}
        assert saved["_runtime_config"]["version"] == 2
        # An edit is a version too, and only ours change the metadata.
        watched.write(f"{(state / RUNTIME).read_text('utf-8')}logging: {{level: DEBUG}}\n")
        edited = await watched.until(lambda snapshot: snapshot.logging.level == "DEBUG")
        assert edited.version == 3
        assert parse((state / RUNTIME).read_text("utf-8"), RUNTIME).data["_runtime_config"]["version"] == 2
        view = await watched.set({"llm": {"providers": {"openrouter": {"top_p": None}}}}, base_version=3)
        assert view.version == 4
        assert "top_p" not in view.config["llm"]["providers"]["openrouter"]
        rows = await watched.tree.ref("watcher").ask(ListVersions(), within=5)
        assert [(row.version, row.author, row.changed) for row in rows] == [
            (4, "api", ["llm.providers.openrouter.top_p"]),
            (3, "file", ["logging.level"]),
            (2, "client:ann", ["chat.websocket.port"]),
            (1, "file", []),
        ]


async def test_a_change_that_changes_nothing_is_no_version(state: Path) -> None:
    async with house(state) as watched:
        before = (state / RUNTIME).read_bytes()
        assert (await watched.set({"chat": {"websocket": {"port": 8000}}})).version == 1
        assert (await watched.set({})).version == 1
        assert (state / RUNTIME).read_bytes() == before


async def test_changes_at_the_same_time_are_all_there(state: Path) -> None:
    async with house(state) as watched:
        versions: list[int] = []

        async def change(number: int) -> None:
            changes = {"llm": {"providers": {"openrouter": {f"key{number}": number}}}}
            versions.append((await watched.set(changes)).version)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(change, number)
        assert sorted(versions) == list(range(2, 12))
        told = await watched.until(has_version(11))
        assert {f"key{number}" for number in range(10)} <= set(told.llm.providers["openrouter"].parameters)


def aside(state: Path, why: str) -> list[bytes]:
    """What was kept under another name."""
    return [path.read_bytes() for path in state.glob(f"{RUNTIME}.{why}-*")]


async def refused(watched: House, code: Code, changes: dict[str, Any], **more: Any) -> str:
    with pytest.raises(Fault) as raised:
        await watched.set(changes, **more)
    assert raised.value.code == code
    return raised.value.body.text


async def test_what_is_refused_changes_nothing(state: Path) -> None:
    async with house(state) as watched:
        await watched.set({"chat": {"websocket": {"port": 8001}}})
        before = (state / RUNTIME).read_bytes()
        text = await refused(watched, Code.CONFIG_CONFLICT, {"chat": {"websocket": {"port": 8002}}}, base_version=1)
        assert "version 1" in text
        assert "2" in text
        text = await refused(watched, Code.CONFIG_INVALID, {"chat": {"websocket": {"port": "x", "host": ""}}})
        assert [line.split(": ")[1] for line in text.split("\n")] == ["chat.websocket.host", "chat.websocket.port"]
        await refused(watched, Code.CONFIG_INVALID, {"chat": {"webs": 1}})
        await refused(watched, Code.FORBIDDEN, {"mcp": {"config_file": "x"}}, author="tool")
        with pytest.raises(Fault) as raised:
            await watched.tree.ref("watcher").ask(GetConfig("chat.nothing"), within=5)
        assert raised.value.code == Code.NOT_FOUND
        assert (state / RUNTIME).read_bytes() == before
        assert (await watched.ask()).version == 2


async def test_beside_a_broken_file_nothing_is_written(state: Path) -> None:
    async with house(state) as watched:
        await watched.until(lambda _: True)
        watched.write("chat: {")
        text = await refused(watched, Code.CONFIG_INVALID, {"chat": {"websocket": {"port": 8001}}})
        assert text.startswith(f"{RUNTIME}:1:")
        assert (state / RUNTIME).read_text() == "chat: {"
        # A rollback helps, and keeps the broken file.
        view = await watched.tree.ref("watcher").ask(Rollback(1), within=10)
        assert view.version == 1
        assert (await watched.until(lambda snapshot: not snapshot.problems)).version == 1
        [kept] = state.glob(f"{RUNTIME}.broken-*")  # noqa: ASYNC240 - a directory of the test
        assert kept.read_text() == "chat: {"
        assert (await watched.set({"chat": {"websocket": {"port": 8001}}})).version == 2


async def test_a_file_that_was_removed_is_made_again_by_a_change(state: Path) -> None:
    async with house(state) as watched:
        await watched.set({"chat": {"websocket": {"port": 8001}}})
        (state / RUNTIME).unlink()
        await watched.until(lambda snapshot: bool(snapshot.problems))
        view = await watched.set({"logging": {"level": "DEBUG"}})
        assert (view.version, view.config["chat"]["websocket"]["port"]) == (3, 8001)
        await watched.until(lambda snapshot: not snapshot.problems)


async def test_an_edit_that_was_not_seen_yet_is_taken_first(state: Path) -> None:
    async with house(state) as watched:
        await watched.until(lambda _: True)
        watched.write(port(8001))
        await refused(watched, Code.CONFIG_CONFLICT, {"logging": {"level": "DEBUG"}}, base_version=1)
        watched.write(port(8002))
        view = await watched.set({"logging": {"level": "DEBUG"}})
        assert (view.version, view.config["chat"]["websocket"]["port"]) == (4, 8002)


async def test_rolling_back_makes_a_new_version_with_the_old_content(state: Path) -> None:
    async with house(state) as watched:
        watcher = watched.tree.ref("watcher")
        for number in (8001, 8002):
            await watched.set({"chat": {"websocket": {"port": number}}})
        assert (await watcher.ask(Rollback(2, "cli"), within=10)).version == 4
        assert (await watched.until(has_port(8001))).version == 4
        # The defaults are version 0; the file as it was is kept.
        before = (state / RUNTIME).read_bytes()
        assert (await watcher.ask(Rollback(0, "cli"), within=10)).version == 5
        await watched.until(has_port(8000))
        [kept] = state.glob(f"{RUNTIME}.before-reset-*")  # noqa: ASYNC240 - a directory of the test
        assert kept.read_bytes() == before
        with pytest.raises(Fault) as raised:
            await watcher.ask(Rollback(99), within=10)
        assert raised.value.code == Code.NOT_FOUND
        rows = await watcher.ask(ListVersions(2), within=5)
        assert [(row.version, row.author) for row in rows] == [(5, "cli"), (4, "cli")]


async def test_versions_go_on_after_a_restart_of_the_service(state: Path) -> None:
    async with house(state) as watched:
        await watched.set({"chat": {"websocket": {"port": 8001}}})
    async with house(state) as watched:
        assert (await watched.until(lambda _: True)).version == 2
    # Edited while nothing ran.
    (state / RUNTIME).write_text(port(8002))
    async with house(state) as watched:
        assert (await watched.until(lambda _: True)).version == 3
        rows = await watched.tree.ref("watcher").ask(ListVersions(), within=5)
        assert [(row.version, row.author) for row in rows] == [(3, "file"), (2, "api"), (1, "file")]


async def test_the_command_line_stays_above_changes(state: Path) -> None:
    async with house(state, {"llm": {"active": "openrouter"}}) as watched:
        await refused(watched, Code.CONFIG_INVALID, {"llm": {"providers": {"openrouter": None}}})
        mine = {"active": "mine", "providers": {"mine": {"base_url": "http://127.0.0.1", "model": "m"}}}
        view = await watched.set({"llm": mine})
        assert view.config["llm"]["active"] == "mine"
        assert (await watched.ask()).llm.active == "openrouter"


async def test_a_directory_that_cannot_be_written_is_told(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(state) as watched:
        await watched.until(lambda _: True)

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        text = await refused(watched, Code.INTERNAL, {"chat": {"websocket": {"port": 8001}}})
        assert "No space left on device" in text
        assert (await watched.ask()).websocket.port == 8000
        monkeypatch.undo()
        assert (await watched.set({"chat": {"websocket": {"port": 8001}}})).version == 2


async def test_what_needs_a_restart_says_so_until_it_is_set_back(state: Path) -> None:
    async with house(state) as watched:
        await watched.set({"chat": {"storage": {"type": "memory"}}})
        told = await watched.until(lambda snapshot: bool(snapshot.problems))
        assert told.problems == ["chat.storage.type: is changed; this counts when the service is started again"]
        watched.write("chat: {storage: {type: memory}}\nllm: {active: nobody}\n")
        told = await watched.until(lambda snapshot: len(snapshot.problems) == 3)
        watched.write("{}")
        await watched.until(lambda snapshot: not snapshot.problems)

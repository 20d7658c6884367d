"""The command line for the configuration: without a service, beside one, and what programs read of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import actors.watcher
from actors.configuration import RUNTIME, Configuration
from actors.layers import ConfigurationError
from protocol.errors import Code, Fault
from supervisors import config_commands
from supervisors.main import parser
from tests import forks
from tests.forks import MAIN
from tests.test_checks import DEFAULTS
from tests.watched import has_port, house, port

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def run(state: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code, standard output, standard error."""

    def command(*words: str) -> tuple[int, str, str]:
        arguments = parser().parse_args([*words, "--state", str(state)])
        code = arguments.command(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_check_says_what_would_be_in_force_and_makes_nothing(
    run: Run, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-planted")
    code, out, err = run("check")
    assert (code, err) == (0, "")
    assert "provider: openrouter (key from OPENROUTER_API_KEY)" in out.splitlines()
    assert "sk-planted" not in out
    assert "address: ws://127.0.0.1:8000/ws/chat" in out.splitlines()
    assert not state.exists()


def test_check_says_that_the_key_is_not_there(run: Run, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "")  # as good as not set, and it wins over the file
    state.mkdir()
    (state / ".env").write_text("OPENROUTER_API_KEY=1\nMINE_API_KEY=1\n")
    line = "provider: openrouter (no key: set OPENROUTER_API_KEY in the environment or .env)"
    assert line in run("check")[1].splitlines()
    mine = "llm: {active: mine, providers: {mine: {base_url: 'https://llm.example/v1', model: m}}}"
    (state / RUNTIME).write_text(mine)
    assert "provider: mine (key from MINE_API_KEY)" in run("check")[1].splitlines()


def test_check_tells_every_mistake_of_both_files_with_its_line(run: Run, state: Path) -> None:
    state.mkdir()
    (state / RUNTIME).write_text("chat:\n  websocket:\n    prot: 1\n")
    (state / "servers_config.json").write_text('{\n "mcpServers": {\n  "a": {"command": 7},\n  "b": {"x": 1}\n }\n}')
    (state / ".env").write_text("A_KEY=1\nANOTHER_KEY\n")
    code, out, err = run("check")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"warning: {RUNTIME}:3: chat.websocket.prot: is not known here and is ignored; is port meant?",
        "warning: servers_config.json:4: mcpServers.b.x: is not known here and is ignored",
        f"warning: {state / '.env'}:2: is not NAME=value, and was left out",
        "servers_config.json:3: mcpServers.a.command: must be text that is not empty (got 7); this server is left out",
        "servers_config.json:4: mcpServers.b: command is missing; this server is left out",
    ]
    (state / ".env").unlink()
    (state / RUNTIME).write_text("chat:\n  websocket:\n    port: x\n")
    code, out, err = run("check")
    line = f'{RUNTIME}:3: chat.websocket.port: must be a whole number from 0 to 65535 (got "x")'
    assert (code, out, err) == (1, "", f"{line}\n")
    code, out, _ = run("check", "--json")
    assert (code, json.loads(out)) == (1, {"errors": [line], "warnings": [], "in_force": {}})
    (state / RUNTIME).write_text("{}")
    (state / "servers_config.json").write_text("{")
    code, _, err = run("check")
    assert (code, err.startswith("servers_config.json:1:")) == (1, True)


def test_get_set_diff_history_and_rollback_without_a_service(run: Run, state: Path) -> None:
    assert run("config", "get", "llm.active") == (0, "openrouter\n", "")
    assert run("config", "get", "chat.websocket.port") == (0, "8000\n", "")
    assert run("config", "get", "llm.providers.openrouter.transforms") == (0, "- middle-out\n", "")
    assert run("config", "get", "chat.sessions") == (0, "default: latest\n", "")
    assert run("config", "set", "chat.websocket.port", "8080") == (0, "version 2 is in force\n", "")
    assert run("config", "set", "llm.providers.openrouter.top_p", "null", "--base-version", "2")[0] == 0
    assert run("config", "set", "llm.providers.openrouter.stop", "[a, 'b: c']")[0] == 0
    assert run("config", "set", "chat.service.system_prompt", "Be: short\n", "--text")[0] == 0
    assert run("config", "get", "chat.service.system_prompt") == (0, "Be: short\n", "")
    assert run("config", "diff") == (
        0,
        "chat.websocket.port: 8000 -> 8080\n"
        f"chat.service.system_prompt: {json.dumps(DEFAULTS.data['chat']['service']['system_prompt'])}"
        ' -> "Be: short\\n"\n'
        'llm.providers.openrouter.stop: null -> ["a", "b: c"]\n'
        "llm.providers.openrouter.top_p: 1.0 -> null\n",
        "",
    )
    out = run("config", "history")[1]
    assert [line.split()[::2] for line in out.splitlines()] == [
        ["5", "cli"],
        ["4", "cli"],
        ["3", "cli"],
        ["2", "cli"],
        ["1", "file"],
    ]
    said = (0, "version 6 is in force, with the content of version 2\n", "")
    assert run("config", "rollback", "2") == said
    assert run("config", "diff") == (0, "chat.websocket.port: 8000 -> 8080\n", "")
    # As JSON, for programs.
    assert json.loads(run("config", "get", "--json")[1])["version"] == 6
    assert json.loads(run("config", "get", "llm.active", "--json")[1]) == {"version": 6, "value": "openrouter"}
    assert json.loads(run("config", "diff", "--json")[1]) == [
        {"key": "chat.websocket.port", "default": 8000, "value": 8080}
    ]
    assert [row["version"] for row in json.loads(run("config", "history", "--json", "--limit", "2")[1])] == [6, 5]
    assert json.loads(run("config", "set", "chat.websocket.port", "1", "--json")[1]) == {"version": 7}


def test_what_does_not_work_says_why_and_changes_nothing(run: Run, state: Path) -> None:
    run("config", "set", "chat.websocket.port", "8080")
    before = (state / RUNTIME).read_bytes()
    for words, said in (
        (("set", "chat.websocket.port", "x"), "chat.websocket.port: must be a whole number"),
        (("set", "chat.websocket.prot", "1"), "is port meant?"),
        (("set", "chat", "{"), "value:1:2: the file ends inside"),
        (("set", "llm.providers.openrouter.api_key", "sk-planted"), "put it into the environment"),
        (("set", "chat.websocket.port", "1", "--base-version", "1"), "Read it again"),
        (("get", "chat.nothing"), "there is no chat.nothing"),
        (("rollback", "99"), "version 99 of the configuration is not kept"),
    ):
        code, out, err = run("config", *words)
        assert (code, out) == (1, "")
        assert said in err
        assert "planted" not in err
    assert (state / RUNTIME).read_bytes() == before
    (state / RUNTIME).write_text("chat: {")
    code, _, err = run("config", "set", "chat.websocket.port", "1")
    assert (code, err.startswith(f"{RUNTIME}:1:")) == (1, True)
    with pytest.raises(SystemExit) as raised:
        run("config")
    assert raised.value.code == 2


def test_a_state_directory_that_cannot_be_written_is_told(run: Run, state: Path) -> None:
    state.write_text("a file")
    code, _, err = run("config", "set", "chat.websocket.port", "1")
    assert code == 1
    assert "Not a directory" in err


def reset(monkeypatch: pytest.MonkeyPatch, state: Path) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["mcp-reset-config", "--state", str(state)])
    with pytest.raises(SystemExit) as raised:
        config_commands.reset()
    return raised.value.code


def test_the_reset_keeps_the_old_file(
    run: Run, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("config", "set", "chat.websocket.port", "8080")
    before = (state / RUNTIME).read_bytes()
    assert reset(monkeypatch, state) == 0
    assert capsys.readouterr().out == "version 3 is in force: the reference defaults\n"
    assert run("config", "diff") == (0, "", "")
    assert [path.read_bytes() for path in state.glob(f"{RUNTIME}.before-reset-*")] == [before]
    # Of a file that no one can read, too.
    (state / RUNTIME).write_bytes(b"\xff")
    assert reset(monkeypatch, state) == 0
    assert [path.read_bytes() for path in state.glob(f"{RUNTIME}.broken-*")] == [b"\xff"]
    assert run("check")[0] == 0


# Beside a running service.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.watcher, "POLL_S", 0.02)
    monkeypatch.setattr(actors.watcher, "SETTLED_S", 0.02)


async def outside(code: str, *words: str) -> tuple[int, str, str]:
    """A command in another process, while this one is the service."""
    done = await forks.run(code, *words)
    return done.code, done.out, done.err


SCRIPT = """
import sys
from actors.configuration import Configuration
config = Configuration(sys.argv[1])
current = config.get_config_dict()
current["chat"]["websocket"]["port"] = 9000
print(config.save_runtime_config(current), config.get_llm_config()["model"])
try:
    config.save_runtime_config({"chat": {"websocket": {"port": "x"}}})
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.seconds(60)
@pytest.mark.usefixtures("quick")
async def test_beside_a_service_everything_goes_through_it(state: Path) -> None:
    async with house(state) as watched:
        await watched.until(lambda _: True)
        at = ("--state", str(state))
        said = await outside(MAIN, "config", "set", "chat.websocket.port", "8001", *at)
        assert said == (0, "version 2 is in force\n", "")
        assert (await watched.ask()).websocket.port == 8001
        assert await outside(MAIN, "config", "get", "chat.websocket.port", *at) == (0, "8001\n", "")
        code, _, err = await outside(MAIN, "config", "set", "chat.websocket.port", "x", *at)
        assert (code, "must be a whole number" in err) == (1, True)
        # A script, as the seed has it: what it does not change is not undone, though it says it all.
        code, out, err = await outside(SCRIPT, str(state))
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == "3 openai/gpt-4o-mini"
        assert out.splitlines()[1].startswith("ConfigurationError given configuration: chat.websocket.port: must be")
        assert (await watched.until(has_port(9000))).version == 3
        code, out, _ = await outside(MAIN, "config", "history", *at)
        assert [line.split()[2] for line in out.splitlines()] == ["api", "cli", "file"]
        # Even out of a broken file.
        watched.write("chat: {")
        await watched.until(lambda snapshot: bool(snapshot.problems))
        code, out, _ = await outside("from supervisors.config_commands import reset; reset()", *at)
        assert (code, out) == (0, "version 4 is in force: the reference defaults\n")
        assert (await watched.until(has_port(8000))).problems == []


@pytest.mark.usefixtures("quick")
async def test_in_the_services_own_process_it_goes_by_the_file(state: Path) -> None:
    async with house(state) as watched:
        await watched.until(lambda _: True)
        configuration = Configuration(state)
        assert configuration.save_runtime_config({"chat": {"websocket": {"port": 9001}}}) == 2
        assert (await watched.until(has_port(9001))).version == 2
        assert [row.author for row in configuration.versions()] == ["api", "file"]


# The programmatic use.


def test_what_somebody_else_changed_meanwhile_is_not_undone(state: Path) -> None:
    one, other = Configuration(state), Configuration(state)
    config = one.get_config_dict()
    other.save_runtime_config({"chat": {"websocket": {"port": 1}}, "logging": {"level": "DEBUG"}})
    config["logging"]["level"] = "ERROR"
    assert one.save_runtime_config(config) == 3
    config = other.get_config_dict()
    assert (config["chat"]["websocket"]["port"], config["logging"]["level"]) == (1, "ERROR")
    # What one has saved himself can be set back by saying what was there before.
    config["logging"]["level"] = "INFO"
    assert other.save_runtime_config(config) == 4
    assert other.save_runtime_config(config) == 4


def test_a_save_takes_an_edit_as_a_version_of_its_own(state: Path) -> None:
    configuration = Configuration(state)
    configuration.save_runtime_config({"logging": {"level": "DEBUG"}})
    (state / RUNTIME).write_text(port(8123))
    assert configuration.save_runtime_config({"logging": {"level": "ERROR"}}) == 4
    rows = configuration.versions()
    assert [(row.author, row.changed) for row in rows[:2]] == [
        ("api", ["logging.level"]),
        ("file", ["chat.websocket.port", "logging.level"]),
    ]


@pytest.mark.parametrize("value", [object(), float("nan"), 2**70, {1: {2: {3}}} | {"x": object()}])
def test_values_that_no_file_can_hold_are_refused(state: Path, value: Any) -> None:
    configuration = Configuration(state)
    configuration.save_runtime_config({"logging": {"level": "DEBUG"}})
    before = (state / RUNTIME).read_bytes()
    with pytest.raises(ConfigurationError):
        configuration.save_runtime_config({"llm": {"providers": {"openrouter": {"x": value}}}})
    assert (state / RUNTIME).read_bytes() == before


def test_a_service_that_is_gone_is_not_waited_for(state: Path) -> None:
    state.mkdir()
    for left in ('{"socket": "/nonexistent/s", "token": "t", "pid": 1}', "{", "{}"):
        (state / "config_socket.json").write_text(left)
        assert Configuration(state).look("llm.active").config == {"llm": {"active": "openrouter"}}
    with pytest.raises(Fault) as raised:
        Configuration(state).look("no.such")
    assert raised.value.code == Code.NOT_FOUND

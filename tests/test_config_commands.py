"""The configuration from the command line: without a service, beside one, and what goes wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio

from supervisors import config_commands, main
from tests.fakes import say
from tests.service import of_type, service


def call(capsys: pytest.CaptureFixture[str], state: Path, *words: str) -> tuple[int, str, str]:
    """Run `actors-main WORDS --state STATE`: exit code, standard output, standard error."""
    arguments = main.parser().parse_args([*words, "--state", str(state)])
    code = arguments.command(arguments)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_get_set_diff_history_and_rollback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, tmp_path, "config", "get", "chat.service.max_tool_hops")[:2] == (0, "8\n")
    code, out, _ = call(capsys, tmp_path, "config", "set", "chat.service.max_tool_hops", "12")
    assert (code, "is in force" in out) == (0, True)
    assert call(capsys, tmp_path, "config", "get", "chat.service.max_tool_hops")[1] == "12\n"
    assert call(capsys, tmp_path, "config", "diff")[1] == "chat.service.max_tool_hops: 8 -> 12\n"
    code, out, _ = call(capsys, tmp_path, "config", "history", "--json")
    newest, *_, oldest = json.loads(out)
    assert (newest["author"], newest["changed"]) == ("cli", ["chat.service.max_tool_hops"])
    assert call(capsys, tmp_path, "config", "rollback", str(oldest["version"]))[0] == 0
    assert call(capsys, tmp_path, "config", "diff")[1] == ""
    assert json.loads(call(capsys, tmp_path, "config", "history", "--json")[1])[0]["version"] == newest["version"] + 1


def test_a_value_that_is_not_valid_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = call(capsys, tmp_path, "config", "get", "--json")
    code, out, err = call(capsys, tmp_path, "config", "set", "chat.websocket.port", "many")
    assert (code, out) == (1, "")
    assert "chat.websocket.port" in err
    code, _, err = call(capsys, tmp_path, "config", "set", "chat.service.max_tool_hops", "3", "--base-version", "77")
    assert code == 1
    assert call(capsys, tmp_path, "config", "get", "--json") == before
    assert call(capsys, tmp_path, "config", "get", "no.such.path")[0] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("chat:\n  websocket:\n    port: abc\n", "runtime_config.yaml:3: chat.websocket.port"),
        ("chat:\n\twebsocket: 1\n", "runtime_config.yaml:2"),
        ("chat: {websocket: {port: 1", "runtime_config.yaml"),
    ],
)
def test_check_names_file_line_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    (tmp_path / "runtime_config.yaml").write_text(text)
    code, _, err = call(capsys, tmp_path, "check")
    assert code == 1
    assert told in err
    assert "Traceback" not in err
    assert (tmp_path / "runtime_config.yaml").read_text() == text


def test_check_looks_at_the_servers_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "servers_config.json").write_text('{"mcpServers": {"a": {"command": 5}}}')
    code, _, err = call(capsys, tmp_path, "check")
    assert code == 1
    assert "servers_config.json:1" in err


def test_check_says_what_is_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, tmp_path, "check")
    assert code == 0
    assert "provider: openrouter (key from OPENROUTER_API_KEY)" in out
    assert "address: ws://127.0.0.1:8000/ws/chat" in out


def test_reset_keeps_the_old_file_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(capsys, tmp_path, "config", "set", "chat.service.max_tool_hops", "12")
    old = (tmp_path / "runtime_config.yaml").read_text()
    monkeypatch.setattr(sys, "argv", ["mcp-reset-config", "--state", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        config_commands.reset()
    assert ended.value.code == 0
    assert "reference defaults" in capsys.readouterr().out
    assert call(capsys, tmp_path, "config", "diff")[1] == ""
    kept = [path for path in tmp_path.glob("runtime_config.yaml.*") if path.read_text() == old]
    assert len(kept) == 1


async def test_beside_a_running_service_it_goes_through_it(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:

        async def run(*words: str) -> str:
            command = [sys.executable, "-m", "supervisors.main", *words, "--state", str(s.state)]
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout.decode()

        await run("config", "set", "llm.providers.fake.model", "fake-9")
        assert of_type(await client.until("config_changed"), "config_changed")
        assert (await client.say("hi"))[0]["model"] == "fake-9"
        newest = json.loads(await run("config", "history", "--json"))[0]
        assert (newest["author"], newest["changed"]) == ("cli", ["llm.providers.fake.model"])

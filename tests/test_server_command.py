from __future__ import annotations

import resource
import sys

import msgspec
import pytest

from actors.server_command import command_of
from actors.server_faults import Unusable
from protocol.watcher import McpServer, ServerLimits


def server(command: str = "python", cwd: str | None = None, **env: str) -> McpServer:
    return McpServer(
        name="x", enabled=True, command=command, args=["-V"], cwd=cwd, env=env, timeout=1.0, auto_reconnect=True,
        protocol="auto",
    )  # fmt: skip


def test_python_is_our_interpreter_and_other_commands_stay() -> None:
    assert command_of(server(), "/state", {}).argv == (sys.executable, "-V")
    assert command_of(server("python3"), "/state", {}).argv == ("python3", "-V")


@pytest.mark.parametrize(("cwd", "where"), [(None, "/state/"), ("sub", "/state/sub"), ("/abs", "/abs")])
def test_the_working_directory_is_within_the_state(cwd: str | None, where: str) -> None:
    assert command_of(server(cwd=cwd), "/state", {}).cwd == where


def test_a_server_gets_little_of_our_environment() -> None:
    environ = {"PATH": "/bin", "OPENROUTER_API_KEY": "sk-planted", "GITHUB_TOKEN": "ghp_planted"}
    command = command_of(server(TOKEN="${GITHUB_TOKEN}", LEVEL="${LEVEL:-info}"), "/state", environ)
    assert command.env == {"PATH": "/bin", "TOKEN": "ghp_planted", "LEVEL": "info"}
    assert "ghp_planted" in command.secrets
    assert "planted" not in repr(command)


def test_its_limits_are_those_of_its_process() -> None:
    limits = ServerLimits(line_bytes=1024, cpu_seconds=7, memory_mb=1)
    command = command_of(msgspec.structs.replace(server(), limits=limits), "/state", {})
    assert (command.line_cap, dict(command.rlimits)) == (1024, {resource.RLIMIT_CPU: 7, resource.RLIMIT_DATA: 2**20})
    assert command_of(server(), "/state", {}).rlimits == ()


def test_only_the_server_that_changes_the_configuration_is_told_how() -> None:
    ours = msgspec.structs.replace(server(), args=["-m", "Servers.config_server"])
    access = "/state/config_access.json"
    assert command_of(ours, "/state", {}, access).env == {"MCP_ACTORS_CONFIG_ACCESS": access}
    assert command_of(ours, "/state", {}).env == {}
    assert command_of(server(), "/state", {}, access).env == {}


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(Unusable, match=r"environment variable GITHUB_TOKEN for its `env.TOKEN`.*not set"):
        command_of(server(TOKEN="${GITHUB_TOKEN}"), "/state", {})


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(Unusable, match="has no command"):
        command_of(server(" "), "/state", {})

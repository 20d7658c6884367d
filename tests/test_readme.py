"""The README is true: its examples are run against a running service, its commands are the real ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from actors.configuration import markdown
from tests.fakes import say
from tests.forks import MAIN, run
from tests.service import service

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The first example in that language."""
    return str(re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[0])


async def run_example(command: list[str], code: str, tmp_path: Path) -> str:
    async with service(tmp_path, say("Hello", " there.")) as s:
        code = code.replace("ws://127.0.0.1:8000/ws/chat", s.url)
        assert s.url in code
        path = tmp_path / "example"
        path.write_text(code)
        done = await trio.run_process([*command, str(path)], capture_stdout=True, capture_stderr=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


async def test_the_python_example_runs(tmp_path: Path) -> None:
    out = await run_example([sys.executable], block("python"), tmp_path)
    assert out == "welcome\nHello there.\ncompleted\n"


async def test_the_javascript_example_runs(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: ASYNC221 - before anything runs
    major = int(version.lstrip("v").partition(".")[0])
    if major < 20:
        pytest.skip(f"node {version.strip()} has no WebSocket")
    flags = [] if major >= 22 else ["--experimental-websocket", "--no-warnings"]
    out = await run_example([node, *flags], block("javascript"), tmp_path)
    assert out == "Hello there.\ncompleted\n"


async def test_the_commands_of_the_readme_are_the_ones_of_the_command_line() -> None:
    done = await run(MAIN, "--help")
    for command in re.findall(r"^\| `actors-main \[?(\w+)", README, re.MULTILINE):
        assert command in done.out
    for option in set(re.findall(r"`actors-main \[run\] (.*?)`", README)[0].replace("[", "").replace("]", "").split()):
        if option.startswith("--"):
            assert option in done.out


def test_the_table_of_the_configuration_is_current() -> None:
    table = README.partition("<!-- made by: python -m actors.configuration table -->\n")[2].partition("<!-- end -->")[0]
    assert table.strip() == markdown().strip(), "python -m actors.configuration table"


async def test_the_programmatic_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Configuration" in code]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    done = await run(example, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "max_tool_hops: 12" in (tmp_path / "state" / "runtime_config.yaml").read_text()


def test_the_two_commands_are_there() -> None:
    assert "uv run --extra local actors-main" in README
    assert "uv run pytest" in README
    assert "uv run pytest" in (ROOT / ".ci" / "run").read_text()

"""The child process of an MCP server: framing, ends, environment. Real processes."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors.server_faults import ServerEnded, Unusable
from actors.stdio import Command, Lines, TooLong, running

ODD = str(Path(__file__).with_name("odd_servers.py"))
ENV = {"PATH": os.environ["PATH"]}


def python(code: str, *arguments: str, secrets: tuple[str, ...] = ()) -> Command:
    return Command(name="x", argv=(sys.executable, "-c", code, *arguments), cwd="/", env=ENV, secrets=secrets)


def the(kind: type[Exception], group: BaseException) -> str:
    """The text of the first error of that type in a group."""
    found = group.subgroup(kind) if isinstance(group, BaseExceptionGroup) else group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert found is not None
    return str(found)


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=5), st.data())
def test_lines_come_out_whole_whatever_the_chunks(lines: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    framing, cap = Lines(cap=20), 20
    found = [
        line for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True) for line in framing.feed(raw[start:end])
    ]
    assert found == [line if len(line) <= cap else TooLong(line, len(line)) for line in lines]


def test_a_line_over_the_cap_keeps_its_head_and_its_size_only() -> None:
    framing = Lines(cap=1000)
    for _ in range(10):
        assert framing.feed(b"0123456789" * 100) == []
    (line, following) = framing.feed(b"\nnext\n")
    assert line == TooLong((b"0123456789" * 100)[:512], 10_000)
    assert following == b"next"


async def test_what_is_written_comes_back() -> None:
    async with running(python("import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)")) as process:
        await process.write(b"hello\n")
        assert await process.lines() == [b"HELLO"]


async def test_a_death_is_noticed_when_nobody_reads_or_writes() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(python("import sys; sys.exit('no license found')")):
            await trio.sleep_forever()
    assert the(ServerEnded, caught.value) == "MCP server 'x' ended with exit code 1. Its last words: no license found"


async def test_a_signal_is_named() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(python("import os; os.kill(os.getpid(), 9)")):
            await trio.sleep_forever()
    assert "was ended by SIGKILL. It wrote nothing" in the(ServerEnded, caught.value)


async def test_a_server_that_closes_its_output_has_ended() -> None:
    code = "import os, time\nos.close(1)\ntime.sleep(60)"

    async def read_on() -> None:
        async with running(python(code)) as process:
            while True:
                await process.lines()

    with pytest.raises(BaseExceptionGroup) as caught:
        await read_on()
    assert "closed its standard output" in the(ServerEnded, caught.value)


async def test_last_words_hold_no_secret() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(python("import sys; sys.exit('bad token s3cr3t-token!')", secrets=("s3cr3t-token",))):
            await trio.sleep_forever()
    assert "bad token ***!" in the(ServerEnded, caught.value)


async def test_a_flood_on_standard_error_blocks_nothing_and_only_its_end_is_kept() -> None:
    code = "import sys\nfor _ in range(300): sys.stderr.write('e' * 65536)\nprint('ready', flush=True)\ninput()"
    async with running(python(code)) as process:
        assert await process.lines() == [b"ready"]
        assert len(process._tail) <= 2 * 65536
        assert process.last_words(most=10**9).count("e") >= 65536 / 2


@pytest.mark.parametrize(("mode", "leader_lives"), [("forking", False), ("stubborn", True)])
async def test_the_whole_group_is_gone_at_the_end(mode: str, leader_lives: bool, tmp_path: Path) -> None:
    told = tmp_path / "grandchild"
    command = Command("x", (sys.executable, ODD, mode, str(told)), "/", ENV)
    async with running(command) as process:
        # It answers after it forked.
        await process.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        assert await process.lines()
        grandchild = os.pidfd_open(int(told.read_text()))
    try:
        await trio.lowlevel.wait_readable(grandchild)  # readable: dead
    finally:
        os.close(grandchild)
    assert process.exit_code == (-9 if leader_lives else 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_the_end_comes_also_when_cancelled() -> None:
    with trio.CancelScope() as scope:
        async with running(python("import time; time.sleep(60)")) as process:  # outlives the test, unless ended
            scope.cancel()
            await trio.sleep_forever()
    assert process.exit_code is not None


async def test_what_it_may_use_is_limited_from_its_start() -> None:
    code = "input()\ntry: bytearray(10**9)\nexcept MemoryError: print('no memory', flush=True)\ninput()"
    limits = ((resource.RLIMIT_CPU, 50), (resource.RLIMIT_DATA, 2**28))
    async with running(replace(python(code), rlimits=limits)) as process:
        assert resource.prlimit(process.pid, resource.RLIMIT_CPU) == (50, 51)
        await process.write(b"\n")
        assert await process.lines() == [b"no memory"]


@pytest.mark.parametrize(
    ("argv", "cwd", "says"),
    [
        (("surely-not-installed",), "/", "'surely-not-installed' was not found"),
        ((sys.executable,), "/surely/not/there", "working directory '/surely/not/there' does not exist"),
        ((sys.executable, "a\0b"), "/", "could not be started"),
    ],
)
async def test_what_cannot_start_says_what_to_correct(argv: tuple[str, ...], cwd: str, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        async with running(Command("x", argv, cwd, ENV)):
            pass


async def test_a_command_that_is_no_program_says_so(tmp_path: Path) -> None:
    (tmp_path / "server").write_text("not a program")
    with pytest.raises(Unusable, match="may not be executed; make it executable"):
        async with running(Command("x", (str(tmp_path / "server"),), "/", ENV)):
            pass

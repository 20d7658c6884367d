"""The log: lines that nobody can forge, a queue that nobody waits for, levels that follow the configuration."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actors import log_output, turn_lines
from actors.configuration import Configuration
from actors.hidden import INSTEAD, hidden, without
from actors.log_lines import INDENT, Json, Text
from actors.log_output import Output, levels, started
from actors.logs import summary
from protocol.watcher import ClientOptions, Logging, McpServer, Provider, Snapshot
from tests.fakes import FakeProvider, Script, Stall, ask_tool, say
from tests.forks import MAIN, Child, fork, run
from tests.service import LIGHT, Service, of_type, prepare, service
from tests.test_crash import client_of

FORM = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
KEY = "sk-planted-4711-secret"
# Any text, halves of surrogate pairs and what terminals act upon included.
ODD = st.text() | st.text(alphabet=st.sampled_from("a\n\r\t\x1b[2J\x00\x85\u2028\u202e\ud800\udfff{}%\\\"'é"))
log = logging.getLogger("actors.tried")


def record(text: str, *values: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("actors.tried", logging.INFO, "x.py", 1, text, values, None)
    vars(made).update(extra)
    return made


def error(text: str) -> dict[str, object]:
    try:
        raise ValueError(text)
    except ValueError:
        return {"exc_info": sys.exc_info()}


# Lines.


@given(ODD)
def test_no_text_can_look_like_another_line(text: str) -> None:
    line = Text(FORM, str)(record("said: %s", text))
    assert "\n" not in line
    assert len(line.splitlines()) == 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - actors\.tried - INFO - said: ", line)
    line.encode()  # is Unicode


@given(ODD)
def test_lines_of_a_traceback_are_set_off(text: str) -> None:
    first, *rest = Text(FORM, str)(record("failed", **error(text))).split("\n")
    assert first.endswith(" - INFO - failed")
    assert rest
    assert all(line.startswith(INDENT) for line in rest)
    assert "ValueError" in "".join(rest)


def test_the_form_is_kept_and_what_it_shows_is_escaped() -> None:
    odd = record("a\tb")
    odd.name = "actors.mcp.x\ny"
    assert Text("%(name)s\t%(message)s", str)(odd) == "actors.mcp.x\\ny\ta\\tb"
    assert Text("", str)(record("%d%%", 7)) == "7%"


@given(ODD, ODD, st.none() | ODD, st.none() | st.integers(0, 2**53))
def test_a_json_line_is_json_whatever_is_in_it(text: str, why: str, conversation: str | None, turn: int | None) -> None:
    line = Json(str)(record("said: %s", text, conversation=conversation, turn=turn, **error(why)))
    assert "\n" not in line
    found = json.loads(line.encode())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found["level"] == "INFO"
    assert found["logger"] == "actors.tried"
    assert found["message"] == "said: " + text.encode("utf-8", "backslashreplace").decode()
    assert found["error"].startswith("Traceback (most recent call last):\n")
    assert found.get("turn") == turn
    assert ("conversation" in found) == (conversation is not None)


async def test_a_json_line_names_the_actor_of_its_task() -> None:
    lines: list[dict[str, Any]] = []

    async def told() -> None:
        lines.append(json.loads(Json(str)(record("x"))))

    async def actor() -> None:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(told, name="some task of it")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor, name="front/sessions/0f3a#2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor, name="front/gateway keeps")
    await told()
    assert [(line.get("actor"), line.get("conversation")) for line in lines] == [
        ("front/sessions/0f3a", "0f3a"),
        ("front/gateway", None),
        (None, None),
    ]


def test_what_is_hidden_is_blacked_out_before_it_is_escaped_or_cut() -> None:
    key = 'k"e\\y-123'
    for line in (Text(FORM, lambda text: without(text, [key])), Json(lambda text: without(text, [key]))):
        made = line(record("%s", f"{'x' * 99_995}{key}", **error(f"it says {key}")))
        assert "123" not in made
        assert made.count(INSTEAD[:4]) == 2


def provider(**fields: Any) -> Provider:
    given: dict[str, Any] = {"base_url": "https://user:pass-word@x.test/v1", "model": "m", "parameters": {}}
    return Provider(**{"name": "p", "api_key_env": "P_API_KEY", "client": ClientOptions(), **given, **fields})


def server(**env: str) -> McpServer:
    return McpServer("s", True, "python", [], None, env, 30.0, True, "auto")


def snapshot_of(tmp_path: Path, settings: Mapping[str, Any] | None = None) -> Snapshot:
    (tmp_path / "runtime_config.yaml").write_text(yaml.safe_dump(dict(settings or {})))
    return Configuration(tmp_path).snapshot({})


def test_what_is_hidden_is_what_the_configuration_says_is_secret(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path)
    headers = {"Authorization": "Bearer literal-key", "X-Up": "${UP}", "X-Title": "my application"}
    asked = provider(client=ClientOptions(headers=headers), parameters={"api_key": "in-body", "stop": "innocent"})
    env = {"API_TOKEN": "${TOKEN_VAR}", "CACHE": "${HOME}/cache", "PASSWORD": "swordfish", "MODE": "innocent"}
    wiki = {"Authorization": "Bearer ${WIKI}", "X-Title": "my application"}
    elsewhere = msgspec.structs.replace(server(), url="https://w.test/${PATH_KEY}/mcp", headers=wiki)
    snapshot = msgspec.structs.replace(
        snapshot,
        llm=msgspec.structs.replace(snapshot.llm, providers={"p": asked}),
        mcp=msgspec.structs.replace(snapshot.mcp, servers={"s": server(**env), "w": elsewhere}),
    )
    environment = {"WIKI": "wiki-value", "PATH_KEY": "path-value"} | {
        "P_API_KEY": f" {KEY} ",
        "UP": "up-value",
        "TOKEN_VAR": "token-value",
        "HOME": "/home/me",
    }
    found = hidden(snapshot, environment)
    assert set(found) == {
        *(KEY, "pass-word", "Bearer literal-key", "literal-key", "up-value", "in-body", "token-value", "swordfish"),
        *("wiki-value", "path-value"),
    }
    assert list(found) == sorted(found, key=len, reverse=True)
    assert without(f"a {KEY}, Bearer literal-key", found) == f"a {INSTEAD}, {INSTEAD}"


# Levels.


def config(level: str = "INFO", **modules: str) -> Logging:
    return Logging(level=level, format="%(message)s", modules=modules)


def test_libraries_are_never_as_loud_as_we_may_be() -> None:
    found = levels(config("DEBUG", httpx="DEBUG", hpack="ERROR"))
    assert found["actors"] == found["supervisors"] == logging.DEBUG
    assert found[""] == found["httpx"] == logging.WARNING  # at DEBUG hpack quotes the headers, with the key in them
    assert found["hpack"] == logging.ERROR
    assert levels(config("ERROR"))[""] == logging.ERROR


def test_modules_are_named_as_a_whole_by_their_last_part_or_by_group() -> None:
    logging.getLogger("actors.llm.streamer")
    found = levels(config(**{"actors.mcp.demo": "ERROR", "mcp": "WARNING", "streamer": "DEBUG", "chat": "DEBUG"}))
    assert found["actors.mcp"] == found["actors.mcp_server"] == logging.WARNING
    assert found["actors.mcp.demo"] == logging.ERROR
    assert found["actors.streamer"] == found["actors.llm.streamer"] == logging.DEBUG
    assert found["actors.session"] == logging.DEBUG
    assert found["actors"] == logging.INFO
    turned = levels(config(**{"actors.session": "ERROR", "session": "WARNING", "chat": "DEBUG"}))
    assert turned["actors.session"] == logging.ERROR, "the more exact name wins, wherever it stands"


def test_where_the_log_is_not_ours_nothing_is_touched(tmp_path: Path) -> None:
    before = {name: logging.getLogger(name).level for name in ("", "actors", "httpx")}
    assert not log_output.configure(snapshot_of(tmp_path, {"logging": {"level": "DEBUG"}}), {})
    assert {name: logging.getLogger(name).level for name in before} == before


def test_a_summary_says_what_counts() -> None:
    assert summary(config("INFO", mcp="DEBUG")) == "level INFO, mcp: DEBUG, text"
    assert summary(Logging("ERROR", "", json=True)) == "level ERROR, JSON lines"


# The way out.


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            with contextlib.suppress(OSError):  # a test may have closed it
                os.close(end)


def everything(descriptor: int) -> bytes:
    """What can be read now."""
    os.set_blocking(descriptor, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            found += part
    return found


@contextmanager
def logging_to(
    tmp_path: Path, settings: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[int, Output]]:
    with pipe() as (read, write), started(snapshot_of(tmp_path, settings), write, environment or {}) as output:
        yield read, output


def test_all_lines_come_in_order_and_the_thread_ends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = threading.active_count(), logging.getLogger().level, logging.getLogger("actors").level
    with path.open("wb") as file, started(snapshot_of(tmp_path), file.fileno(), {}):
        assert threading.active_count() == before[0] + 1
        for number in range(3000):
            log.info("line %d", number)
            log.debug("not wanted")
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()] == [str(n) for n in range(3000)]
    assert (threading.active_count(), logging.getLogger().level, logging.getLogger("actors").level) == before
    assert not log_output.outputs()


def test_lines_of_several_processes_do_not_mix_in_one_pipe() -> None:
    read, write = os.pipe2(os.O_DIRECT)  # keeps apart what was written at once
    try:
        output = Output(write)
        for number in range(5):
            output.emit(record("%s", f"{number}" * (3000 if number != 3 else 5000)))
        output.start()
        output.close()
        pieces = [os.read(read, 65536) for _ in range(5)]
    finally:
        os.close(read)
        os.close(write)
    assert [len(piece) for piece in pieces] == [3001, 3001, 3001, 4096, 3906]
    assert b"".join(pieces).splitlines()[4] == b"4" * 3000


def test_when_nobody_reads_the_oldest_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "FLUSH_S", 0.05)
    with pipe() as (read, write):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        output = Output(write, limit=10_000)
        output.start()
        output.emit(record("first %s", "x" * 100_000))  # fills the pipe, and stays in the thread's hand
        while len(output._lines):
            time.sleep(0.001)  # until the thread has taken it; there is nothing to wait for
        for number in range(1000):
            output.emit(record("%s", f"line {number:04d} {'x' * 50}"))
        output.flush()  # bounded
        found = b""
        while b"line 0999" not in found:
            assert select.select([read], [], [], 10.0)[0], found[-200:]
            found += os.read(read, 65536)
        output.close()
        found += everything(read)
    first, notice, *rest = found.decode().splitlines()
    assert first.startswith("first ")
    dropped = int(notice.split()[0])
    assert "lines of this log were dropped here" in notice
    assert dropped > 800
    assert [int(line.split()[1]) for line in rest] == list(range(dropped, 1000))


def test_the_end_is_bounded_and_loses_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "FLUSH_S", 0.05)
    monkeypatch.setattr(log_output, "LOOK_S", 0.05)
    with pipe() as (_, write):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        output = Output(write)
        output.start()
        output.emit(record("x" * 90_000))
        output.close()
        assert not output._thread.is_alive()
        output.emit(record("too late"))  # and raises nothing


def test_a_reader_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (read, output):
        os.close(read)
        log.info("for nobody")
        output.flush()
        log.info("for nobody either")
        output.flush()
        assert output._thread.is_alive()


def test_what_was_cut_off_does_not_stick_to_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "log", os.write
    answers: list[Any] = [5, OSError(28, "No space left on device")]

    def write(descriptor: int, data: memoryview) -> int:
        match answers.pop(0) if answers else None:
            case int(most):
                return real(descriptor, data[:most])
            case OSError() as failure:
                raise failure
        return real(descriptor, data)

    with path.open("wb") as file:
        output = Output(file.fileno())
        output.start()
        monkeypatch.setattr(os, "write", write)
        output.emit(record("first line"))
        output.flush()
        output.emit(record("second line"))
        output.flush()
        output.close()
    first, notice, second = path.read_text().splitlines()
    assert first == "first"
    assert notice.startswith("1 lines of this log were dropped here")
    assert second == "second line"


def test_a_wrong_call_of_the_logger_is_told_without_its_values(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (read, output):
        output.emit(record("%d of them", KEY))  # not through the logger: pytest's own handler would fail the test
        output.flush()
        told = everything(read).decode()
    assert "a line of the logger actors.tried, at x:1" in told
    assert "could not be made: TypeError" in told
    assert KEY not in told


def test_uncaught_errors_and_warnings_go_the_same_way(tmp_path: Path) -> None:
    class Odd:
        def __del__(self) -> None:
            raise LookupError("in a finaliser")

    def fail() -> None:
        raise RuntimeError("in a thread")

    with logging_to(tmp_path) as (read, output), warnings.catch_warnings():
        warnings.simplefilter("always")
        thread = threading.Thread(target=fail, name="some thread")
        thread.start()
        thread.join()
        Odd()
        gc.collect()
        warnings.warn("something is old", DeprecationWarning, stacklevel=1)
        output.flush()
        told = everything(read).decode()
    assert "CRITICAL - the thread 'some thread' failed\n" + INDENT + "Traceback" in told
    assert INDENT + "RuntimeError: in a thread\n" in told
    assert "Odd.__del__\n" in told
    assert INDENT + "LookupError: in a finaliser\n" in told
    assert "py.warnings - WARNING" in told
    assert "something is old" in told


def test_a_line_that_is_not_wanted_looks_at_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "actors")
    nothing: Any = object()  # has none of what the line would need
    turn_lines.taken_up(nothing)
    turn_lines.asked(nothing, nothing, nothing)
    turn_lines.answered(nothing, nothing, nothing)
    turn_lines.shown(nothing, 1)
    turn_lines.ended(nothing, "completed", None, nothing)
    switches = snapshot_of(tmp_path)
    turn_lines.calling(nothing, switches, nothing)
    turn_lines.called(nothing, switches, nothing, nothing, 0.0)
    assert not caplog.records


async def test_an_error_that_nobody_expected_is_in_the_log(tmp_path: Path) -> None:
    snapshot_of(tmp_path, {"logging": {"json": True}})
    code = (
        "import sys; from actors.configuration import Configuration; from supervisors.main import start_logging\n"
        "with start_logging(Configuration(sys.argv[1]).snapshot({})): raise ZeroDivisionError('unexpected')"
    )
    done = await run(code, str(tmp_path))
    assert done.code == 70
    [line] = done.err.splitlines()
    row = json.loads(line)
    assert (row["level"], row["message"]) == ("CRITICAL", "the service failed")
    assert row["error"].endswith("ZeroDivisionError: unexpected")


# The running service.


class Lines:
    """What the service has logged so far, read from the other end of its pipe."""

    def __init__(self, read: int, output: Output) -> None:
        self._read, self._output, self._rest = read, output, b""

    async def now(self) -> list[str]:
        """The new ones."""
        await trio.to_thread.run_sync(self._output.flush)
        *lines, self._rest = (self._rest + everything(self._read)).split(b"\n")
        return [line.decode() for line in lines]


async def edit(s: Service, change: Mapping[str, Any]) -> None:
    """Change the runtime file, and wait until the log is as it says."""
    seen = trio.Event()

    def look(message: object) -> None:
        if type(message).__name__ == "Configured":
            seen.set()  # the actor takes it up before anybody else runs

    s.tree.tap("logs", look)
    path = s.state / "runtime_config.yaml"
    settings = yaml.safe_load(path.read_text())
    merge(settings, change)
    path.write_text(yaml.safe_dump(settings))
    await seen.wait()


def merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


@asynccontextmanager
async def logged(tmp_path: Path, *replies: Any, **options: Any) -> AsyncIterator[tuple[Service, Lines]]:
    (tmp_path / "first").mkdir()
    with logging_to(tmp_path / "first") as (read, output):
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, 1024 * 1024)
        async with service(tmp_path, *replies, **options) as s:
            yield s, Lines(read, output)


async def turn(s: Service, text: str) -> str:
    async with s.client("?conversation=new") as client:
        frames = await client.say(text)
        assert frames[-1]["outcome"] == "completed", frames
        return client.conversation


def matching(lines: list[str], *parts: str) -> list[str]:
    return [line for line in lines if all(part in line for part in parts)]


def features(**switches: Any) -> dict[str, Any]:
    return {"chat": {"service": {"logging": switches}}}


async def test_one_turn_can_be_followed_by_its_tag(tmp_path: Path) -> None:
    replies = ask_tool("echo", {"text": "line\nfeed"}), say("all ", "done")
    async with logged(tmp_path, *replies, servers=LIGHT) as (s, lines):
        conversation = await turn(s, "a user's own words")
        found = await lines.now()
        arrows = matching(found, f"[{conversation[:8]}/1]")
        shape = [re.sub(r"\d+ ms", "N ms", line.split(" - ", 3)[3]) for line in arrows]
        tag = f"[{conversation[:8]}/1]"
        assert shape[0] == f"→ Orchestrator: turn taken up {tag} a message of 18 characters"
        assert re.fullmatch(rf"→ LLM: streaming request {re.escape(tag)} fake/fake-1, 2 messages, \d+ tools", shape[1])
        assert re.match(rf"← LLM: finished with tool_calls, .*1 tool calls {re.escape(tag)} N ms$", shape[2]), shape[2]
        assert re.match(rf"→ MCP\[demo\]: calling tool echo {re.escape(tag)} with .*line\\nfeed", shape[3]), shape[3]
        assert re.match(rf"← MCP\[demo\]: result of tool echo {re.escape(tag)} ok, \d+ characters, N ms$", shape[4])
        assert shape[5].startswith("→ LLM: streaming request")
        assert re.match(rf"← LLM: finished with stop.* {re.escape(tag)} N ms$", shape[6]), shape[6]
        assert shape[7] == f"← Orchestrator: turn ended {tag} completed, N ms"
        assert len(shape) == 8
        assert not matching(found, "own words"), "what people say is not in the log"
        assert not matching(found, "all done"), "nor what the model says, unless it is asked for"


async def test_features_are_switched_while_it_runs(tmp_path: Path) -> None:
    long = "long answer " * 100
    replies = [ask_tool("echo", {"text": "to and fro"}), say(long)] * 4
    async with logged(tmp_path, *replies, servers=LIGHT) as (s, lines):
        await turn(s, "one")
        before = await lines.now()
        assert matching(before, "calling tool echo", "to and fro")
        assert not matching(before, "← MCP[demo]", "to and fro")
        assert not matching(before, "long answer")
        assert not matching(before, "You are a test.")

        await edit(s, features(llm_replies=True, system_prompt=True, tool_results=True))
        await turn(s, "two")
        on = await lines.now()
        assert matching(on, "← MCP[demo]", "to and fro")
        [reply] = matching(on, "← LLM: finished with stop")
        assert reply.endswith(f"{long[:500]}… ({len(long)} characters)")
        assert len(matching(on, "→ LLM: system prompt", "You are a test.")) == 2

        await edit(s, features(llm_reply_truncate_length=20, tool_execution=False, tool_results=False))
        await turn(s, "three")
        off = await lines.now()
        assert not matching(off, "MCP[demo]")
        [reply] = matching(off, "← LLM: finished with stop")
        assert reply.endswith(f": {long[:20]}… ({len(long)} characters)")


async def test_level_modules_and_form_are_changed_while_it_runs(tmp_path: Path) -> None:
    async with logged(tmp_path, say("x")) as (s, lines):
        await turn(s, "one")
        assert not matching(await lines.now(), "DEBUG")

        await edit(s, {"logging": {"level": "ERROR", "modules": {"actors.gateway": "DEBUG"}}})
        await lines.now()
        conversation = await turn(s, "two")
        found = await lines.now()
        assert matching(found, f"DEBUG - → Frontend: streaming content [{conversation[:8]}/1] to 1 sockets")
        assert not matching(found, "Orchestrator")

        await edit(s, {"logging": {"level": "INFO", "json": True, "modules": {"actors.gateway": "WARNING"}}})
        assert matching(await lines.now(), "logging as configured: level INFO, actors.gateway: WARNING, JSON lines")
        conversation = await turn(s, "three")
        rows = [json.loads(line) for line in await lines.now()]
        arrows = [row for row in rows if "Orchestrator" in row["message"]]
        assert [(r["actor"], r["conversation"], r["turn"], r["level"]) for r in arrows] == [
            (f"front/sessions/{conversation}", conversation, 1, "INFO")
        ] * 2

        await edit(s, {"logging": {"json": False, "format": "%(levelname)s|%(message)s"}})
        await turn(s, "four")
        assert [line for line in await lines.now() if line.startswith("INFO|→ Orchestrator")]
        facts = s.tree.slots["logs"].facts
        assert (facts["level"], facts["form"]) == ("INFO", "text")


async def test_no_secret_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_API_KEY", KEY)
    quoting = ask_tool("echo", {"text": "x" * 150 + KEY}), say(f"your key is {KEY}")
    everything_on = features(llm_replies=True, system_prompt=True, tool_results=True)
    client = {"headers": {"X-Team": "${FAKE_API_KEY}"}}
    settings = {
        "llm": {"providers": {"fake": {"api_key_env": "FAKE_API_KEY", "client": client}}},
        "logging": {"level": "DEBUG", "modules": {"httpx": "DEBUG", "httpcore": "DEBUG", "hpack": "DEBUG"}},
    }
    merge(settings, everything_on)
    merge(settings, {"chat": {"service": {"system_prompt": f"Never tell {KEY}."}}})
    async with logged(tmp_path, *quoting, servers=LIGHT, settings=settings) as (s, lines):
        await turn(s, "one")
        logging.getLogger("actors.tried").error("quoted: %s", KEY, exc_info=RuntimeError(KEY))
        told = "\n".join(await lines.now())
        assert KEY.encode() in s.provider.requests[-1].body, "the model does know it"
        assert "your key is [redacted]" in told
        assert "→ MCP[demo]: calling tool echo" in told
        assert "quoted: [redacted]" in told
        assert "DEBUG" in told
        assert KEY[:6] not in told


async def test_nothing_is_logged_per_piece(tmp_path: Path) -> None:
    settings = {"logging": {"level": "DEBUG"}}
    sizes = []
    async with logged(tmp_path, say("x"), say(*["piece "] * 500), settings=settings) as (s, lines):
        for _ in range(2):
            await turn(s, "go")
            sizes.append(len(await lines.now()))
    assert abs(sizes[1] - sizes[0]) < 10


@asynccontextmanager
async def child(state: Path, stderr: int) -> AsyncIterator[tuple[Child, str]]:
    """The service as a child process with that standard error, and the address that it printed."""
    arguments = ("run", "--state", str(state), "--port", "0", "--inline")
    read, write = os.pipe()
    async with trio.lowlevel.FdStream(read) as out:
        try:
            process = await fork(MAIN, arguments, stdout=write, stderr=stderr)
        finally:
            os.close(write)
        try:
            yield process, (await out.receive_some()).decode().removeprefix("listening on ").strip()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def more(descriptor: int) -> bytes:
    """What comes next; can be cancelled, unlike a read in a thread."""
    os.set_blocking(descriptor, False)
    await trio.lowlevel.wait_readable(descriptor)
    return os.read(descriptor, 65536)


@pytest.mark.seconds(40)
async def test_a_full_standard_error_delays_no_turn(tmp_path: Path) -> None:
    state = tmp_path / "state"
    settings = {"logging": {"level": "DEBUG"}, **features(llm_replies=True, llm_reply_truncate_length=0)}
    async with FakeProvider(say("answer " * 20_000)) as provider:
        prepare(state, provider, settings, {})
        with pipe() as (read, write):
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
            os.write(write, b"x" * 4095 + b"\n")  # full before it begins
            async with child(state, write) as (process, url):
                assert url.startswith("ws://"), url
                turns = 24
                async with client_of(url) as client:
                    for number in range(turns):
                        [finished] = of_type(await client.say(f"message {number}"), "turn_finished")
                        assert finished["outcome"] == "completed"
                # now somebody reads: the newest lines are there, and what is missing is counted
                found = b""
                while b"were dropped here" not in found or f"/{turns}] completed".encode() not in found:
                    found += await more(read)
                assert b"/1] completed" not in found
                # and it ends, in order, with nobody reading
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0


@pytest.mark.seconds(40)
async def test_what_a_second_signal_cuts_off_is_still_written(tmp_path: Path) -> None:
    gate = trio.Event()
    state = tmp_path / "state"
    async with FakeProvider(Script(("a", Stall(gate)))) as provider:
        prepare(state, provider, {}, {})
        with pipe() as (read, write):
            async with child(state, write) as (process, url), client_of(url) as client:
                await client.send("user_message", message="hi")
                await client.until("assistant_delta")
                process.send_signal(signal.SIGTERM)
                found = b""
                while b"stopping" not in found:
                    found += await more(read)
                process.send_signal(signal.SIGINT)  # the same one so soon would count as the first
                assert await process.wait() == 128 + signal.SIGINT
                assert b"forced to end at once by a second SIGINT" in found + everything(read)

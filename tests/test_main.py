"""The command line as real processes: what it prints, refuses and leaves; how it stops; what a stranger reads."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from protocol.mail import Mailbox
from protocol.spec import Child, Context, Group
from supervisors.main import parser
from supervisors.service import Stop, live
from supervisors.systemd import Manager
from tests.fakes import FakeProvider, Script, Stall, fail, say
from tests.mcp_house import ODD
from tests.program import Program, outcome, outcomes, program
from tests.service import LIGHT, prepare

Frame = dict[str, Any]
RECEIVE_S = 15.0  # a thread that waits cannot be cancelled
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - [\w.]+ - [A-Z]+ - ")


class Foreign:
    """A client by a library that we did not write, in threads."""

    def __init__(self, websocket: websockets.sync.client.ClientConnection) -> None:
        self.websocket = websocket

    async def send(self, type: str, **fields: Any) -> None:
        await trio.to_thread.run_sync(self.websocket.send, json.dumps({"type": type, **fields}))

    async def next(self) -> Frame:
        frame: Frame = json.loads(await trio.to_thread.run_sync(self.websocket.recv, RECEIVE_S))
        return frame

    async def until(self, type: str) -> list[Frame]:
        frames = [await self.next()]
        while frames[-1]["type"] != type:
            frames.append(await self.next())
        return frames

    async def say(self, text: str) -> list[Frame]:
        await self.send("user_message", message=text)
        return await self.until("turn_finished")

    async def closed(self) -> int | None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.next()
        return self.websocket.close_code


@asynccontextmanager
async def foreign(url: str) -> AsyncIterator[Foreign]:
    """A client that has been welcomed."""
    connecting = websockets.sync.client.connect(url, max_size=None)
    client = Foreign(await trio.to_thread.run_sync(connecting.__enter__))
    try:
        await client.until("welcome")
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(connecting.__exit__, None, None, None)


def http_of(url: str, path: str) -> str:
    return url.replace("ws://", "http://").replace("/ws/chat", path)


async def get(url: str, path: str) -> tuple[int, bytes]:
    def fetch() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(http_of(url, path), timeout=10) as answer:  # noqa: S310 - our own loopback address
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    return await trio.to_thread.run_sync(fetch)


def at(folder: Path, provider: FakeProvider | None = None, servers: Frame | None = None, **service: Any) -> list[str]:
    """The arguments of a service below that folder, in one process: several take three times as long to start."""
    return ["--inline", *several_at(folder, provider, servers, **service)]


def several_at(
    folder: Path, provider: FakeProvider | None = None, servers: Frame | None = None, **service: Any
) -> list[str]:
    """The same, in the processes of the default."""
    settings = {"chat": {"service": service}}
    prepare(folder, provider or "http://127.0.0.1:9/v1", settings, servers or {})
    return ["--state", str(folder), "--port", "0"]


async def stopped(p: Program, number: int = signal.SIGTERM) -> None:
    """It ends in order, and nothing of it is left."""
    p.remember_children()
    p.signal(number)
    assert await p.ended() == 0, p.log
    await p.nothing_left()
    assert "Traceback" not in p.log


async def test_it_says_where_it_listens_takes_turns_and_tells_how_it_is(tmp_path: Path) -> None:
    async with FakeProvider(say("Hello", " there.")) as provider:
        arguments = at(tmp_path, provider, LIGHT)
        async with program("run", *arguments, "--host", "127.0.0.1", fresh=True) as p:
            url = await p.listening()
            port = url.rpartition(":")[2].partition("/")[0]
            assert url == f"ws://127.0.0.1:{port}/ws/chat"
            async with foreign(url) as client:
                assert (await client.say("hi"))[-1]["outcome"] == "completed"

                state = ["--state", str(tmp_path)]
                other = [*at(tmp_path / "other"), "--port", port]
                status, as_json, again, there = await outcomes(
                    ["status", *state], ["status", "--json", *state], arguments, other
                )
                shows_status(status, p.pid)
                code, out, err = as_json
                assert (code, err) == (0, "")
                assert json.loads(out)["children"][0]["path"] == "watcher"
                refused(again, ["a service runs already", str(tmp_path), "actors-main status"])
                refused(there, [f"cannot listen on 127.0.0.1:{port}", "in use", "--port"])
                assert len(p.remember_children()) == 1  # the demo server
                await stopped(p)
                assert await client.closed() == 1001
        assert p.out == f"listening on {url}\n"
        assert all(LOG_LINE.match(line) for line in p.log.splitlines()), p.log
        assert not (tmp_path / "service.json").exists()
        code, out, err = await outcome("status", "--state", str(tmp_path))
        assert (code, out) == (1, "")
        assert "no service runs with the state directory" in err


def shows_status(outcome: tuple[int, str, str], pid: int) -> None:
    code, out, err = outcome
    assert (code, err) == (0, "")
    assert out.startswith("mcp-actors  running for ")
    assert f"pid {pid}" in out.splitlines()[0]
    for name in ("watcher", "writer", "streamer", "demo", "gateway"):
        assert re.search(rf"─ {name}  running for ", out), out
    assert "!" not in out


def refused(outcome: tuple[int, str, str], says: list[str], code: int = 1) -> None:
    """It ended with that code and one clear line."""
    found, out, err = outcome
    assert (found, out) == (code, ""), err
    assert err.startswith("actors-main: ")
    assert err.count("\n") == 1, err
    for text in says:
        assert text in err


async def test_what_cannot_be_started_is_refused_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "stale").mkdir()
    (tmp_path / "stale" / "service.json").write_text('{"pid": 999999999, "host": "127.0.0.1", "port": 1}')
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "service.json").write_text("[]")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        (tmp_path / "taken").mkdir()
        port = busy.getsockname()[1]
        (tmp_path / "taken" / "service.json").write_text(
            json.dumps({"pid": os.getpid(), "host": "127.0.0.1", "port": port})
        )

        def answer() -> None:  # somebody else's program has the port now
            with busy.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        def state(name: str) -> list[str]:
            return ["--state", str(tmp_path / name)]

        anybody = "0.0.0.0"  # noqa: S104 - it is refused
        cases: list[tuple[list[str], list[str]]] = [
            (["--state", str(tmp_path / "file")], ["cannot be made", "File exists", "--state DIR"]),
            (["--state", str(tmp_path / "file" / "below")], ["cannot be made", "Not a directory", "--state DIR"]),
            ([*state("c"), "--port", "99999"], ["chat.websocket.port", "0 to 65535", "99999"]),
            ([*state("d"), "--host", ""], ["chat.websocket.host", "empty"]),
            (
                [*state("b"), "--host", anybody],
                ["0.0.0.0 can be reached from other machines", "allow_unauthenticated"],
            ),
            ([*state("e"), "--host", "a" * 300], ["can be reached from other machines"]),
            (["status", *state("x")], ["no service runs", str(tmp_path / "x")]),
            (["status", "--state", str(tmp_path / "stale")], ["no service runs", "999999999", "by force"]),
            (["status", "--state", str(tmp_path / "odd")], ["no service runs", "Expected `object`"]),
            (["status", "--state", str(tmp_path / "taken")], [f"127.0.0.1:{port} does not say how it is"]),
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, answer)
            found = await outcomes(*(arguments for arguments, _ in cases))
        for result, (_, says) in zip(found, cases, strict=True):
            refused(result, says)


async def test_the_help_says_what_there_is() -> None:
    commands = (("--help",), ("run", "--help"), ("status", "--help"), ("walk",), ("--port", "x"))
    results = dict(zip(map(" ".join, commands), await outcomes(*commands), strict=True))
    for asked, words in {
        "--help": ["--state DIR", "--host HOST", "--port PORT", "run the service", "status"],
        "run --help": ["--state DIR", "--port PORT", "0 for any free one"],
        "status --help": ["--state DIR", "--json"],
    }.items():
        code, out, err = results[asked]
        assert (code, err) == (0, "")
        assert all(word in out for word in words), out
    for asked, word in {"walk": "invalid choice: 'walk'", "--port x": "invalid int value: 'x'"}.items():
        code, out, err = results[asked]
        assert (code, out) == (2, "")
        assert word in err


async def test_it_starts_although_no_server_does(tmp_path: Path) -> None:
    servers = {
        "silent": {"command": "python", "args": [ODD, "silent"]},
        "exits": {"command": "python", "args": [ODD, "exits"]},
        "missing": {"command": "no-such-command-here"},
    }
    async with FakeProvider(say("fine")) as provider, program(*at(tmp_path, provider, servers)) as p:
        async with foreign(await p.listening()) as client:
            assert (await client.say("hi"))[-1]["outcome"] == "completed"
        await p.logged("no-such-command-here")
        _, out, _ = await outcome("status", "--state", str(tmp_path))
        assert re.search(r"! missing  parked.*\n.*no-such-command-here", out), out
        assert "silent" in out
        assert "! mcp/missing is down: " in out
        await p.logged("exit code 4")
        await stopped(p)


# Stops.


async def test_sigterm_lets_a_running_turn_end(tmp_path: Path) -> None:
    gate = trio.Event()
    async with FakeProvider(Script(("a", Stall(gate))) + say("b").items) as provider:
        async with program(*several_at(tmp_path, provider, drain_s=60)) as p:
            url = await p.listening()
            async with foreign(url) as client:
                await client.send("user_message", message="hi")
                await client.until("assistant_delta")
                p.signal(signal.SIGTERM)
                await p.logged("SIGTERM: stopping; running turns get 60 s")
                refusal = await get_until(url, 503)
                assert json.loads(refusal)["reasons"] == ["the service is shutting down"]
                await client.send("user_message", message="one more", request_id="late")
                error = (await client.until("error"))[-1]
                assert (error["error_code"], error["request_id"]) == ("SHUTTING_DOWN", "late")
                assert (await get(url, "/healthz"))[0] == 200
                gate.set()
                frames = await client.until("turn_finished")
                assert frames[-1]["outcome"] == "completed"
                assert await client.closed() == 1001
                assert await p.ended() == 0
                assert "Traceback" not in p.log
                assert "interrupted" not in p.log


async def get_until(url: str, status: int) -> bytes:
    while (found := await get(url, "/readyz"))[0] != status:
        pass
    return found[1]


async def test_sigint_interrupts_a_turn_that_does_not_end_in_the_time_that_is_configured_by_then(
    tmp_path: Path,
) -> None:
    async with FakeProvider(Script(("a", Stall()))) as provider:
        async with program(*at(tmp_path, provider, drain_s=60)) as p:
            async with foreign(await p.listening()) as client:
                await client.send("user_message", message="hi")
                await client.until("assistant_delta")
                at(tmp_path, provider, drain_s=0.5)
                await client.until("config_changed")
                p.signal(signal.SIGINT)
                await p.logged("SIGINT: stopping; running turns get 0.5 s")
                p.signal(signal.SIGINT)  # one stop that comes twice does not force
                frames = await client.until("turn_finished")
                assert frames[-1]["outcome"] == "interrupted"
                assert await client.closed() == 1001
                assert await p.ended() == 0
                assert "1 turns did not end in time and are kept as interrupted" in p.log
                assert "forced" not in p.log
                assert "Traceback" not in p.log


async def test_a_second_signal_forces(tmp_path: Path) -> None:
    async with FakeProvider(Script(("a", Stall()))) as provider:
        async with program(*several_at(tmp_path, provider, LIGHT, drain_s=60)) as p:
            async with foreign(await p.listening()) as client:
                await client.send("user_message", message="hi")
                await client.until("assistant_delta")
                assert p.remember_children()
                p.signal(signal.SIGTERM)
                await p.logged("stopping")
                p.signal(signal.SIGINT)
                assert await p.ended() == 128 + signal.SIGINT
                await p.nothing_left()
                assert "forced to end at once by a second SIGINT" in p.log
                assert "Traceback" not in p.log


async def test_a_second_signal_forces_while_a_server_does_not_end(tmp_path: Path) -> None:
    servers = {"odd": {"command": "python", "args": [ODD, "stubborn", str(tmp_path / "pid")]}}
    async with program(*at(tmp_path / "state", servers=servers)) as p:
        url = await p.listening()
        await p.children(2)  # it and its own child, which ignores everything
        p.signal(signal.SIGTERM)
        while await connects(url):  # the front stops first, then the server is told to end, and does not
            pass
        p.signal(signal.SIGINT)
        assert await p.ended() == 128 + signal.SIGINT
        await p.nothing_left()


async def connects(url: str) -> bool:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", int(url.split(":")[2].partition("/")[0])):
            return True
    except OSError:
        return False


async def test_a_signal_in_the_start_ends_it() -> None:
    signals, number = trio.open_memory_channel[int](1)

    async def never_ready(box: Mailbox[Any], ctx: Context) -> None:
        signals.send_nowait(signal.SIGTERM)
        await trio.sleep_forever()

    stop = Stop(1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop.obey, number)
        assert (
            await live(
                Group("root", (Child("slow", never_ready, shutdown_s=0.1),)), [], stop, "ws://nowhere", Manager({})
            )
            == 0
        )
        nursery.cancel_scope.cancel()


async def test_children_end_with_a_service_that_is_killed(tmp_path: Path) -> None:
    async with program(*at(tmp_path, None, LIGHT)) as p:
        await p.listening()
        await p.children(1)
        p.signal(signal.SIGKILL)
        assert await p.ended() == -signal.SIGKILL
        await p.nothing_left()
        code, _, err = await outcome("status", "--state", str(tmp_path))
        assert code == 1
        assert "no service runs" in err
    async with program(*at(tmp_path)) as p:  # what it left is in nobody's way
        await p.listening()
        await stopped(p)


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="without the extra `local`")
async def test_the_local_model_ends_with_a_service_that_is_killed(tmp_path: Path) -> None:
    provider = {"base_url": "https://example.invalid/v1", "model": "m"}
    settings = {"llm": {"active": "nokey", "providers": {"nokey": provider}}}
    prepare(tmp_path, "http://127.0.0.1:9/v1", settings, {})
    async with program("--inline", "--state", str(tmp_path), "--port", "0", env={"NOKEY_API_KEY": ""}) as p:
        await p.listening()
        await p.children(1)
        p.signal(signal.SIGKILL)
        await p.ended()
        await p.nothing_left()


@pytest.mark.parametrize("number", ["0", "-1", "257", "100000", "many", ""])
def test_a_number_of_fronts_that_cannot_be_meant_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        parser().parse_args([f"--fronts={number}"])
    assert refusal.value.code == 2
    assert f"argument --fronts: must be a whole number from 1 to 256 (got {number!r})" in capsys.readouterr().err
    assert parser().parse_args(["--fronts", "256"]).fronts == 256


# What a stranger reads.

SERVERS_NO_JSON = '{"mcpServers": {"a": '
BROKEN: dict[str, tuple[str, list[str]]] = {
    "a wrong type": ("chat:\n  service:\n    max_tool_hops: many\n", ["max_tool_hops", ":3"]),
    "a tab": ("chat:\n\tservice: {}\n", ["runtime_config.yaml:2", "tab"]),
    "a truncated file": ('chat:\n  service:\n    system_prompt: "You', ["runtime_config.yaml:3"]),
}


@pytest.mark.parametrize(("text", "says"), BROKEN.values(), ids=BROKEN)
async def test_broken_configuration_is_shown_and_the_service_starts(tmp_path: Path, text: str, says: list[str]) -> None:
    at(tmp_path)
    (tmp_path / "runtime_config.yaml").write_text(text)
    (tmp_path / "servers_config.json").write_text(SERVERS_NO_JSON)
    (tmp_path / ".env").write_text("GROQ_API_KEY: pasted\n")
    async with program("--inline", "--state", str(tmp_path), "--port", "0", env={"OPENROUTER_API_KEY": "planted"}) as p:
        url = await p.listening()
        status, body = await get(url, "/readyz")
        notes = json.loads(body)["notes"]
        code, out, _ = await outcome("status", "--state", str(tmp_path))
        assert (status, code) == (200, 0)
        await stopped(p)
        for where in (p.log, "\n".join(notes), out):
            assert all(word in where for word in [*says, ".env:1: is not NAME=value"]), where
            assert "pasted" not in where


def database_is_a_folder(state: Path) -> list[str]:
    (state / "chat_history.db").mkdir()
    return ["chat_history.db", "Is a directory", "name another db_path"]


def database_is_no_database(state: Path) -> list[str]:
    (state / "chat_history.db").write_bytes(b"this is no database at all" * 400)
    return ["chat_history.db", "is not a SQLite database", "Put a backup in its place"]


@pytest.mark.parametrize("spoil", [database_is_a_folder, database_is_no_database])
async def test_a_store_that_does_not_open_is_told_and_nothing_is_promised(
    tmp_path: Path, spoil: Callable[[Path], list[str]]
) -> None:
    arguments = at(tmp_path)
    says = spoil(tmp_path)
    async with program(*arguments) as p:
        await p.logged("no turns can be taken")
        code, out, err = await outcome("status", "--state", str(tmp_path))
        assert (code, err) == (0, "")
        assert "! writer  parked" in out
        assert "! not ready: " in out
        await stopped(p)
        assert p.out == ""
        for where in (p.log, out):
            assert all(word in where for word in says), where


UNWRITABLE = "/sys/kernel"  # not even root may make a file there


@pytest.mark.skipif(not Path(UNWRITABLE).is_dir(), reason="no /sys on this machine")
async def test_a_state_directory_that_cannot_be_written_is_told() -> None:
    async with program("--inline", "--state", UNWRITABLE, "--port", "0") as p:
        await p.logged("no turns can be taken")
        await stopped(p)
        assert p.out == ""
        assert "/sys/kernel/chat_history.db cannot be opened" in p.log


async def test_a_secret_is_nowhere(tmp_path: Path) -> None:
    secret = "sk-planted-0123456789abcdefghijklmnop"
    replies = (
        fail(401, f"Incorrect API key provided: {secret}"),
        fail(400, f"bad request with header Authorization: Bearer {secret}"),
        fail(500, f"{secret} crashed us"),
        Script((f'data: {{"error": {{"message": "key {secret} expired"}}}}\n\n'.encode(),)),
        Script((f"<html>{secret}</html>".encode(),), content_type="text/html"),
        say("fine"),
    )
    async with FakeProvider(*replies) as provider:
        fake = {"base_url": provider.base_url, "model": "m", "api_key_env": "PLANTED_KEY", "client": {"retries": 0}}
        settings = {"llm": {"providers": {"fake": fake}}, "logging": {"level": "DEBUG"}}
        servers = {"odd": {"command": "python", "args": [ODD, "exits"], "env": {"TOKEN": "${PLANTED_TOKEN}"}}}
        state = tmp_path / "state"
        prepare(state, provider, settings, servers)
        keys = {"PLANTED_KEY": secret, "PLANTED_TOKEN": f"{secret}-too"}
        async with program("--state", str(state), "--port", "0", env=keys) as p:
            url = await p.listening()
            async with foreign(url) as client:
                frames = [frame for _ in replies for frame in await client.say("hi")]
                assert [f["outcome"] for f in frames if f["type"] == "turn_finished"] == ["failed"] * 5 + ["completed"]
                await p.logged("no config file found")
                shown = [(await get(url, path))[1].decode() for path in ("/status", "/readyz", "/")]
                shown.append((await outcome("status", "--state", str(state)))[1])
                p.signal(signal.SIGTERM)
                assert await p.ended() == 0
                shown += [json.dumps(frames), p.log, p.out]
        assert all(asked.headers["authorization"] == f"Bearer {secret}" for asked in provider.requests)
    shown += [path.read_bytes().decode("latin-1") for path in state.rglob("*") if path.is_file()]
    for text in shown:
        where = text.find(secret)
        assert where < 0, text[max(0, where - 200) : where + 100]

"""The terminal client against the whole product: in this trio run, as a child in a pipe, as a child at a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from rich.console import Console

from supervisors.chat import FAILED, address_of, ask_once
from supervisors.chat_client import INTERRUPTED, Client
from supervisors.chat_commands import COMMANDS, Quit, Refused, Room
from supervisors.chat_link import Unreachable
from supervisors.chat_screen import Screen
from supervisors.chat_terminal import entered, follow, tell
from supervisors.main import parser
from tests import forks
from tests.fakes import Script, Stall, ask_tool, fail, say
from tests.forks import CHAT, MAIN, ROOT, Child
from tests.service import LIGHT, Service, front_of, service
from tests.test_server_asks import asking
from tests.test_server_requests import FORM, PAGE

ENVIRONMENT = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(ROOT)}
WORDS = [f"w{number} " for number in range(1, 201)]


def arguments(s: Service, *options: str) -> list[str]:
    return ["chat", "--url", f"ws://127.0.0.1:{s.port}", *options]


# In this trio run.


class Here:
    """A client without a terminal: what it prints is in `out`."""

    def __init__(self, s: Service, wanted: str = "new") -> None:
        self.client = Client(lambda: s.url, wanted)
        self.talk = self.client.talk
        self.out = io.StringIO()
        console = Console(file=self.out, width=200, highlight=False, markup=False, emoji=False, color_system=None)
        self.screen = Screen(console)
        self.room = Room(self.talk, self.client.link, self.screen, self.client.changes)

    async def enter(self, line: str) -> str:
        """Type a line; what it printed."""
        while not self.talk.in_step:
            await self.client.changes.wait()
        self.out.truncate(self.out.seek(0))
        await entered(line, self.room)
        await follow(self.client, self.screen)
        tell(self.client, self.screen)
        return "\n".join(line.rstrip() for line in self.out.getvalue().splitlines() if line.strip())

    async def run(self, body: Callable[[], Awaitable[None]]) -> int:
        return await self.client.run(body)


async def test_a_conversation(tmp_path: Path) -> None:
    replies = (ask_tool("add", {"a": 2, "b": 40}, text=("Let me ", "see.")), say("It is ", "**42**."), fail(401))
    async with service(tmp_path, *replies, servers=LIGHT) as s:
        here = Here(s)

        async def body() -> None:
            shown = await here.enter("2 + 40?")
            assert shown.splitlines() == [
                f"new conversation {here.talk.conversation} · /help",
                "Let me see.",
                *shown.splitlines()[2:4],
                "It is 42.",
                "fake-model · 36 tokens (22 in, 14 out)",
            ]
            assert shown.splitlines()[2].startswith('✓ add (demo) {"a": 2, "b": 40} ')
            assert "42" in shown.splitlines()[3]
            shown = await here.enter("//not a command")
            assert "refused our key" in shown
            assert "Check the provider's key" in shown
            assert s.provider.requests[-1].json["messages"][-1]["content"] == "/not a command"

        assert await here.run(body) == 0


async def test_lost_connections_lose_and_double_nothing(tmp_path: Path) -> None:
    async with service(tmp_path, say(*WORDS), interval=0.002) as s:
        here = Here(s)
        lost = 0

        async def cut() -> None:
            nonlocal lost
            while True:
                before = here.talk.position
                while not here.talk.in_step or here.talk.position == before:
                    await here.client.changes.wait()
                for socket in tuple(front_of(s).sockets.values()):
                    socket.close(1012, "elsewhere")
                    lost += 1

        async def body() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut)
                shown = await here.enter("go")
                nursery.cancel_scope.cancel()
            assert re.findall(r"w\d+", shown) == [word.strip() for word in WORDS]
            assert lost > 1
            assert "not kept" not in shown

        await here.run(body)
        assert len(s.provider.requests) == 1


async def test_a_message_said_without_a_connection_is_sent_once_there_is_one(tmp_path: Path) -> None:
    async with service(tmp_path, say("one"), say("two")) as s:
        here = Here(s)

        async def body() -> None:
            assert "one" in await here.enter("first")
            [socket] = front_of(s).sockets.values()
            socket.close(1012, "elsewhere")
            while here.talk.in_step:
                await here.client.changes.wait()
            here.talk.say("second")
            assert "two" in await here.enter("")
            assert [m["content"] for m in s.provider.requests[1].json["messages"][1:]] == ["first", "one", "second"]

        await here.run(body)


async def test_what_others_say_is_shown_with_its_question(tmp_path: Path) -> None:
    async with service(tmp_path, say("mine"), say("theirs")) as s:
        here = Here(s)

        async def body() -> None:
            await here.enter("me")
            async with s.client(f"?conversation={here.talk.conversation}") as other:
                await other.say("and me")
            shown = await here.enter("")
            assert shown.splitlines()[:2] == ["> and me", "theirs"]

        await here.run(body)


async def test_commands(tmp_path: Path) -> None:
    async with service(tmp_path, say("first answer"), say("second answer")) as s:
        here = Here(s)

        async def body() -> None:
            await here.enter("first question")
            first = here.talk.conversation
            for name in COMMANDS:
                assert name in await here.enter("/help")
            assert "connected" in await here.enter("/status")
            assert await here.enter("/history") == "> first question\nfirst answer"
            assert "new conversation" in await here.enter("/new")
            assert here.talk.conversation != first
            assert await here.enter("/history") == "nothing was said yet"
            with pytest.raises(Refused, match="no command /nothing"):
                await here.enter("/nothing")
            with pytest.raises(Refused, match="one line"):
                await here.enter("/model\n/new")
            with pytest.raises(Refused, match="nothing to save"):
                await here.enter("/save it")
            with pytest.raises(Refused, match="name is missing"):
                await here.enter("/save")
            with pytest.raises(Refused, match="missing"):
                await here.enter("/load")
            with pytest.raises(Quit):
                await here.enter("/quit")

        await here.run(body)


async def test_saved_conversations(tmp_path: Path) -> None:
    async with service(tmp_path, say("first answer"), say("second answer")) as s:
        here = Here(s)

        async def body() -> None:
            await here.enter("first question")
            if "save_session" not in here.talk.capabilities:
                with pytest.raises(Refused, match="does not know `save_session`"):
                    await here.enter("/save mine")
                return
            first = here.talk.conversation
            assert "saved as mine" in await here.enter("/save mine")
            assert "mine" in await here.enter("/sessions")
            await here.enter("/new")
            for wanted in ("1", "mine", here.room.saves[0].saved_id):
                shown = await here.enter(f"/load {wanted}")
                assert shown.splitlines()[1:] == ["> first question", "first answer"]
                assert here.talk.conversation != first
            assert "second answer" in await here.enter("second question")
            asked = s.provider.requests[-1].json["messages"][1:]
            assert [m["content"] for m in asked] == ["first question", "first answer", "second question"]
            with pytest.raises(Refused):
                await here.enter("/load nothing-like-it")

        await here.run(body)


async def test_the_model_is_shown_and_changed(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        here = Here(s)

        async def body() -> None:
            await here.enter("hi")
            if "get_config" not in here.talk.capabilities:
                with pytest.raises(Refused, match="does not know `get_config`"):
                    await here.enter("/model")
                return
            assert await here.enter("/model") == "fake-1 of fake"
            assert "fake-2 of fake" in await here.enter("/model fake-2")
            assert await here.enter("/model") == "fake-2 of fake"
            await here.enter("hi")
            assert s.provider.requests[-1].json["model"] == "fake-2"

        await here.run(body)


@pytest.mark.parametrize(("reply", "code"), [(say("ok"), 0), (fail(401), FAILED)])
async def test_one_message_has_an_exit_code(tmp_path: Path, reply: Script, code: int) -> None:
    async with service(tmp_path, reply) as s:
        client = Client(lambda: s.url, "new", 5.0)
        assert await client.run(partial(ask_once, client, "hi")) == code


async def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        gone = s.url
    client = Client(lambda: gone, "")
    await client.run(partial(ask_once, client, "hi"))
    assert client.link.failure.startswith("there is no connection to the service at 127.0.0.1:")
    assert client.link.failure.endswith("Connection refused")


def test_addresses(tmp_path: Path) -> None:
    instance = tmp_path / "service.json"
    assert address_of(instance, "ws://h:1")() == "ws://h:1/ws/chat"
    assert address_of(instance, "https://h/other")() == "wss://h/other"
    for wrong in ("h:1", "ftp://h", "ws://", ""):
        with pytest.raises(Unreachable, match="not the address"):
            address_of(instance, wrong)
    with pytest.raises(Unreachable, match="no service runs"):
        address_of(instance, None)
    instance.write_text(json.dumps({"pid": 1, "host": "0.0.0.0", "port": 8}))  # noqa: S104 - it is looked at only
    where = address_of(instance, None)
    assert where() == "ws://127.0.0.1:8/ws/chat"
    instance.write_text(json.dumps({"pid": 1, "host": "[::1]", "port": 9, "endpoint": "/talk"}))
    assert where() == "ws://[::1]:9/talk"


def test_the_command_line_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["chat", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--state", "--url", "--conversation"):
        assert option in shown


def test_its_libraries_are_loaded_for_it_only() -> None:
    names = ("rich", "prompt_toolkit", "trio_websocket")
    code = f"import sys, supervisors.main; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=20, check=True
    )
    assert done.stdout.strip() == "[]"


# A child in a pipe.


async def piped(s: Service, message: str) -> tuple[int, str, str]:
    done = await forks.run(MAIN, *arguments(s), stdin=message.encode(), load=CHAT, env=ENVIRONMENT)
    return done.code, done.out, done.err


async def test_in_a_pipe_the_answer_comes_out_as_it_is(tmp_path: Path) -> None:
    async with service(tmp_path, say("# no *Mark", "down*\n\n\tas it is"), fail(500)) as s:
        assert await piped(s, "two\nlines\n") == (0, "# no *Markdown*\n\n\tas it is\n", "")
        assert s.provider.requests[0].json["messages"][-1]["content"] == "two\nlines"
        code, out, error = await piped(s, "hi")
        assert (code, out) == (FAILED, "")
        assert error.startswith("actors-main chat: ")
        assert "\n" in error.strip(), "the hint has a line of its own"


async def test_a_conversation_that_is_not_there(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        client = Client(lambda: s.url, "nothing-like-it")
        await client.run(partial(ask_once, client, "hi"))
        assert "no such conversation" in client.link.failure
        assert not s.provider.requests


async def test_ctrl_c_in_a_pipe_stops_the_turn(tmp_path: Path) -> None:
    async with service(tmp_path, Script(("so far ", Stall()))) as s:
        (its_in, our_in), (our_out, its_out) = os.pipe(), os.pipe()
        os.write(our_in, b"hi")
        os.close(our_in)
        async with trio.lowlevel.FdStream(our_out) as stdout:
            process = await forks.fork(MAIN, arguments(s), stdin=its_in, stdout=its_out, load=CHAT, env=ENVIRONMENT)
            os.close(its_in)
            os.close(its_out)
            out = b""
            while b"so far" not in out:
                out += await stdout.receive_some()
            process.send_signal(signal.SIGINT)
            while part := await stdout.receive_some():
                out += part
            assert await process.wait() == INTERRUPTED
        assert out == b"so far \n"
        await (await s.provider.request(1)).abandoned.wait()


# A child at a terminal.


class Terminal:
    """A child at a pseudo terminal, which is its controlling one."""

    def __init__(self, master: int, slave: int, process: Child) -> None:
        self.master = master
        self.slave = slave
        self.process = process
        self.screen = ""
        """What was written and not looked at yet, without escape sequences."""

    async def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    async def until(self, text: str) -> str:
        """What was written up to that text."""
        while text not in self.screen:
            await trio.lowlevel.wait_readable(self.master)
            written = os.read(self.master, 65536).decode("utf-8", "replace")
            self.screen += re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>78])", "", written)
        before, _, self.screen = self.screen.partition(text)
        return before

    async def prompt(self) -> None:
        """Until there is a prompt that can be typed at."""
        await self.until("\r>")

    def mode(self) -> list[object]:
        return termios.tcgetattr(self.slave)[:4]


@asynccontextmanager
async def terminal(s: Service, *options: str) -> AsyncIterator[Terminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = await forks.fork(
        MAIN,
        arguments(s, *options),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        load=CHAT,
        env=ENVIRONMENT,
        terminal=True,
    )
    try:
        yield Terminal(master, slave, process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        os.close(master)
        os.close(slave)


async def test_at_a_terminal_ctrl_c_stops_the_turn_and_not_the_client(tmp_path: Path) -> None:
    async with service(tmp_path, Script(("Once upon ", Stall())), say("the ", "next")) as s, terminal(s) as t:
        before = t.mode()
        await t.prompt()
        await t.type("tell me\r")
        await t.until("Once upon")
        await t.type("\x03")
        await t.until("stopped")
        await (await s.provider.request(1)).abandoned.wait()
        await t.prompt()
        await t.type("and then\r")
        assert "the next" in await t.until("tokens")
        await t.prompt()
        await t.type("\x04")
        assert await t.process.wait() == 0
        assert t.mode() == before


async def test_at_a_terminal_the_person_is_asked_whether_a_tool_may_be_called(tmp_path: Path) -> None:
    replies = (ask_tool("add", {"a": 2, "b": 40}), say("first"), ask_tool("add", {"a": 1, "b": 1}), say("second"))
    rules = {"chat": {"tools": {"policy": {"add": "ask"}}}}
    async with service(tmp_path, *replies, servers=LIGHT, settings=rules) as s, terminal(s) as t:
        await t.prompt()
        await t.type("go\r")
        choices = "n: no\r\n>"  # and the prompt below
        assert '{"a": 2, "b": 40}?' in await t.until(choices)
        await t.type("perhaps\r")
        await t.until(choices)
        await t.type("y\r")
        assert "42" in await t.until("first")
        await t.prompt()
        await t.type("again\r")
        await t.until(choices)
        async with s.client() as elsewhere:
            await elsewhere.until("approval_request")
            name = elsewhere.seen[-1]["approval_id"]
            await elsewhere.send("approve", approval_id=name, decision="deny")
            await t.until("settled elsewhere")
            await t.until("second")
        await t.prompt()
        await t.type("\x04")
        assert await t.process.wait() == 0


async def test_at_a_terminal_the_person_answers_what_a_server_asks(tmp_path: Path) -> None:
    asks = (ask_tool("ask", {"requests": {"form": FORM}}), say("first"), ask_tool("ask", {"requests": {"page": PAGE}}))
    async with service(tmp_path, *asks, say("second"), servers=asking("newer")) as s, terminal(s) as t:
        await t.prompt()
        await t.type("go\r")
        needs = "/no: decline)\r\n>"
        assert "ask asks: Who?" in await t.until(needs)
        await t.type("\r")
        await t.until("this is needed")
        await t.until(needs)
        await t.type("Ada\r")
        await t.until("first")
        await t.prompt()
        assert '"content": {"name": "Ada"}' in s.provider.requests[1].json["messages"][-1]["content"]
        await t.type("again\r")
        assert "https://a.example/b" in await t.until("n: no\r\n>")
        await t.type("n\r")
        await t.until("second")
        await t.prompt()
        assert '"action": "decline"' in s.provider.requests[3].json["messages"][-1]["content"]
        await t.type("\x04")
        assert await t.process.wait() == 0


async def test_at_a_terminal_a_second_ctrl_c_leaves_and_the_answer_goes_on(tmp_path: Path) -> None:
    async with service(tmp_path, Script(("Once upon ", Stall()))) as s, terminal(s) as t:
        before = t.mode()
        await t.prompt()
        await t.type("tell me\r")
        await t.until("Once upon")
        for socket in front_of(s).sockets.values():
            socket.paused = True  # the service shows nothing any more: the turn's end is not seen
        await t.type("\x03")
        await t.until("stopping")
        await t.type("\x03")
        assert await t.process.wait() == INTERRUPTED
        assert t.mode() == before


async def test_at_a_terminal_what_is_typed_outlives_a_lost_connection(tmp_path: Path) -> None:
    async with service(tmp_path) as s, terminal(s) as t:
        before = t.mode()
        await t.prompt()
        await t.type("\x1b[200~pasted\rlines\x1b[201~\x1b\rand typed")
        await t.until("typed")
        [socket] = front_of(s).sockets.values()
        socket.close(1012, "elsewhere")
        await t.until("connected again")
        await t.until("typed")
        await t.type(" more\r")
        await t.until("tokens")
        assert s.provider.requests[0].json["messages"][-1]["content"] == "pasted\nlines\nand typed more"
        await t.prompt()
        t.process.terminate()
        assert await t.process.wait() == 128 + signal.SIGTERM
        assert t.mode() == before


async def test_at_a_terminal_ctrl_c_at_the_prompt_leaves(tmp_path: Path) -> None:
    async with service(tmp_path) as s, terminal(s) as t:
        await t.prompt()
        await t.type("half a line\x03")
        assert await t.process.wait() == 0
        assert not s.provider.requests

"""MCP servers that others wrote, driven through our actor: connect, list, call, cancel, and nothing left.

`.ci/servers` installs them, each in an environment of its own; what is not there is skipped. Each is started
once for all that is asked of it.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from actors import server_requests
from actors.elicitation import checked
from protocol.mcp_server import (
    AnswerQuestion,
    AnswerSampling,
    CancelCall,
    Catalogue,
    CompleteArgument,
    GetPrompt,
    ReadResource,
    ResourceUpdated,
    SamplingRequest,
    SubscribeResource,
    ToolProgress,
    UnsubscribeResource,
    UserQuestion,
)
from protocol.watcher import McpServer
from tests.conftest import ROOT
from tests.mcp_house import House, house, names, odd


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not say when a person is done at an address."""
    monkeypatch.setattr(server_requests, "VISIT_S", 0.05)


LONG = "trigger-long-running-operation"


def real(name: str, *args: str, **more: Any) -> McpServer:
    """The server of that name; skips where it is not installed."""
    return odd("", name=name, command=program(name), args=[*args], **more)


def program(name: str) -> str:
    folder = ROOT / ".servers" / name
    if not (folder / ".installed").is_file():
        pytest.skip(f"the MCP server {name!r} is not installed; run .ci/servers")
    [found] = [*folder.glob("node_modules/.bin/mcp-server-*"), *folder.glob("bin/mcp-server-*")]
    return str(found)


async def tools(at: House) -> list[str]:
    catalogue: Catalogue = await at.next(Catalogue)
    return names(catalogue)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def everything(at: House, era: str = "legacy") -> None:
    """What the reference server must do for us, whatever carries it."""
    assert {"echo", "get-sum", "get-roots-list", LONG} <= {*await tools(at)}
    ref, facts = at.ref("everything"), at.facts("everything")
    assert (facts["state"], facts["era"], facts["version"]) == ("ready", era, "2025-11-25")
    assert (await at.call("echo", "everything", message="hi")).text == "Echo: hi"
    assert "5" in (await at.call("get-sum", "everything", a=2, b=3)).text
    wrong = await at.call("get-sum", "everything", a="many")
    assert not wrong.ok
    structured = await at.call("get-structured-content", "everything", location="New York")
    assert structured.structured["conditions"]
    assert "file:///srv/work" in (await at.call("get-roots-list", "everything")).text

    listed: Catalogue = await at.next(Catalogue)
    while not listed.resources:
        listed = await at.next(Catalogue)
    [content, *_] = await ref.ask(ReadResource(listed.resources[0].uri), within=15)
    assert content.text
    filled = await ref.ask(GetPrompt("args-prompt", {"city": "Rome"}), within=15)
    assert "Rome" in str(filled.messages[0].content.text)

    await rich(at, listed)
    assert (await at.call(LONG, "everything", duration=0.02, steps=2)).ok
    assert (await at.next(ToolProgress)).total == 2.0
    await asks(at)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancelled, at)
        while (await at.next(ToolProgress)).call != "c":
            pass
        ref.offer(CancelCall("c"))
    assert (await at.call("echo", "everything", message="still here")).ok
    assert at.tree.slots["mcp/everything"].incarnation == 1


async def rich(at: House, listed: Catalogue) -> None:
    """Results in parts, templates, completion and subscriptions."""
    ref = at.ref("everything")
    before, image, _ = (await at.call("get-tiny-image", "everything")).contents
    assert (before.type, image.type, image.mime_type) == ("text", "image", "image/png")
    assert len(base64.b64decode(image.data or "")) == image.size
    links = (await at.call("get-resource-links", "everything", count=2)).contents
    assert [part.type for part in links[1:]] == ["resource_link", "resource_link"]
    said = await at.call("get-annotated-message", "everything", messageType="error", includeImage=True)
    assert [part.annotations["priority"] for part in said.contents] == [1.0, 0.5]
    template = listed.templates[0].uri_template
    uri = template.replace("{resourceId}", "1")
    assert (await ref.ask(ReadResource(uri), within=15))[0].text
    ids = CompleteArgument("resourceId", "1", template=template)
    assert (await ref.ask(ids, within=15)).values == ["1"]
    people = CompleteArgument("name", "", prompt="completable-prompt", known={"department": "Engineering"})
    assert "Alice" in (await ref.ask(people, within=15)).values
    assert await ref.ask(SubscribeResource(uri, "front/gateway"), within=15)
    await at.call("toggle-subscriber-updates", "everything")
    assert await at.next(ResourceUpdated) == ResourceUpdated("everything", uri)
    ref.offer(UnsubscribeResource(uri, "front/gateway"))


async def asks(at: House) -> None:
    """It asks the user for a form and to open addresses, one of them before a call, and has a model asked."""
    ref = at.ref("everything")
    said: list[str] = []

    async def call(tool: str, **arguments: Any) -> None:
        said.append((await at.call(tool, "everything", **arguments)).text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "trigger-elicitation-request")
        question: UserQuestion = await at.next(UserQuestion)
        assert question.schema is not None
        content = checked(question.schema, {"name": "Ada", "email": "ada@example.org", "birthdate": "1815-12-10"})
        assert await ref.ask(AnswerQuestion(question.question, "accept", content), within=15)
    assert "- Name: Ada" in said[-1]
    assert "- Favorite Integer: 42" in said[-1], "its defaults are filled in"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(call, "trigger-url-elicitation", url="https://a.example/", errorPath=True))
        for address in ("https://modelcontextprotocol.io", "https://a.example/"):
            question = await at.next(UserQuestion)
            assert question.url == address
            assert await ref.ask(AnswerQuestion(question.question, "accept"), within=15)
    assert "User completed the URL elicitation flow" in said[-1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(call, "trigger-sampling-request", prompt="2+2?"))
        request: SamplingRequest = await at.next(SamplingRequest)
        assert request.system_prompt == "You are a helpful test server."
        answer = AnswerSampling(request.request, [{"type": "text", "text": "four"}], "m", "endTurn")
        assert await ref.ask(answer, within=15)
    assert "four" in said[-1]


async def _cancelled(at: House) -> None:
    fault = await at.fault(LONG, "everything", call="c", duration=600.0, steps=10_000)
    assert fault.body.text == "cancelled"


async def test_everything_over_standard_input() -> None:
    async with house(real("everything", roots=["/srv/work"])) as at:
        await everything(at)
        pid = at.facts("everything")["pid"]
    assert gone(pid)


@asynccontextmanager
async def listening(how: str) -> AsyncIterator[int]:
    """The reference server as a process that listens; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with subprocess.Popen(  # noqa: ASYNC220 - as short as our own start of a process
        [program("everything"), how],
        env={"PATH": os.environ["PATH"], "PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        try:
            async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as said:
                words = b""
                while b"on port" not in words:
                    words += await said.receive_some()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_drained, said)
                    yield port
                    nursery.cancel_scope.cancel()
        finally:
            process.kill()


async def _drained(said: trio.lowlevel.FdStream) -> None:
    while await said.receive_some():
        pass


@pytest.mark.parametrize(("how", "path", "transport"), [("streamableHttp", "/mcp", "http"), ("sse", "/sse", "sse")])
async def test_everything_over_http(how: str, path: str, transport: str) -> None:
    async with listening(how) as port:
        url = f"http://127.0.0.1:{port}{path}"
        server = odd("", name="everything", command="", args=[], url=url, type="auto", roots=["/srv/work"])
        async with house(server) as at:
            await everything(at)
            assert at.facts("everything")["transport"] == transport


async def test_filesystem_keeps_to_its_roots(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("not for it")
    async with house(real("filesystem", str(outside), roots=[str(inside)])) as at:
        assert {"read_text_file", "write_file", "list_directory"} <= {*await tools(at)}
        # It asks for its roots in its own time, and takes them in place of its arguments.
        while str(inside) not in (await at.call("list_allowed_directories", "filesystem")).text:
            pass
        note = str(inside / "note.txt")
        assert (await at.call("write_file", "filesystem", path=note, content="kept")).ok
        assert (inside / "note.txt").read_text() == "kept"
        assert (await at.call("read_text_file", "filesystem", path=note)).text == "kept"
        refused = await at.call("read_text_file", "filesystem", path=str(outside / "secret.txt"))
        assert not refused.ok
        pid = at.facts("filesystem")["pid"]
    assert gone(pid)


async def test_memory_remembers(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    async with house(real("memory", env={"MEMORY_FILE_PATH": str(path)})) as at:
        assert {"create_entities", "read_graph"} <= {*await tools(at)}
        entity = {"name": "Ada", "entityType": "person", "observations": ["wrote the first program"]}
        assert (await at.call("create_entities", "memory", entities=[entity])).ok
        graph = await at.call("read_graph", "memory")
        assert "wrote the first program" in graph.text
        pid = at.facts("memory")["pid"]
    assert gone(pid)
    assert "Ada" in path.read_text()


async def test_time_and_git(tmp_path: Path) -> None:
    await trio.run_process(["git", "init", "--quiet", "--initial-branch=main", str(tmp_path)])
    (tmp_path / "new.txt").write_text("new")
    servers = [real("time", "--local-timezone", "UTC"), real("git", "--repository", str(tmp_path))]
    async with house(*servers) as at:
        both = {*await tools(at), *await tools(at)}
        assert {"get_current_time", "convert_time", "git_status", "git_log"} <= both
        later = await at.call("convert_time", "time", source_timezone="UTC", time="12:00", target_timezone="Asia/Tokyo")
        assert "21:00" in later.text
        assert not (await at.call("get_current_time", "time", timezone="Nowhere/Town")).ok
        assert "new.txt" in (await at.call("git_status", "git", repo_path=str(tmp_path))).text
        pids = [at.facts(name)["pid"] for name in ("time", "git")]
    assert all(map(gone, pids))

"""Servers over HTTP, through the actor: what works, and what each fault looks like to caller and operator."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing

from actors import mcp_exchange, mcp_server, server_offer
from protocol.errors import Code
from protocol.mail import Gone
from protocol.mcp_server import CancelCall, Catalogue, SetServerLog, ToolProgress
from protocol.spec import Down
from protocol.watcher import McpServer, ServerLimits
from tests.certificates import Authority
from tests.http_servers import (
    HTML,
    TOOLS,
    Asked,
    Fault,
    HttpServer,
    Reply,
    cut,
    cut_json,
    cut_stream,
    end_stream,
    http_server,
    silent,
    status,
)
from tests.mcp_house import House, connection, house, names, odd


def at_url(server: HttpServer, path: str = "/mcp", **more: Any) -> McpServer:
    return odd("", **({"command": "", "args": [], "url": server.url(path), "type": "http"} | more))


# What works.


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "streams"])
async def test_streamable_http_in_the_older_era(
    streamed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_offer, "RELIST_PAUSE_S", 0.01)
    async with http_server(streamed=streamed) as server:
        async with house(at_url(server, headers={"X-Team": "blue"})) as at:
            assert names(await at.next(Catalogue)) == TOOLS
            facts = at.facts()
            found = tuple(facts[key] for key in ("state", "transport", "era", "version", "url"))
            assert found == ("ready", "http", "legacy", "2025-11-25", server.url())
            assert (await at.call("hello")).text == "hello"
            assert len((await at.call("big")).text) > 200_000
            assert (await at.call("count")).ok
            progress: ToolProgress = await at.next(ToolProgress)
            assert (progress.call, progress.total) == ("count", 3.0)
            assert ("actors.mcp.odd", logging.ERROR, "counted") in caplog.record_tuples
            server.tools = server.tools[1:]
            await server.asked("GET")
            await server.tell({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            assert names(await at.next(Catalogue)) == TOOLS[1:]
            at.ref().offer(SetServerLog("ERROR"))
            assert (await server.asked("logging/setLevel", 2)).message["params"] == {"level": "error"}
            await cancelled(at, server)
            assert (await server.asked("notifications/cancelled")).message["params"]["requestId"]
            assert (await at.call("hello")).ok
    assert {asked.headers.get("x-team") for asked in server.seen} == {"blue"}
    assert server.methods()[-1] == "DELETE"


async def cancelled(at: House, server: HttpServer) -> None:
    """Cancel a call that hangs, and see that its connection is closed."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_hangs, at)
        while not server.hanging:
            await server.news.wait()
        at.ref().offer(CancelCall("c"))
    while server.hanging:
        await server.news.wait()


async def _hangs(at: House) -> None:
    assert (await at.fault("hang", call="c")).body.text == "cancelled"


async def test_streamable_http_in_the_newer_era(caplog: pytest.LogCaptureFixture) -> None:
    async with http_server(modern=True) as server, house(at_url(server)) as at:
        assert names(await at.next(Catalogue)) == TOOLS
        facts = at.facts()
        assert (facts["transport"], facts["era"], facts["version"]) == ("http", "modern", "2026-07-28")
        assert (await at.call("count")).ok
        assert (await at.next(ToolProgress)).total == 3.0
        assert ("actors.mcp.odd", logging.ERROR, "counted") in caplog.record_tuples
        await cancelled(at, server)
        assert "notifications/cancelled" not in server.methods()
        at.ref().offer(SetServerLog("ERROR"))
        while True:
            await at.call("hello")
            if server.seen[-1].message["params"]["_meta"].get("io.modelcontextprotocol/logLevel") == "error":
                break


@pytest.mark.parametrize("sessions", [False, True])
async def test_a_server_without_a_stream_of_its_own(sessions: bool) -> None:
    async with http_server(sessions=sessions, faults={"GET": status(405)}) as server:
        async with house(at_url(server)) as at:
            assert names(await at.next(Catalogue)) == TOOLS
            if sessions:
                await server.asked("GET")
            assert (await at.call("hello")).ok
            assert at.tree.slots["mcp/odd"].incarnation == 1
        assert ("DELETE" in server.methods()) is sessions


async def test_a_probe_that_is_never_answered_holds_no_connection() -> None:
    asked: list[str] = []

    async def never(_: Asked, __: Reply) -> None:
        asked.append("begun")
        try:
            await trio.sleep_forever()
        finally:
            asked.append("left")

    async with http_server(faults={"server/discover": never}) as server:
        async with house(at_url(server), on=connection(connect_s=0.6)) as at:
            assert names(await at.next(Catalogue)) == TOOLS
            while asked != ["begun", "left"]:
                await server.news.wait()
            assert at.facts()["era"] == "legacy"


@pytest.mark.parametrize("posted", [404, 405])
async def test_a_server_of_the_older_way_is_found_out_and_remembered(posted: int) -> None:
    async with http_server(posted=posted) as server, house(at_url(server, "/sse", type="auto")) as at:
        assert names(await at.next(Catalogue)) == TOOLS
        assert (at.facts()["transport"], at.facts()["era"]) == ("sse", "legacy")
        assert (await at.call("hello")).ok
        assert (await at.call("count")).ok
        assert (await at.next(ToolProgress)).total == 3.0
        await cancelled(at, server)
        probed = [asked for asked in server.seen if asked.path == "/sse" and asked.verb == "POST"]
        server.drop()
        assert names(await at.next(Catalogue)) == TOOLS
        assert [asked for asked in server.seen if asked.path == "/sse" and asked.verb == "POST"] == probed
        assert at.facts()["transport"] == "sse"


async def test_a_server_of_the_older_way_can_be_named_as_such() -> None:
    async with http_server() as server, house(at_url(server, "/sse", type="sse")) as at:
        await at.next(Catalogue)
        assert server.methods()[0] == "GET"


async def test_it_is_told_its_roots_when_it_asks() -> None:
    async with http_server() as server:
        async with house(at_url(server, roots=["work", "file:///srv/data"]), state="/state") as at:
            await at.next(Catalogue)
            await server.asked("GET")
            assert "roots" in (await server.asked("initialize")).message["params"]["capabilities"]
            await server.tell({"jsonrpc": "2.0", "id": "r1", "method": "roots/list"})
            answer = (await server.asked("POST")).message
    assert answer == {
        "jsonrpc": "2.0", "id": "r1", "result": {"roots": [{"uri": "file:///state/work"}, {"uri": "file:///srv/data"}]},
    }  # fmt: skip


# Versions.


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
@pytest.mark.parametrize("forced", [False, True], ids=["negotiated", "forced"])
async def test_every_version_of_the_older_era_is_spoken(version: str, forced: bool) -> None:
    async with http_server(version=version) as server:
        async with house(at_url(server, protocol=version if forced else "auto")) as at:
            assert names(await at.next(Catalogue)) == TOOLS
            assert at.facts()["version"] == version
        assert ("server/discover" in server.methods()) is not forced
        offered = (await server.asked("initialize")).message["params"]["protocolVersion"]
        assert offered == (version if forced else "2025-11-25")


NO_VERSION: list[tuple[dict[str, Any], str, str]] = [
    ({}, "2031-01-01", "version 2031-01-01 of the protocol is not known here, only 2024-11-05"),
    ({}, "2026-07-28", "it does not speak version 2026-07-28, which is the only one allowed here"),
    ({"version": "2025-03-26"}, "2025-06-18", "speaks version 2025-03-26 of the protocol, and `protocol` allows only"),
    ({"version": "1999-01-01"}, "auto", "Unsupported protocol version from the server: 1999-01-01; known here are"),
    ({"version": "1999-01-01"}, "legacy", "Unsupported protocol version from the server: 1999-01-01; known here are"),
]


@pytest.mark.parametrize(("how", "protocol", "words"), NO_VERSION, ids=[f"{row[1]} {row[0]}" for row in NO_VERSION])
async def test_without_a_common_version_it_rests_at_once(how: dict[str, Any], protocol: str, words: str) -> None:
    async with http_server(**how) as server, house(at_url(server, protocol=protocol)) as at:
        down: Down = await at.next(Down)
        assert down.parked
        assert words in down.reason


async def test_the_newer_era_can_be_forced() -> None:
    async with http_server(modern=True) as server, house(at_url(server, protocol="2026-07-28")) as at:
        await at.next(Catalogue)
        assert at.facts()["version"] == "2026-07-28"
        assert "initialize" not in server.methods()


# Certificates.


async def test_the_authority_of_a_certificate_can_be_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with http_server(tls=authority.server()) as server:
        async with house(at_url(server, ca_file=authority.file.name), state=tmp_path) as at:
            assert names(await at.next(Catalogue)) == TOOLS
        async with house(at_url(server), on=connection(attempts=3)) as at:
            down: Down = await at.next(Down)
            assert down.parked
            assert "has a certificate that is not trusted" in down.reason


# What fails at the beginning.


AT_FIRST: list[tuple[Fault, bool, str]] = [
    (status(401), True, "asks for authorization (HTTP 401 Unauthorized); set or correct its `headers` or `auth`."),
    (status(403, b"not you"), True, "refuses us (HTTP 403 Forbidden: not you)"),
    (status(404), False, "answered HTTP 404 Not Found; is its `url` right?"),
    (status(500, b"oops"), False, "answered HTTP 500 Internal Server Error: oops."),
    (status(503), False, "answered HTTP 503 Service Unavailable."),
    (HTML, False, "it answered with text/html, which is not MCP; is its `url` right?"),
    (
        status(302, location="https://login.example/?next=1"),
        True,
        "redirects to https://login.example/ (HTTP 302 Found)",
    ),
    (status(200, b"\x1f\x8b", "application/json", content_encoding="gzip"), False, "its answer is compressed"),
    (cut, False, "closed the connection without an answer."),
    (silent, False, "was not connected and listed within 0.5 s."),
]
"""What is done to `initialize` (and to the probe before), whether trying again helps, what the operator reads."""


@pytest.mark.parametrize(("fault", "parks", "words"), AT_FIRST, ids=[words[:30] for _, _, words in AT_FIRST])
async def test_a_refused_handshake_is_told_in_words(fault: Fault, parks: bool, words: str) -> None:
    async with http_server(faults={"initialize": fault}) as server:
        on = connection(attempts=3 if parks else 0, connect_s=0.5 if fault is silent else 10.0)
        async with house(at_url(server), on=on) as at:
            down: Down = await at.next(Down)
            assert down.parked
            assert words in down.reason
            assert "MCP server 'odd'" in down.reason
        assert server.methods().count("initialize") == 1


async def elsewhere(_: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.event("https://elsewhere.example/messages", "endpoint")


OLDER_AT_FIRST: list[tuple[Fault, bool, str]] = [
    (status(401), True, "asks for authorization (HTTP 401 Unauthorized)"),
    (status(404), False, "answered HTTP 404 Not Found; is its `url` right?"),
    (HTML, False, "Expected response with content type 'text/event-stream', got 'text/html'"),
    (elsewhere, False, "wants messages to be posted elsewhere, to 'elsewhere.example'."),
    (end_stream, False, "closed the connection."),
    (cut, False, "cut the connection"),
]
"""As above, for the one stream of the older way, where the newer is not known."""


@pytest.mark.parametrize(("fault", "parks", "words"), OLDER_AT_FIRST, ids=[row[2][:30] for row in OLDER_AT_FIRST])
async def test_the_older_way_refused_is_told_in_words(fault: Fault, parks: bool, words: str) -> None:
    async with http_server(posted=405, faults={"GET": fault}) as server:
        async with house(at_url(server, "/sse", type="auto"), on=connection(attempts=3 if parks else 0)) as at:
            down: Down = await at.next(Down)
            assert down.parked
            assert words in down.reason


async def test_what_is_no_message_on_the_older_stream_is_skipped_and_counted() -> None:
    async with http_server() as server, house(at_url(server, "/sse", type="sse")) as at:
        await at.next(Catalogue)
        await server.tell({"not": "JSON-RPC"})
        assert await fails(at) == "ok"
        assert at.facts()["skipped_lines"] == 1
        server.faults["tools/call"] = status(500, b"oops")
        assert await fails(at) == "the server answered HTTP 500 Internal Server Error: oops"


async def test_nobody_there_is_told_and_tried_again() -> None:
    async with http_server() as server:
        server.stop()
        async with house(at_url(server), on=connection(attempts=1)) as at:
            down: Down = await at.next(Down)
            assert not down.parked
            assert f"({server.url()}) cannot be reached: " in down.reason
            assert "refused" in down.reason
            assert (await at.next(Down)).parked


# What fails within a call.


async def fails(at: House, tool: str = "hello") -> str:
    """How a call of it ends."""
    try:
        outcome = await at.call(tool)
    except Gone:
        return "gone"
    return "ok" if outcome.ok else outcome.text


IN_A_CALL: list[tuple[Fault, str, int]] = [
    (status(500, b"oops"), "the server answered HTTP 500 Internal Server Error: oops", 1),
    (status(403), "the server answered HTTP 403 Forbidden", 1),
    (status(429), "the server answered HTTP 429 Too Many Requests", 1),
    (HTML, "it answered with text/html, which is not MCP", 1),
    (status(307, location="http://elsewhere.example/mcp"), "the server answered HTTP 307 Temporary Redirect", 1),
    (cut, "gone", 1),
    (cut_json, "gone", 1),
    (cut_stream, "gone", 1),
    (end_stream, "gone", 1),
    (status(401), "gone", 2),
    (status(404), "gone", 2),
]
"""What is done to a call, what its caller gets, and how many incarnations there are after it."""


@pytest.mark.parametrize(
    ("fault", "words", "incarnation"),
    IN_A_CALL,
    ids=[f"{number} {row[1][:30]}" for number, row in enumerate(IN_A_CALL)],
)
async def test_a_fault_in_a_call_fails_that_call(fault: Fault, words: str, incarnation: int) -> None:
    async with http_server() as server, house(at_url(server)) as at:
        await at.next(Catalogue)
        async with trio.open_nursery() as nursery:
            if incarnation == 1:
                nursery.start_soon(_hangs, at)  # another call, which is not touched
                while not server.hanging:
                    await server.news.wait()
            server.faults["tools/call"] = fault
            assert await fails(at) == words
            del server.faults["tools/call"]
            if incarnation == 1:
                at.ref().offer(CancelCall("c"))
            else:
                await at.next(Catalogue)
        assert await fails(at) == "ok"
        assert at.tree.slots["mcp/odd"].incarnation == incarnation


async def test_a_forgotten_session_is_begun_anew() -> None:
    async with http_server() as server, house(at_url(server)) as at:
        await at.next(Catalogue)
        server.forget_sessions()
        assert await fails(at) == "gone"
        assert "has forgotten our session (HTTP 404 Not Found)" in (await at.next(Down)).reason
        assert names(await at.next(Catalogue)) == TOOLS
        assert await fails(at) == "ok"
        assert server.methods().count("server/discover") == 1  # its era is remembered
        assert server.methods().count("initialize") == 2


@pytest.mark.parametrize("path", ["/mcp", "/sse"])
async def test_a_server_that_dies_in_a_call_ends_it_at_once_and_is_found_again(path: str) -> None:
    way = {"/mcp": "http", "/sse": "sse"}[path]
    async with http_server() as server, house(at_url(server, path, type=way, timeout=600.0)) as at:
        await at.next(Catalogue)
        async with trio.open_nursery() as nursery:

            async def gone() -> None:
                assert await fails(at, "hang") == "gone"

            nursery.start_soon(gone)
            while not server.hanging:
                await server.news.wait()
            server.stop()
        assert not (await at.next(Down)).parked
        async with http_server(port=server.port):
            assert names(await at.next(Catalogue)) == TOOLS


async def test_an_idle_server_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_server, "PROBE_AFTER_S", 0.2)
    async with http_server(modern=True) as server, house(at_url(server)) as at:
        await at.next(Catalogue)
        server.stop()
        assert "cannot be reached" in (await at.next(Down)).reason


async def test_a_server_that_cuts_everything_has_ended() -> None:
    async with http_server() as server, house(at_url(server)) as at:
        await at.next(Catalogue)
        server.faults |= {"tools/call": cut, "ping": cut}
        assert await fails(at) == "gone"
        assert "cuts its connections" in (await at.next(Down)).reason


async def test_a_call_without_an_answer_ends_with_its_deadline_and_holds_nothing() -> None:
    async with http_server() as server, house(at_url(server, timeout=0.3)) as at:
        await at.next(Catalogue)
        assert (await at.fault("hang")).code is Code.TOOL_TIMEOUT
        while server.hanging:
            await server.news.wait()
        await server.asked("notifications/cancelled")


async def test_an_answer_over_the_cap_fails_its_call_and_tells_its_size() -> None:
    async with http_server() as server:
        async with house(at_url(server, limits=ServerLimits(line_bytes=1_000_000))) as at:
            await at.next(Catalogue)
            assert "its answer has 2000" in await fails(at, "big")
            server.streamed = True
            assert "exceeded the 1000000 byte limit" in await fails(at, "big")
            assert await fails(at) == "ok"
            assert at.tree.slots["mcp/odd"].incarnation == 1


async def test_a_notification_that_is_not_taken_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_exchange, "NOTIFY_S", 0.1)
    async with http_server(faults={"notifications/cancelled": silent}) as server, house(at_url(server)) as at:
        await at.next(Catalogue)
        await cancelled(at, server)
        assert await fails(at) == "ok"


@pytest.mark.parametrize("path", ["/mcp", "/sse"])
async def test_a_server_that_asks_without_end_gets_so_many_answers_at_a_time(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(mcp_exchange, "TELLING", 2)
    async with http_server(faults={"POST": silent}) as server, house(at_url(server, path, type="auto")) as at:
        await at.next(Catalogue)
        await server.asked("GET")
        for number in range(20):
            await server.tell({"jsonrpc": "2.0", "id": f"p{number}", "method": "ping"})
        await server.asked("POST", 2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.methods().count("POST") == 2


# What nobody may see.


async def test_secrets_go_to_the_server_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("WIKI_TOKEN", "tok/planted-1&")
    monkeypatch.setenv("WIKI_KEY", "key-planted-2")

    async def quotes(asked: Asked, reply: Reply) -> None:
        await reply.whole(500, f"{asked.headers['authorization']} {asked.path}".encode())

    async def errors(asked: Asked, reply: Reply) -> None:
        token = asked.headers["authorization"]
        written = f"{token} {quote(token[7:])} {quote(token[7:], safe='')} " + token[7:].replace("/", "\\/")
        error = {"code": -32000, "message": written}
        await reply.json({"jsonrpc": "2.0", "id": asked.message["id"], "error": error})

    headers = {"Authorization": "Bearer ${WIKI_TOKEN}"}
    async with http_server() as server:
        spec = at_url(server, "/mcp?key=${WIKI_KEY}&team=blue", headers=headers)
        async with house(spec, on=connection(attempts=0)) as at:
            await at.next(Catalogue)
            server.faults["tools/call"] = quotes
            said = await fails(at)
            assert said == "the server answered HTTP 500 Internal Server Error: *** /mcp?key=***&team=blue"
            server.faults["tools/call"] = errors
            assert await fails(at) == "*** *** *** ***"
            server.faults["initialize"] = quotes
            server.forget_sessions()
            del server.faults["tools/call"]
            await fails(at)
            reason = (await at.next(Down)).reason
            facts = repr(at.facts())
        seen = server.seen[0]
        assert (seen.headers["authorization"], seen.path) == (
            "Bearer tok/planted-1&",
            "/mcp?key=key-planted-2&team=blue",
        )
    for text in (said, reason, facts, caplog.text):
        assert "planted" not in text


async def test_headers_do_not_follow_a_redirect_to_another_place() -> None:
    async with http_server() as other, http_server() as server:
        to = status(307, location=other.url())
        server.faults |= {"initialize": to, "server/discover": to}
        async with house(at_url(server, headers={"Authorization": "Bearer x"})) as at:
            assert "redirects to" in (await at.next(Down)).reason
        assert other.seen == []

        async def moved(asked: Asked, reply: Reply) -> None:
            if asked.path == "/mcp":
                await reply.whole(307, location="/mcp?moved")
            else:
                await server.right(asked, reply)

        server.faults = {"initialize": moved}
        async with house(at_url(server, protocol="legacy")) as at:
            assert names(await at.next(Catalogue)) == TOOLS

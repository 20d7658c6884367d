"""OAuth, through the actor: who is asked, what outlives what, and that nothing secret is seen anywhere."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
import trio

from actors import consent
from protocol.errors import Code
from protocol.mcp_server import AnswerQuestion, Catalogue, RequestEnded, ToolOutcome, UrlVisited, UserQuestion
from protocol.spec import Down
from protocol.watcher import Authorization, McpServer
from tests.auth_server import AuthServer, browse, guarded
from tests.certificates import Authority
from tests.http_servers import TOOLS, status
from tests.mcp_house import House, house, names, odd
from tests.scripts import say
from tests.service import connected, service


def entry(server: AuthServer, **more: Any) -> McpServer:
    return odd("", command="", args=[], url=server.mcp.url(), **({"type": "http"} | more))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that is logged here, but by the browser of the tests."""
    caplog.set_level(logging.DEBUG)
    for browser in ("httpx", "httpcore"):
        caplog.set_level(logging.CRITICAL, browser)
    return caplog


async def offered(at: House) -> list[str]:
    """What is offered, once something is."""
    while not (found := names(await at.next(Catalogue))):
        pass
    return found


async def answer(at: House, question: UserQuestion, action: str) -> bool:
    reply: bool = await at.ref().ask(AnswerQuestion(question.question, action), within=10)
    return reply


@asynccontextmanager
async def calling(at: House, tool: str) -> AsyncIterator[list[ToolOutcome]]:
    """A call that runs while the block does, and its outcome after that."""
    outcomes: list[ToolOutcome] = []

    async def call() -> None:
        outcomes.append(await at.call(tool))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        yield outcomes


async def parked(at: House) -> Down:
    while not (down := await at.next(Down)).parked:
        pass
    assert isinstance(down, Down)
    return down


async def test_an_operator_is_asked_once_and_the_tokens_outlive_the_service(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    async with guarded() as auth:
        async with house(entry(auth), state=tmp_path) as at:
            question: UserQuestion = await at.next(UserQuestion)
            assert (question.server, question.call, question.schema) == ("odd", "", None)
            assert question.expires_at > "2026"
            assert at.facts()["state"] == "needs authorization"
            fault = await at.fault("hello")
            assert (fault.code, "needs authorization" in fault.body.text) == (Code.MCP_SERVER_UNAVAILABLE, True)
            assert await answer(at, question, "accept")
            assert not await answer(at, question, "decline")  # the first one counts
            page = await browse(question.url)
            assert (page.status_code, "close this page" in page.text) == (200, True)
            assert (await at.next(UrlVisited)).question == question.question
            assert await offered(at) == TOOLS
            assert (await at.call("hello")).ok
            assert at.facts()["state"] == "ready"
            told = repr(at.facts())

            await at.tree.restart("mcp/odd")
            assert await offered(at) == TOOLS
        async with house(entry(auth), state=tmp_path) as at:  # the service is started again
            assert await offered(at) == TOOLS
            auth.revoke()  # before its time: nobody needs to be asked for a new one
            assert (await at.call("hello")).ok
            told += repr(at.facts())
        [file] = (tmp_path / "oauth").iterdir()
        kept = json.loads(file.read_text())
        file.write_text(json.dumps(kept | {"expires_at": 1.0}))  # it was down for long
        asked = len(auth.mcp.seen)
        async with house(entry(auth), state=tmp_path) as at:
            assert await offered(at) == TOOLS
        assert auth.mcp.seen[asked].headers["authorization"].removeprefix("Bearer ") in auth.granted
        assert auth.grants == ["authorization_code", "refresh_token", "refresh_token"]
        assert [len(auth.clients), len(auth.authorized)] == [1, 1]
        assert auth.authorized[0]["resource"] == auth.mcp.url()
        assert auth.authorized[0]["code_challenge_method"] == "S256"

        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        kept = json.loads(file.read_text())
        assert kept["tokens"]["access_token"] in auth.granted
        assert kept["tokens"]["refresh_token"] in auth.refreshable
        state = parse_qs(urlsplit(question.url or "").query)["state"][0]
        for secret in (*auth.secrets(), state):
            assert secret not in logged.text
            assert secret not in told


async def test_only_the_browser_that_was_sent_is_believed(tmp_path: Path) -> None:
    async with guarded() as auth, house(entry(auth), state=tmp_path) as at:
        question: UserQuestion = await at.next(UserQuestion)
        sent = parse_qs(urlsplit(question.url or "").query)
        back = sent["redirect_uri"][0]
        assert urlsplit(back).hostname == "127.0.0.1"
        async with httpx.AsyncClient() as browser:
            wrong = await browser.get(back, params={"code": "secret-code-0", "state": "guessed"})
            assert (wrong.status_code, "no question that is open" in wrong.text) == (400, True)
            assert (await browser.get(back, params={"code": "secret-code-0"})).status_code == 400
            assert (await browser.get(back.replace("/callback", "/favicon.ico"))).status_code == 404
            right = {"state": sent["state"][0]}
            assert (await browser.post(back, params=right | {"code": "secret-code-0"})).status_code == 404
        async with await trio.open_tcp_stream("127.0.0.1", urlsplit(back).port or 0) as stranger:
            await stranger.send_all(b"\x16\x03\x01 hello\r\n\r\n")
            assert (await stranger.receive_some()).startswith(b"HTTP/1.1 400 ")
        async with await trio.open_tcp_stream("127.0.0.1", urlsplit(back).port or 0) as silent:
            assert auth.grants == []
            await browse(question.url)  # whoever says nothing is in nobody's way
            assert await silent.receive_some() == b""
        assert await offered(at) == TOOLS


async def test_who_declines_is_asked_again_only_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with guarded() as auth, house(entry(auth), state=tmp_path) as at:
        question: UserQuestion = await at.next(UserQuestion)
        assert await answer(at, question, "decline")
        assert (await at.next(RequestEnded)).reason == "it was declined"
        down = await parked(at)
        assert (down.retry_in_ms, "declined" in down.reason) == (None, True)

        await at.tree.restart("mcp/odd")
        assert await answer(at, await at.next(UserQuestion), "cancel")  # no choice was made: it is asked again, later
        assert (await parked(at)).retry_in_ms == 300_000

        monkeypatch.setattr(consent, "ANSWER_S", 0.05)
        await at.tree.restart("mcp/odd")
        assert "nobody allowed it in time" in (await parked(at)).reason

        monkeypatch.setattr(consent, "ANSWER_S", 30.0)
        await at.tree.restart("mcp/odd")
        question = await at.next(UserQuestion)
        sent = parse_qs(urlsplit(question.url or "").query)
        async with httpx.AsyncClient() as browser:  # the user says no to the authorization server
            params = {"error": "access_denied", "state": sent["state"][0]}
            refused = await browser.get(sent["redirect_uri"][0], params=params)
        assert "was refused" in refused.text
        down = await parked(at)
        assert (down.retry_in_ms, "access_denied" in down.reason) == (None, True)
        assert auth.grants == []


async def test_a_wider_permission_is_asked_for_in_the_call_that_needs_it(tmp_path: Path) -> None:
    async with guarded(wider={"big": "write", "count": "admin"}) as auth:
        async with house(entry(auth), state=tmp_path) as at:
            await browse((await at.next(UserQuestion)).url)
            assert await offered(at) == TOOLS
            async with calling(at, "big") as outcomes:
                await browse((await at.next(UserQuestion)).url)
            assert outcomes[0].ok
            assert [query["scope"] for query in auth.authorized] == ["read", "read write"]

            async with calling(at, "count") as outcomes:
                await answer(at, await at.next(UserQuestion), "decline")
            assert (outcomes[0].ok, "403" in outcomes[0].text) == (False, True)
            refused = await at.call("count", call="again")  # and nobody is bothered again
            assert not refused.ok
            assert (await at.call("hello")).ok
            assert at.facts()["state"] == "ready"
            assert len(auth.authorized) == 2


async def test_client_credentials_ask_nobody_and_go_to_the_named_server_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIKI_SECRET", "secret-of-ours")
    async with guarded() as auth:
        good = Authorization("client_credentials", "us", "${WIKI_SECRET}", ["read"], auth.issuer)
        async with house(entry(auth, auth=good), state=tmp_path) as at:
            assert await offered(at) == TOOLS
            auth.revoke()
            assert (await at.call("hello")).ok
        assert auth.grants == ["client_credentials", "client_credentials"]
        assert auth.authorization[0].startswith("Basic ")
        [file] = (tmp_path / "oauth").iterdir()
        assert "secret-of-ours" not in file.read_text()

        await is_no_use_elsewhere(auth, good, tmp_path / "other")
        assert len(auth.grants) == 2


async def is_no_use_elsewhere(auth: AuthServer, good: Authorization, state: Path) -> None:
    """What is configured for one issuer is given to no other."""
    other = msgspec.structs.replace(good, issuer="https://login.example")
    async with house(entry(auth, auth=other), state=state) as at:
        assert "`auth.issuer`" in (await parked(at)).reason


async def test_a_configured_client_is_used_and_never_given_to_another_server(tmp_path: Path) -> None:
    async with guarded() as auth:
        good = Authorization("oauth", "us", "secret-of-ours", ["read", "more"], auth.issuer)
        async with house(entry(auth, auth=good), state=tmp_path) as at:
            await browse((await at.next(UserQuestion)).url)
            assert await offered(at) == TOOLS
        assert auth.authorized[0]["client_id"] == "us"
        assert auth.authorized[0]["scope"] == "read more"
        assert auth.authorization[0].startswith("Basic ")
        assert auth.clients == []
        await is_no_use_elsewhere(auth, good, tmp_path / "other")
        assert len(auth.authorized) == 1


async def test_a_server_that_did_not_ask_for_oauth_gets_none(tmp_path: Path) -> None:
    async with guarded() as auth:
        for fixed in ({"headers": {"Authorization": "Bearer old-key"}}, {"auth": Authorization(type="none")}):
            async with house(entry(auth, **fixed), state=tmp_path) as at:
                down = await parked(at)
                assert "401" in down.reason
                assert down.retry_in_ms is not None
        auth.mcp.gate = lambda _: status(401, www_authenticate="Basic realm=here")
        async with house(entry(auth), state=tmp_path) as at:
            assert "401" in (await parked(at)).reason
        assert [asked.path for asked in auth.at.seen] == []


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (status(400, b'{"error": "invalid_client", "was": "secret-code-1"}', "application/json"), "invalid_client"),
        (status(200, b'{"refresh_token": "secret-refresh-0"}', "application/json"), "against the standard"),
    ],
)
async def test_what_goes_wrong_is_told_without_secrets(
    trouble: Any, words: str, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    async with guarded(trouble=trouble) as auth, house(entry(auth), state=tmp_path) as at:
        await browse((await at.next(UserQuestion)).url)
        down = await parked(at)
        assert (words in down.reason, down.retry_in_ms) == (True, None)
        for secret in auth.secrets():
            assert secret not in logged.text
            assert secret not in down.reason
        [file] = (tmp_path / "oauth").iterdir()
        assert "client" not in json.loads(file.read_text())  # it may be what was wrong


async def test_an_authorization_server_that_is_down_is_no_reason_to_ask_anybody(tmp_path: Path) -> None:
    async with guarded() as auth:
        async with house(entry(auth), state=tmp_path) as at:
            await browse((await at.next(UserQuestion)).url)
            assert await offered(at) == TOOLS
        auth.revoke()
        auth.trouble = status(503)
        async with house(entry(auth), state=tmp_path) as at:
            down = await at.next(Down)
            assert "503" in down.reason
            auth.trouble = None
            assert await offered(at) == TOOLS
        assert set(auth.grants) == {"authorization_code", "refresh_token"}
        assert len(auth.authorized) == 1


async def test_nobody_is_led_to_addresses_that_are_not_https(tmp_path: Path) -> None:
    async with guarded() as auth:
        where = json.dumps({"resource": auth.mcp.url(), "authorization_servers": ["http://192.0.2.1"]}).encode()
        auth.mcp.pages["/.well-known/oauth-protected-resource/mcp"] = status(200, where, "application/json")
        async with house(entry(auth), state=tmp_path) as at:
            assert "not https" in (await parked(at)).reason


async def test_through_the_whole_service_an_operator_sees_the_link_and_the_tools_come(tmp_path: Path) -> None:
    async with guarded() as auth, service(tmp_path, say("hi")) as s, s.client() as client:
        servers = {"mcpServers": {"wiki": {"url": auth.mcp.url(), "type": "http"}}}
        (s.state / "servers_config.json").write_text(json.dumps(servers))
        [*_, question] = await client.until("question", server="wiki")
        assert question["url"].startswith(auth.issuer)
        assert (await client.say("a turn does not wait for it"))[-1]["outcome"] == "completed"
        async with s.client() as late:  # who comes later is told what is open
            await late.until("question", question_id=question["question_id"])
        await browse(question["url"])
        await client.until("question_settled", question_id=question["question_id"], outcome="completed")
        await connected(s, "wiki")
        await client.send("call_tool", tool_name="hello", arguments={})
        [*_, result] = await client.until("tool_result")
        assert "hello" in json.dumps(result)
        for secret in auth.secrets():
            assert secret not in json.dumps(client.seen)


async def test_an_authorization_server_shows_a_certificate_that_this_machine_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    async with guarded(tls=authority.server()) as auth:
        async with house(entry(auth), state=tmp_path) as at:
            down = await parked(at)
            assert f"127.0.0.1, to which MCP server 'odd' ({auth.mcp.url()}) leads," in down.reason
            assert "certificate that is not trusted" in down.reason
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        async with house(entry(auth), state=tmp_path) as at:
            await browse((await at.next(UserQuestion)).url)
            assert await offered(at) == TOOLS


async def test_a_gateway_that_comes_later_is_asked_too(tmp_path: Path) -> None:
    async with guarded() as auth, house(entry(auth), state=tmp_path) as at:
        first: UserQuestion = await at.next(UserQuestion)
        await at.tree.restart("front/gateway")
        again: UserQuestion = await at.next(UserQuestion)
        assert again == first
        await browse(again.url)
        assert await offered(at) == TOOLS

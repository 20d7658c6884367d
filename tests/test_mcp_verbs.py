"""What clients do with MCP servers by verbs, through the whole product: lists, calls by hand, resources, results."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import trio

from actors.commands import MOST_ASIDE
from tests.fakes import ask_tool, say
from tests.mcp_house import ODD
from tests.rich_server import CLOCK, ICON, PIXELS
from tests.service import Client, Frame, Service, connected, front_of, of_type, service
from tests.test_client_schema import check
from tests.test_server_asks import asking
from tests.test_server_requests import FORM

RICH: dict[str, Any] = {
    "rich": {"command": "python", "args": ["-S", str(Path(__file__).with_name("rich_server.py"))], "timeout": 20}
}
OLDER: dict[str, Any] = {"older": {**RICH["rich"], "args": [*RICH["rich"]["args"], "older"]}}
MEGABYTE = 2**20


async def ask(client: Client, type: str, answer: str, **fields: Any) -> Frame:
    """Send a frame; its answer, of that type and no larger than most clients take."""
    await client.send(type, request_id="asked", **fields)
    while (frame := await client.next()).get("request_id") != "asked":
        pass
    assert frame["type"] == answer, frame
    assert len(json.dumps(frame, ensure_ascii=False).encode()) < MEGABYTE
    return frame


async def refused(client: Client, type: str, **fields: Any) -> tuple[str, str]:
    frame = await ask(client, type, "error", **fields)
    return frame["error_code"], frame["error_message"]


async def until_readable(s: Service, server: str = "rich") -> None:
    """Resources are offered once they have been looked at."""
    front = front_of(s)
    while not front.catalogues[server].resources:
        await front.tools_changed.wait()


async def whole(client: Client, result_id: str, limit: int | None = None) -> bytes:
    """All pages of what was kept."""
    found, offset = b"", 0
    while True:
        frame = await ask(client, "get_result", "result", result_id=result_id, offset=offset, limit=limit)
        found += frame["text"].encode() if "text" in frame else base64.b64decode(frame["data"])
        if "next" not in frame:
            assert len(found) == frame["size"]
            return found
        offset = frame["next"]


async def test_everything_that_a_server_offers_is_listed_and_used_by_hand(tmp_path: Path) -> None:
    policy = {"chat": {"tools": {"policy": {"rich/learn": "deny", "rich/sums": "ask"}}}}
    async with service(tmp_path, say("hi"), servers=RICH, settings=policy) as s, s.client() as client:
        await until_readable(s)
        await lists(client)
        await calls(client)
        await prompts_and_resources(client)
        assert (await refused(client, "call_tool", tool_name="die"))[0] == "MCP_SERVER_UNAVAILABLE"
        assert s.provider.requests == []
        check(client.seen)


async def lists(client: Client) -> None:
    tools = {tool["tool_name"]: tool for tool in (await ask(client, "list_tools", "tools"))["tools"]}
    picture = tools["picture"]
    assert (picture["server"], picture["title"], picture["icons"]) == ("rich", "A picture", [ICON])
    assert (picture["annotations"], picture["meta"]) == ({"readOnlyHint": True}, {"example.com/kind": "art"})
    assert tools["sums"]["output_schema"]["required"] == ["sum"]
    [prompt] = (await ask(client, "list_prompts", "prompts", server="rich"))["prompts"]
    assert (prompt["name"], prompt["arguments"]) == ("visit", [{"name": "city", "required": True}])
    listed = await ask(client, "list_resources", "resources")
    assert [(r["uri"], r.get("size")) for r in listed["resources"]] == [(CLOCK, 5), ("rich://film", None)]
    assert [t["uri_template"] for t in listed["templates"]] == ["rich://city/{name}"]
    assert (await refused(client, "list_tools", server="nobody"))[0] == "NOT_FOUND"


async def calls(client: Client) -> None:
    result = await ask(client, "call_tool", "tool_result", tool_name="picture", arguments={})
    assert (result["status"], result["server"]) == ("completed", "rich")
    assert result["result"].startswith("look:\n[image image/png, 48 bytes]")
    assert [part["type"] for part in result["contents"]] == ["text", "image", "audio", "resource", "resource_link"]
    assert result["contents"][1]["data"] == PIXELS
    assert (await ask(client, "call_tool", "tool_result", tool_name="sums"))["structured"] == {"sum": 3}
    wrong = await ask(client, "call_tool", "tool_result", tool_name="wrong")
    assert wrong["status"] == "failed"
    assert "does not fit its output schema" in wrong["result"]
    code, text = await refused(client, "call_tool", tool_name="film", arguments={"size": "big"})
    assert code == "INVALID_MESSAGE"
    assert "'big' is not of type 'integer' - at `$.size`" in text
    assert (await refused(client, "call_tool", tool_name="nothing"))[0] == "TOOL_NOT_FOUND"
    assert (await refused(client, "call_tool", tool_name="learn"))[0] == "FORBIDDEN"
    result = await ask(client, "call_tool", "tool_result", tool_name="text", arguments={"size": 700_000})
    assert (len(result["result"]), result["result_size"]) == (16_384, 1_400_000)
    assert (await whole(client, result["result_id"])).decode() == "ä" * 700_000
    assert (await refused(client, "get_result", result_id="../../x"))[0] == "NOT_FOUND"
    assert (await refused(client, "get_result", result_id=result["result_id"], limit=0))[0] == "INVALID_MESSAGE"


async def prompts_and_resources(client: Client) -> None:
    filled = await ask(client, "get_prompt", "prompt", name="visit", arguments={"city": "Bern"})
    assert [message["content"]["type"] for message in filled["messages"]] == ["text", "image"]
    assert (await refused(client, "get_prompt", name="nothing"))[0] == "NOT_FOUND"
    known = {"not": "Bergen"}
    found = await ask(client, "complete", "completion", prompt="visit", argument="city", value="Be", known=known)
    assert found["values"] == ["Berlin", "Bern"]
    found = await ask(client, "complete", "completion", template="rich://city/{name}", argument="name", value="P")
    assert found["values"] == ["Paris"]
    assert (await refused(client, "complete", argument="name", value="P"))[0] == "INVALID_MESSAGE"
    city = await ask(client, "read_resource", "resource", uri="rich://city/Paris")
    assert city["contents"][0]["text"] == "Paris"
    film = await ask(client, "read_resource", "resource", uri="rich://film")
    assert (film["contents"][0]["size"], film["contents"][0].get("data")) == (900_000, None)
    assert await whole(client, film["contents"][0]["result_id"], limit=500_000) == bytes(900_000)
    assert (await refused(client, "read_resource", uri="other://x"))[0] == "NOT_FOUND"
    assert (await refused(client, "read_resource", uri="other://x", server="nobody"))[0] == "NOT_FOUND"


async def test_what_changes_is_told_to_who_wants_to_know(tmp_path: Path) -> None:
    async with service(tmp_path, say("hi"), servers=RICH | OLDER) as s, s.client() as client:
        await until_readable(s)
        await until_readable(s, "older")
        async with s.client() as other:
            for server in ("rich", "older"):
                subscribed = await ask(other, "subscribe_resource", "resource_subscribed", uri=CLOCK, server=server)
                assert subscribed["subscribed"] is True
                await ask(client, "call_tool", "tool_result", tool_name=f"{server}__touch", arguments={"times": 50})
                await other.until("resource_updated", uri=CLOCK, server=server)
            code, text = await refused(other, "subscribe_resource", uri=CLOCK)
            assert code == "INVALID_MESSAGE"
            assert "Several servers have" in text
            assert (await refused(other, "subscribe_resource", uri="rich://film", server="older"))[0] == "NOT_FOUND"
            gone = await ask(other, "unsubscribe_resource", "resource_subscribed", uri=CLOCK, server="older")
            assert gone["subscribed"] is False
            await wanted(client, "older__wanted", "none")
            await wanted(client, "rich__wanted", CLOCK)
        await wanted(client, "rich__wanted", "none")  # with the socket's end
        assert not of_type(client.seen, "resource_updated")

        client.hears_changes = True
        await ask(client, "call_tool", "tool_result", tool_name="rich__learn")
        while "learned" not in [
            tool["name"] for tool in (await ask(client, "list_tools", "tools", server="rich"))["tools"]
        ]:
            await trio.lowlevel.checkpoint()
        if not of_type(client.seen, "tools_changed"):
            await client.until("tools_changed")
        check(client.seen)


async def test_a_subscription_outlives_the_server_s_entry(tmp_path: Path) -> None:
    async with service(tmp_path, say("hi"), servers=RICH) as s, s.client() as client:
        await until_readable(s)
        await ask(client, "subscribe_resource", "resource_subscribed", uri=CLOCK)
        changed, front = {"rich": {**RICH["rich"], "timeout": 19}}, front_of(s)
        before = front.catalogues["rich"]
        (s.state / "servers_config.json").write_text(json.dumps({"mcpServers": changed}))
        while (now := front.catalogues.get("rich")) is None or now is before:
            await front.tools_changed.wait()
        await connected(s, "rich")  # a new actor, which was told nothing before
        await wanted(client, "wanted", CLOCK)
        await client.send("call_tool", tool_name="touch")
        await client.until("resource_updated", uri=CLOCK)


async def test_calls_by_hand_end_with_their_socket_and_are_bounded(tmp_path: Path) -> None:
    servers = {"odd": {"command": "python", "args": ["-I", "-S", ODD, "normal"]}}
    async with service(tmp_path, say("hi"), servers=servers) as s, s.client() as client:
        async with s.client() as other:
            for _ in range(MOST_ASIDE + 1):
                await other.send("call_tool", tool_name="hang", arguments={"who": "me"}, request_id="hang")
            error = (await other.until("error"))[-1]
            assert (error["error_code"], error["request_id"]) == ("OVERLOADED", "hang")
            gate = s.tree.slots["mcp/odd"].kept.health.gate  # type: ignore[attr-defined]  # Memory
            while gate.through + gate.waiting != MOST_ASIDE:
                await other.alive()
        while gate.through + gate.waiting:
            await client.alive()
        # the server is told of those that it had heard of
        told = await ask(client, "call_tool", "tool_result", tool_name="count", arguments={"who": "me"})
        assert 0 < int(told["result"]) <= MOST_ASIDE


async def test_a_server_may_ask_whoever_calls_by_hand(tmp_path: Path) -> None:
    async with service(tmp_path, say("hi"), servers=asking("newer")) as s, s.client() as client:
        async with s.client("?conversation=new") as apart:
            await client.send("call_tool", tool_name="ask", arguments={"requests": {"form": FORM}}, request_id="c")
            asked = (await client.until("question"))[-1]
            assert (asked["server"], asked.get("turn")) == ("ask", None)
            content = {"name": "Ada"}
            await client.send("answer", question_id=asked["question_id"], action="accept", content=content)
            result = (await client.until("tool_result", request_id="c"))[-1]
            assert json.loads(result["result"]) == {"form": {"action": "accept", "content": {"name": "Ada"}}}
            assert of_type(await apart.alive(), "question") == []


async def wanted(client: Client, tool: str, uris: str) -> None:
    """Wait until the server of that tool has just these subscriptions."""
    while (await ask(client, "call_tool", "tool_result", tool_name=tool))["result"] != uris:
        await trio.lowlevel.checkpoint()


async def test_results_of_a_turn_are_shown_in_parts_and_stay_with_the_conversation(tmp_path: Path) -> None:
    replies = (
        ask_tool("picture"),
        say("a picture"),
        ask_tool("film", {"size": 100_000}),
        say("a film"),
        ask_tool("text", {"size": 300_000}),
        say("a text"),
    )
    async with service(tmp_path, *replies, servers=RICH) as s, s.client() as client:
        frames = await client.say("show me")
        done = of_type(frames, "tool_execution")[-1]
        assert [part["type"] for part in done["contents"]] == ["text", "image", "audio", "resource", "resource_link"]
        told = (await s.provider.request(2)).json["messages"][-1]["content"]
        assert told == done["result"]
        assert PIXELS not in str((await s.provider.request(2)).json)

        film = of_type(await client.say("a film"), "tool_execution")[-1]["contents"][0]
        assert await whole(client, film["result_id"]) == bytes(100_000)
        done = of_type(await client.say("a text"), "tool_execution")[-1]
        told = (await s.provider.request(6)).json["messages"][-1]["content"]
        assert told.endswith("[cut here: these are the first 262144 of 600000 bytes]")
        assert (await whole(client, done["result_id"])).decode() == "ä" * 300_000
        await client.send("history")
        uses = [use for message in (await client.until("history"))[-1]["messages"] for use in message.get("tools", [])]
        assert [use["contents"][0]["type"] for use in uses[:2]] == ["text", "image"]
        assert (uses[2]["result_id"], uses[2]["result_size"]) == (done["result_id"], 600_000)
        check(client.seen)

        await client.send("save_session", name="kept")
        saved = (await client.until("session_saved"))[-1]["saved_id"]
        await client.send("clear_history")
        await client.until("session_cleared")
        assert (await refused(client, "get_result", result_id=done["result_id"]))[0] == "NOT_FOUND"
        await client.send("load_session", saved_id=saved)
        await client.until("history")
        assert len(await whole(client, done["result_id"])) == 600_000
        first = client.conversation
    async with service(tmp_path, say("hi"), servers=RICH) as s, s.client(f"?conversation={first}") as client:
        assert len(await whole(client, done["result_id"])) == 600_000

"""Saved sessions and the configuration from a client's socket, and the original backend's REST."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from tests.fakes import Script, Stall, say
from tests.service import of_type, service


async def test_a_session_is_saved_listed_loaded_and_deleted(tmp_path: Path) -> None:
    async with service(tmp_path, say("one"), say("two"), say("three")) as s, s.client() as client:
        await client.say("first")
        await client.send("save_session", name="My Important Conversation", request_id="s")
        saved = (await client.until("session_saved"))[-1]
        assert (saved["name"], saved["conversation_id"], saved["request_id"]) == (
            "My Important Conversation",
            client.conversation,
            "s",
        )
        await client.say("second")
        await client.send("list_sessions")
        [row] = (await client.until("sessions"))[-1]["sessions"]
        assert (row["saved_id"], row["name"], row["messages"]) == (saved["saved_id"], saved["name"], 2)

        await client.send("load_session", saved_id=saved["saved_id"], request_id="l")
        welcome = (await client.until("welcome"))[-1]
        assert welcome["request_id"] == "l"
        assert welcome["conversation_id"] != client.conversation
        page = (await client.until("history"))[-1]
        assert [m["content"] for m in page["messages"]] == ["first", "one"]
        await client.say("and on")
        told = [m["content"] for m in (await s.provider.request(3)).json["messages"][1:]]
        assert told == ["first", "one", "and on"]

        await client.send("delete_session", saved_id=saved["saved_id"])
        assert (await client.until("sessions"))[-1]["sessions"] == []
        await client.send("load_session", saved_id=saved["saved_id"], request_id="gone")
        error = (await client.until("error"))[-1]
        assert (error["error_code"], error["request_id"]) == ("SESSION_NOT_FOUND", "gone")


async def test_saving_needs_something_to_save_and_a_name(tmp_path: Path) -> None:
    async with service(tmp_path, say("one")) as s, s.client() as client:
        await client.send("save_session", name="x")
        assert (await client.until("error"))[-1]["error_code"] == "NOT_FOUND"
        await client.say("first")
        await client.send("save_session", name="  ")
        error = (await client.until("error"))[-1]
        assert error["error_code"] == "INVALID_MESSAGE"
        assert "$.name" in error["error_message"]


async def test_saved_sessions_that_are_switched_off(tmp_path: Path) -> None:
    settings = {"chat": {"storage": {"saved_sessions": {"enabled": False}}}}
    async with service(tmp_path, say("one"), settings=settings) as s, s.client() as client:
        await client.say("first")
        for frame in ({"type": "save_session", "name": "x"}, {"type": "list_sessions"}):
            await client.websocket.send_message(json.dumps(frame))
            assert (await client.until("error"))[-1]["error_code"] == "FORBIDDEN"


async def test_a_running_turn_is_not_in_the_save(tmp_path: Path) -> None:
    async with service(tmp_path, say("one"), Script(("half", Stall()))) as s, s.client() as client:
        await client.say("first")
        await client.send("user_message", message="second")
        await client.until("assistant_delta")
        await client.send("save_session", name="so far")
        saved = (await client.until("session_saved"))[-1]
        status, _, body = await s.get(f"/sessions/{saved['saved_id']}")
        assert status == 200
        assert [m["content"] for m in json.loads(body)["messages"]] == ["first", "one"]
        await client.send("stop")
        await client.until("turn_finished")


async def test_the_rest_of_the_original_backend(tmp_path: Path) -> None:
    async with service(tmp_path, say("one")) as s, s.client() as client:
        await client.say("first")
        host = f"Host: 127.0.0.1:{s.port}\r\nContent-Length: 0\r\n\r\n"
        status, _, body = await s.raw(
            f"POST /sessions/{client.conversation}/save?name=By%20REST HTTP/1.1\r\n{host}".encode()
        )
        assert status == 200
        saved = json.loads(body)
        assert saved["name"] == "By REST"
        rows = json.loads((await s.get("/sessions"))[2])["sessions"]
        assert [(row["saved"], row["title"], row["message_count"]) for row in rows] == [
            (True, "By REST", 2),
            (False, "first", 2),
        ]
        page = json.loads((await s.get(f"/sessions/{saved['saved_id']}"))[2])
        assert [m["content"] for m in page["messages"]] == ["first", "one"]
        status, _, body = await s.get("/sessions/nothing")
        assert (status, json.loads(body)["error_code"]) == (404, "SESSION_NOT_FOUND")
        status, _, body = await s.raw(f"POST /sessions/nothing/save?name=x HTTP/1.1\r\n{host}".encode())
        assert (status, json.loads(body)["error_code"]) == (404, "NOT_FOUND")
        evil = f"POST /sessions/{client.conversation}/save?name=x HTTP/1.1\r\nOrigin: https://evil.example\r\n{host}"
        assert (await s.raw(evil.encode()))[0] == 403


async def test_the_configuration_is_read_and_changed_by_a_client(tmp_path: Path) -> None:
    async with service(tmp_path, say("one")) as s, s.client() as client, s.client() as other:
        await client.send("get_config", path="chat.service.max_tool_hops", request_id="g")
        config = (await client.until("config"))[-1]
        assert config["config"]["chat"]["service"] == {"max_tool_hops": 8}
        changes = {"chat": {"service": {"max_tool_hops": 3}}}
        await client.send("set_config", changes=changes, base_version=config["version"], request_id="s")
        changed = (await client.until("config"))[-1]
        assert changed["version"] == config["version"] + 1
        assert changed["config"]["chat"]["service"]["max_tool_hops"] == 3
        assert (await other.until("config_changed"))[-1]["version"] == changed["version"]

        await client.send("set_config", changes=changes, base_version=config["version"])
        assert (await client.until("error"))[-1]["error_code"] == "CONFIG_CONFLICT"
        await client.send("set_config", changes={"chat": {"service": {"max_tool_hops": "many"}}}, request_id="bad")
        error = (await client.until("error"))[-1]
        assert (error["error_code"], error["request_id"]) == ("CONFIG_INVALID", "bad")
        assert "chat.service.max_tool_hops" in error["error_message"]


async def test_the_model_is_switched_in_mid_stream_for_the_next_turn(tmp_path: Path) -> None:
    async with service(tmp_path, say("a", "b", "c"), say("new"), interval=0.05) as s, s.client() as client:
        await client.send("user_message", message="one")
        await client.until("assistant_delta")
        changes = {"llm": {"providers": {"fake": {"model": "fake-2"}}}}
        await client.send("set_config", changes=changes)
        frames = await client.until("turn_finished")
        assert of_type(frames, "assistant_message")[0]["message"] == "abc"
        assert of_type(client.seen, "config")
        frames = await client.say("two")
        assert frames[0]["model"] == "fake-2"
        assert [request.json["model"] for request in s.provider.requests] == ["fake-1", "fake-2"]


async def test_retention_takes_what_nobody_is_in_and_nothing_else(tmp_path: Path) -> None:
    retention = {"max_sessions": 1, "max_age_hours": None, "max_messages": None, "cleanup_interval_minutes": 0.01}
    settings = {"chat": {"storage": {"persistence": {"retention": retention}}}}
    async with service(tmp_path, say("x"), settings=settings) as s, s.client() as client:
        left: list[str] = []
        for name in ("saved", "left"):
            async with s.client("?conversation=new") as other:
                await other.say(name)
                left.append(other.conversation)
                if name == "saved":
                    await other.send("save_session", name="kept")
                    await other.until("session_saved")
        await client.say("the newest")

        async def there(conversation: str) -> bool:
            async with s.client(f"?conversation={conversation}") as probe:
                return bool(probe.welcome["type"] == "welcome")

        rows = 3
        while rows > 2:  # the sweep comes within a second, by its interval
            found = json.loads((await s.get("/sessions"))[2])["sessions"]
            rows = len([row for row in found if not row["saved"]])
            await trio.sleep(0.02)  # nobody is told of what a sweep takes
        assert await there(left[0])
        assert not await there(left[1])
        await client.alive()
        assert (await client.say("still here"))[-1]["outcome"] == "completed"

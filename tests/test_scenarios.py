"""The main job, seen from a client's socket: turns, tools, stops, queues, several sockets, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from actors import messages
from protocol.watcher import SetLocalModel
from tests.fakes import Script, Stall, ask_tool, ask_tools, fail, say, think
from tests.service import DEMO, LIGHT, front_of, of_type, service, text_of


async def test_a_turn_streams_and_ends_once(tmp_path: Path) -> None:
    async with service(tmp_path, think("hm, ", "well", then=("Hel", "lo", " there"))) as s, s.client() as client:
        frames = await client.say("hi", request_id="r1")
        assert frames[0] == {
            "type": "turn_started",
            "turn": 1,
            "message": "hi",
            "model": "fake-1",
            "provider": "fake",
            "request_id": "r1",
        }
        [message] = of_type(frames, "assistant_message")
        assert text_of(frames) == message["message"] == "Hello there"
        assert text_of(frames, "thinking_delta") == message["thinking"] == "hm, well"
        assert message["usage"]["total_tokens"] == 18
        assert (message["status"], message["finish_reason"]) == ("complete", "stop")
        assert [f["type"] for f in frames].count("turn_finished") == 1
        assert frames[-1] == {"type": "turn_finished", "turn": 1, "seq": message["seq"] + 1, "outcome": "completed"}
        sequence = [f["seq"] for f in frames if "seq" in f]
        assert sequence == sorted(set(sequence))


async def test_the_model_is_told_what_was_said_before(tmp_path: Path) -> None:
    async with service(tmp_path, say("one"), say("two")) as s, s.client() as client:
        await client.say("first")
        await client.say("second")
        asked = await s.provider.request(2)
        assert asked.json["messages"] == [
            {"role": "system", "content": "You are a test."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "second"},
        ]


async def test_without_streaming_only_the_whole_message_comes(tmp_path: Path) -> None:
    async with service(tmp_path, think("hm", then=("a", "b"))) as s, s.client() as client:
        frames = await client.say("hi", streaming=False)
        assert [f["type"] for f in frames] == ["turn_started", "assistant_message", "turn_finished"]
        assert frames[1]["message"] == "ab"


async def test_a_real_tool_runs_and_its_result_goes_back(tmp_path: Path) -> None:
    replies = (ask_tool("add", {"a": 2, "b": 40}, text=("Let me ", "see. ")), say("It is ", "42."))
    async with service(tmp_path, *replies, servers=DEMO) as s, s.client() as client:
        frames = await client.say("2 + 40?")
        executing, completed = of_type(frames, "tool_execution")
        assert executing["status"] == "executing"
        assert executing["tool_name"] == "add"
        assert executing["server"] == "demo"
        assert executing["arguments"] == {"a": 2, "b": 40}
        assert "add" in executing["message"]
        assert completed["status"] == "completed"
        assert "42" in completed["result"]
        [message] = of_type(frames, "assistant_message")
        assert text_of(frames) == message["message"] == "Let me see. It is 42."
        asked = await s.provider.request(2)
        call, result = asked.json["messages"][-2:]
        assert call["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2, "b": 40}'}
        assert call["content"] == "Let me see. "
        assert result["role"] == "tool"
        assert result["tool_call_id"] == "call_1"
        assert "42" in result["content"]


async def test_parallel_calls_progress_and_failures(tmp_path: Path) -> None:
    calls = ask_tools(
        ("c1", "slow", {"steps": 3, "step_s": 0.15}),
        ("c2", "fail", {"message": "no luck"}),
        ("c3", "nothing_like_it", {}),
        ("c4", "add", "not json"),
    )
    async with service(tmp_path, calls, say("done")) as s, s.client() as client:
        pass
    async with service(tmp_path, calls, say("done"), servers=LIGHT) as s, s.client() as client:
        frames = of_type(await client.say("go"), "tool_execution")
        by_tool = {f["tool_name"]: f for f in frames if f["status"] in ("completed", "failed")}
        assert {name: f["status"] for name, f in by_tool.items()} == {
            "slow": "completed",
            "fail": "failed",
            "nothing_like_it": "failed",
            "add": "failed",
        }
        assert "no luck" in by_tool["fail"]["result"]
        assert "TOOL_NOT_FOUND" in by_tool["nothing_like_it"]["result"]
        assert "not valid JSON" in by_tool["add"]["result"]
        assert [f for f in frames if f["status"] == "progress"]
        executing = [f["tool_name"] for f in frames if f["status"] == "executing"]
        assert executing == ["slow", "fail", "nothing_like_it", "add"]
        roles = [m["role"] for m in (await s.provider.request(2)).json["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "tool", "tool", "tool"]


async def test_a_model_that_never_stops_asking_is_stopped(tmp_path: Path) -> None:
    settings = {"chat": {"service": {"max_tool_hops": 2}}}
    async with (
        service(tmp_path, ask_tool("add", {"a": 1, "b": 1}), servers=LIGHT, settings=settings) as s,
        s.client() as client,
    ):
        frames = await client.say("loop")
        assert len(s.provider.requests) == 3
        [error] = of_type(frames, "error")
        assert error["error_code"] == "TOOL_HOPS_EXCEEDED"
        assert frames[-1]["outcome"] == "failed"
        assert frames[-1]["error"]["error_code"] == "TOOL_HOPS_EXCEEDED"
        assert frames[-2] == error
        again = await client.say("still there?")
        assert again[0]["turn"] == 2


async def test_stop_closes_the_upstream_and_keeps_the_text(tmp_path: Path) -> None:
    async with service(tmp_path, Script(("Once ", "upon ", Stall())), say("next")) as s, s.client() as client:
        await client.send("user_message", message="tell")
        await client.until("turn_started")
        seen = ""
        while seen != "Once upon ":
            seen += (await client.next())["text"]
        await client.send("stop", request_id="s1")
        frames = await client.until("turn_finished")
        assert frames[-1]["outcome"] == "stopped"
        [message] = of_type(frames, "assistant_message")
        assert (message["message"], message["status"]) == ("Once upon ", "stopped")
        await (await s.provider.request(1)).abandoned.wait()
        await client.say("and?")
        roles = [(m["role"], m["content"]) for m in (await s.provider.request(2)).json["messages"][1:]]
        assert roles == [("user", "tell"), ("assistant", "Once upon "), ("user", "and?")]


async def test_stop_in_a_tool_call_cancels_it(tmp_path: Path) -> None:
    replies = (ask_tool("slow", {"steps": 100, "step_s": 0.2}), say("unused"))
    async with service(tmp_path, *replies, servers=LIGHT) as s, s.client() as client:
        await client.send("user_message", message="go")
        await client.until("tool_execution", status="progress")
        await client.send("stop")
        frames = await client.until("turn_finished")
        assert of_type(frames, "tool_execution")[-1]["status"] == "cancelled"
        assert frames[-1]["outcome"] == "stopped"
        assert len(s.provider.requests) == 1


async def test_stop_without_a_turn_says_so(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.send("stop", request_id="s")
        error = await client.next()
        assert (error["error_code"], error["request_id"]) == ("TURN_NOT_RUNNING", "s")


async def test_a_second_message_waits_its_turn(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate))) + say("b").items, say("c")) as s, s.client() as client:
        await client.send("user_message", message="one", request_id="r1")
        await client.until("assistant_delta")
        await client.send("user_message", message="two", request_id="r2")
        [queued] = await client.until("message_queued")
        assert queued == {"type": "message_queued", "turn": 2, "position": 1, "request_id": "r2"}
        gate.set()
        frames = await client.until("turn_finished", turn=2)
        order = [(f["type"], f["turn"]) for f in frames if f["type"] in ("turn_started", "turn_finished")]
        assert order == [("turn_finished", 1), ("turn_started", 2), ("turn_finished", 2)]
        assert [f["message"] for f in of_type(frames, "assistant_message")] == ["ab", "c"]


async def test_the_same_request_id_starts_nothing_twice(tmp_path: Path) -> None:
    async with service(tmp_path, say("once")) as s, s.client() as client:
        first = await client.say("hi", request_id="same")
        await client.send("user_message", message="hi", request_id="same")
        again = await client.until("turn_finished")
        assert [f["type"] for f in again] == ["turn_started", "assistant_message", "turn_finished"]
        assert again[-1] == first[-1]
        assert again[0]["request_id"] == "same"
        assert len(s.provider.requests) == 1


async def test_the_same_request_id_long_ago_is_known_to_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MOST_KNOWN", 2)
    async with service(tmp_path, say("once"), say("later")) as s, s.client() as client:
        first = await client.say("hi", request_id="same")
        for number in range(3):
            await client.say("and", request_id=f"{number}")
        await client.send("user_message", message="hi", request_id="same")
        again = await client.until("turn_finished")
        assert [f["type"] for f in again] == ["turn_started", "assistant_message", "turn_finished"]
        assert (again[-1], again[0]["request_id"]) == (first[-1], "same")
        assert (await client.say("new"))[-1]["outcome"] == "completed"


async def test_the_same_request_id_after_a_restart_of_the_service(tmp_path: Path) -> None:
    async with service(tmp_path, say("once")) as s, s.client() as client:
        await client.say("hi", request_id="same")
        conversation = client.conversation
    async with service(tmp_path, say("twice")) as s, s.client(f"?conversation={conversation}") as client:
        again = await client.say("hi", request_id="same")
        assert of_type(again, "assistant_message")[0]["message"] == "once"
        assert not s.provider.requests


async def test_two_sockets_see_the_same_turn(tmp_path: Path) -> None:
    async with service(tmp_path, say("a", "b", "c")) as s, s.client() as one:
        await one.say("make it real")
        async with s.client() as other:
            assert other.conversation == one.conversation
            await one.send("user_message", message="again")
            mine, theirs = await one.until("turn_finished"), await other.until("turn_finished")
            for type_ in ("turn_started", "assistant_message", "turn_finished"):
                assert of_type(mine, type_) == of_type(theirs, type_)
            assert text_of(mine) == text_of(theirs) == "abc"


async def test_a_lost_socket_does_not_end_its_turn(tmp_path: Path) -> None:
    gate = trio.Event()
    async with service(tmp_path, Script(("a", Stall(gate), "b")) + say("c").items) as s:
        async with s.client() as client:
            await client.send("user_message", message="go")
            [*_, delta] = await client.until("assistant_delta")
            position = {"turn": delta["turn"], "seq": delta["seq"]}
        async with s.client() as back:
            assert back.welcome["running_turn"] == 1
            await back.send("resume", **position)
            gate.set()
            frames = await back.until("turn_finished")
            assert text_of(frames) == "bc"
            assert of_type(frames, "assistant_message")[0]["message"] == "abc"
            assert len(s.provider.requests) == 1


async def test_clear_history_enters_a_fresh_conversation(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        await client.say("one")
        await client.send("clear_history", request_id="c")
        cleared = await client.next()
        assert cleared["previous_conversation_id"] == client.conversation
        assert cleared["conversation_id"] != client.conversation
        await client.say("two")
        assert [m["content"] for m in (await s.provider.request(2)).json["messages"][1:]] == ["two"]
        async with s.client() as latest:
            assert latest.conversation == cleared["conversation_id"]


async def test_history_pages(tmp_path: Path) -> None:
    async with service(tmp_path, ask_tool("add", {"a": 1, "b": 2}), say("three"), servers=LIGHT) as s, s.client() as c:
        await c.say("1+2?")
        await c.say("again")
        await c.say("and again")
        await c.send("history", limit=2)
        page = await c.next()
        said = [(m["turn"], m["role"]) for m in page["messages"]]
        assert said == [(2, "user"), (2, "assistant"), (3, "user"), (3, "assistant")]
        assert page["more"] is True
        await c.send("history", before=2)
        first = await c.next()
        assert first["more"] is False
        [user, answer] = first["messages"]
        assert (user["content"], answer["content"], answer["status"]) == ("1+2?", "three", "complete")
        [tool] = answer["tools"]
        assert (tool["tool_name"], tool["status"]) == ("add", "completed")


async def test_an_unknown_conversation_is_refused_and_the_default_entered(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client("?conversation=nope") as client:
        assert client.welcome["type"] == "error"
        assert client.welcome["error_code"] == "NOT_FOUND"
        assert (await client.next())["type"] == "welcome"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (fail(401), "LLM_AUTH_FAILED"),
        (fail(429), "LLM_RATE_LIMITED"),
        (fail(500), "LLM_UNAVAILABLE"),
        (Script(("half", " an answ")).but(done=False), "LLM_STREAM_BROKEN"),
    ],
)
async def test_upstream_errors_are_typed_and_the_text_so_far_is_kept(tmp_path: Path, reply: Script, code: str) -> None:
    async with service(tmp_path, reply, say("fine")) as s, s.client() as client:
        frames = await client.say("hi", request_id="r")
        [error] = of_type(frames, "error")
        assert error["error_code"] == code
        assert error["turn"] == 1
        assert frames[-1]["outcome"] == "failed"
        if text_of(frames):
            [message] = of_type(frames, "assistant_message")
            assert (message["message"], message["status"]) == (text_of(frames), "failed")
        assert (await client.say("again"))[-1]["outcome"] == "completed"


NO_KEY = {"llm": {"active": "nokey", "providers": {"nokey": {"base_url": "https://example.invalid/v1", "model": "m"}}}}


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOKEY_API_KEY", raising=False)
    monkeypatch.setattr("actors.local_model.PACKAGES", ("no_such_package_here",))


@pytest.mark.usefixtures("no_key")
async def test_a_message_waits_for_the_model_on_this_machine(tmp_path: Path) -> None:
    async with service(tmp_path, say("here I am"), settings=NO_KEY) as s, s.client() as client:
        s.ref("watcher").offer(SetLocalModel(None, expected=True))
        while not front_of(s).snapshot.llm.loading:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send("user_message", message="hi", request_id="r")
        assert await client.alive() == []  # neither an error nor a turn
        s.ref("watcher").offer(SetLocalModel(s.provider.base_url, "tiny"))
        frames = await client.until("turn_finished")
        assert (frames[0]["type"], frames[0]["provider"], frames[0]["request_id"]) == ("turn_started", "local", "r")
        assert text_of(frames) == "here I am"


@pytest.mark.usefixtures("no_key")
async def test_without_a_key_the_hint_says_what_to_do(tmp_path: Path) -> None:
    async with service(tmp_path, say("x"), settings=NO_KEY) as s, s.client() as client:
        frames = await client.say("hi")
        [error] = of_type(frames, "error")
        assert error["error_code"] == "LLM_NOT_CONFIGURED"
        assert "NOKEY_API_KEY" in error["hint"] + error["error_message"]
        assert "--extra local" in error["hint"]


async def test_status_health_readiness_schema_and_page(tmp_path: Path) -> None:
    async with service(tmp_path, say("x")) as s, s.client() as client:
        assert (await s.get("/healthz"))[0] == 200
        status, _, body = await s.get("/readyz")
        assert (status, b'"ready":true' in body) == (200, True)
        status, _, body = await s.get("/status")
        assert status == 200
        assert b'"store/writer"' in body
        status, headers, body = await s.get("/")
        assert status == 200
        assert "text/html" in headers["content-type"]
        assert b"{{" not in body
        assert (await s.get("/schema"))[0] == 200
        assert (await s.get("/nothing"))[0] == 404
        assert (await s.get("/ws/chat"))[0] == 426
        assert (await s.get("/", Origin="https://evil.example"))[0] == 403
        await client.alive()


async def test_what_was_said_survives_a_restart(tmp_path: Path) -> None:
    async with service(tmp_path, say("kept")) as s, s.client() as client:
        await client.say("remember")
        conversation = client.conversation
    async with service(tmp_path, say("new")) as s, s.client() as client:
        assert client.conversation == conversation
        await client.send("resume")
        page = await client.next()
        assert [m["content"] for m in page["messages"]] == ["remember", "kept"]
        frames = await client.say("more")
        assert frames[0]["turn"] == 2
        assert [m["content"] for m in (await s.provider.request(1)).json["messages"][1:]] == [
            "remember",
            "kept",
            "more",
        ]

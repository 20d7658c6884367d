"""Several fronts: whichever a client reaches, it is served by the one that has its conversation, live and in order."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket

from actors import outbox, passing
from actors.handover import Passage, Passed
from protocol.gateway import StopTaking
from tests.fakes import Pause, Script, Stall, say
from tests.peer import CONTINUATION, PING, PONG, TEXT, Peer, dial, frame, peer, upgrade
from tests.rich_server import CLOCK
from tests.rovers import Rover
from tests.service import Client, Frame, of_type, text_of
from tests.several import OneOf, several
from tests.test_mcp_verbs import RICH


def on(house: OneOf) -> list[str]:
    """Conversations that sockets of this front are in."""
    return sorted(socket.conversation.id for socket in house.front.sockets.values() if socket.conversation)


def text(type: str, **fields: Any) -> bytes:
    return frame(TEXT, json.dumps({"type": type, **fields}).encode())


async def closed(client: Client) -> int:
    """The code that the socket was closed with; what came before is in `seen`."""
    with pytest.raises(trio_websocket.ConnectionClosed) as end:
        await client.until("nothing more comes")
    assert end.value.reason is not None
    return int(end.value.reason.code)


async def test_a_socket_on_another_front_is_served_live_and_in_order(tmp_path: Path) -> None:
    gate = trio.Event()
    replies = (Script(("Hel", "lo", Stall(gate))) + say(" world").items, say("second answer"))
    async with several(tmp_path, *replies) as (one, two), one.client() as client:
        await client.send("user_message", message="hi", request_id="r1")
        await client.until("assistant_delta")
        async with two.client(f"?conversation={client.conversation}") as other, two.client() as latest:
            assert other.welcome["running_turn"] == 1
            assert latest.conversation == client.conversation
            assert (on(one), on(two)) == ([client.conversation] * 3, [])
            await latest.send("resume")
            await other.send("resume", turn=1)
            gate.set()
            frames = await other.until("turn_finished")
            assert frames[0]["type"] == "turn_started"
            assert text_of(frames) == "Hello world"
            await client.until("turn_finished")
            await other.send("user_message", message="and?", request_id="r2")
            for socket in (client, other, latest):
                second = await socket.until("turn_finished", turn=2)
                assert of_type(second, "assistant_message")[-1]["message"] == "second answer"
        assert not of_type(client.seen, "degraded", "error")


async def test_what_came_with_the_handshake_goes_along_and_the_older_dialect_too(tmp_path: Path) -> None:
    async with several(tmp_path, say("answer")) as (one, two), one.client() as client:
        await client.say("hi")
        async with dial(two) as p:
            await p.send(upgrade(two.port), text("ping", request_id="1"), text("history"), text("ping", request_id="2"))
            assert (await p.head()).startswith("HTTP/1.1 101 ")
            seen = [await p.next() for _ in range(4)]
            assert [f["type"] for f in seen] == ["welcome", "pong", "history", "pong"]
        async with peer(two, "?dialect=action") as p:
            assert (await p.next())["type"] == "welcome"
            assert (await p.next())["chunk"]["type"] == "conversation_history"
        async with peer(two, f"?conversation={'x' * 30}") as p:
            error, welcome = await p.next(), await p.next()
            assert (error["error_code"], welcome["conversation_id"]) == ("NOT_FOUND", client.conversation)
        async with two.client("?conversation=new") as fresh:
            assert on(two) == [fresh.conversation]
            frames = await fresh.say("hello")
            assert frames[-1]["outcome"] == "completed"


CUTS = [0, 1, 40, 150, 400, 10_000]


async def test_a_socket_moves_in_mid_life_and_nothing_is_lost_or_reordered(tmp_path: Path) -> None:
    async with several(tmp_path, say("answer")) as (one, two), one.client() as client:
        await client.say("hi", request_id="r1")
        there = client.conversation
        long = json.dumps({"type": "user_message", "message": "x" * 300, "request_id": "r2"}).encode()
        burst = [
            text("ping", request_id="before"),
            text("hello", conversation_id=there, resume={"turn": 1, "seq": 0}, request_id="go"),
            frame(PING, b"here?"),
            frame(TEXT, long[:100], fin=False),
            frame(PING, b"between"),
            frame(CONTINUATION, long[100:]),
            *(text("ping", request_id=str(number)) for number in range(20)),
        ]
        data = b"".join(burst)
        for cut in CUTS:
            async with peer(two, "?conversation=new") as p:
                assert (await p.next())["type"] == "welcome"
                await p.send(data[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await p.send(data[cut:])
                seen, pongs = await heard(p, "19")
                kinds = [f["type"] for f in seen]
                assert [f["request_id"] for f in of_type(seen, "pong")] == ["before", *map(str, range(20))]
                assert kinds[:2] == ["pong", "welcome"]
                assert (seen[1]["conversation_id"], seen[1]["request_id"]) == (there, "go")
                assert of_type(seen, "assistant_message")[0]["turn"] == 1, "the replay that it asked for"
                assert set(pongs) == {b"here?", b"between"}
                assert on(two) == []
        # what it said there was taken, once
        await client.send("history")
        page = (await client.until("history"))[-1]
        assert [m["content"][:3] for m in page["messages"] if m["role"] == "user"] == ["hi", "xxx"]


async def heard(p: Peer, last: str) -> tuple[list[Frame], list[bytes]]:
    """Frames up to that pong of ours, and the payloads of pong frames."""
    seen: list[Frame] = []
    pongs: list[bytes] = []
    while not (seen and seen[-1]["type"] == "pong" and seen[-1]["request_id"] == last):
        found = await p.receive()
        assert found is not None
        if found[0] == PONG:
            pongs.append(found[1])
        elif found[0] == TEXT:
            seen.append(json.loads(found[1]))
    return seen, pongs


async def test_a_socket_moves_back_and_forth_and_is_told_once_what_is_not_there(tmp_path: Path) -> None:
    async with several(tmp_path, say("answer")) as (one, two), one.client() as a, two.client("?conversation=new") as b:
        await a.say("hi")
        await b.say("hi")
        async with one.client("?conversation=new") as walker:
            await walker.send("hello", frame_ms=7)
            await walker.until("welcome")
            for home, conversation in ((two, b.conversation), (one, a.conversation), (two, b.conversation)):
                await walker.send("hello", conversation_id=conversation)
                assert (await walker.until("welcome"))[-1]["conversation_id"] == conversation
                assert on(home).count(conversation) == 2
            # the default is the latest: that of the other front
            await a.send("hello", conversation_id=a.conversation)
            await a.say("again")
            await walker.send("hello", conversation_id="nowhere", request_id="q")
            frames = await walker.until("welcome")
            assert [f["type"] for f in frames] == ["error", "welcome"]
            assert frames[-1]["conversation_id"] == a.conversation
            assert {f["request_id"] for f in frames} == {"q"}
            assert on(one).count(a.conversation) == 2
            assert sorted(s.outbox.frame_s for s in one.front.sockets.values()) == [0, 0.007]
            await walker.say("both hear this")
            await a.until("turn_finished", turn=3)


async def test_a_socket_takes_along_what_it_has_subscribed_to(tmp_path: Path) -> None:
    async with several(tmp_path, say("answer"), servers=RICH) as (one, two), two.client("?conversation=new") as b:
        await b.say("hi")
        for home in (one, two):
            while not home.front.merged.names():
                await home.front.tools_changed.wait()
        async with one.client("?conversation=new") as walker:
            await walker.send("subscribe_resource", uri=CLOCK, server="rich")
            await walker.until("resource_subscribed")
            await walker.send("hello", conversation_id=b.conversation)
            await walker.until("welcome")
            while CLOCK not in [uri for _, uri in two.front.followers]:
                await walker.alive()
            assert one.front.followers == {}
            await b.send("call_tool", tool_name="touch")
            await walker.until("resource_updated", uri=CLOCK)


async def test_a_socket_takes_along_what_it_has_not_read_and_waits_for_what_it_is_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[Passed] = []

    async def give(self: Passage, stream: trio.SocketStream, found: Passed) -> None:
        passed.append(found)
        await real(self, stream, found)

    real = Passage.give
    monkeypatch.setattr(Passage, "give", give)
    monkeypatch.setattr(outbox, "HIGH", 2**30)  # else it is not listened to before it has read
    async with several(tmp_path, say("answer")) as (one, two), one.client() as client:
        await client.say("hi")
        with trio.socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await narrow.connect(("127.0.0.1", two.port))
            p = Peer(trio.SocketStream(narrow))
            await p.send(upgrade(two.port, path="/ws/chat?conversation=new"))
            await p.head()
            await p.say("user_message", message="x" * 100_000, request_id="long")
            await p.until("turn_finished")
            for number in range(60):  # 6 MB: more than the kernel keeps for it
                await p.say("history", request_id=str(number))
            await p.say("user_message", message="and?", request_id="last")
            await p.say("hello", conversation_id=client.conversation, request_id="go")
            while not passed:  # nothing is read until it has moved
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert passed[0].unsent
            for number in range(60):
                found = await p.until("history")
                assert (found["request_id"], len(found["messages"][0]["content"])) == (str(number), 100_000)
            assert (await p.until("turn_started"))["request_id"] == "last", "its acknowledgement came before it left"
            welcome = await p.until("welcome")
            assert (welcome["conversation_id"], welcome["request_id"]) == (client.conversation, "go")


async def test_a_front_that_is_taken_for_dead_lets_go_and_its_clients_resume_with_another(tmp_path: Path) -> None:
    """One turn had shown text: interrupted. One had shown nothing: asked again. One waited: answered. Each once."""
    gates: dict[str, trio.Event] = {}

    def reply(asked: Any) -> Script:
        said = asked["messages"][-1]["content"]
        if said in gates:
            return say("second try")
        gates[said] = trio.Event()
        return Script((Stall(gates[said]),)) if said == "mute" else Script(("shown", Stall(gates[said])))

    async with several(tmp_path, reply) as (one, two):
        async with one.client("?conversation=new") as a, one.client("?conversation=new") as b:
            await a.send("user_message", message="spoken", request_id="r1")
            await a.until("assistant_delta")
            await a.send("user_message", message="behind", request_id="r2")
            await a.until("message_queued")
            await b.send("user_message", message="mute", request_id="r1")
            await b.until("turn_started")
            await settled(one)
            await one.is_gone()
            # whatever it wants to write now is refused, so it ends, and its sockets are told to come again
            for name in gates:
                gates[name].set()
            assert (await closed(a), await closed(b)) == (1012, 1012)
            assert not of_type(a.seen + b.seen, "turn_finished")
            gates["behind"] = trio.Event()
        async with (
            two.client(f"?conversation={a.conversation}") as a2,
            two.client(f"?conversation={b.conversation}") as b2,
        ):
            await a2.send("resume", turn=1, seq=1)
            frames = await a2.until("turn_finished", turn=2)
            of_one = [f for f in frames if f.get("turn") == 1]
            assert [f["type"] for f in of_one] == ["assistant_message", "turn_finished"]
            assert (of_one[0]["message"], of_one[1]["outcome"]) == ("shown", "interrupted")
            assert of_one[0]["seq"] > 1_000_000
            assert frames[-1]["outcome"] == "completed"
            await b2.send("resume", turn=1)
            frames = await b2.until("turn_finished")
            assert (text_of(frames), frames[-1]["outcome"]) == ("second try", "completed")
            for client in (a2, b2):
                await client.send("history")
                page = (await client.until("history"))[-1]
                assert len({(m["turn"], m["role"]) for m in page["messages"]}) == len(page["messages"])
            assert [m["status"] for m in page["messages"]] == ["complete", "complete"]


async def settled(house: OneOf) -> None:
    """Until the store has been told of all that this front has shown."""
    while any(log.marked and not log.sending for log in house.front.running()) or house.front.shown:
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_messages_of_a_dead_front_are_taken_up_without_a_client(tmp_path: Path) -> None:
    gate = trio.Event()
    async with several(tmp_path, Script((Stall(gate),)), say("done")) as (one, two):
        async with one.client() as client:
            await client.send("user_message", message="hi")
            await client.until("turn_started")
        two.front.gone.append(one.id)
        two.front.bereaved.set()
        asked = await two.provider.request(2)
        assert asked.json["messages"][-1]["content"] == "hi"
        async with two.client(f"?conversation={client.conversation}") as again:
            await again.send("resume", turn=1)
            frames = await again.until("turn_finished")
            [message] = of_type(frames, "assistant_message")
            assert (message["message"], frames[-1]["outcome"]) == ("done", "completed")
            assert on(two) == [client.conversation]
        gate.set()  # the dead one was not really so, and learns it now
        await one.tree.until(lambda: f"front1/sessions/{client.conversation}" not in one.tree.slots)


async def test_a_death_that_nobody_has_told_is_found_by_who_looks_for_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "SETTLE_S", 0.1)
    async with several(tmp_path, say("answer"), count=3) as (one, two, three):
        async with one.client("?conversation=new") as a, two.client("?conversation=new") as b:
            await a.say("hi")
            await b.say("hi")
        for house in (one, two):
            house.leave_quietly()
        async with three.client(f"?conversation={a.conversation}") as client:
            assert client.conversation == a.conversation
            await client.send("hello", conversation_id=b.conversation)
            assert (await client.until("welcome"))[-1]["conversation_id"] == b.conversation
            assert (await client.say("still there?"))[-1]["outcome"] == "completed"


async def test_a_front_that_is_replaced_keeps_its_turns_to_their_end_and_lets_go_of_all_else(tmp_path: Path) -> None:
    gate = trio.Event()
    replies = (say("one"), Script(("Hel", Stall(gate))) + say("lo").items, say("from the other"))
    async with several(tmp_path, *replies) as (one, two), dial(one) as astray:
        async with one.client("?conversation=new") as idle, one.client("?conversation=new") as busy:
            await idle.say("hi")
            await busy.send("user_message", message="long", request_id="r1")
            await busy.until("assistant_delta")
            await busy.send("user_message", message="behind", request_id="r2")
            await busy.until("message_queued")
            async with trio.open_nursery() as nursery:
                cut: list[int] = []

                async def replace() -> None:
                    ask = StopTaking(grace_s=15.0, replaced=True)
                    cut.append(await one.ref("front1/gateway").ask(ask, within=18.0))

                nursery.start_soon(replace)
                assert await closed(idle) == 1012
                async with two.client(f"?conversation={idle.conversation}") as back:
                    assert on(two) == [idle.conversation]
                    await back.alive()
                async with two.client(f"?conversation={busy.conversation}") as late:
                    assert late.welcome["running_turn"] == 1, "it is still the old one's"
                    await late.send("user_message", message="no", request_id="r3")
                    assert (await late.until("error"))[-1]["error_code"] == "SHUTTING_DOWN"
                    gate.set()
                    assert await closed(late) == 1012
                assert await closed(busy) == 1012
                assert of_type(busy.seen, "turn_finished")[-1]["outcome"] == "completed"
                # who was connected, but had not said where to yet, is sent on; nobody else comes
                await astray.send(upgrade(one.port, path=f"/ws/chat?conversation={idle.conversation}"))
                assert "101" in await astray.head()
                await astray.until("welcome")
                assert on(two) == [idle.conversation]
                with pytest.raises(OSError, match="all attempts to connect"):
                    await trio.open_tcp_stream("127.0.0.1", one.port)
            assert cut == [0]
        async with two.client(f"?conversation={busy.conversation}") as again:
            await again.send("resume", turn=1, seq=10**6)
            frames = await again.until("turn_finished", turn=2)
            assert text_of(frames) == "from the other"


# httpx does not end its own generator when a request is cancelled while its body is sent
@pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning")
async def test_whoever_dies_when_each_message_is_answered_once(tmp_path: Path) -> None:
    """Clients that go back and forth between fronts, while one of these after the other is taken for dead."""
    marks = {number: trio.Event() for number in (12, 24, 36, 48)}
    said = itertools.count(1)

    def one_more() -> None:
        if (mark := marks.get(next(said))) is not None:
            mark.set()

    answer = Script(("a ", Pause(0.005), "b ", Pause(0.01), "c ")) + say("end").items
    async with several(tmp_path, answer, count=4) as fronts:
        rovers = [Rover([front.port for front in fronts], one_more) for _ in range(4)]
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            for rover in rovers:
                nursery.start_soon(rover.rove, over)
            for mark, dying in zip(marks.values(), [*fronts[:-1], None], strict=True):
                await mark.wait()
                if dying is not None:
                    await dying.dies()
            over.set()
        outcomes = [end for rover in rovers for told in rover.told for end in told.ends]
        assert {*outcomes} <= {"completed", "interrupted"}
        assert sum(rover.moves for rover in rovers) > 0
        assert sum(rover.broken for rover in rovers) > 0

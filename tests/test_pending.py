"""What waits for a person: one winner, one end, told to all it concerns, and nobody decides what is another's."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from actors.store import MEMORY, Store
from protocol.errors import Code, Fault
from protocol.mail import Request
from protocol.pending import (
    OPERATORS,
    SAMPLING,
    CancelPending,
    DecidePending,
    DropGrant,
    ExpirePending,
    ListGrants,
    ListPending,
    OpenPending,
    Pending,
    ReadPending,
)
from protocol.writer import FrontGone
from tests.service import Client, of_type, service
from tests.stores import append, ask, begin, closed, do, hop, opened

FORM = {"type": "object", "properties": {"name": {"type": "string"}}}


def approval(id_: str = "a", turn: int = 1, **fields: object) -> Pending:
    body = {"tool_name": "add", "arguments": {"a": 1}, "reason": "because"}
    row = Pending(id_, "approval", "ann", "demo", body, "c", turn, call=f"call-{id_}", tool="add")
    return msgspec.structs.replace(row, **fields)


def question(id_: str = "q", **fields: object) -> Pending:
    row = Pending(id_, "question", "ann", "demo", {"message": "Who?", "schema": FORM}, "c")
    return msgspec.structs.replace(row, **fields)


def opening(pending: Pending, lasts_s: float = 60.0, *, unless_granted: bool = False) -> OpenPending:
    return OpenPending(pending, lasts_s, unless_granted)


def once(id_: str = "a", key: str = "k", owners: tuple[str, ...] = ("ann",), grant: str = "") -> DecidePending:
    return DecidePending(id_, list(owners), "approval", "answered", key, {"decision": "once"}, grant)


def code(of: Store, message: Request[object]) -> Code:
    with pytest.raises(Fault) as refused:
        ask(of, message) if isinstance(message, ReadPending) else do(of, message)
    return refused.value.code


def test_it_is_settled_once_and_outlives_the_process(tmp_path: Path) -> None:
    with opened(tmp_path / "chat.db") as s:
        do(s, begin(1))
        first = do(s, opening(approval()))
        assert do(s, opening(approval(body="another"))) == first, "a repeat changes nothing"
        assert first.state == "open"
        assert first.expires_at == pytest.approx(first.made_at + 60.0)
    with opened(tmp_path / "chat.db") as s:
        assert ask(s, ReadPending("a")) == first
        for foreign in (once(owners=("bob", OPERATORS)), once("b"), msgspec.structs.replace(once(), kind="question")):
            assert code(s, foreign) is Code.NOT_FOUND
        won = do(s, once())
        assert (won.won, won.pending.state, won.pending.answer) == (True, "answered", {"decision": "once"})
        assert do(s, once()) == won, "the same decision again"
        lost = do(s, DecidePending("a", ["ann"], "approval", "declined", "other"))
        assert (lost.won, lost.pending) == (False, won.pending)
        assert do(s, opening(approval())) == won.pending, "opened again it stays settled"
        assert ask(s, ListPending(["ann"])) == []
        assert code(s, ReadPending("b")) is Code.NOT_FOUND


def test_who_is_asked_is_in_the_conversation_or_anywhere() -> None:
    with opened(MEMORY) as s:
        do(s, begin(1))
        rows = [
            do(s, opening(row))
            for row in (
                approval(),
                question(),
                question("elsewhere", conversation="d"),
                question("anywhere", conversation=""),
                question("of operators", conversation="", owner=OPERATORS),
                question("of bob", owner="bob"),
            )
        ]
        assert [row.id for row in ask(s, ListPending(["ann"]))] == ["a", "q", "elsewhere", "anywhere"]
        assert ask(s, ListPending(["ann", OPERATORS], "c")) == [rows[0], rows[1], rows[3], rows[4]]
        for number in range(200 - 4):
            do(s, opening(question(f"q{number}")))
        assert code(s, opening(question("too many"))) is Code.OVERLOADED


def test_time_and_the_end_of_what_it_was_for_settle_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("actors.store.time.time", lambda: now)
    with opened(MEMORY) as s:
        do(s, begin(1))
        do(s, append(hop(1, "text"), key="h"))
        for row, lasts in ((approval(), 10.0), (approval("b"), 20.0), (approval("d"), 99.0), (question(), 30.0)):
            do(s, opening(row, lasts))
        now = 1010.5
        late = do(s, once("a"))
        assert (late.won, late.pending.state) == (False, "expired"), "nobody has looked, but it is over"
        now = 1020.5
        expired = do(s, ExpirePending())
        assert [(row.id, row.state) for row in expired.pending] == [("b", "expired")]
        assert expired.next_at == pytest.approx(1030.0, abs=0.1), "the question's"
        assert do(s, CancelPending("c", 1, call="call-b")) == []
        assert [row.id for row in do(s, CancelPending(server="demo", kind="question"))] == ["q"]
        assert [row.id for row in ask(s, ListPending(["ann"]))] == ["d"]
        do(s, append(closed(), key="end"))
        assert ask(s, ReadPending("d")).state == "cancelled", "with its turn"
        assert code(s, opening(approval("late"))) is Code.TURN_NOT_RUNNING
        assert do(s, ExpirePending()).next_at == math.inf
        now += 8 * 86400
        do(s, ExpirePending())
        assert code(s, ReadPending("a")) is Code.NOT_FOUND, "forgotten after a week"


def test_what_servers_asked_outside_of_turns_ends_with_whom_they_asked_through() -> None:
    with opened(MEMORY) as s:
        do(s, begin(1))
        sampling = approval("s", turn=0, tool=SAMPLING)
        pinned = approval("pin", turn=0)
        for row in (sampling, pinned, question(), question("ops", conversation="", owner=OPERATORS)):
            do(s, opening(row))
        do(s, FrontGone("run:front1#1"))
        assert [ask(s, ReadPending(id_)).state for id_ in ("s", "q", "ops")] == ["cancelled", "cancelled", "open"]
        s.recover()
        assert [ask(s, ReadPending(id_)).state for id_ in ("ops", "pin")] == ["cancelled", "open"]


def test_always_is_remembered_for_its_owner_until_it_is_dropped() -> None:
    with opened(MEMORY) as s:
        do(s, begin(1))
        do(s, opening(approval(), unless_granted=True))
        assert do(s, once("a", grant="ann")).won
        granted = do(s, opening(approval("b"), unless_granted=True))
        assert (granted.state, granted.answer) == ("answered", {"decision": "always"})
        assert code(s, ReadPending("b")) is Code.NOT_FOUND, "nothing was to be decided"
        for other in (approval("o", owner="bob"), approval("p", tool="sub"), approval("r", server="other")):
            assert do(s, opening(other, unless_granted=True)).state == "open"
        do(s, opening(approval("pin", turn=0)))
        do(s, once("pin", grant="bob"))
        assert ask(s, ListGrants("bob")) == [], "only calls are granted"
        assert [(grant.server, grant.tool) for grant in ask(s, ListGrants("ann"))] == [("demo", "add")]
        assert do(s, DropGrant("ann", "demo", "add"))
        assert not do(s, DropGrant("ann", "demo", "add"))
        assert do(s, opening(approval("again"), unless_granted=True)).state == "open"


async def test_every_socket_that_it_concerns_is_told_and_the_first_answer_counts(tmp_path: Path) -> None:
    async with service(tmp_path) as s, s.client() as one, s.client("?conversation=new") as elsewhere:
        await one.say("hi")
        writer = s.ref("store/writer")

        async def put(pending: Pending) -> None:
            owned = msgspec.structs.replace(pending, owner="local", turn=0)
            await writer.ask(opening(owned), within=10, again=True)

        async def told(client: Client, kind: str) -> list[object]:
            return [frame.get("approval_id", frame.get("question_id")) for frame in of_type(client.seen, kind)]

        await put(approval(conversation=one.conversation))
        [request] = (await one.until("approval_request"))[-1:]
        assert (request["tool_name"], request["server"], request["reason"]) == ("add", "demo", "because")
        assert (request["arguments"], request["conversation_id"]) == ({"a": 1}, one.conversation)
        await put(question(conversation=""))
        for client in (one, elsewhere):
            asked = (await client.until("question"))[-1]
            assert (asked["message"], asked["schema"], asked["server"]) == ("Who?", FORM, "demo")
        assert await told(elsewhere, "approval_request") == [], "it is of another conversation"

        async with s.client(f"?conversation={one.conversation}") as late:
            await late.until("question")
            assert await told(late, "approval_request") == ["a"], "welcome is followed by what is open"
            # answered from a socket of another conversation, of the same owner
            await elsewhere.send("approve", approval_id="a", decision="deny", request_id="r")
            await elsewhere.until("approval_settled", request_id="r", outcome="denied")
            for client in (one, late):
                assert (await client.until("approval_settled"))[-1]["outcome"] == "denied"
            await late.send("approve", approval_id="a", decision="once", request_id="slow")
            error = (await late.until("error", request_id="slow"))[-1]
            assert (error["error_code"], error["error_message"]) == (
                "ALREADY_SETTLED",
                "This is settled already: denied.",
            )
        for wrong in ({"question_id": "a"}, {"question_id": "none"}, {"question_id": "x" * 300}):
            await one.send("answer", action="accept", **wrong)
            assert (await one.until("error"))[-1]["error_code"] == "NOT_FOUND"
        await one.send("answer", question_id="q", action="sometimes")
        assert (await one.until("error"))[-1]["error_code"] == "INVALID_MESSAGE"
        await one.send("answer", question_id="q", action="accept", content={"name": "Ann"})
        await elsewhere.until("question_settled", question_id="q", outcome="accepted")
        assert (await writer.ask(ReadPending("q"), within=10)).answer == {"name": "Ann"}

"""What claims promise: a turn is run by one front at a time, and by somebody in the end, whoever dies when."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.fence import Fence
from actors.recovery import ASKS, SEQ_GAP
from actors.store import MEMORY, Store
from protocol.claim import FrontId, gone, parsed, role_of
from protocol.errors import Code, Fault
from protocol.mail import Request
from protocol.spec import Child, Down, Group, Up
from protocol.writer import (
    Append,
    AppendDeltas,
    Began,
    BeginTurn,
    Closed,
    Delta,
    Done,
    Enter,
    Entered,
    FrontGone,
    HopEvent,
    LoadHistory,
    LoadSaved,
    Operation,
    Release,
    SaveSession,
    StartTurn,
    TakeUnfinished,
    ToolStarted,
    Unfinished,
    UserEvent,
)
from supervisors.supervisor import running
from tests.stores import ask, closed, do, events, history, whole

A, B = "run:front1#1", "run:front2#1"


def store(path: Path | str = MEMORY, *, run: str = "run", living: list[str] | None = None) -> Store:
    made = Store(str(path), fence=Fence(run, living))
    made.open()
    return made


def refused(into: Store, operation: Request[object]) -> bool:
    """Whether the store says that the asker has lost the conversation."""
    (answer,) = into.commit([cast(Operation, operation)])
    return isinstance(answer, Fault) and answer.code is Code.MOVED


def begin(front: str, turn: int = 1, *, conversation: str = "c", queued: bool = False) -> BeginTurn:
    return BeginTurn("ann", conversation, turn, UserEvent("hi", f"r{turn}", streaming=True), queued, front)


def end(front: str, turn: int = 1, *, conversation: str = "c") -> Append:
    return Append(conversation, turn, "end", [closed()], front)


def grown(front: str, seq: int, text: str, turn: int = 1) -> AppendDeltas:
    return AppendDeltas([Delta("c", turn, 1, seq, text, "")], front)


# Ids.


def test_ids_and_what_the_root_says_of_fronts() -> None:
    assert parsed(A) == FrontId("run", "front1", 1)
    assert str(FrontId("run", "front1", 1)) == A
    assert role_of(A) == "front1"
    assert [parsed(text) for text in ("", "front1", "run:front1", "run:front1#x", "run:#1")] == [None] * 5
    down, up = Down("fronts/front1", 3, "", None, parked=False), Up("fronts/front1", 3)
    assert (gone("run", down), gone("run", up)) == ("run:front1#3", "run:front1#2")
    assert gone("run", Up("fronts/front1", 1)) == "", "none has ended"
    for path in ("front1/gateway", "front/gateway", "front1/sessions/c", "store", "fronts/store"):
        assert gone("run", Down(path, 3, "", None, parked=False)) == ""


# Taking and letting go.


def test_the_first_front_that_enters_has_the_conversation_until_it_lets_go() -> None:
    s = store()
    whole(s, 1)
    assert do(s, Enter("ann", "latest", "x", A)) == Entered("c", False, A)
    assert do(s, Enter("ann", "c", "x", B)) == Entered("c", False, A), "another is told whose it is"
    assert do(s, Enter("ann", "latest", "x")) == Entered("c", False, A), "who is no front takes nothing"
    assert refused(s, begin(B, 2))
    assert do(s, begin(A, 2)) == Began(2, repeated=False)
    assert refused(s, end(B, 2))
    do(s, AppendDeltas([Delta("c", 2, 1, 1, "not mine", "")], B))
    do(s, Release(B, ["c"]))
    do(s, Release(A, ["c", "unknown"]))
    assert do(s, Enter("ann", "c", "x", B)).front == A, "a turn runs: it stays"
    do(s, end(A, 2))
    do(s, Release(A, ["c"]))
    assert do(s, Enter("ann", "c", "x", B)) == Entered("c", False, B)
    assert [type(event) for event in events(s, 2)] == [UserEvent, Closed]
    do(s, end(A, 2))  # a repeat of what it did before is answered as ever
    assert refused(s, begin(A, 3))
    s.close()


def test_new_conversations_are_their_maker_s() -> None:
    s = store()
    assert do(s, Enter("ann", "latest", "a", A)) == Entered("a", True, A)
    do(s, begin(A, conversation="a"))
    do(s, end(A, conversation="a"))
    assert do(s, Enter("ann", "new!", "b", B)) == Entered("b", False, B)
    do(s, SaveSession("ann", "a", "name", "s1"))
    do(s, LoadSaved("ann", "s1", "copy", B))
    wanted = {"a": A, "b": B, "copy": B}
    assert {name: do(s, Enter("ann", name, "", "run:front3#1")).front for name in wanted} == wanted
    s.close()


def test_a_turn_that_begins_takes_what_its_front_let_go_of_a_moment_ago() -> None:
    s = store()
    whole(s, 1)
    do(s, Enter("ann", "c", "", A))
    do(s, Release(A, ["c"]))
    do(s, begin(A, 2))
    assert do(s, Enter("ann", "c", "", B)).front == A
    s.close()


# The death of a front.


def test_a_dead_front_s_turn_is_closed_with_its_text_and_nothing_late_of_it_counts() -> None:
    s = store()
    do(s, begin(A))
    do(s, begin(A, 2, queued=True))
    do(s, grown(A, 3, "half an ans"))
    do(s, FrontGone(A))
    last = events(s)[-1]
    assert isinstance(last, Closed)
    assert (last.outcome, last.message, last.seq) == ("interrupted", "half an ans", 3 + SEQ_GAP + 1)
    late = [end(A), grown(A, 5, "wer"), StartTurn("c", 2, A), begin(A, 3), TakeUnfinished(A), Enter("ann", "c", "", A)]
    assert all(refused(s, operation) for operation in [*late, Enter("ann", "new!", "d", A), LoadSaved("", "", "", A)])
    do(s, FrontGone(A))
    assert do(s, TakeUnfinished(B)) == [Unfinished("ann", "c")], "the message behind it waits on"
    assert do(s, TakeUnfinished("run:front3#1")) == []
    assert do(s, TakeUnfinished(B)) == [Unfinished("ann", "c")], "an answer may be lost"
    do(s, StartTurn("c", 2, B))
    assert do(s, Enter("ann", "c", "", "run:front1#2")).front == B, "its next life is another front"
    s.close()


def test_a_turn_that_showed_nothing_is_asked_again_but_not_for_ever() -> None:
    s = store()
    do(s, begin("run:front1#1"))
    for life in range(1, ASKS):
        do(s, FrontGone(f"run:front1#{life}"))
        front = f"run:front1#{life + 1}"
        assert do(s, Enter("ann", "c", "", front)) == Entered("c", False, front, waiting=True)
        do(s, StartTurn("c", 1, front))
        assert do(s, Enter("ann", "c", "", front)) == Entered("c", False, front), "it runs"
    do(s, FrontGone(f"run:front1#{ASKS}"))
    assert history(s).queued == history(s).running == []
    assert isinstance(events(s)[-1], Closed)
    s.close()


@pytest.mark.parametrize(
    "shown",
    [
        grown(A, 1, ""),
        Append("c", 1, "k", [HopEvent(1, "a", "", [], {}, "p", "m", None, "stop")], A),
        Append("c", 1, "k", [ToolStarted("c1", "m1", 1, "add", "demo", "{}")], A),
    ],
    ids=["shown", "answered", "tool"],
)
def test_what_was_shown_or_done_is_never_asked_again(shown: Request[Done]) -> None:
    s = store()
    do(s, begin(A))
    do(s, shown)
    do(s, FrontGone(A))
    assert isinstance(events(s)[-1], Closed)
    s.close()


def test_earlier_lives_go_with_the_last_one() -> None:
    s = store()
    for life in (1, 2, 3):
        do(s, begin(f"run:front1#{life}", conversation=f"c{life}"))
    do(s, begin("run:front11#1", conversation="other"))
    do(s, FrontGone("run:front1#2"))
    assert [row.conversation for row in do(s, TakeUnfinished(B))] == ["c1", "c2"]
    assert refused(s, begin("run:front1#1", 9, conversation="c3"))
    do(s, begin("run:front1#3", 9, conversation="c3"))
    s.close()


# A store that is opened again.


def test_a_store_beside_living_fronts_recovers_only_what_is_of_dead_ones(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    s = store(path)
    assert refused(s, begin("old:front1#1"))
    for name, front in (("of a", A), ("of b", B), ("of b too", B), ("single", "")):
        do(s, begin(front, conversation=name))
    do(s, AppendDeltas([Delta("of b too", 1, 1, 1, "text", "")], B))
    s.close()
    s = store(path, living=[A])
    assert s.recover() == 2
    found = {name: history(s, name) for name in ("of a", "of b", "of b too", "single")}
    assert [name for name, page in found.items() if page.running] == ["of a"]
    assert [name for name, page in found.items() if page.queued] == ["of b"], "it was of this run and had shown nothing"
    do(s, end(A, conversation="of a"))
    s.close()
    s = store(path, run="next")
    assert s.recover() == 0
    assert do(s, Enter("ann", "of a", "", "next:front1#1")).front == "next:front1#1", "claims of other runs are void"
    s.close()


def test_another_run_closes_what_the_last_left_even_where_nothing_was_shown(tmp_path: Path) -> None:
    for run in ("", "other"):
        path = tmp_path / f"{run}.db"
        s = store(path)
        do(s, begin(A))
        s.close()
        s = store(path, run=run)
        assert s.recover() == 1
        assert isinstance(events(s)[-1], Closed)
        assert do(s, Enter("ann", "c", "")) == Entered("c", False)
        s.close()


# The writer hears of deaths.


async def test_the_writer_heeds_what_the_root_says(tmp_path: Path) -> None:
    args = {"path": str(tmp_path / "chat.db"), "type": "auto_persist", "run": "run", "living": None}
    writer = Child("writer", "actors.writer:run", keep="actors.writer:keep", args=args)
    async with running(Group("root", (Group("store", (writer,)),))) as tree:
        ref = tree.ref("store/writer")

        async def said(request: Request[object]) -> object:
            return await ref.ask(request, within=10.0)

        await said(begin(A))
        await said(begin(B, conversation="d"))
        tree.announce(Down("fronts/front1", 1, "ProcessEnded: killed", 0, parked=False))
        tree.announce(Up("fronts/front2", 2))
        with pytest.raises(Fault) as fault:
            await said(end(B, conversation="d"))
        assert fault.value.code is Code.MOVED
        await tree.restart("store/writer")
        with pytest.raises(Fault):
            await said(Enter("ann", "c", "", A))
        taken = await said(TakeUnfinished("run:front2#2"))
        assert taken == [Unfinished("ann", "c"), Unfinished("ann", "d")]


# Any order of fronts at work, letting go, and dying unnoticed for a while.


@dataclass
class Front:
    """What a front believes; it goes on after its death was noticed, as messages on their way do."""

    id: str
    alive: bool = True
    buried: bool = False
    has: set[str] = field(default_factory=set)
    last: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    waits: dict[str, list[int]] = field(default_factory=dict)


class World:
    """Some fronts over one store, and what was promised to clients."""

    def __init__(self) -> None:
        self.s = store()
        self.fronts = [Front(f"run:front{n}#1") for n in (1, 2, 3)]
        self.promised: set[tuple[str, int]] = set()
        self.ended: dict[tuple[str, int], str] = {}

    def tries(self, front: Front, operation: Request[object]) -> object:
        """The answer; None where the front has lost the conversation. Only one that lives is heard."""
        (answer,) = self.s.commit([cast(Operation, operation)])
        if isinstance(answer, Fault):
            assert answer.code is Code.MOVED
            assert front.buried or not isinstance(operation, Enter | TakeUnfinished)
            return None
        assert not front.buried, "nothing of a front that is taken for dead is written"
        return answer

    def loads(self, front: Front, name: str) -> None:
        """Its session begins: what runs and waits is its own from now on."""
        front.has.add(name)
        page = ask(self.s, LoadHistory("ann", name, missing_ok=True))
        assert not page.running, "what it takes over, nobody runs"
        front.last[name], front.waits[name] = page.last_turn, list(page.queued)

    def loses(self, front: Front, name: str) -> None:
        front.has.discard(name)
        front.runs.pop(name, None)
        front.waits.pop(name, None)

    def enters(self, front: Front, name: str) -> None:
        answer = self.tries(front, Enter("ann", "new!", name, front.id))
        if isinstance(answer, Entered) and answer.front == front.id and name not in front.has:
            self.loads(front, name)

    def says(self, front: Front, name: str) -> None:
        if name not in front.has:
            return
        turn = front.last[name] + 1
        busy = name in front.runs or bool(front.waits[name])
        if self.tries(front, begin(front.id, turn, conversation=name, queued=busy)) is None:
            self.loses(front, name)
            return
        front.last[name] = turn
        self.promised.add((name, turn))
        if busy:
            front.waits[name].append(turn)
        else:
            self.runs(front, name, turn)

    def runs(self, front: Front, name: str, turn: int) -> None:
        assert (name, turn) not in self.ended
        for other in self.fronts:
            assert other.buried or other.runs.get(name) is None, "two run in one conversation"
        front.runs[name] = turn

    def starts(self, front: Front, name: str) -> None:
        if name in front.has and name not in front.runs and front.waits[name]:
            turn = front.waits[name].pop(0)
            if self.tries(front, StartTurn(name, turn, front.id)) is None:
                self.loses(front, name)
            else:
                self.runs(front, name, turn)

    def shows(self, front: Front, name: str) -> None:
        if (turn := front.runs.get(name)) is not None:
            self.tries(front, AppendDeltas([Delta(name, turn, 1, 5, "text", "")], front.id))

    def ends(self, front: Front, name: str) -> None:
        if (turn := front.runs.pop(name, None)) is not None:
            if self.tries(front, end(front.id, turn, conversation=name)) is None:
                self.loses(front, name)
            else:
                self.ended[name, turn] = "completed"

    def lets_go(self, front: Front, name: str) -> None:
        if name in front.has and name not in front.runs:
            self.loses(front, name)
            do(self.s, Release(front.id, [name]))

    def dies(self, front: Front, _: str) -> None:
        front.alive = False

    def is_buried(self, front: Front, _: str) -> None:
        if not front.alive and not front.buried:
            do(self.s, FrontGone(front.id))
            front.buried = True
            role = parsed(front.id)
            assert role is not None
            self.fronts.append(Front(str(role._replace(life=role.life + 1))))

    def takes_up(self, front: Front, _: str) -> None:
        taken = self.tries(front, TakeUnfinished(front.id))
        for row in taken if isinstance(taken, list) else []:
            if row.conversation not in front.has:
                self.loads(front, row.conversation)


ACTS = ["enters", "says", "says", "starts", "shows", "ends", "lets_go", "dies", "is_buried", "takes_up"]
STEPS = st.tuples(st.integers(0, 30), st.sampled_from(ACTS), st.sampled_from(["c", "d"]))


@given(st.lists(STEPS, max_size=60))
def test_a_turn_is_never_run_by_two_and_never_lost(steps: list[tuple[int, str, str]]) -> None:
    world = World()
    for number, act, name in steps:
        getattr(world, act)(world.fronts[number % len(world.fronts)], name)
    # in the end one front is left, and does what there is to do
    for front in tuple(world.fronts):
        world.dies(front, "")
        world.is_buried(front, "")
    last = world.fronts[-1]
    world.takes_up(last, "")
    for name in ("c", "d"):
        while last.waits.get(name):
            world.starts(last, name)
            world.ends(last, name)
    for name, turn in sorted(world.promised):
        kept = [stored.event for stored in history(world.s, name).events if stored.turn == turn]
        ends = [event for event in kept if isinstance(event, Closed)]
        assert len(ends) == 1, (name, turn)
        assert ends[0].outcome == world.ended.get((name, turn), "interrupted")
    world.s.close()

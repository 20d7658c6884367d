"""What the turn's decisions promise: a literal table of every event in every phase, and any interleaving of them.

The second half runs `Turns` with a shell that has no I/O: outstanding effects are answered in any order and
any way, clients talk meanwhile, the session dies and takes over. Whatever happens, the invariants hold.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.effects import (
    Ask,
    Close,
    Commit,
    Drop,
    Effect,
    Journal,
    Refuse,
    Resume,
    RunCalls,
    Start,
    TellQueued,
    TellRepeated,
)
from actors.turn import ASKS, Phase, Turns
from protocol.client import MAX_QUEUED
from protocol.errors import Code, Fault
from protocol.session import Say

NO_STORE = Fault(Code.STORAGE_UNAVAILABLE).body
UNFIT = Fault(Code.INVALID_MESSAGE).body
BROKEN = Fault(Code.LLM_STREAM_BROKEN).body
HOPS = 2


def message(number: int) -> Say:
    return Say(client=number, request_id=f"r{number}", echo=f"r{number}", content="hi", streaming=None)


def written(effect: Effect) -> str:
    """An effect as the table writes it."""
    name = type(effect).__name__
    match effect:
        case Commit():
            return f"{name} {effect.turn}{' queued' if effect.queued else ''}"
        case Ask():
            return f"{name} {effect.turn}.{effect.hop}"
        case TellQueued():
            return f"{name} {effect.turn} at {effect.position}"
        case Refuse():
            return f"{name} {effect.client} {effect.fault.code}"
        case Close():
            return f"{name} {effect.turn} {effect.outcome}{f' {effect.fault.code}' if effect.fault else ''}"
        case _:
            return f"{name} {effect.turn}"


def phase_of(turns: Turns) -> str:
    if turns.current is None:
        return "idle"
    return turns.current.phase.value


# The table. One turn, 1, is in the phase; where nothing is said, the event does nothing at all.


def idle() -> Turns:
    return Turns(0, HOPS)


def committing() -> Turns:
    turns = idle()
    turns.said(message(1))
    return turns


def ordered_to_end() -> Turns:
    turns = committing()
    turns.stop(9, None, None)
    return turns


def asking() -> Turns:
    turns = committing()
    turns.committed(1)
    return turns


def journaling() -> Turns:
    turns = asking()
    turns.finished(1, ["a", "b"])
    return turns


def calling() -> Turns:
    turns = journaling()
    turns.journaled(1)
    return turns


def closing() -> Turns:
    turns = asking()
    turns.finished(1, [])
    return turns


def starting() -> Turns:
    """Turn 1 waited behind another one, which is called 0 here."""
    turns = Turns(-1, HOPS)
    turns.said(message(0))
    turns.committed(0)
    turns.said(message(1))
    turns.committed(1)
    turns.finished(0, [])
    turns.closed(0)
    return turns


def drained() -> Turns:
    turns = idle()
    turns.drain(now=False)
    return turns


def drained_asking() -> Turns:
    turns = asking()
    turns.drain(now=False)
    return turns


EVENTS: dict[str, Callable[[Turns], list[Effect]]] = {
    "said": lambda t: t.said(message(2)),
    "stop": lambda t: t.stop(9, None, None),
    "stop 1": lambda t: t.stop(9, None, 1),
    "stop 7": lambda t: t.stop(9, None, 7),
    "drain": lambda t: t.drain(now=False),
    "drain now": lambda t: t.drain(now=True),
    "committed": lambda t: t.committed(1),
    "repeated": lambda t: t.repeated(1, 5),
    "commit failed": lambda t: t.commit_failed(1, NO_STORE),
    "finished": lambda t: t.finished(1, []),
    "finished with calls": lambda t: t.finished(1, ["a", "b"]),
    "failed": lambda t: t.failed(1, BROKEN),
    "lost unseen": lambda t: t.lost(1, "died", shown=False),
    "lost": lambda t: t.lost(1, "died", shown=True),
    "journaled": lambda t: t.journaled(1),
    "call ended": lambda t: t.call_ended(1, "a"),
    "unknown call ended": lambda t: t.call_ended(1, "z"),
    "closed": lambda t: t.closed(1),
}

NOT_RUNNING = "Refuse 9 TURN_NOT_RUNNING"
WAITS = "Commit 2 queued"
STOPPED = "Drop 1, Close 1 stopped"
CUT = "Drop 1, Close 1 interrupted SHUTTING_DOWN"

TABLE: dict[Callable[[], Turns], dict[str, tuple[str, str]]] = {
    idle: {
        "said": ("Commit 1, Ask 1.1", "committing"),
        "stop": (NOT_RUNNING, "idle"),
        "stop 1": (NOT_RUNNING, "idle"),
        "stop 7": (NOT_RUNNING, "idle"),
    },
    committing: {
        "said": ("", "committing"),  # its commit is ordered when the first one's is done
        "stop": ("Drop 1", "committing"),
        "stop 1": ("Drop 1", "committing"),
        "stop 7": (NOT_RUNNING, "committing"),
        "drain now": ("Drop 1", "committing"),
        "committed": ("Start 1", "asking"),
        "repeated": ("Drop 1, TellRepeated 5", "idle"),
        "commit failed": ("Drop 1, Refuse 1 STORAGE_UNAVAILABLE", "idle"),
    },
    ordered_to_end: {
        "said": ("", "committing"),
        "stop": ("Drop 1", "committing"),
        "stop 1": ("Drop 1", "committing"),
        "stop 7": (NOT_RUNNING, "committing"),
        "drain now": ("Drop 1", "committing"),
        "committed": ("Start 1, Close 1 stopped", "closing"),
        "repeated": ("Drop 1, TellRepeated 5", "idle"),
        "commit failed": ("Drop 1, Refuse 1 STORAGE_UNAVAILABLE", "idle"),
    },
    starting: {
        "said": (WAITS, "committing"),
        "stop": ("Drop 1", "committing"),
        "stop 1": ("Drop 1", "committing"),
        "stop 7": (NOT_RUNNING, "committing"),
        "drain now": ("Drop 1", "committing"),
        "committed": ("Start 1", "asking"),
        # never reported of a start: repeated
        "commit failed": ("Drop 1, Start 1, Close 1 failed STORAGE_UNAVAILABLE", "closing"),
    },
    asking: {
        "said": (WAITS, "asking"),
        "stop": (STOPPED, "closing"),
        "stop 1": (STOPPED, "closing"),
        "stop 7": (NOT_RUNNING, "asking"),
        "drain now": (CUT, "closing"),
        "finished": ("Drop 1, Close 1 completed", "closing"),
        "finished with calls": ("Journal 1", "journaling"),
        "failed": ("Drop 1, Close 1 failed LLM_STREAM_BROKEN", "closing"),
        "lost unseen": ("Drop 1, Ask 1.1", "asking"),
        "lost": ("Drop 1, Close 1 interrupted LLM_STREAM_BROKEN", "closing"),
    },
    journaling: {
        "said": (WAITS, "journaling"),
        "stop": (STOPPED, "closing"),
        "stop 1": (STOPPED, "closing"),
        "stop 7": (NOT_RUNNING, "journaling"),
        "drain now": (CUT, "closing"),
        "failed": ("Drop 1, Close 1 failed LLM_STREAM_BROKEN", "closing"),
        "journaled": ("RunCalls 1", "calling"),
    },
    calling: {
        "said": (WAITS, "calling"),
        "stop": (STOPPED, "closing"),
        "stop 1": (STOPPED, "closing"),
        "stop 7": (NOT_RUNNING, "calling"),
        "drain now": (CUT, "closing"),
        "call ended": ("", "calling"),  # b runs still
    },
    closing: {
        "said": (WAITS, "closing"),
        "stop 7": (NOT_RUNNING, "closing"),
        "closed": ("", "idle"),
    },
    drained: {
        "said": ("Refuse 2 SHUTTING_DOWN", "idle"),
        "stop": (NOT_RUNNING, "idle"),
        "stop 1": (NOT_RUNNING, "idle"),
        "stop 7": (NOT_RUNNING, "idle"),
    },
    drained_asking: {
        "said": ("Refuse 2 SHUTTING_DOWN", "asking"),
        "stop": (STOPPED, "closing"),
        "stop 1": (STOPPED, "closing"),
        "stop 7": (NOT_RUNNING, "asking"),
        "drain now": (CUT, "closing"),
        "finished": ("Drop 1, Close 1 completed", "closing"),
        "finished with calls": ("Journal 1", "journaling"),
        "failed": ("Drop 1, Close 1 failed LLM_STREAM_BROKEN", "closing"),
        "lost unseen": ("Drop 1, Ask 1.1", "asking"),
        "lost": ("Drop 1, Close 1 interrupted LLM_STREAM_BROKEN", "closing"),
    },
}


@pytest.mark.parametrize("phase", TABLE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("event", EVENTS)
def test_every_event_in_every_phase(phase: Callable[[], Turns], event: str) -> None:
    turns = phase()
    if phase is starting and event == "repeated":
        return  # the start of a queued turn is never answered so
    effects, after = TABLE[phase].get(event, ("", phase_of(turns)))
    assert ", ".join(map(written, EVENTS[event](turns))) == effects
    assert phase_of(turns) == after


def test_the_table_knows_no_other_phase_and_event() -> None:
    assert {phase_of(make()) for make in TABLE} == {"idle", *(phase.value for phase in Phase)}
    assert all(set(rows) <= set(EVENTS) for rows in TABLE.values())


# Sequences that are easily got wrong.


def run(turns: Turns, *events: tuple[object, ...]) -> str:
    """Call methods by name; what all of them order."""
    out: list[str] = []
    for name, *arguments in events:
        out += map(written, getattr(turns, str(name))(*arguments))
    return ", ".join(out)


def test_messages_reach_the_disk_in_order_however_fast_they_come() -> None:
    turns = idle()
    said = run(turns, ("said", message(1)), ("said", message(2)), ("said", message(3)))
    assert said == "Commit 1, Ask 1.1"
    assert run(turns, ("committed", 1)) == "Start 1, Commit 2 queued"
    assert run(turns, ("committed", 2)) == "TellQueued 2 at 1, Commit 3 queued"
    assert run(turns, ("committed", 3)) == "TellQueued 3 at 2"


def test_without_a_store_nobody_waits_for_each_others_timeouts() -> None:
    turns = idle()
    run(turns, ("said", message(1)), ("said", message(2)), ("said", message(3)))
    told = run(turns, ("commit_failed", 1, NO_STORE))
    assert told == "Drop 1, " + ", ".join(f"Refuse {n} STORAGE_UNAVAILABLE" for n in (1, 2, 3))
    assert run(turns, ("said", message(4))) == "Commit 4, Ask 4.1"


def test_a_message_that_cannot_be_stored_does_not_cost_the_next_one() -> None:
    turns = idle()
    run(turns, ("said", message(1)), ("said", message(2)))
    assert run(turns, ("commit_failed", 1, UNFIT)) == "Drop 1, Refuse 1 INVALID_MESSAGE, Commit 2 queued"
    assert run(turns, ("committed", 2)) == "TellQueued 2 at 1, Resume 2, Ask 2.1"


def test_a_queued_message_whose_turn_came_before_its_commit_starts_with_it() -> None:
    turns = asking()
    run(turns, ("said", message(2)), ("finished", 1, []))
    assert run(turns, ("closed", 1)) == ""
    assert run(turns, ("said", message(3))) == ""
    assert run(turns, ("committed", 2)) == "TellQueued 2 at 1, Commit 3 queued, Resume 2, Ask 2.1"
    # and the commit of the next comes while that one starts
    assert run(turns, ("committed", 3)) == "TellQueued 3 at 1"
    assert run(turns, ("committed", 2)) == "Start 2"


def test_an_acknowledged_message_gets_its_end_even_if_the_store_is_gone_when_its_time_comes() -> None:
    turns = starting()
    failed = run(turns, ("commit_failed", 1, NO_STORE))
    assert failed == "Drop 1, Start 1, Close 1 failed STORAGE_UNAVAILABLE"
    assert run(turns, ("committed", 1), ("commit_failed", 1, NO_STORE)) == ""
    turns = starting()
    assert (
        run(turns, ("stop", 9, None, None), ("commit_failed", 1, NO_STORE))
        == "Drop 1, Drop 1, Start 1, Close 1 stopped"
    )


def test_after_a_drain_queued_messages_stay_where_they_are() -> None:
    turns = asking()
    run(turns, ("said", message(2)), ("said", message(3)))
    turns.drain(now=False)
    assert run(turns, ("committed", 2)) == "TellQueued 2 at 1, Commit 3 queued"
    assert run(turns, ("finished", 1, []), ("closed", 1)) == "Drop 1, Close 1 completed"
    assert run(turns, ("committed", 3)) == "TellQueued 3 at 2"
    assert phase_of(turns) == "idle"


def test_asked_at_most_so_often_while_nothing_is_shown() -> None:
    turns = asking()
    orders = [", ".join(map(written, turns.lost(1, "died", shown=False))) for _ in range(ASKS)]
    assert orders == ["Drop 1, Ask 1.1"] * (ASKS - 1) + ["Drop 1, Close 1 interrupted LLM_STREAM_BROKEN"]


def test_tool_rounds_are_those_configured_when_the_turn_began() -> None:
    turns = asking()
    turns.max_tool_hops = 100
    for hop in range(1, HOPS + 1):
        assert run(turns, ("finished", 1, ["a"]), ("journaled", 1)) == "Journal 1, RunCalls 1"
        assert run(turns, ("call_ended", 1, "a")) == f"Ask 1.{hop + 1}"
    assert run(turns, ("finished", 1, ["a"])) == "Drop 1, Close 1 failed TOOL_HOPS_EXCEEDED"


def test_parallel_calls_are_waited_for_once_each() -> None:
    turns = calling()
    assert run(turns, ("call_ended", 1, "a"), ("call_ended", 1, "a"), ("call_ended", 1, "z")) == ""
    assert run(turns, ("call_ended", 1, "b"), ("call_ended", 1, "b")) == "Ask 1.2"


def test_the_queue_has_an_end() -> None:
    turns = asking()
    for number in range(2, MAX_QUEUED + 2):
        turns.said(message(number))
    assert run(turns, ("said", message(99))) == "Refuse 99 OVERLOADED"
    assert turns.last_turn == MAX_QUEUED + 1


def test_what_a_restarted_session_takes_over() -> None:
    turns = Turns(3, HOPS)
    turns.adopt_queued(5)
    assert ", ".join(map(written, turns.adopt(4, attached=True, shown=False, hop=1))) == "Drop 4, Ask 4.1"
    assert run(turns, ("resume_queue",), ("said", message(1))) == "Commit 6 queued"
    assert run(turns, ("finished", 4, []), ("closed", 4)) == "Drop 4, Close 4 completed, Resume 5, Ask 5.1"
    shown = Turns(4, HOPS).adopt(4, attached=True, shown=True, hop=2)
    assert ", ".join(map(written, shown)) == "Drop 4, Drop 4, Close 4 interrupted INTERNAL"
    unseen = Turns(4, HOPS).adopt(4, attached=False, shown=False, hop=1)
    assert ", ".join(map(written, unseen)) == "Start 4, Ask 4.1"
    deadly = Turns(4, HOPS).adopt(4, attached=True, shown=False, hop=1, asks=ASKS)
    assert ", ".join(map(written, deadly)) == "Drop 4, Drop 4, Close 4 interrupted INTERNAL"


# Any interleaving.


class Shell:
    """What the session does, without I/O: keeps what is outstanding, and what a store and clients would have seen."""

    def __init__(self) -> None:
        self.turns = Turns(0, HOPS)
        self.clients = 0
        self.pending: list[Effect | tuple[str, int, str]] = []
        self.unanswered: dict[int, Say] = {}
        self.answers: Counter[int] = Counter()
        self.rows: dict[int, str] = {}
        """The store's: turn -> queued, running, closed; ids must come in order."""
        self.users: dict[int, Say] = {}
        self.started: list[int] = []
        self.ended: list[int] = []
        self.closing: set[int] = set()
        self.drained_with: int | None = None
        """The last client that spoke before it was drained."""

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Commit():
                    assert not any(isinstance(other, Commit) for other in self.pending), "two commits at once"
                    assert effect.turn > max(self.users, default=0)
                    self.users[effect.turn] = effect.say
                    self.pending.append(effect)
                case Resume():
                    assert self.rows[effect.turn] == "queued"
                    assert effect.turn == min(turn for turn, row in self.rows.items() if row == "queued")
                    self.pending.append(effect)
                case Ask():
                    assert effect.turn not in self.closing, "asked after the end"
                    assert not any(isinstance(other, Ask) for other in self.pending), "two requests at once"
                    self.pending.append(effect)
                case Drop():
                    self.pending = [p for p in self.pending if not self._dropped(p, effect.turn)]
                case Start():
                    assert effect.turn not in self.started
                    assert not set(self.started) - set(self.ended), "two turns run"
                    assert effect.turn in self.rows, "shown before it was on disk"
                    self.started.append(effect.turn)
                    self.answer(self.users[effect.turn])
                case TellQueued() | TellRepeated():
                    self.answer(effect.say)
                case Refuse():
                    if effect.say is not None:
                        self.answer(effect.say)
                case Journal():
                    self.pending.append(effect)
                case RunCalls():
                    assert self.turns.current is not None
                    self.pending += [("call", effect.turn, call) for call in sorted(self.turns.current.calls)]
                case Close():
                    assert effect.turn in self.started, "closed before it was shown"
                    assert effect.turn not in self.closing, "closed twice"
                    self.closing.add(effect.turn)
                    self.pending.append(effect)

    @staticmethod
    def _dropped(outstanding: Effect | tuple[str, int, str], turn: int) -> bool:
        if isinstance(outstanding, tuple):
            return outstanding[1] == turn
        return isinstance(outstanding, Ask) and outstanding.turn == turn

    def answer(self, say: Say) -> None:
        if self.unanswered.pop(say.client, None) is not None:
            self.answers[say.client] += 1

    def say(self) -> None:
        self.clients += 1
        say = message(self.clients)
        self.unanswered[say.client] = say
        self.perform(self.turns.said(say))

    def drain(self, *, now: bool) -> None:
        if self.drained_with is None:
            self.drained_with = self.clients
        self.perform(self.turns.drain(now=now))

    def ready(self) -> list[Effect | tuple[str, int, str]]:
        """What can be answered now; the model's answers wait in the log until the turn asks for them."""
        current = self.turns.current
        asking = current.turn if current is not None and current.phase is Phase.ASKING else None
        return [p for p in self.pending if not isinstance(p, Ask) or p.turn == asking]

    def settle(self, outstanding: Effect | tuple[str, int, str], how: int) -> None:
        """Answer one; `how` chooses among the ways."""
        self.pending.remove(outstanding)
        turns = self.turns
        match outstanding:
            case ("call", turn, call):
                self.perform(turns.call_ended(turn, call))
            case Commit(turn):
                if how % 8 < 2:
                    del self.users[turn]
                if how % 8 == 0:
                    self.perform(turns.commit_failed(turn, NO_STORE if how % 16 else UNFIT))
                elif how % 8 == 1:
                    self.perform(turns.repeated(turn, 1))
                else:
                    assert turn > max(self.rows, default=0), "the store refuses ids out of order"
                    self.rows[turn] = "queued" if outstanding.queued else "running"
                    self.perform(turns.committed(turn))
            case Resume(turn):
                if how % 6 == 0:
                    self.perform(turns.commit_failed(turn, NO_STORE))
                else:
                    self.rows[turn] = "running"
                    self.perform(turns.committed(turn))
            case Journal(turn):
                self.perform(turns.failed(turn, NO_STORE) if how % 6 == 0 else turns.journaled(turn))
            case Close(turn):
                self.rows[turn] = "closed"
                self.ended.append(turn)
                self.perform(turns.closed(turn))
            case Ask(turn):
                ways: list[Callable[[], list[Effect]]] = [
                    lambda: turns.finished(turn, []),
                    lambda: turns.finished(turn, ["a", "b"]),
                    lambda: turns.failed(turn, BROKEN),
                    lambda: turns.lost(turn, "died", shown=False),
                    lambda: turns.lost(turn, "died", shown=True),
                ]
                self.perform(ways[how % len(ways)]())
            case _:
                raise AssertionError(outstanding)

    def crash(self, how: int) -> None:
        """The session dies; the next one finds the store, the log that front kept, and who has no answer."""
        drained = self.turns.draining
        unstored = [p for p in self.pending if isinstance(p, Commit)]
        for commit in unstored:
            if how % 2:  # the store had it in hand, and commits it all the same
                self.rows[commit.turn] = "queued" if commit.queued else "running"
            else:
                del self.users[commit.turn]
        self.pending = []
        live = next((turn for turn in self.started if turn not in self.ended), None)
        self.turns = Turns(max([*self.rows, *self.started, 0]), HOPS)
        self.closing -= {live}
        for turn, row in sorted(self.rows.items()):
            if row == "queued" and turn != live:
                self.turns.adopt_queued(turn)
        unseen = next((turn for turn, row in self.rows.items() if row == "running" and turn not in self.started), None)
        if live is not None:
            self.perform(self.turns.adopt(live, attached=True, shown=how % 4 < 2, hop=1))
        elif unseen is not None:
            self.perform(self.turns.adopt(unseen, attached=False, shown=False, hop=1))
        self.perform(self.turns.resume_queue())
        stored = {say.client: turn for turn, say in self.users.items() if turn in self.rows}
        for client, say in tuple(self.unanswered.items()):
            if client in stored:
                self.perform([TellRepeated(stored[client], say)])
            else:
                self.perform(self.turns.said(say))
        if drained:
            self.perform(self.turns.drain(now=False))

    def step(self, rng: random.Random) -> None:
        ready = self.ready()
        choice = rng.random()
        if ready and choice < 0.6:
            self.settle(rng.choice(ready), rng.randrange(48))
        elif choice < 0.85:
            self.say()
        elif choice < 0.93:
            self.perform(self.turns.stop(0, None, rng.choice([None, None, self.turns.last_turn])))
        elif choice < 0.97:
            self.crash(rng.randrange(4))
        elif choice < 0.98:
            self.drain(now=rng.random() < 0.5)

    def check(self) -> None:
        assert self.started == sorted(set(self.started)), "turns run in order, and once"
        assert set(self.ended) <= set(self.started)
        assert len(self.ended) == len(set(self.ended))
        assert all(count == 1 for count in self.answers.values())
        if self.drained_with is not None:
            assert all(say.client <= self.drained_with for say in self.users.values()), (
                "a turn was begun after the drain"
            )


@settings(max_examples=200, deadline=None)
@given(rng=st.randoms(use_true_random=False), steps=st.integers(0, 80))
def test_whatever_happens_every_turn_ends_once_and_every_message_is_answered_once(
    rng: random.Random, steps: int
) -> None:
    shell = Shell()
    for _ in range(steps):
        shell.step(rng)
        shell.check()
    for _ in range(10_000):  # nobody says anything more: all that is outstanding is answered
        ready = shell.ready()
        if not ready:
            break
        shell.settle(rng.choice(ready), rng.randrange(48))
        shell.check()
    assert not shell.pending
    assert shell.turns.current is None, "a turn waits for nothing"
    assert set(shell.started) == set(shell.ended)
    assert not shell.unanswered, "a message has no answer"
    assert sum(shell.answers.values()) == shell.clients
    if not shell.turns.draining:
        assert not shell.turns.waiting
        assert set(shell.rows.values()) <= {"closed"}

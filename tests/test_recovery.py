"""What is left of a turn that ran when the service died."""

from __future__ import annotations

from pathlib import Path

from actors.recovery import SEQ_GAP
from actors.store import MEMORY
from protocol.writer import (
    Closed,
    HopEvent,
    ToolEnded,
    ToolStarted,
)
from tests.stores import append, begin, delta, do, events, history, hop, opened, tick


def test_a_running_turn_is_closed_with_what_is_stored(tmp_path: Path) -> None:
    with opened(tmp_path / "chat.db") as s:
        do(s, begin())
        do(s, append(hop(1, "Let me add. ", "hm, ", tools=["add", "slow"]), key="1"))
        do(s, append(ToolStarted("c1", "m1", 5, "add", "demo", "{}"), key="2"))
        do(s, append(ToolStarted("c2", "m2", 6, "slow", "demo", "{}"), key="3"))
        do(s, append(ToolEnded("c1", "m1", 7, "completed", "3", 1), key="4"))
        do(s, tick(delta(8, "It ", hop=2, thinking="ah"), delta(12, "is", hop=2)))
    with opened(tmp_path / "chat.db") as s:
        assert s.recover() == 1
        *_, unknown, part, end = events(s)
        assert s.recover() == 0
        assert isinstance(unknown, ToolEnded)
        assert (unknown.call_id, unknown.model_call_id, unknown.status) == ("c2", "m2", "unknown")
        assert unknown.seq == 12 + SEQ_GAP
        assert isinstance(part, HopEvent)
        assert (part.hop, part.content, part.thinking, part.provider) == (2, "It is", "ah", "p")
        assert isinstance(end, Closed)
        assert (end.outcome, end.message, end.thinking) == ("interrupted", "Let me add. It is", "hm, ah")
        assert end.seq == 12 + SEQ_GAP + 2, "assistant_message has the one between"
        assert end.usage == {"total_tokens": 1, "id": "u"}
        assert (end.provider, end.annotations) == ("p", [])
        assert history(s).running == []
        do(s, begin(2))
        assert history(s).running == [2]


def test_a_turn_of_which_nothing_is_stored_is_closed_too() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        assert s.recover() == 1
        end = events(s)[-1]
        assert isinstance(end, Closed)
        assert (end.outcome, end.seq, end.message, end.usage) == ("interrupted", SEQ_GAP, "", None)


def test_the_last_seq_survives_the_deltas_that_carried_it() -> None:
    with opened(MEMORY) as s:
        do(s, begin())
        do(s, tick(delta(40, "ab")))
        do(s, append(hop(1, "ab"), key="1"))
        s.recover()
        end = events(s)[-1]
        assert isinstance(end, Closed)
        assert end.seq == 40 + SEQ_GAP + 1

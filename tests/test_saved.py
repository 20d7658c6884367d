"""What saving promises: a save is whole for as long as it is there, and only its owner knows of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.retention import Limits
from actors.store import MEMORY, Store
from protocol.errors import Code, Fault
from protocol.mail import Request
from protocol.writer import (
    BeginTurn,
    DeleteSaved,
    Done,
    Enter,
    Entered,
    ListConversations,
    ListSaved,
    Loaded,
    LoadSaved,
    ReadSaved,
    SaveSession,
    UserEvent,
)
from tests.stores import append, ask, begin, closed, do, history, hop, opened, sweep, whole


def saved(of: Store, owner: str = "ann") -> list[str]:
    return [found.saved_id for found in ask(of, ListSaved(owner))]


def code(of: Store, message: Request[object]) -> Code:
    with pytest.raises(Fault) as refused:
        ask(of, message) if isinstance(message, ReadSaved) else do(of, message)
    return refused.value.code


def test_a_save_ends_before_the_first_turn_that_has_not_ended() -> None:
    with opened(MEMORY) as s:
        assert code(s, SaveSession("ann", "c", "empty", "s0")) is Code.NOT_FOUND
        do(s, begin(1))
        assert code(s, SaveSession("ann", "c", "nothing has ended", "s0")) is Code.NOT_FOUND
        do(s, append(hop(1, "a"), closed(), key="end"))
        do(s, begin(2, queued=True))
        whole(s, 3)  # it has overtaken the one that waits
        first = do(s, SaveSession("ann", "c", "first", "s1"))
        assert (first.name, first.conversation, first.up_to_turn, first.messages) == ("first", "c", 1, 2)
        do(s, append(closed("stopped"), turn=2, key="end"))
        second = do(s, SaveSession("ann", "c", "second", "s2"))
        assert (second.up_to_turn, second.messages) == (3, 6)
        assert ask(s, ListSaved("ann")) == [second, first], "newest first"


@pytest.mark.parametrize("path", ["file", MEMORY])
def test_a_save_loads_whole_after_retention_has_emptied_its_conversation(tmp_path: Path, path: str) -> None:
    where = MEMORY if path == MEMORY else tmp_path / "chat.db"
    with opened(where) as s:
        for turn in (1, 2, 4):
            whole(s, turn, f"answer {turn}")
        kept = history(s).events
        do(s, SaveSession("ann", "c", "kept", "s"))
        for turn in (5, 6):
            whole(s, turn)
        whole(s, 1, conversation="newer")
        removed = sweep(s, Limits(max_messages=1))
        assert (removed.saved, removed.turns) == (0, 3)
        assert history(s).events == kept
        page = ask(s, ReadSaved("ann", "s"))
        assert (page.events, page.more, page.saved.messages) == (kept, False, 6)
        assert do(s, LoadSaved("ann", "s", "fresh")) == Loaded("fresh", 4, "c")
        assert history(s, "fresh").events == kept
        assert history(s, "fresh").last_turn == 4
        assert do(s, Enter("ann", "latest", "x")) == Entered("fresh", new=False)
        listed = ask(s, ListConversations("ann")).conversations[0]
        assert (listed.conversation, listed.title, listed.messages) == ("fresh", "question 1", 6)
        with pytest.raises(Fault):
            do(s, BeginTurn("ann", "fresh", 4, UserEvent("again", "other", streaming=True), queued=False))
        whole(s, 5, "goes on", conversation="fresh")
        assert [e.turn for e in history(s).events] == [e.turn for e in kept], "the saved one does not change"
        again = do(s, BeginTurn("ann", "fresh", 6, UserEvent("again", "r2", streaming=True), queued=False))
        assert (again.turn, again.repeated) == (2, True), "a message is known in the copy, too"


def test_a_saved_session_is_read_in_pages() -> None:
    with opened(MEMORY) as s:
        for turn in (1, 2, 3, 5):
            whole(s, turn)
        do(s, SaveSession("ann", "c", "n", "s"))
        whole(s, 6)

        def page(after: int, limit: int) -> tuple[list[int], bool]:
            found = ask(s, ReadSaved("ann", "s", after, limit))
            return sorted({stored.turn for stored in found.events}), found.more

        assert page(0, 2) == ([1, 2], True)
        assert page(2, 2) == ([3, 5], False)
        assert page(5, 2) == ([], False)


def test_saving_loading_and_deleting_may_come_twice() -> None:
    with opened(MEMORY) as s:
        whole(s, 1)
        first = do(s, SaveSession("ann", "c", "n", "s"))
        whole(s, 2)
        assert do(s, SaveSession("ann", "c", "other", "s")) == first, "the id says that it is the same save"
        assert do(s, LoadSaved("ann", "s", "fresh")) == Loaded("fresh", 1, "c")
        whole(s, 2, conversation="fresh")
        assert do(s, LoadSaved("ann", "s", "fresh")) == Loaded("fresh", 2, "c")
        assert len(ask(s, ListConversations("ann")).conversations) == 2
        assert do(s, DeleteSaved("ann", "s")) == Done()
        assert code(s, DeleteSaved("ann", "s")) is Code.SESSION_NOT_FOUND
        assert do(s, LoadSaved("ann", "s", "fresh")) == Loaded("fresh", 2), "what was loaded needs the save no more"
        assert history(s).last_turn == 2, "deleting a save takes nothing of its conversation"


def test_what_is_anothers_answers_exactly_as_what_is_not_there() -> None:
    with opened(MEMORY) as s:
        whole(s, 1)
        do(s, SaveSession("ann", "c", "n", "s"))

        def faults(conversation: str, saved_id: str) -> list[object]:
            messages: list[Request[object]] = [
                SaveSession("bob", conversation, "n", "b"),
                LoadSaved("bob", saved_id, "b"),
                DeleteSaved("bob", saved_id),
                ReadSaved("bob", saved_id),
            ]
            return [code(s, message) for message in messages]

        unknown = faults("nobodys", "nobodys")
        assert faults("c", "s") == unknown
        assert set(unknown) == {Code.NOT_FOUND, Code.SESSION_NOT_FOUND}
        assert code(s, LoadSaved("bob", "s", "c")) is Code.SESSION_NOT_FOUND, "nor is the conversation overwritten"
        assert code(s, SaveSession("bob", "c", "n", "s")) is Code.NOT_FOUND
        assert (saved(s), saved(s, "bob")) == (["s"], [])
        assert ask(s, ListConversations("bob")).conversations == []


def test_only_the_last_save_of_a_conversation_unpins_it() -> None:
    with opened(MEMORY) as s:
        whole(s, 1)
        do(s, SaveSession("ann", "c", "one", "s1"))
        whole(s, 2)
        do(s, SaveSession("ann", "c", "two", "s2"))
        whole(s, 3)
        limits = Limits(max_messages=1)

        def left() -> list[int]:
            sweep(s, limits)
            return sorted({stored.turn for stored in history(s).events})

        assert left() == [1, 2]
        do(s, DeleteSaved("ann", "s2"))
        assert left() == [1]
        do(s, DeleteSaved("ann", "s1"))
        assert sweep(s, limits).conversations == 1
        assert do(s, Enter("ann", "latest", "x")) == Entered("x", new=True)

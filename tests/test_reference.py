"""The table of settings is whole, and says of every key when a change of it counts."""

from __future__ import annotations

import pytest

from actors.reference import APPLIES, MOMENTS, applies, markdown, settings_table
from tests.forks import run


def test_every_key_has_its_moment() -> None:
    rows = settings_table()
    assert {row.applies for row in rows} == set(MOMENTS)
    # and no line of the table of moments is for nothing
    keys = [row.key for row in rows]
    assert all(any(key == start or key.startswith(f"{start}.") for key in keys) for start in APPLIES)


@pytest.mark.parametrize(
    ("key", "moment"),
    [
        ("chat.websocket.port", "at once"),
        ("chat.websocket.endpoint", "reconnect"),
        ("chat.storage.type", "restart"),
        ("chat.service.system_prompt", "next turn"),
        ("chat.service.streaming.enabled", "next turn"),
        ("chat.service.streaming.persistence.min_chars", "at once"),
    ],
)
def test_the_longest_beginning_decides(key: str, moment: str) -> None:
    assert applies(key) == moment


def test_a_key_that_nobody_thought_of_is_noticed() -> None:
    with pytest.raises(KeyError):
        applies("chatter")


async def test_the_markdown_has_a_line_of_five_cells_for_every_key() -> None:
    lines = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == [row.key for row in settings_table()]
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    done = await run("import runpy; runpy.run_module('actors.configuration', run_name='__main__')", load=())
    assert done.out == markdown()

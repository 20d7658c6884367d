"""What the terminal client prints: each block once, in order, whatever the pieces were."""

from __future__ import annotations

import io
import re
from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from supervisors.chat_screen import (
    Screen,
    call_line,
    clean,
    exchange,
    markdown,
    progress,
    settled,
    short,
    usage_line,
)
from supervisors.chat_turn import Call, Said, Trouble, Turn

TEXT = """# Title

A paragraph with **bold**
text.

1. one
2. two

   more of two
- other

```python
x = 1

y = 2
```
Setext
======

| a | b |
|---|---|
| 1 | 2 |

> quoted
lazy

The end.
"""


def screen() -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=60, highlight=False, markup=False, emoji=False, color_system=None)
    return Screen(console), out


def blocks(text: str) -> list[str]:
    """The kinds of the top blocks, with what is in them."""
    found: list[str] = []
    for token in Markdown(text).parsed:
        if token.level == 0 and token.nesting >= 0:
            found.append(token.type)
        found[-1:] = [found[-1] + token.content] if token.content else found[-1:]
    return found


@given(st.lists(st.integers(0, len(TEXT)), max_size=30))
def test_what_is_settled_stays_as_it_is(cuts: list[int]) -> None:
    """Read in pieces, every block is the one that it is in the whole."""
    done = 0
    pieces: list[str] = []
    for cut in sorted(cuts):
        end = done + settled(TEXT[done:cut]) if cut > done else done
        pieces.append(TEXT[done:end])
        done = end
    pieces.append(TEXT[done:])
    assert "".join(pieces) == TEXT
    assert [block for piece in pieces for block in blocks(piece)] == blocks(TEXT)


def test_tags_are_shown_as_they_were_written() -> None:
    text = "A <b>bold</b> word\n\n<div>\n  one\n</div>\n\n- <kbd>Ctrl</kbd>\n\n<!-- note -->\n\n<tag/> and &lt;\n"
    page, out = screen()
    page.console.print(markdown(text))
    shown = [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]
    assert shown == [
        "A <b>bold</b> word",
        "<div>",
        "one",
        "</div>",
        "• <kbd>Ctrl</kbd>",
        "<!-- note -->",
        "<tag/> and <",
    ]


def test_nothing_settles_before_the_next_block_begins() -> None:
    assert settled("one\n") == 0
    assert settled("one\n\ntwo") == 0  # the last line may become anything
    assert settled("one\n\ntwo\n") == len("one\n\n")
    assert settled("```\na\n\nb\n\n") == 0


@cache
def printed(sizes: tuple[int, ...], mine: bool) -> str:
    """What a turn prints that comes in pieces of those sizes."""
    shown, out = screen()
    turn = Turn(1)
    turn.mine, turn.question = mine, "question"
    text, thinking = TEXT, "let me\nthink"
    for size in sizes:
        turn.say(thinking[:size], thinking=True) if thinking else turn.say(text[:size])
        if thinking:
            thinking = thinking[size:]
        else:
            text = text[size:]
        shown.show(turn, "")
    turn.say(thinking, thinking=True)
    turn.say(text)
    turn.finish("completed")
    shown.end(turn)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30).map(tuple), st.booleans())
def test_pieces_print_what_the_whole_prints(sizes: tuple[int, ...], mine: bool) -> None:
    assert printed(sizes, mine) == printed((len(TEXT),), mine)
    assert printed(sizes, mine).count("The end.") == 1
    assert ("question" in printed(sizes, mine)) is not mine


def test_a_turn_in_its_order() -> None:
    shown, out = screen()
    turn = Turn(1)
    turn.mine = True
    turn.say("hm", thinking=True)
    turn.say("Let me see.")
    first, second = Call("a", "add", "demo", "executing", arguments={"a": 1}), Call("b", "slow", "demo", "executing")
    turn.items += [first, second]
    shown.show(turn, "")
    assert "add" not in out.getvalue(), "what runs is not final"
    first.status, first.result, first.elapsed_ms = "completed", "3\n4", 120
    shown.show(turn, "")
    assert "slow" not in out.getvalue()
    second.status = "failed"
    turn.say("Well.")
    turn.model, turn.usage = "m", {"total_tokens": 18, "prompt_tokens": 11, "completion_tokens": 7}
    turn.finish("failed", Trouble("X", "it broke", "mend it"))
    shown.end(turn)
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        "hm",
        "",
        "Let me see.",
        "",
        '✓ add (demo) {"a": 1} 0.1 s',
        "  3 4",
        "✗ slow (demo) failed",
        "",
        "Well.",
        "it broke",
        "mend it",
        "m · 18 tokens (11 in, 7 out)",
        "",
    ]


def test_what_strangers_write_does_not_command_the_terminal() -> None:
    evil = "a\x1b]0;title\x07b\x1b[2Jc\x9bd\r\ne\tf\x7f"
    assert clean(evil) == "a]0;titleb[2Jcd\ne\tf"
    shown, out = screen()
    turn = Turn(1)
    turn.question = turn.model = evil
    turn.items.append(Call(evil, evil, evil, evil, message=evil, arguments={evil: evil}, result=evil))
    turn.say(evil, thinking=True)
    turn.say(evil)
    turn.finish(evil, Trouble(evil, evil, evil))
    shown.end(turn)
    shown.say(exchange([Said(1, "user", evil, evil), Said(1, "assistant", evil, evil)]))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", out.getvalue())


def test_a_links_address_is_seen() -> None:
    shown, out = screen()
    turn = Turn(1)
    turn.say("[bank.example](http://evil.example)")
    turn.finish("completed")
    shown.end(turn)
    assert "http://evil.example" in out.getvalue()


def test_what_is_open_does_not_outgrow_the_screen() -> None:
    out = io.StringIO()
    console = Console(file=out, width=40, height=10, force_terminal=True, color_system=None)
    shown = Screen(console)
    turn = Turn(1)
    turn.mine = True
    turn.say("```\n" + "\n".join(f"line{n}" for n in range(100)))
    shown.open()
    shown.show(turn, "state")
    drawn = out.getvalue()
    assert "line99" in drawn
    assert "line1\n" not in drawn
    assert drawn.count("line") < 10
    assert "state" in drawn
    turn.finish("completed")
    shown.end(turn)
    shown.close()
    rest = out.getvalue().removeprefix(drawn)
    assert [rest.count(f" line{n} ") for n in range(90)] == [1] * 90


def test_lines_of_tool_calls() -> None:
    assert progress(Call("a", "t", "s", "progress")) == "…"
    assert progress(Call("a", "t", "s", "progress", progress=3)) == "3"
    assert progress(Call("a", "t", "s", "progress", progress=1, total=4)) == "━" * 5 + "╌" * 15 + " 1/4"
    assert progress(Call("a", "t", "s", "progress", progress=9, total=4)) == "━" * 20 + " 9/4"
    assert call_line(Call("a", "t", "", "denied")).plain == "✗ t denied"
    assert call_line(Call("a", "find", "s", "executing", message="looking")).plain == "→ find (s)\n  looking"
    assert short("x" * 300) == "x" * 199 + "…"
    stopped = Turn(1)
    stopped.finish("stopped")
    assert usage_line(stopped).plain == "stopped"

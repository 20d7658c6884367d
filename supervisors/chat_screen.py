"""What the terminal client shows: Markdown as it grows, tool calls, remarks. Needs rich; reads no input.

Text is printed once and for good as soon as nothing can change it: CommonMark never reopens a block that is
closed, so all whole lines before the last block are final. Only what is still open (the last block, calls
that run, the line that says what is going on) is drawn again and again below. Whatever strangers wrote
(models, tools) passes `clean` first: it could hold escape sequences, which a terminal would obey.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from supervisors.chat_turn import Aside, Call, Item, Said, Turn, text_of
from supervisors.chat_turn import Text as Piece

ASKED = "> "  # before what a person said, here and at the prompt
DIM = "dim"
RED = "red"
RESERVED = 4  # lines of the screen that what is still open leaves free
OPEN_CHARS = 20_000  # of an open block that are still drawn as Markdown; more would make drawing slow
BAR = 20  # characters of a progress bar
SHORT = 200  # characters of arguments and results that are shown
MARKS = {"completed": ("✓", "green"), "failed": ("✗", RED), "denied": ("✗", RED), "cancelled": ("-", "yellow")}
RUNNING = ("executing", "progress")
AS_TEXT = {"html_inline": "text", "html_block": "code_block"}  # tags are part of what was said; rich leaves them out
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Without control characters other than tab and newline."""
    return CONTROL.sub("", text)


def settled(text: str) -> int:
    """How much of Markdown that still grows is final: an index at a line's begin."""
    end = text.rfind("\n") + 1
    tokens = Markdown(text[:end]).parsed
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map is not None and token.nesting >= 0]
    if len(starts) < 2:
        return 0
    index = 0
    for _ in range(starts[-1]):
        index = text.index("\n", index) + 1
    return index


def markdown(text: str) -> RenderableType:
    """Whole Markdown. Links are spelled out: a link's text may say another address than its target."""
    drawn = Markdown(text, hyperlinks=False, code_theme="ansi_dark")
    for token in drawn.parsed:
        for part in token.children or [token]:
            part.type = AS_TEXT.get(part.type, part.type)
    return Trimmed(drawn)


def thought(text: str) -> Text:
    """Reasoning."""
    return Text(text.strip("\n"), style="dim italic")


def short(value: object, most: int = SHORT) -> str:
    """Arguments or a result on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(clean(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def call_line(call: Call) -> Text:
    """A tool call: its mark, name, arguments, and how far it is."""
    mark, style = MARKS.get(call.status, ("→", "cyan") if call.status in RUNNING else ("?", "yellow"))
    line = Text()
    line.append(f"{mark} ", style)
    line.append(short(call.tool_name), "bold")
    line.append(f" ({short(call.server)})" if call.server else "", DIM)
    if call.arguments not in (None, {}, "", "{}"):
        line.append(f" {short(call.arguments)}", DIM)
    if call.status == "progress":
        line.append(f" {progress(call)}", "cyan")
    elif call.status not in RUNNING and call.status != "completed":
        line.append(f" {short(call.status)}", style)
    if call.elapsed_ms is not None and call.status not in RUNNING:
        line.append(f" {call.elapsed_ms / 1000:.1f} s", DIM)
    if call.result:
        line.append(f"\n  {short(call.result)}", DIM)
    elif call.message and call.status in RUNNING and call.tool_name not in call.message:
        line.append(f"\n  {short(call.message)}", DIM)
    return line


def progress(call: Call) -> str:
    """How far a running call is."""
    if call.progress is None:
        return "…"
    if not call.total:
        return f"{call.progress:g}"
    done = round(BAR * min(max(call.progress / call.total, 0.0), 1.0))
    return f"{'━' * done}{'╌' * (BAR - done)} {call.progress:g}/{call.total:g}"


def usage_line(turn: Turn) -> Text:
    """The last line of a turn: how it ended if not well, who answered, what it took."""
    used = turn.usage or {}
    parts = [turn.outcome if turn.outcome not in ("completed", "failed") else "", turn.model]
    if used.get("total_tokens"):
        parts.append(f"{used['total_tokens']} tokens")
        if used.get("prompt_tokens") is not None and used.get("completion_tokens") is not None:
            parts[-1] += f" ({used['prompt_tokens']} in, {used['completion_tokens']} out)"
    return Text(" · ".join(clean(part) for part in parts if part), style=DIM)


def trouble(text: str, hint: str = "") -> Text:
    """An error and what to do about it."""
    line = Text(clean(text), style=RED)
    if hint:
        line.append(f"\n{clean(hint)}", DIM)
    return line


def remark(text: str) -> Text:
    """Something said beside the conversation."""
    return Text(clean(text), style=DIM)


def headline(conversation: str, turns: int, *, more: bool) -> Text:
    """Said when a conversation is entered."""
    if not turns:
        return remark(f"new conversation {conversation} · /help")
    count = f"{turns}{' or more' if more else ''} earlier message{'s' if turns > 1 or more else ''}"
    return remark(f"conversation {conversation}, {count} · /history shows them, /new begins another, /help")


def exchange(messages: Iterable[Said]) -> Group:
    """Messages of a history page."""
    shown: list[RenderableType] = []
    for said in messages:
        text = clean(text_of(said.content))
        if said.role == "user":
            shown.append(Padding(Text(f"{ASKED}{text}", style="bold"), (1, 0, 0, 0)))
            continue
        shown.extend(
            call_line(Call(use.call_id, use.tool_name, use.server, use.status, arguments=use.arguments))
            for use in said.tools
        )
        shown.append(Padding(markdown(text), (1, 0, 0, 0)))
        if said.status != "complete":
            shown.append(remark(said.status))
    return Group(*shown)


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table."""
    made = Table(*heads, box=None, header_style=DIM, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(clean(str(cell))) for cell in row))
    return made


def at_terminal() -> Screen:
    """On standard output; a terminal that cannot show all signs shows the others."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Screen(Console(highlight=False, markup=False, emoji=False))


class Trimmed:
    """Without empty lines at its begin and end: some blocks bring their own, others none."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For rich."""
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        full = [index for index, line in enumerate(lines) if "".join(segment.text for segment in line).strip()]
        for line in lines[full[0] : full[-1] + 1] if full else ():
            yield from line
            yield Segment.line()


class Tail:
    """The last lines of something, so that what is open never outgrows the screen."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For rich."""
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        for line in lines[-max(console.size.height - RESERVED, 1) :]:
            yield from line
            yield Segment.line()


class Screen:
    """Prints turns as they grow. Between `open` and `close` the lower end of the screen is redrawn.

    Args:
        console: where to; a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._turn = 0
        self._item = 0
        """Items of the turn before this one are printed."""
        self._char = 0
        """So many characters of it, cleaned, are printed."""
        self._last = ""
        """What was printed last in this turn: text, thinking, call or nothing."""
        self._spinner = Spinner("dots", style="cyan")

    def open(self) -> None:
        """Begin to redraw."""
        if self._live is None:
            self._live = Live(
                console=self.console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()

    def close(self) -> None:
        """Take away what is not final, and leave the screen to others."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, what: RenderableType) -> None:
        """Print something for good."""
        self.console.print(what)

    def show(self, turn: Turn | None, status: str) -> None:
        """Print what is final of the turn, and draw what is open with the status below."""
        final: list[RenderableType] = []
        still: list[RenderableType] = []
        if turn is not None:
            if turn.number != self._turn:
                self._turn, self._item, self._char, self._last = turn.number, 0, 0, ""
                if not turn.mine:
                    final.append(Text(f"{ASKED}{clean(turn.question)}", style="bold dim"))
            self._split(turn, final, still)
        self._spinner.update(text=Text(status, style=DIM))
        if self._live is not None:
            self._live.update(Group(Tail(Group(*still)), self._spinner))
        with self.console:  # written at once: nothing is seen twice while it moves up
            if final:
                self.console.print(Group(*final))
            if self._live is not None:
                self._live.refresh()

    def end(self, turn: Turn) -> None:
        """Print the rest of a turn that is over."""
        self.show(turn, "")
        if turn.error is not None:
            self.say(trouble(turn.error.error_message, turn.error.hint or ""))
        line = usage_line(turn)
        if line.plain:
            self.say(line)
        self.say("")

    def _split(self, turn: Turn, final: list[RenderableType], still: list[RenderableType]) -> None:
        while self._item < len(turn.items):
            item = turn.items[self._item]
            if not (turn.over or self._passed(turn, item)):
                break
            self._put(item, final, whole=True)
            self._item, self._char = self._item + 1, 0
        if self._item == len(turn.items):
            return
        self._put(turn.items[self._item], final, whole=False)
        last, start = self._last, self._char
        for item in turn.items[self._item :]:
            last = _draw(item, start, last, still, open_end=True)
            start = 0

    @staticmethod
    def _passed(turn: Turn, item: Item) -> bool:
        """Whether it cannot change any more."""
        if isinstance(item, Call):
            return item.status not in RUNNING
        return item is not turn.items[-1]

    def _put(self, item: Item, final: list[RenderableType], *, whole: bool) -> None:
        """What of the item is final and not printed yet."""
        match item:
            case Piece():
                text = clean(item.text)
                end = len(text) if whole else (0 if item.thinking else self._char + settled(text[self._char :]))
                part = Piece(text[self._char : end], item.thinking)
                self._last = _draw(part, 0, self._last, final)
                self._char = max(end, self._char)
            case Call() | Aside() if whole:
                self._last = _draw(item, 0, self._last, final)


def _draw(item: Item, start: int, last: str, to: list[RenderableType], *, open_end: bool = False) -> str:
    """Append it from that character on, apart from what is before it; returns what it was."""
    what: RenderableType
    match item:
        case Call():
            kind, what = "call", call_line(item)
        case Aside():
            kind, what = "aside", remark(item.text)
        case Piece(thinking=True):
            kind, what = "thinking", thought(clean(item.text)[start:])
        case _:
            text = clean(item.text)[start:]
            plain = open_end and len(text) > OPEN_CHARS
            kind, what = "text", Text(text[-OPEN_CHARS:]) if plain else markdown(text)
    if isinstance(item, Piece) and not clean(item.text)[start:].strip():
        return last
    together = not last or kind == last == "call"
    to.append(what if together else Padding(what, (1, 0, 0, 0)))
    return kind

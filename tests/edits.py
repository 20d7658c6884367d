"""An editor that never rests: random edits of the runtime file while others change it through the service.

What must hold whatever comes: the service is on the last valid version, versions grow by one, no edit and no
answered change is lost, nothing crashes, and nobody ever sees half a file of ours. Seeded.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
from pathlib import Path

import trio

from actors.configuration import RUNTIME
from actors.layers import ConfigurationError, parse
from protocol.errors import Code, Fault
from protocol.watcher import ListVersions, VersionRow
from tests.watched import House, has_port, house, port

INVALID = (
    "chat: {websocket: {port: 70000}}\n",
    "chat: {websocket: {port: abc}}\n",
    "llm: {active: nobody}\n",
    "chat: 7\n",
    "logging: {level: LOUD}\n",
    "llm: {providers: {openrouter: {base_url: nowhere}}}\n",
)


class Editor:
    """One edit after the other; `valid` is the port of the last one that is to be in force."""

    def __init__(self, watched: House, chance: random.Random) -> None:
        self.watched = watched
        self.chance = chance
        self.valid = 8000
        self.path = watched.state / RUNTIME
        self.answered = trio.Event()
        """Set, and replaced, when a change was answered."""
        self.texts: list[str] = []
        """All that was ever written, so that whoever reads can tell our halves from the editor's."""
        self._files = 0

    def edit(self) -> bool:
        """One edit; whether it is valid."""
        kind = self.chance.choice(("valid", "valid", "valid", "there", "invalid", "truncated", "empty"))
        how = self.chance.choice((self._in_place, self._replace, self._swap))
        number = self.chance.randrange(1024, 65536)
        text = port(number)
        if kind == "there":  # what a person does: change a line of what is there
            there = self.path.read_text("utf-8")
            changed, count = re.subn(r"(?m)^( *|chat: .*)port: \d+", rf"\g<1>port: {number}", there)  # no comment's
            text = changed if count and _parses(changed) else text
        elif kind == "invalid":
            text = self.chance.choice(INVALID)
        elif kind == "truncated":
            text = port(number)[: self.chance.randrange(8, len(port(number)) - 3)]
        elif kind == "empty":
            text = self.chance.choice(("", "\n", "# nothing\n"))
        self.texts.append(text)
        how(text)
        if kind in ("valid", "there"):
            self.valid = number
            return True
        return False

    def _in_place(self, text: str) -> None:
        self.path.write_text(text, "utf-8")

    def _replace(self, text: str) -> None:
        new = self._new(text)
        os.replace(new, self.path)

    def _swap(self, text: str) -> None:
        link = self.watched.state / "link"
        link.symlink_to(self._new(text))
        os.replace(link, self.path)

    def _new(self, text: str) -> Path:
        self._files += 1
        path = self.watched.state / f"edited-{self._files}"
        path.write_text(text, "utf-8")
        return path


def _parses(text: str) -> bool:
    try:
        return bool(parse(text, "f").data)
    except ConfigurationError:  # the editor begins anew
        return False


async def edited(state: Path, count: int, seed: int) -> tuple[int, list[VersionRow]]:
    """Make `count` edits beside running changes. Returns the number of answered changes, and the last versions."""
    chance = random.Random(seed)
    async with house(state) as watched:
        await watched.until(lambda _: True)
        editor = Editor(watched, chance)
        answered: dict[int, int] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_setter, watched, editor, random.Random(seed + 1), answered)
            nursery.start_soon(_reader, editor)
            left = count
            while left:
                burst = min(left, chance.choice((1, 1, 2, 5)))
                left -= burst
                before = editor.valid
                for _ in range(burst):
                    before, valid = editor.valid, editor.edit()
                    if chance.random() < 0.5:
                        await trio.lowlevel.checkpoint()
                await _settled(watched, editor, valid=valid, burst=burst, before=before)
                if valid and chance.random() < 0.5:
                    await editor.answered.wait()  # else the others would hardly ever find a quiet moment
            nursery.cancel_scope.cancel()
        await _quiet(watched)  # after whatever was still under way
        rows = await watched.tree.ref("watcher").ask(ListVersions(200), within=5)
        _check_versions(watched, rows, answered)
        node = next(child for child in watched.tree.status().children if child.name == "watcher")
        assert node.restarts == 0
        return len(answered), rows


async def _settled(watched: House, editor: Editor, *, valid: bool, burst: int, before: int) -> None:
    """The last edit has its effect: its port is in force, or it is told and nothing changed."""
    if valid:
        await watched.until(has_port(editor.valid))
        return
    told = await watched.until(lambda snapshot: bool(snapshot.problems))
    if burst == 1:
        assert told.websocket.port == before
    # Of several at once, which valid ones were seen is a matter of luck; the last is not valid.
    editor.valid = told.websocket.port


async def _quiet(watched: House) -> None:
    with contextlib.suppress(Fault):  # what is in the file may be a mistake
        await watched.set({})


async def _setter(watched: House, editor: Editor, chance: random.Random, answered: dict[int, int]) -> None:
    """Changes something else all the time; what is answered must be in the history."""
    for hops in itertools.cycle(range(10, 1000)):  # never what is there, nor the default
        base = watched.told[-1].version if chance.random() < 0.3 else None
        try:
            view = await watched.set({"chat": {"service": {"max_tool_hops": hops}}}, base, "client:local")
        except Fault as fault:
            assert fault.code in (Code.CONFIG_CONFLICT, Code.CONFIG_INVALID), fault  # noqa: PT017 - both are right
        else:
            assert view.config["chat"]["service"]["max_tool_hops"] == hops
            answered[view.version] = hops
            editor.answered.set()
            editor.answered = trio.Event()


async def _reader(editor: Editor) -> None:
    """Reads the file all the time: what begins as ours is whole."""
    while True:
        text = await trio.to_thread.run_sync(_text_of, editor.path)
        if text.startswith("# Runtime configuration") and text not in editor.texts:
            # An editor that changes a line of ours in place shows a beginning of its own text.
            if any(whole.startswith(text) for whole in editor.texts):
                continue
            assert "_runtime_config" in parse(text, "f").data


def _text_of(path: Path) -> str:
    return path.read_text("utf-8")


def _check_versions(watched: House, rows: list[VersionRow], answered: dict[int, int]) -> None:
    told = [snapshot.version for snapshot in watched.told]
    assert told == sorted(told)
    assert all(later - before <= 1 for before, later in itertools.pairwise(told))
    numbers = [row.version for row in rows]
    assert numbers == list(range(numbers[0], numbers[0] - len(numbers), -1))
    assert told[-1] == numbers[0]
    authors = {row.version: row.author for row in rows}
    # An editor that changes a line of what is there may copy a change before it is answered; then it is the editor's.
    copied = [version for version in answered if authors.get(version) == "file"]
    assert len(copied) <= 1 + len(answered) // 20

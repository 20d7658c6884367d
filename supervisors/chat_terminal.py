"""The terminal client at a terminal: shows turns as they grow, or lets the person type; never both at once.

Whatever wants the screen calls the input line off and gives it back afterwards, with what was typed. Ends
when the person leaves or the link gives up; the terminal is as it was then.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio

from supervisors.chat_approvals import decide
from supervisors.chat_client import INTERRUPTED, Client
from supervisors.chat_commands import COMMANDS, Quit, Refused, Room, do
from supervisors.chat_prompt import End, Prompt, quiet
from supervisors.chat_screen import Screen, at_terminal, exchange, headline, remark, trouble
from supervisors.chat_talk import Entered, Note

REDRAW_S = 0.06  # at most this often; and never more than a quarter of the time goes into drawing
TICK_S = 0.12  # of what moves by itself


async def run(client: Client, history: Path) -> int:
    """Chat until the person leaves. Returns the exit code.

    Args:
        client: not yet running.
        history: file of earlier lines; made where its directory is there.
    """
    screen = at_terminal()
    room = Room(client.talk, client.link, screen, client.changes)
    prompt = Prompt(list(COMMANDS), history if history.parent.is_dir() else None)
    with quiet(sys.stdin.fileno()) as terminal:
        client.on_continue = terminal.enter
        code = await client.run(partial(_converse, client, room, prompt))
    if code == INTERRUPTED and client.talk.running is not None:
        screen.say(remark("the answer goes on; `actors-main chat` shows it"))
    return code


async def _converse(client: Client, room: Room, prompt: Prompt) -> None:
    """Show what there is to show, else let the person type; until one side ends it."""
    talk = client.talk
    told = False
    while not client.link.failure:
        tell(client, room.screen)
        if talk.asked and talk.in_step:
            if not await decide(client, room.screen, prompt):
                return
            continue
        if talk.busy or not talk.conversation or (talk.syncing and not client.link.trouble):
            await follow(client, room.screen)
            continue
        if bool(client.link.trouble) is not told:
            told = not told
            room.screen.say(
                remark(f"not connected ({client.link.trouble}), trying again" if told else "connected again")
            )
        if talk.refused:
            prompt.draft = "\n".join([*talk.refused, *filter(None, [prompt.draft])])
            talk.refused.clear()
        line = await prompt.read(partial(_until_wanted, client, told))
        if line is End.SCREEN:
            continue
        if isinstance(line, End):
            return
        try:
            with trio.CancelScope() as client.asking:
                await entered(line, room)
        except Refused as refused:
            room.screen.say(trouble(str(refused), refused.hint))
        except Quit:
            return
        client.asking = None


async def _until_wanted(client: Client, told: bool) -> None:
    """Until something has to be shown."""
    talk, link = client.talk, client.link
    while not (talk.busy or talk.asked or talk.notes or talk.refused or link.failure or bool(link.trouble) is not told):
        await client.changes.wait()


async def entered(line: str, room: Room) -> None:
    """What a person typed: a command or a message. Raises Refused, Quit."""
    if line.startswith("/") and not line.startswith("//"):
        await do(room, line)
    elif line.strip():
        room.talk.say(line.removeprefix("/") if line.startswith("//") else line)


def tell(client: Client, screen: Screen) -> None:
    """Print the remarks that have come."""
    for note in client.talk.notes:
        match note:
            case Note(error=True):
                screen.say(trouble(note.text, note.hint))
            case Note():
                screen.say(remark(note.text))
            case Entered():
                screen.say(headline(note.conversation, note.turns, more=note.more))
                screen.say(exchange(note.last))
                screen.say("")
    client.talk.notes.clear()


async def follow(client: Client, screen: Screen) -> None:
    """Show turns as they grow, until nothing is awaited."""
    client.stopped = False
    screen.open()
    try:
        while not client.link.failure:
            tell(client, screen)
            if not client.talk.busy and client.talk.conversation and not client.talk.syncing:
                return
            if client.talk.asked and client.talk.in_step:
                screen.show(client.talk.to_show(), client.state)
                return
            turn = client.talk.to_show()
            began = trio.current_time()
            screen.show(turn, client.state)
            if turn is not None and turn.over:
                screen.end(turn)
                turn.forget()
                client.stopped = False
                continue
            took = trio.current_time() - began
            with trio.move_on_after(TICK_S):
                await client.changes.wait()
            await trio.sleep(max(REDRAW_S, 3 * took))
    finally:
        screen.close()

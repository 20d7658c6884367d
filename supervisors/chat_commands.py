"""The slash commands of the terminal client: a table, and what each asks the service and shows.

A command asks over the `Talk` and waits for the one answer with its request_id. What the service refuses,
does not know or does not answer is raised as `Refused`, with words for the person.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import trio

from supervisors.chat_link import Changes, Link
from supervisors.chat_screen import Screen, clean, exchange, remark, table
from supervisors.chat_talk import Talk
from supervisors.chat_turn import Frame, Save

ANSWER_S = 15.0  # for a direct answer; the service itself gives its store 10


class Refused(Exception):
    """A command that could not be done: why, and what to do about it."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


class Quit(Exception):
    """The person wants to leave."""


class Room:
    """What commands work with.

    Args:
        talk: the conversation.
        link: its connection.
        screen: where answers go.
        changes: wakes when the talk has changed.
    """

    def __init__(self, talk: Talk, link: Link, screen: Screen, changes: Changes) -> None:
        self.talk = talk
        self.link = link
        self.screen = screen
        self.changes = changes
        self.saves: list[Save] = []
        """As they were listed last; a number names one of them."""

    async def ask(self, type: str, **fields: Any) -> Frame:
        """The service's answer. Raises Refused."""
        request_id = self.talk.ask(type, **fields)
        with trio.move_on_after(ANSWER_S):
            while request_id not in self.talk.answers:
                await self.changes.wait()
        answer = self.talk.answers.pop(request_id, None)
        if answer is None:
            raise Refused("The service did not answer in time.", "Try again.")
        if answer.error_code == "UNKNOWN_TYPE":
            raise Refused(f"This service ({self.talk.server}) cannot do that: it does not know `{type}`.")
        if answer.type == "error":
            raise Refused(answer.error_message, answer.hint or "")
        return answer


async def show_help(room: Room, _: str) -> None:
    """/help."""
    room.screen.say(table((), ((f"{name} {command.arguments}", command.help) for name, command in COMMANDS.items())))
    room.screen.say(
        remark(
            "Enter sends; Alt-Enter begins a new line. Ctrl-C stops a running answer, a second one leaves; "
            "so does Ctrl-D. A message that begins with / is sent as //."
        )
    )


async def new(room: Room, _: str) -> None:
    """/new."""
    await room.ask("clear_history")


async def save(room: Room, name: str) -> None:
    """/save NAME."""
    if not name:
        raise Refused("A name is missing.", "/save NAME")
    if not room.talk.turns:
        raise Refused("There is nothing to save yet.")
    saved = await room.ask("save_session", name=name)
    room.screen.say(remark(f"saved as {saved.name or name} ({saved.saved_id})"))


async def sessions(room: Room, _: str) -> None:
    """/sessions."""
    room.saves = list((await room.ask("list_sessions")).sessions)
    if not room.saves:
        room.screen.say(remark("nothing is saved; /save NAME saves this conversation"))
        return
    rows = ((number, save.name, save.at[:16].replace("T", " "), save.saved_id) for number, save in _numbered(room))
    room.screen.say(table(("", "name", "saved (UTC)", "id"), rows))


async def load(room: Room, wanted: str) -> None:
    """/load ID, a number of /sessions, or a name that is there once."""
    if not wanted:
        raise Refused("What to load is missing.", "/load ID, with an id, number or name that /sessions shows")
    if not any(wanted == save.saved_id for save in room.saves):
        if not wanted.isdecimal() or not room.saves:
            room.saves = list((await room.ask("list_sessions")).sessions)
        found = [save for number, save in _numbered(room) if wanted in (str(number), save.name)]
        if len(found) > 1:
            raise Refused(f"There are {len(found)} of that name.", "/sessions shows their ids")
        wanted = found[0].saved_id if found else wanted
    await room.ask("load_session", saved_id=wanted)


def _numbered(room: Room) -> enumerate[Save]:
    return enumerate(room.saves, 1)


async def model(room: Room, name: str) -> None:
    """/model [NAME]: of the active provider."""
    answer = await room.ask("get_config")
    active, current = active_model(answer.config)
    if not name:
        room.screen.say(remark(f"{current} of {active}"))
        return
    changes = {"llm": {"providers": {active: {"model": name}}}}
    await room.ask("set_config", changes=changes, base_version=answer.version)
    room.screen.say(remark(f"{name} of {active}, from the next message on"))


def active_model(config: object) -> tuple[str, str]:
    """Active provider and its model. Raises Refused if the configuration has another form."""
    try:
        llm = config["llm"]  # type: ignore[index]  # checked by the except below: it is foreign JSON
        return str(llm["active"]), str(llm["providers"][llm["active"]]["model"])
    except (KeyError, TypeError) as error:
        raise Refused("The service's configuration names no active provider and model.") from error


async def history(room: Room, _: str) -> None:
    """/history."""
    page = await room.ask("history")
    if page.more:
        room.screen.say(remark("there is more before this"))
    room.screen.say(exchange(page.messages))
    if not page.messages:
        room.screen.say(remark("nothing was said yet"))


async def status(room: Room, _: str) -> None:
    """/status."""
    talk = room.talk
    connection = "connected" if talk.in_step else f"not connected: {room.link.trouble}"
    rows = [("service", f"{talk.server}, {connection}"), ("conversation", talk.conversation)]
    if talk.position is not None:
        rows.append(("seen up to", f"turn {talk.position[0]}, seq {talk.position[1]}"))
    if talk.model:
        rows.append(("model", talk.model))
    room.screen.say(table((), rows))


async def leave(_: Room, __: str) -> None:
    """/quit."""
    raise Quit


class Command(NamedTuple):
    """One line of the table."""

    do: Callable[[Room, str], Awaitable[None]]
    arguments: str
    help: str


COMMANDS = {
    "/help": Command(show_help, "", "this list"),
    "/new": Command(new, "", "begin a new conversation; the old one is kept"),
    "/history": Command(history, "", "what was said, the last page of it"),
    "/save": Command(save, "NAME", "save the conversation under a name"),
    "/sessions": Command(sessions, "", "list what is saved"),
    "/load": Command(load, "ID", "go on with what was saved; an id, number or name of /sessions"),
    "/model": Command(model, "[NAME]", "show or change the model of the active provider"),
    "/status": Command(status, "", "connection, conversation and position"),
    "/quit": Command(leave, "", "leave; the conversation is kept, a running answer goes on"),
}


async def do(room: Room, line: str) -> None:
    """One line that begins with a slash. Raises Refused, Quit."""
    name, _, argument = line.strip().partition(" ")
    if "\n" in line.strip():
        raise Refused("A command is one line.", "To send all of it as a message, begin with //")
    command = COMMANDS.get(name)
    if command is None:
        raise Refused(f"There is no command {clean(name)}.", "/help lists them; to send it as a message, begin with //")
    await command.do(room, argument.strip())

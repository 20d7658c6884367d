"""The terminal client asks the person whether a tool may be called, or what a server wants to know.

Every socket of the person is asked; who answers first decides, here or elsewhere. A question that was decided
elsewhere is taken from the screen.
"""

from __future__ import annotations

from supervisors.chat_client import Client
from supervisors.chat_prompt import End, Prompt
from supervisors.chat_questions import Form
from supervisors.chat_screen import Screen, clean, remark, short
from supervisors.chat_turn import Frame

WORDS = {
    **dict.fromkeys(("y", "yes", "once"), "once"),
    **dict.fromkeys(("a", "always"), "always"),
    **dict.fromkeys(("n", "no", "deny"), "deny"),
}
"""What is typed -> the decision."""

CHOICES = "y: yes, this once · a: always · n: no"


def question(asked: Frame) -> str:
    """What is to be decided."""
    if asked.diff is not None:
        changed = (
            f"? The tool {short(asked.tool_name)} of {short(asked.server)} has changed:\n{clean(asked.diff or '')}"
        )
        what = f"{changed}\nMay it be offered to the model again?"
    else:
        what = f"? May {short(asked.tool_name)} ({short(asked.server)}) be called with {short(asked.arguments)}?"
    return f"{what}\n{clean(asked.reason)}\n{CHOICES}"


async def decide(client: Client, screen: Screen, prompt: Prompt) -> bool:
    """Ask for the oldest; False where the person leaves."""
    talk = client.talk
    name, asked = next(iter(talk.asked.items()))
    form = None
    if asked.type == "question":
        form = client.forms.setdefault(name, Form(asked))
    if name not in client.told:
        client.told.add(name)
        screen.say(remark(question(asked) if form is None else f"? {short(asked.server)} asks: {clean(asked.message)}"))
        if form is not None:
            screen.say(remark(form.asks))

    async def settled() -> None:
        while name in talk.asked and talk.in_step:
            await client.changes.wait()

    draft, prompt.draft = prompt.draft, ""
    line = await prompt.read(settled)
    prompt.draft = draft
    match line:
        case End.SCREEN:
            if name not in talk.asked:
                client.forms.pop(name, None)
                screen.say(remark("it was settled elsewhere"))
        case End.CTRL_C:
            client.stopped = True
            talk.asked.pop(name, None)
            if asked.turn is not None:
                talk.stop()
        case End():
            return False
        case _ if form is not None:
            _fill_in(client, screen, name, form, line)
        case _ if (decision := WORDS.get(line.strip().lower())) is not None:
            talk.decide(name, decision)
        case _:
            screen.say(remark(CHOICES))
    return True


def _fill_in(client: Client, screen: Screen, name: str, form: Form, line: str) -> None:
    """A line is part of the answer to a question."""
    try:
        action = form.take(line)
    except ValueError as error:
        screen.say(remark(str(error)))
        action = None
    if action is None:
        screen.say(remark(form.asks))
        return
    # where the service finds that it does not fit, it is asked from its beginning
    client.told.discard(name)
    del client.forms[name]
    client.talk.answer(name, action, form.content if action == "accept" else {})

"""The verbs beside the conversation itself: saved sessions, the configuration and the models.

Each is one question to the store, the watcher or the streamer, and the answer's frame. They raise what those answer
(`Fault`) and `MailError` where those do not, for `Commands` to tell.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors import saves
from protocol.client import (
    AskModels,
    ChangeConfig,
    Config,
    DeleteSession,
    ListSessions,
    Models,
    ReadConfig,
    SaveThis,
    ServerFrame,
    time_of,
)
from protocol.errors import Code, Fault
from protocol.mail import MailError, Ref
from protocol.models import ListModels, ModelList
from protocol.watcher import ConfigView, GetConfig, SetConfig, Snapshot

MODELS_S = 20.0  # for a provider to list its models, and for the same asked before it
ANSWER_S = 10.0  # for the watcher: a change is written to disk first

Verb = SaveThis | ListSessions | DeleteSession | ReadConfig | ChangeConfig
"""What is answered by one frame; `LoadSession` also moves the socket."""


async def answer(
    verb: Verb, *, writer: Ref[Any], watcher: Ref[Any], snapshot: Snapshot, owner: str, conversation: str
) -> ServerFrame:
    """The frame that answers a verb, with its request_id."""
    match verb:
        case SaveThis():
            wanted = verb.conversation_id or conversation
            return _echoing(await saves.save(writer, snapshot, owner, wanted, verb.name), verb.request_id)
        case ListSessions():
            return _echoing(await saves.listed(writer, snapshot, owner), verb.request_id)
        case DeleteSession():
            return _echoing(await saves.delete(writer, snapshot, owner, verb.saved_id), verb.request_id)
        case ReadConfig():
            view: ConfigView = await watcher.ask(GetConfig(verb.path), within=ANSWER_S, again=True)
        case ChangeConfig():
            change = SetConfig(verb.changes, verb.base_version, author=f"client:{owner}")
            view = await watcher.ask(change, within=ANSWER_S)
    return Config(view.version, view.config, request_id=verb.request_id)


async def models(verb: AskModels, streamer: Ref[Any]) -> Models:
    """What a provider offers. Raises Fault; takes as long as the provider."""
    question = ListModels(verb.provider or "", verb.refresh)
    try:
        found: ModelList = await streamer.ask(question, within=MODELS_S, again=True)
    except MailError as error:
        raise Fault(Code.LLM_UNAVAILABLE, "The part that asks providers does not answer.") from error
    return Models(found.provider, found.models, time_of(found.at), request_id=verb.request_id)


def _echoing(frame: Any, request_id: str | None) -> ServerFrame:
    echoed: ServerFrame = msgspec.structs.replace(frame, request_id=request_id)
    return echoed

"""Which messages a model is told where not all of them fit into its context window.

Pure. Without a tokenizer (each model has its own, of megabytes, and providers change them), sizes are estimated:
`BYTES_PER_TOKEN` of UTF-8 text, which is near the truth for English (4), code (3) and Chinese (3 to 4 bytes a
token), and rather too many tokens than too few; a fixed cost per image and per message.

What leaves is the oldest: whole turns first, then rounds of tools of the turn that runs. What never leaves is the
system prompt, the last user message, and the last answer with its tools' results, without which the model
would call the same tools for ever. If that does not fit it is sent all the same: the provider knows better.

Assumes messages as `transcript.for_model` makes them: a system prompt or none, then turns that begin with a user's
message, every tool call followed by its results. Removing whole turns and rounds keeps that true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

BYTES_PER_TOKEN = 3.5  # of UTF-8; see above
IMAGE_TOKENS = 1_000  # of an image, whatever its size: providers count 85 to 1,600 of one
MESSAGE_TOKENS = 4  # of a message's frame: its role and the marks around it
MOST_FOR_ANSWER = 0.5  # of the window: an answer that may be longer than that would leave nothing to be told
ANSWER_LIMITS = ("max_tokens", "max_completion_tokens")  # parameters that say how long an answer may get

Message = dict[str, Any]


class Told(NamedTuple):
    """What fits."""

    messages: list[Message]
    turns: int
    """Whole turns that were left out."""
    left_out: int
    """Messages that were left out, those of the turns included."""


def room(context_tokens: int, parameters: Mapping[str, Any], tools: bytes) -> int:
    """Tokens that are left for messages: the window without the tools, and without what the answer may take.

    Args:
        context_tokens: the whole window.
        parameters: the provider's; may limit the answer.
        tools: as JSON.
    """
    wanted = [value for key in ANSWER_LIMITS if isinstance(value := parameters.get(key), int)]
    answer = min(max(wanted, default=0), int(context_tokens * MOST_FOR_ANSWER))
    return context_tokens - answer - tokens_of(tools.decode())


def fit(messages: Sequence[Message], most: int) -> Told:
    """The messages that fit into so many tokens, in their order; more only where even the least does not fit."""
    begin = 1 if messages and messages[0]["role"] == "system" else 0
    system, turns = messages[:begin], _split(messages[begin:], "user")
    current = turns.pop() if turns else []
    asked, rounds = current[:1], _split(current[1:], "assistant")
    last = rounds.pop() if rounds else []
    free = most - sum(map(size, [*system, *asked, *last]))
    # from the newest to the oldest, and nothing older than what does not fit: a conversation has no holes
    newer, free = _newest(rounds, free)
    earlier, _ = _newest(turns, free) if len(newer) == len(rounds) else ([], 0)
    told = [*system, *chain.from_iterable(earlier), *asked, *chain.from_iterable(newer), *last]
    return Told(told, len(turns) - len(earlier), len(messages) - len(told))


def _newest(parts: list[list[Message]], free: int) -> tuple[list[list[Message]], int]:
    """The last parts that fit, and what is left free."""
    told = len(parts)
    while told and (cost := sum(map(size, parts[told - 1]))) <= free:
        free -= cost
        told -= 1
    return parts[told:], free


def _split(messages: Sequence[Message], role: str) -> list[list[Message]]:
    """Parts that begin with a message of that role; what comes before the first such is a part too."""
    parts: list[list[Message]] = []
    for message in messages:
        if message["role"] == role or not parts:
            parts.append([])
        parts[-1].append(message)
    return parts


def size(message: Message) -> int:
    """Tokens of a message, estimated."""
    return MESSAGE_TOKENS + sum(_value(value) for key, value in message.items() if key != "role")


def _value(value: Any) -> int:
    match value:
        case str():
            return tokens_of(value)
        case {"type": "image_url"}:
            return IMAGE_TOKENS
        case dict():
            return sum(tokens_of(str(key)) + _value(part) for key, part in value.items())
        case list():
            return sum(map(_value, value))
        case _:
            return 1


def tokens_of(text: str) -> int:
    """Tokens of a text, estimated; 0 only for none."""
    size_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -int(-size_bytes // BYTES_PER_TOKEN)

"""Which providers a request goes to, in which order, and what a fallback is sent; free of I/O.

The provider that was asked comes first, then `llm.fallbacks` in their order. A fallback gets its own model and
parameters, and messages without what belongs to another provider: their raw fields would be refused. One that
reads text only is passed over where there are images. Fails with `Fault` LLM_NOT_CONFIGURED only.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.sending import LOCAL
from protocol.errors import Code, Fault
from protocol.streamer import Complete
from protocol.watcher import Llm, Provider

_OF_A_MESSAGE = frozenset({"role", "content", "name", "tool_calls"})
_OF_A_CALL = frozenset({"id", "type", "function"})


def route(request: Complete, llm: Llm) -> list[tuple[Provider, Complete]]:
    """The providers to be asked until one answers, each with the request in its form. Raises Fault."""
    name = request.provider or llm.active
    if not llm.providers:
        raise Fault(Code.LLM_NOT_CONFIGURED)
    if name not in llm.providers:
        raise Fault(
            Code.LLM_NOT_CONFIGURED,
            f"The configuration has no provider {name!r}.",
            hint=f"Set llm.active to one of: {', '.join(sorted(llm.providers))}; {LOCAL}",
        )
    found = [(llm.providers[name], request)]
    if not llm.fallbacks:
        return found
    # A turn that a fallback answered stays with it; if it fails too, the active one has its second chance.
    order = [llm.active, *llm.fallbacks] if name in llm.fallbacks else llm.fallbacks
    others = dict.fromkeys(other for other in order if other != name and other in llm.providers)
    if not others:
        return found
    images = _with_images(request.messages)
    messages = [_plain(message) for message in request.messages]
    for other in others:
        provider = llm.providers[other]
        if images and not provider.client.vision:
            continue
        tools = b"" if provider.client.small else request.tools
        found.append(
            (provider, msgspec.structs.replace(request, provider=other, model="", messages=messages, tools=tools))
        )
    return found


def _with_images(messages: list[dict[str, Any]]) -> bool:
    return any(
        isinstance(part, dict) and part.get("type") == "image_url"
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
    )


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message with only what any provider understands; any other as it is."""
    if message.get("role") != "assistant":
        return message
    plain = {key: value for key, value in message.items() if key in _OF_A_MESSAGE}
    if isinstance(content := plain.get("content"), list):
        texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
        plain["content"] = "".join(text for text in texts if isinstance(text, str))
    if isinstance(calls := plain.get("tool_calls"), list):
        plain["tool_calls"] = [{key: value for key, value in call.items() if key in _OF_A_CALL} for call in calls]
    return plain

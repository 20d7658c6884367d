"""What a server wants a model to be asked, in the words of `chat/completions`, and the answer in MCP's.

Pure. The server's messages, its system prompt and its limits are what the model is told; nothing of the conversation,
and none of our tools: only those that the server offers for this request and runs itself. Its limits count over the
provider's parameters, but not over what is configured. Fails with `Fault` only, whose text the server gets to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from protocol.errors import Code, Fault
from protocol.mcp_server import SamplingRequest
from protocol.streamer import Finished
from protocol.watcher import Llm, Provider

EDITABLE = ("messages", "system_prompt", "max_tokens", "temperature", "stop")
"""What whoever approves a request may change of it."""

STOP_REASONS = {"stop": "endTurn", "end_turn": "endTurn", "length": "maxTokens", "tool_calls": "toolUse"}
"""A provider's `finish_reason` -> MCP's; any other goes on as it is."""

AUDIO_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}


def shown(request: SamplingRequest) -> dict[str, Any]:
    """The request as a person sees it who is to approve it."""
    seen = {key: getattr(request, key) for key in EDITABLE}
    tools = [str(tool.get("name", "")) for tool in request.tools]
    return {key: value for key, value in {**seen, "tools": tools}.items() if value not in ("", None, [])}


def edited(request: SamplingRequest, changes: object) -> SamplingRequest:
    """The request with what its approver has changed; what makes no sense is left as it was."""
    if not isinstance(changes, dict):
        return request
    plain = {field: getattr(request, field) for field in request.__struct_fields__}
    plain.update({key: value for key, value in changes.items() if key in EDITABLE})
    try:
        return msgspec.convert({"type": "SamplingRequest", **plain}, SamplingRequest)
    except msgspec.ValidationError:
        return request


def provider_for(request: SamplingRequest, llm: Llm) -> str:
    """Who is asked: the active provider, or a configured fallback whose model the server would rather have."""
    names = [name for name in (llm.active, *llm.fallbacks) if name in llm.providers]
    for hint in request.hints:
        for name in names:
            if hint.lower() in llm.providers[name].model.lower():
                return name
    return llm.active


def limited(request: SamplingRequest, llm: Llm, most_tokens: int) -> Llm:
    """The configuration for this request: its limits in the parameters of every provider that may answer."""
    asked = {name: _limited(request, provider, most_tokens) for name, provider in llm.providers.items()}
    return msgspec.structs.replace(llm, providers=asked)


def _limited(request: SamplingRequest, provider: Provider, most_tokens: int) -> Provider:
    own = provider.parameters
    key = "max_completion_tokens" if own.get("max_completion_tokens") is not None else "max_tokens"
    before = own.get(key)
    most = min(most_tokens, max(1, request.max_tokens), *([before] if isinstance(before, int) else []))
    parameters = {**own, key: most, "tools": None, "tool_choice": _choice(request)}
    if request.temperature is not None:
        parameters["temperature"] = request.temperature
    if request.stop:
        parameters["stop"] = request.stop
    return msgspec.structs.replace(provider, parameters=parameters)


def _choice(request: SamplingRequest) -> str | None:
    return request.tool_choice if request.tools and request.tool_choice in ("required", "none") else None


def tools_of(request: SamplingRequest) -> list[dict[str, Any]]:
    """The server's own tools."""
    return [
        {
            "type": "function",
            "function": {
                "name": str(tool.get("name", "")),
                "description": str(tool.get("description") or ""),
                "parameters": tool.get("inputSchema") or {"type": "object", "properties": {}},
            },
        }
        for tool in request.tools
    ]


def messages_of(request: SamplingRequest, *, vision: bool = True) -> list[dict[str, Any]]:
    """What the model is told. Raises Fault: there is something in it that the model cannot be told."""
    system = [{"role": "system", "content": request.system_prompt}] if request.system_prompt else []
    return [*system, *(told for message in request.messages for told in _told(message, vision=vision))]


def _told(message: dict[str, Any], *, vision: bool) -> Iterator[dict[str, Any]]:
    content = message.get("content")
    blocks = [block for block in (content if isinstance(content, list) else [content]) if isinstance(block, dict)]
    results = [block for block in blocks if block.get("type") == "tool_result"]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    rest = [block for block in blocks if block.get("type") not in ("tool_result", "tool_use")]
    for block in results:
        yield {"role": "tool", "tool_call_id": str(block.get("toolUseId", "")), "content": _text(block.get("content"))}
    if message.get("role") == "assistant":
        yield {"role": "assistant", "content": _text(rest), **({"tool_calls": calls} if calls else {})}
    elif rest or not results:
        only_text = all(block.get("type") == "text" for block in rest)
        parts: Any = _text(rest) if only_text else [_part(block, vision=vision) for block in rest]
        yield {"role": "user", "content": parts}


def _text(content: object) -> str:
    blocks = content if isinstance(content, list) else []
    texts = (block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))


def _call(block: dict[str, Any]) -> dict[str, Any]:
    arguments = msgspec.json.encode(block.get("input") or {}).decode()
    function = {"name": str(block.get("name", "")), "arguments": arguments}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _part(block: dict[str, Any], *, vision: bool) -> dict[str, Any]:
    kind, data = block.get("type"), str(block.get("data", ""))
    mime = str(block.get("mimeType", ""))
    if kind == "text":
        return {"type": "text", "text": str(block.get("text", ""))}
    if kind == "image" and vision:
        return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{data}"}}
    if kind == "audio" and mime in AUDIO_FORMATS:
        return {"type": "input_audio", "input_audio": {"data": data, "format": AUDIO_FORMATS[mime]}}
    raise Fault(Code.LLM_REJECTED, f"The model cannot be told content of the type {kind!s} {mime}".rstrip() + ".")


def blocks_of(text: str, finished: Finished) -> list[dict[str, Any]]:
    """The answer in MCP's wire form; never empty. Raises Fault: a call that it asks for cannot be read."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text or not finished.tool_calls else []
    for call in finished.tool_calls:
        try:
            arguments = msgspec.json.decode(call.arguments)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise Fault(Code.LLM_REJECTED, f"The model's arguments for {call.name!r} are no JSON object.")
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks


def stop_reason(finished: Finished) -> str:
    """Why the answer ended, in MCP's words."""
    if finished.tool_calls:
        return "toolUse"
    return STOP_REASONS.get(finished.finish_reason, finished.finish_reason)

"""The log lines of one turn: who hands what to whom, as arrows.

`→ X:` goes to X, `← X:` came back from it. Each carries `[conversation/turn]`, so that one turn can be
followed with grep: the first eight characters of the conversation's id, and the turn's. What was said is in
them only as far as `chat.service.logging` allows at that moment, without secrets, and cut. A line that is not
wanted costs a look at a level; of pieces of an answer there is none at all. Nothing in here fails.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from actors.hidden import hidden, without
from actors.running_turn import RunningTurn
from actors.turnlog import Lost, TurnLog
from protocol.errors import FaultBody
from protocol.mcp_server import ToolOutcome
from protocol.streamer import Complete, Failed, Finished
from protocol.watcher import Snapshot
from protocol.writer import ToolStarted

ID_CHARS = 8  # of a conversation's id: enough to tell apart those of a day
REPLY_CHARS = 500  # of an answer or a system prompt, where nothing else is configured
RESULT_CHARS = 200  # of a tool's arguments and its result, likewise

session_log = logging.getLogger("actors.session")
llm_log = logging.getLogger("actors.llm")
mcp_log = logging.getLogger("actors.mcp")
gateway_log = logging.getLogger("actors.gateway")


def tag(conversation: str, turn: int) -> str:
    """`0f3a9c21/3`"""
    return f"{conversation[:ID_CHARS]}/{turn}"


def _about(log: TurnLog) -> dict[str, Any]:
    return {"conversation": log.conversation, "turn": log.turn}


def _shown(text: str, live: Snapshot, feature: str, default: int) -> str:
    """Without secrets first, then cut: the beginning of one would be left."""
    most = live.logging.truncate.get(feature, default)
    text = without(text, hidden(live, os.environ))
    return text if most <= 0 or len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def _on(live: Snapshot, feature: str) -> bool:
    return live.service.logging.get(feature, False)


def taken_up(turn: RunningTurn) -> None:
    """A message gets its answer now."""
    if session_log.isEnabledFor(logging.INFO):
        content, log = turn.user.content, turn.log
        size = f"{len(content)} characters" if isinstance(content, str) else f"{len(content)} parts"
        text = "→ Orchestrator: turn taken up [%s] a message of %s"
        session_log.info(text, tag(log.conversation, log.turn), size, extra=_about(log))


def ended(log: TurnLog, outcome: str, error: FaultBody | None, turn: RunningTurn | None) -> None:
    """The turn is over; `turn` is None where it had run before a crash."""
    level = logging.WARNING if outcome == "failed" else logging.INFO
    if session_log.isEnabledFor(level):
        took = f", {_ms(turn.began)} ms" if turn is not None else ""
        why = f", {error.code}" if error is not None else ""
        text = "← Orchestrator: turn ended [%s] %s%s%s"
        session_log.log(level, text, tag(log.conversation, log.turn), outcome, why, took, extra=_about(log))


def asked(turn: RunningTurn, live: Snapshot, request: Complete) -> None:
    """The model is asked."""
    if not llm_log.isEnabledFor(logging.INFO):
        return
    where, about, provider = tag(turn.log.conversation, turn.turn), _about(turn.log), turn.provider
    what = "streaming request" if provider is None or provider.client.stream else "request"
    sizes = f"{len(request.messages)} messages, {len(turn.merged.tools_for_model) if request.tools else 0} tools"
    text = "→ LLM: %s [%s] %s/%s, %s"
    llm_log.info(text, what, where, request.provider, request.model, sizes, extra=about)
    first = request.messages[0] if request.messages else {}
    if first.get("role") == "system" and _on(live, "system_prompt"):
        prompt = _shown(str(first.get("content", "")), live, "system_prompt", REPLY_CHARS)
        llm_log.info("→ LLM: system prompt [%s] %s", where, prompt, extra=about)


def answered(turn: RunningTurn, live: Snapshot, decision: Finished | Failed | Lost) -> None:
    """The model's answer came to an end, good or bad; `turn` still stands at that request."""
    if not llm_log.isEnabledFor(logging.INFO):
        return
    log = turn.log
    match decision:
        case Finished():
            words = [f"finished with {decision.finish_reason or 'no reason'}", *_tokens(decision.usage)]
            if decision.tool_calls:
                words.append(f"{len(decision.tool_calls)} tool calls")
        case Failed():
            words = [f"failed with {decision.fault.code}"]
        case Lost():
            words = ["lost with the actor that ran it"]
    said = ""
    if _on(live, "llm_replies"):
        said = ": " + _shown(log.text(log.hop_start), live, "llm_replies", REPLY_CHARS)
    text = "← LLM: %s [%s] %d ms%s"
    llm_log.info(text, ", ".join(words), tag(log.conversation, log.turn), _ms(turn.asked), said, extra=_about(log))


def shown(log: TurnLog, sockets: int) -> None:
    """The turn can be seen by that many sockets from now on."""
    if gateway_log.isEnabledFor(logging.DEBUG):
        what = "streaming content" if log.streaming else "whole messages"
        text = "→ Frontend: %s [%s] to %d sockets"
        gateway_log.debug(text, what, tag(log.conversation, log.turn), sockets, extra=_about(log))


def calling(turn: RunningTurn, live: Snapshot, call: ToolStarted) -> None:
    """A tool is called; at DEBUG and without its arguments where `tool_execution` is off."""
    on = _on(live, "tool_execution")
    level = logging.INFO if on else logging.DEBUG
    if mcp_log.isEnabledFor(level):
        words = " with " + _shown(call.arguments or "{}", live, "tool_execution", RESULT_CHARS) if on else ""
        text = "→ MCP[%s]: calling tool %s [%s]%s"
        where = tag(turn.log.conversation, turn.turn)
        mcp_log.log(level, text, call.server or "?", call.tool_name, where, words, extra=_about(turn.log))


def called(turn: RunningTurn, live: Snapshot, call: ToolStarted, outcome: ToolOutcome | None, began: float) -> None:
    """A call ended, cancelled where there is no outcome; its text only where `tool_results` is on.

    Args:
        began: `time.monotonic()` then.
    """
    told = _on(live, "tool_results")
    level = logging.INFO if told or _on(live, "tool_execution") else logging.DEBUG
    if mcp_log.isEnabledFor(level):
        how = "cancelled" if outcome is None else "ok" if outcome.ok else "failed"
        size = f", {len(outcome.text)} characters" if outcome is not None else ""
        said = ": " + _shown(outcome.text, live, "tool_results", RESULT_CHARS) if told and outcome is not None else ""
        text = "← MCP[%s]: result of tool %s [%s] %s%s, %d ms%s"
        where = tag(turn.log.conversation, turn.turn)
        values = (call.server or "?", call.tool_name, where, how, size, _ms(began), said)
        mcp_log.log(level, text, *values, extra=_about(turn.log))


def _tokens(usage: dict[str, Any] | None) -> list[str]:
    found = [(usage or {}).get(key) for key in ("prompt_tokens", "completion_tokens")]
    return [f"{found[0]} + {found[1]} tokens"] if all(isinstance(n, int) for n in found) else []


def _ms(since: float) -> int:
    return round((time.monotonic() - since) * 1000)

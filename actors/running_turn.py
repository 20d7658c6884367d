"""What a session knows of the turn that runs: its log, its events so far, and the configuration it keeps.

Turns what happened into the log's frames and the store's events; decides nothing and waits for nothing.
A running turn keeps the configuration and the tool catalogue that it began with.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec

from actors import context_window, message_content, transcript
from actors.annotations import annotations_of
from actors.catalogue import Merged
from actors.turnlog import TurnLog
from actors.usage import NOTHING_USED, added, priced
from protocol.client import LeftOut, ToolExecution, TurnFinished, TurnStarted, error_frame
from protocol.errors import Fault, FaultBody
from protocol.mcp_server import ToolOutcome
from protocol.session import echo_of
from protocol.streamer import Finished, ToolCall
from protocol.watcher import Provider, Snapshot, ToolNotifications
from protocol.writer import Closed, Event, HopEvent, ToolEnded, ToolStarted, UserEvent

CANCELLED = "Cancelled by the user before it ended."  # a call's outcome, as the model is told


class RunningTurn:
    """One turn, from its first request to its last frame.

    Args:
        log: may hold text already, when a session takes over after a crash.
        merged: what the servers offer.
        events: stored so far; the user's first.
    """

    __slots__ = (
        "asked",
        "asks",
        "began",
        "events",
        "hop_open",
        "last",
        "left_out",
        "log",
        "merged",
        "model",
        "planned",
        "prompt",
        "snapshot",
        "tools",
        "usage",
        "user",
    )

    def __init__(
        self,
        log: TurnLog,
        user: UserEvent,
        events: list[Event],
        snapshot: Snapshot,
        merged: Merged,
    ) -> None:
        self.log = log
        self.user = user
        self.events = events
        self.snapshot = snapshot
        self.offer(merged)
        hops = {event.hop for event in events if isinstance(event, HopEvent)}
        self.hop_open = log.hop not in hops and log.hop > 0
        """The running hop has no HopEvent yet."""
        self.began = self.asked = time.monotonic()
        """When it began here, and when the model was last asked; for the log."""
        self.last: Finished | None = None
        """How the last request ended."""
        self.asks = snapshot.llm.active
        """The provider that is asked: the active one, and after a fallback has answered that one, to whom alone what
        it has sent beside the text may go back."""
        asked = self.provider
        self.model = asked.model if asked is not None else ""
        self.usage = NOTHING_USED
        """Summed over the hops."""
        for event in events:
            if isinstance(event, HopEvent):
                self.usage = added(self.usage, event.usage)
                self.model = event.model or self.model
                self._stay(event.provider)
        self.left_out: LeftOut | None = None
        """What the last request had no room for."""
        self.planned: list[tuple[str, ToolCall]] = []
        """Calls that the last answer asks for, with our ids."""

    def offer(self, merged: Merged) -> None:
        """What the servers offer: at its beginning, and again where it is taken up long after."""
        active = self.snapshot.llm.providers.get(self.snapshot.llm.active)
        small = active is not None and active.client.small
        self.merged = merged
        self.tools = b"" if small else merged.tools_text
        """What the model may call, as JSON."""
        configured = self.snapshot.service.system_prompt
        self.prompt = configured if small else merged.prompt(configured, instructions=self.snapshot.tools.instructions)
        """The configured system prompt, and what the servers offer now."""

    @property
    def turn(self) -> int:
        """Its id."""
        return self.log.turn

    @property
    def provider(self) -> Provider | None:
        """Who is asked; None where the configuration names nobody."""
        return self.snapshot.llm.providers.get(self.asks)

    @property
    def refusal(self) -> Fault | None:
        """Why its message cannot be put before the model; None: it can."""
        return message_content.refusal(self.user.content, self.provider)

    def messages(self, before: list[Event]) -> list[dict[str, Any]]:
        """What the model is told: the earlier turns' events, then this one's, as far as they fit (`left_out`)."""
        provider, self.left_out = self.provider, None
        vision = provider is None or provider.client.vision
        messages = transcript.for_model(self.prompt, [*before, *self.events], self.asks, vision=vision)
        if provider is None or provider.client.context_tokens is None:
            return messages
        most = context_window.room(provider.client.context_tokens, provider.parameters, self.tools)
        told = context_window.fit(messages, most)
        if told.left_out:
            self.left_out = LeftOut(told.turns, told.left_out)
        return told.messages

    def started(self) -> TurnStarted:
        """The frame that begins it; echoes the request_id of its message."""
        return TurnStarted(
            turn=self.turn,
            message=self.user.content,
            model=self.model,
            provider=self.asks,
            fallbacks=[name for name in self.snapshot.llm.fallbacks if name != self.asks],
            left_out=self.left_out,
            request_id=echo_of(self.user.request_id),
        )

    def asking(self) -> None:
        """A request goes out; its hop is open until `hop_event`."""
        self.hop_open, self.last = True, None
        self.asked = time.monotonic()

    def answered(self, finished: Finished) -> list[str]:
        """A request ended well; returns our ids of the calls that it asks for."""
        self._stay(finished.provider)
        provider = self.provider
        usage = priced(finished.usage, provider.client.prices) if provider is not None else finished.usage
        self.last = msgspec.structs.replace(finished, usage=usage)
        self.model = finished.model or self.model
        self.usage = added(self.usage, usage)
        self.planned = [(secrets.token_hex(8), call) for call in finished.tool_calls]
        return [call_id for call_id, _ in self.planned]

    def _stay(self, provider: str) -> None:
        if provider in self.snapshot.llm.providers:
            self.asks = provider

    def _hop_event(self, calls: list[ToolCall]) -> list[Event]:
        if not self.hop_open:
            return []
        self.hop_open = False
        start, last = self.log.hop_start, self.last
        content, thinking = self.log.text(start), self.log.thinking(start)
        if not (content or thinking or calls):
            return []
        return [
            HopEvent(
                hop=self.log.hop,
                content=content,
                thinking=thinking,
                tool_calls=calls,
                raw=last.raw if last is not None else {},
                provider=self.asks,
                model=self.model,
                usage=last.usage if last is not None else None,
                finish_reason=last.finish_reason if last is not None else "",
                left_out=msgspec.to_builtins(self.left_out) if self.left_out is not None else {},
                annotations=last.annotations if last is not None else [],
            )
        ]

    def begin_calls(self) -> list[Event]:
        """The answer and the intents of its calls, to be stored before the calls are made."""
        events = self._hop_event([call for _, call in self.planned])
        for call_id, call in self.planned:
            target = self.merged.find(call.name)
            server = target[0] if target is not None else ""
            started = ToolStarted(call_id, call.id, self.log.seq + 1, call.name, server, call.arguments)
            self.log.calls[call_id] = started
            self._show(transcript.tool_execution(self.turn, started, started.seq, "executing", self._notices))
            events.append(started)
        self.events.extend(events)
        return events

    def end_call(
        self, started: ToolStarted, status: str, result: str, elapsed_ms: int, outcome: ToolOutcome | None = None
    ) -> ToolEnded:
        """A call has its outcome; the first that is told stays."""
        if self.log.calls.pop(started.call_id, None) is None:
            earlier = (e for e in self.events if isinstance(e, ToolEnded) and e.call_id == started.call_id)
            found = next(earlier, None)
            if found is not None:
                return found
        ended = ToolEnded(started.call_id, started.model_call_id, self.log.seq + 1, status, result, elapsed_ms)
        if outcome is not None:
            ended = msgspec.structs.replace(
                ended,
                contents=outcome.contents,
                structured=outcome.structured,
                result_id=outcome.result_id,
                size=outcome.size,
            )
        self._show(transcript.tool_ended(self.turn, started, ended, self._notices))
        self.events.append(ended)
        return ended

    def _show(self, frame: ToolExecution) -> None:
        self.log.add_frame(lambda _: frame)

    @property
    def _notices(self) -> ToolNotifications:
        return self.snapshot.service.tool_notifications

    def close(self, outcome: str, fault: FaultBody | None) -> tuple[list[Event], Closed]:
        """The turn's last events, to be stored at once, and their last one, which says how it ended."""
        events = self._hop_event([])
        self.events.extend(events)
        stopped = outcome == "stopped"
        status, result = ("cancelled", CANCELLED) if stopped else ("unknown", transcript.UNKNOWN_OUTCOME)
        for started in tuple(self.log.calls.values()):
            events.append(self.end_call(started, status, result, 0))
        message = self.log.text()
        closed = Closed(
            outcome=outcome,
            seq=self.log.seq + (2 if message else 1),
            message=message,
            thinking=self.log.thinking(),
            usage=added(self.usage, self.log.aside) or None,
            model=self.model,
            finish_reason=self.last.finish_reason if self.last is not None else "",
            error=fault,
            provider=self.asks,
            annotations=annotations_of(self.events),
        )
        self.events.append(closed)
        return [*events, closed], closed


def show_end(log: TurnLog, closed: Closed, storage: FaultBody | None) -> tuple[str, FaultBody | None]:
    """A turn's last frames: its message, and how it ended, which is returned.

    Args:
        storage: why the end could not be stored; the turn is then shown as failed with it.
    """
    outcome, error = ("failed", storage) if storage is not None else (closed.outcome, closed.error)
    shown = msgspec.structs.replace(closed, outcome=outcome, error=error)
    if closed.message:
        log.add_frame(lambda seq: transcript.assistant_message(log.turn, msgspec.structs.replace(shown, seq=seq + 1)))
    before = [error_frame(error, turn=log.turn)] if error is not None and outcome == "failed" else []
    log.add_frame(lambda seq: TurnFinished(log.turn, seq, outcome, error=error), *before)
    return outcome, error

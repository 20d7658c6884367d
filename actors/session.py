"""One conversation's session: performs what `actors/turn.py` decides.

Its mailbox carries clients' commands; what the model does it reads from the running turn's log, woken by a
nudge. It keeps nothing that must survive: after a crash the next incarnation rebuilds itself from the
store, from the log that front kept, and from the messages that nobody has answered yet, closes or asks
again what ran, and goes on. What can fail here: the store (a turn then ends with its error), tools (the
model is told), the model (typed failures from the streamer).
"""

from __future__ import annotations

import json
import logging
import secrets
from typing import Any

import msgspec
import trio

from actors import transcript
from actors.catalogue import Merged
from actors.front import Conversation, Front
from actors.turn import (
    Ask,
    Close,
    Commit,
    Drop,
    Effect,
    Journal,
    Phase,
    Refuse,
    Resume,
    RunCalls,
    Start,
    TellQueued,
    TellRepeated,
    Turns,
)
from actors.turnlog import Lost, TurnLog, frame_of
from protocol.client import MessageQueued, ToolExecution, TurnFinished, TurnStarted, encode, error_frame
from protocol.errors import Code, Fault, FaultBody
from protocol.mail import Gone, Mailbox, MailError, Overloaded, Ref, Request, TooSlow
from protocol.mcp_server import CallTool, CancelCall, ToolOutcome
from protocol.session import Drain, Say, SessionMessage, Stop
from protocol.spec import Context
from protocol.streamer import Cancel, Complete, Failed, Finished, ToolCall
from protocol.watcher import Snapshot
from protocol.writer import (
    Append,
    BeginTurn,
    Closed,
    Event,
    History,
    HopEvent,
    LoadHistory,
    StartTurn,
    ToolEnded,
    ToolStarted,
    UserEvent,
)

log = logging.getLogger("actors.session")

COMMIT_S = 10.0  # after this long without an acknowledgement the client is told that the store is not there
INSIST_S = 600.0  # how long a closing commit that was not acknowledged in time is tried again
MODEL_TURNS = 200  # turns that the model is told; far more than a context window holds
CALL_CEILING = 10.0  # times a server's timeout: what a call with progress may take at most
SHOWN_RESULT_CHARS = 16_384  # of a tool's result in a client frame; the model gets all of it
CANCELLED = "Cancelled by the user before it ended."  # a call's outcome, as the model is told
TRIES = 2  # how often a message that kills the session is taken up


async def run(box: Mailbox[SessionMessage], ctx: Context) -> None:
    """The actor; args: `front` and `conversation`, kept by the gateway's slot in the same process."""
    async with trio.open_nursery() as tasks:
        session = Session(ctx, ctx.args["front"], ctx.args["conversation"], tasks)
        lost, box.lost = box.lost, None
        await session.load(lost)
        async for message in box:
            match message:
                case Say():
                    await session.say(message)
                case Stop():
                    session.stop(message)
                case Drain():
                    session.drain(message)
                case _:
                    session.wake()
        tasks.cancel_scope.cancel()


class Session:
    """The shell around `Turns`: performs effects, reports what happened."""

    def __init__(self, ctx: Context, front: Front, conversation: Conversation, tasks: trio.Nursery) -> None:
        self.ctx = ctx
        self.front = front
        self.conversation = conversation
        self.tasks = tasks
        self.writer: Ref[Any] = ctx.ref("store/writer")
        self.streamer: Ref[Any] = ctx.ref("llm/streamer")
        self.turns = Turns(0, front.snapshot.service.max_tool_hops)
        self.loaded = False
        self.events: list[Event] = []
        """Of the turns that have ended, in order."""
        self.known: dict[str, int] = {}
        """Turns by request_id."""
        self.users: dict[int, UserEvent] = {}
        """User events of turns that have not ended."""
        self.log: TurnLog | None = None
        """Of the running turn, visible to sockets or not yet."""
        self.turn_events: list[Event] = []
        """Of the running turn."""
        self.snapshot: Snapshot = front.snapshot
        """As the running turn began: it keeps its own."""
        self.merged: Merged = front.merged
        self.hop_open = False
        """The running hop has no HopEvent yet."""
        self.last: Finished | None = None
        """How the last request ended."""
        self.model = ""
        self.usage: dict[str, Any] = {}
        self.planned: list[tuple[str, ToolCall]] = []
        self.scopes: dict[str, trio.CancelScope] = {}

    # Start, and start after a crash.

    async def load(self, lost: object = None) -> None:
        """Read the conversation and take up what the last incarnation left."""
        load = LoadHistory(
            owner=self.conversation.owner, conversation=self.conversation.id, limit=MODEL_TURNS, missing_ok=True
        )
        try:
            history = await self.writer.ask(load, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            # the store is down: stay, and try again with the next message
            log.warning("%s: the conversation could not be read: %s", self.ctx.path, error)
            return
        self.loaded = True
        self._take_history(history)
        self._take_unanswered(lost)
        if isinstance(lost, Stop):
            self.stop(lost)
        if not self.front.taking:
            self.drain(Drain(now=False))
        self.wake()

    def _take_history(self, history: History) -> None:
        live = self.conversation.live
        open_turns = {*history.running, *history.queued}
        last = max(history.last_turn, self.conversation.tail.turn)
        self.turns = Turns(last, self.front.snapshot.service.max_tool_hops)
        by_turn: dict[int, list[Event]] = {}
        for stored in history.events:
            by_turn.setdefault(stored.turn, []).append(stored.event)
            if isinstance(stored.event, UserEvent):
                self.known[stored.event.request_id] = stored.turn
                if stored.turn in open_turns:
                    self.users[stored.turn] = stored.event
        ended = [turn for turn in by_turn if turn not in open_turns]
        self.events = [event for turn in ended for event in by_turn[turn]]
        for turn in history.queued:
            self.turns.adopt_queued(turn)
        if live is not None and live.turn in ended:
            # its end is on disk, but was not shown
            closed = next(e for e in by_turn[live.turn] if isinstance(e, Closed))
            self.log = live
            self._publish(closed, None)
        elif live is not None:
            self._adopt(live, by_turn.get(live.turn, []))
        elif history.running:
            turn = history.running[0]
            streaming = self.users[turn].streaming if turn in self.users else True
            self._adopt(TurnLog(self.conversation.id, turn, streaming=streaming), by_turn.get(turn, []))
        self.perform(self.turns.resume_queue())

    def _adopt(self, turn_log: TurnLog, events: list[Event]) -> None:
        self.log = turn_log
        self.turn_events = list(events)
        self.snapshot, self.merged = self.front.snapshot, self.front.merged
        hops = {event.hop for event in events if isinstance(event, HopEvent)}
        self.hop_open = turn_log.hop not in hops
        hop = max(1, turn_log.hop)
        self.perform(self.turns.adopt(turn_log.turn, attached=turn_log.attached, shown=turn_log.shown, hop=hop))

    def _take_unanswered(self, lost: object) -> None:
        if isinstance(lost, Say):
            entry = self.conversation.unanswered.get(lost.request_id, (lost, 0))
            self.conversation.unanswered[lost.request_id] = (lost, max(1, entry[1]))
        for say, tries in tuple(self.conversation.unanswered.values()):
            if tries == 0:
                continue  # it is still in the mailbox
            if say.request_id in self.known:
                self.perform([TellRepeated(self.known[say.request_id], say)])
            elif tries >= TRIES:
                detail = "This message could not be handled; the service logged why."
                body = Fault(Code.INTERNAL, detail, retryable=False).body
                self.perform([Refuse(say.client, say.echo, body, say)])
            else:
                self._take_up(say)

    # What clients say.

    async def say(self, say: Say) -> None:
        """A user's message."""
        if not self.loaded:
            await self.load()
        if not self.loaded:
            self.perform([Refuse(say.client, say.echo, Fault(Code.STORAGE_UNAVAILABLE).body, say)])
            return
        if say.request_id in self.known:
            self.perform([TellRepeated(self.known[say.request_id], say)])
        else:
            self._take_up(say)

    def _take_up(self, say: Say) -> None:
        _, tries = self.conversation.unanswered.get(say.request_id, (say, 0))
        self.conversation.unanswered[say.request_id] = (say, tries + 1)
        self.turns.max_tool_hops = self.front.snapshot.service.max_tool_hops
        self.perform(self.turns.said(say))

    def stop(self, stop: Stop) -> None:
        """A client's stop."""
        self.perform(self.turns.stop(stop.client, stop.echo, stop.turn))

    def drain(self, drain: Drain) -> None:
        """The service stops."""
        self.perform(self.turns.drain(now=drain.now))

    def wake(self) -> None:
        """Read decisions from the log."""
        while self._asking() and self.log is not None and self.log.decisions:
            decision = self.log.decisions.popleft()
            if decision.request != self.log.request:
                continue
            turn = self.log.turn
            match decision:
                case Finished():
                    self._request_ended(decision)
                    self.planned = [(secrets.token_hex(8), call) for call in decision.tool_calls]
                    self.perform(self.turns.finished(turn, [call_id for call_id, _ in self.planned]))
                case Failed():
                    self.perform(self.turns.failed(turn, decision.fault))
                case Lost():
                    self.perform(self.turns.lost(turn, decision.reason, shown=self.log.shown))

    def _asking(self) -> bool:
        return self.turns.current is not None and self.turns.current.phase is Phase.ASKING

    def _request_ended(self, finished: Finished) -> None:
        self.last = finished
        self.model = finished.model or self.model
        for key, value in (finished.usage or {}).items():
            before = self.usage.get(key)
            both_numbers = isinstance(value, int | float) and isinstance(before, int | float)
            self.usage[key] = before + value if both_numbers and before is not None else value

    # Effects.

    def perform(self, effects: list[Effect]) -> None:
        """Do what was decided, in order."""
        for effect in effects:
            match effect:
                case Commit():
                    self._commit(effect)
                case Resume():
                    self.tasks.start_soon(self._store_start, effect.turn)
                case Ask():
                    self._ask(effect)
                case Drop():
                    self._drop(effect.turn)
                case Start():
                    self._start(effect.turn)
                case TellQueued():
                    self._answered(effect.say)
                    self.front.tell(
                        effect.say.client, MessageQueued(effect.turn, effect.position, request_id=effect.say.echo)
                    )
                case TellRepeated():
                    self._answered(effect.say)
                    self.tasks.start_soon(self._tell_repeated, effect)
                case Refuse():
                    if effect.say is not None:
                        self._answered(effect.say)
                    self.front.tell(effect.client, error_frame(effect.fault, request_id=effect.echo))
                case Journal():
                    self._journal(effect.turn)
                case RunCalls():
                    self._run_calls(effect.turn)
                case Close():
                    self._close(effect)

    def _answered(self, say: Say) -> None:
        self.conversation.unanswered.pop(say.request_id, None)

    def _commit(self, effect: Commit) -> None:
        say = effect.say
        streaming = self.front.snapshot.service.streaming if say.streaming is None else say.streaming
        event = UserEvent(content=say.content, request_id=say.request_id, streaming=streaming)
        self.users[effect.turn] = event
        self.known[say.request_id] = effect.turn
        begin = BeginTurn(
            owner=self.conversation.owner,
            conversation=self.conversation.id,
            turn=effect.turn,
            event=event,
            queued=effect.queued,
        )
        self.tasks.start_soon(self._store_user, begin)

    async def _store_user(self, begin: BeginTurn) -> None:
        try:
            began = await self.writer.ask(begin, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            self._unknown(begin.turn, begin.event.request_id)
            self.perform(self.turns.commit_failed(begin.turn, storage_fault(error)))
            return
        if began.turn == begin.turn:
            self.perform(self.turns.committed(begin.turn))
            self.wake()
        else:
            self._unknown(begin.turn, begin.event.request_id)
            self.known[begin.event.request_id] = began.turn
            self.perform(self.turns.repeated(begin.turn, began.turn))

    def _unknown(self, turn: int, request_id: str) -> None:
        self.known.pop(request_id, None)
        self.users.pop(turn, None)

    async def _store_start(self, turn: int) -> None:
        try:
            await self.writer.ask(StartTurn(self.conversation.id, turn), within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            self.perform(self.turns.commit_failed(turn, storage_fault(error)))
            return
        self.perform(self.turns.committed(turn))
        self.wake()

    def _ask(self, effect: Ask) -> None:
        turn_log = self.log
        if turn_log is None or turn_log.turn != effect.turn:
            turn_log = self._begin(effect.turn)
        request = self.front.next_request()
        turn_log.begin_hop(effect.hop, request)
        self.hop_open, self.last = True, None
        self.front.requests[request] = turn_log
        llm = self.snapshot.llm
        provider = llm.providers.get(llm.active)
        taken = self.streamer.offer(
            Complete(
                request=request,
                to=self.front.ctx.path,
                provider=llm.active,
                model=provider.model if provider is not None else "",
                messages=transcript.for_model(
                    self.snapshot.service.system_prompt, [*self.events, *self.turn_events], llm.active
                ),
                tools=self.merged.tools_for_model,
                conversation=self.conversation.id,
            )
        )
        if not taken:
            del self.front.requests[request]
            turn_log.decisions.append(Failed(request, Fault(Code.OVERLOADED, "Too many answers are running.").body))
            self.ctx.ref(self.ctx.path).nudge()

    def _begin(self, turn: int) -> TurnLog:
        user = self.users[turn]
        self.log = TurnLog(self.conversation.id, turn, streaming=user.streaming)
        self.turn_events = [user]
        self.snapshot, self.merged = self.front.snapshot, self.front.merged
        self.usage, self.model, self.last = {}, "", None
        return self.log

    def _drop(self, turn: int) -> None:
        turn_log = self.log
        if turn_log is None or turn_log.turn != turn:
            return
        if turn_log.request and self.front.requests.pop(turn_log.request, None) is not None:
            self.streamer.offer(Cancel(to=self.front.ctx.path, request=turn_log.request))
        turn_log.stop_filling()
        for call_id, call in turn_log.calls.items():
            scope = self.scopes.get(call_id)
            if scope is not None:
                scope.cancel()
            self.ctx.ref(f"mcp/{call.server}").offer(CancelCall(call_id))
            self.front.calls.pop(call_id, None)
        if not turn_log.attached:
            self.log = None

    def _start(self, turn: int) -> None:
        turn_log = self.log
        if turn_log is None or turn_log.turn != turn:
            # its request was dropped before it was on disk (stopped, drained): shown all the same, without text
            turn_log = self._begin(turn)
        user = self.users[turn]
        waiting = self.conversation.unanswered.pop(user.request_id, None)
        echo = waiting[0].echo if waiting is not None else None
        llm = self.snapshot.llm
        provider = llm.providers.get(llm.active)
        self.model = self.model or (provider.model if provider is not None else "")
        frame = TurnStarted(turn=turn, message=user.content, model=self.model, provider=llm.active, request_id=echo)
        turn_log.head = frame_of(encode(frame))
        self.conversation.attach(turn_log)
        if waiting is not None:
            asking = self.front.sockets.get(waiting[0].client)
            if asking is not None and asking.conversation is not self.conversation:
                asking.tell(frame)  # it has moved on, but the acknowledgement is its own

    async def _tell_repeated(self, effect: TellRepeated) -> None:
        client, echo, turn = effect.say.client, effect.say.echo, effect.turn
        live = self.conversation.live
        for place, waiting in enumerate(self.turns.waiting):
            if waiting.turn == turn:
                self.front.tell(client, MessageQueued(turn, place + 1, request_id=echo))
                return
        if live is not None and live.turn == turn:
            user = self.users[turn]
            self.front.tell(
                client,
                TurnStarted(turn, user.content, self.model, self.snapshot.llm.active, request_id=echo),
            )
            return
        load = LoadHistory(self.conversation.owner, self.conversation.id, after=turn - 1, limit=1)
        try:
            history = await self.writer.ask(load, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            self.front.tell(client, error_frame(storage_fault(error), request_id=echo))
            return
        for frame in transcript.replay(turn, [stored.event for stored in history.events], None):
            if isinstance(frame, TurnStarted):
                self.front.tell(client, msgspec.structs.replace(frame, request_id=echo))
            else:
                self.front.tell(client, frame)

    # Tools.

    def _hop_event(self, calls: list[ToolCall]) -> HopEvent | None:
        turn_log = self.log
        if turn_log is None or not self.hop_open:
            return None
        self.hop_open = False
        content, thinking = turn_log.text(turn_log.hop_start), turn_log.thinking(turn_log.hop_start)
        if not (content or thinking or calls):
            return None
        last = self.last
        return HopEvent(
            hop=turn_log.hop,
            content=content,
            thinking=thinking,
            tool_calls=calls,
            raw=last.raw if last is not None else {},
            provider=self.snapshot.llm.active,
            model=self.model,
            usage=last.usage if last is not None else None,
            finish_reason=last.finish_reason if last is not None else "",
        )

    def _journal(self, turn: int) -> None:
        turn_log = self.log
        if turn_log is None:
            return
        hop = self._hop_event([call for _, call in self.planned])
        events: list[Event] = [hop] if hop is not None else []
        for call_id, call in self.planned:
            target = self.merged.find(call.name)
            server = target[0] if target is not None else ""
            seq = turn_log.seq + 1
            started = ToolStarted(call_id, call.id, seq, call.name, server, call.arguments)
            turn_log.calls[call_id] = started
            self._show(started, "executing")
            events.append(started)
        self.turn_events.extend(events)
        append = Append(self.conversation.id, turn, f"hop-{turn_log.hop}", events)
        self.tasks.start_soon(self._store_journal, append)
        self.conversation.pump()

    async def _store_journal(self, append: Append) -> None:
        try:
            await self.writer.ask(append, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            self.perform(self.turns.failed(append.turn, storage_fault(error)))
            return
        self.perform(self.turns.journaled(append.turn))

    def _run_calls(self, turn: int) -> None:
        turn_log = self.log
        if turn_log is None:
            return
        turn_log.tools_ran = True
        for started in tuple(turn_log.calls.values()):
            self.front.calls[started.call_id] = (turn_log, 0.0)
            self.tasks.start_soon(self._call, turn_log, started)

    async def _call(self, turn_log: TurnLog, started: ToolStarted) -> None:
        began = trio.current_time()
        with trio.CancelScope() as scope:
            self.scopes[started.call_id] = scope
            outcome = await self._outcome(started)
        self.scopes.pop(started.call_id, None)
        if scope.cancelled_caught:
            return  # the turn is being closed, which writes the outcome
        self.front.calls.pop(started.call_id, None)
        elapsed_ms = int((trio.current_time() - began) * 1000)
        status = "completed" if outcome.ok else "failed"
        ended = self._end_call(turn_log, started, status, outcome.text, elapsed_ms)
        self.tasks.start_soon(self._insist, Append(turn_log.conversation, turn_log.turn, started.call_id, [ended]))
        self.conversation.pump()
        self.perform(self.turns.call_ended(turn_log.turn, started.call_id))
        self.wake()

    def _end_call(
        self, turn_log: TurnLog, started: ToolStarted, status: str, result: str, elapsed_ms: int
    ) -> ToolEnded:
        turn_log.calls.pop(started.call_id, None)
        seq = self._show(started, status, result=result, elapsed_ms=elapsed_ms)
        ended = ToolEnded(started.call_id, started.model_call_id, seq, status, result, elapsed_ms)
        self.turn_events.append(ended)
        return ended

    async def _outcome(self, started: ToolStarted) -> ToolOutcome:
        target = self.merged.find(started.tool_name)
        if target is None:
            return refused(Code.TOOL_NOT_FOUND, f"There is no tool named {started.tool_name!r}.")
        server, tool = target
        try:
            arguments = json.loads(started.arguments or "{}")
        except ValueError as error:
            return refused(Code.TOOL_FAILED, f"The arguments are not valid JSON: {error}.")
        if not isinstance(arguments, dict):
            return refused(Code.TOOL_FAILED, "The arguments are not a JSON object.")
        configured = self.snapshot.mcp.servers.get(server)
        within = (configured.timeout if configured is not None else 30.0) * CALL_CEILING + COMMIT_S
        call: Request[ToolOutcome] = CallTool(started.call_id, tool.name, arguments, to=self.front.ctx.path)
        try:
            return await self.ctx.ref(f"mcp/{server}").ask(call, within=within)
        except Fault as fault:
            return refused(fault.code, fault.body.text)
        except Gone:
            detail = f"The tool server {server!r} stopped; whether the call took effect is not known."
            return refused(Code.MCP_SERVER_UNAVAILABLE, detail)
        except Overloaded:
            return refused(Code.OVERLOADED, f"The tool server {server!r} has too many calls waiting.")
        except TooSlow:
            return refused(Code.TOOL_TIMEOUT, f"The tool server {server!r} did not answer.")

    def _show(
        self, started: ToolStarted, status: str, *, result: str | None = None, elapsed_ms: int | None = None
    ) -> int:
        turn_log = self.log
        if turn_log is None:
            return started.seq
        notifications = self.snapshot.service.tool_notifications
        message = ""
        if notifications.enabled:
            message = notifications.format.format(
                icon=notifications.icon,
                tool_name=started.tool_name,
                server=started.server,
                args=started.arguments,
            )
        arguments = shown_arguments(started.arguments) if notifications.show_args else None
        return turn_log.add_frame(
            lambda seq: ToolExecution(
                turn=turn_log.turn,
                seq=seq,
                call_id=started.call_id,
                tool_name=started.tool_name,
                server=started.server,
                status=status,
                message=message,
                arguments=arguments if status == "executing" else None,
                result=result if result is None else result[:SHOWN_RESULT_CHARS],
                elapsed_ms=elapsed_ms,
            )
        )

    # The end of a turn.

    def _close(self, effect: Close) -> None:
        turn_log = self.log
        if turn_log is None:
            return
        hop = self._hop_event([])
        events: list[Event] = [hop] if hop is not None else []
        stopped = effect.outcome == "stopped"
        status, result = ("cancelled", CANCELLED) if stopped else ("unknown", transcript.UNKNOWN_OUTCOME)
        for started in tuple(turn_log.calls.values()):
            events.append(self._end_call(turn_log, started, status, result, 0))
        message, thinking = turn_log.text(), turn_log.thinking()
        closed = Closed(
            outcome=effect.outcome,
            seq=turn_log.seq + (2 if message else 1),
            message=message,
            thinking=thinking,
            usage=self.usage or None,
            model=self.model,
            finish_reason=self.last.finish_reason if self.last is not None else "",
            error=effect.fault,
        )
        self.turn_events.extend([*([hop] if hop is not None else []), closed])
        append = Append(self.conversation.id, turn_log.turn, "closed", [*events, closed])
        self.tasks.start_soon(self._store_end, append, closed)

    async def _store_end(self, append: Append, closed: Closed) -> None:
        fault: FaultBody | None = None
        try:
            await self.writer.ask(append, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            fault = storage_fault(error)
            log.warning("%s: the end of turn %d is not stored yet: %s", self.ctx.path, append.turn, error)
            self.tasks.start_soon(self._insist, append)
        self._publish(closed, fault)
        self.perform(self.turns.closed(append.turn))
        self.wake()

    def _publish(self, closed: Closed, storage: FaultBody | None) -> None:
        turn_log = self.log
        if turn_log is None:
            return
        outcome, error = ("failed", storage) if storage is not None else (closed.outcome, closed.error)
        shown = msgspec.structs.replace(closed, outcome=outcome, error=error)
        if closed.message:
            turn_log.add_frame(
                lambda seq: transcript.assistant_message(turn_log.turn, msgspec.structs.replace(shown, seq=seq + 1))
            )
        before = [error_frame(error, turn=turn_log.turn)] if error is not None and outcome == "failed" else []
        turn_log.add_frame(lambda seq: TurnFinished(turn_log.turn, seq, outcome, error=error), *before)
        self.events.extend(self.turn_events)
        self.turn_events = []
        self.users.pop(turn_log.turn, None)
        self.log = None
        self.conversation.finish()
        self.front.turn_ended()

    async def _insist(self, append: Append) -> None:
        """Store it however long the store is away, within reason; an outcome must not be lost."""
        give_up = trio.current_time() + INSIST_S
        while trio.current_time() < give_up:
            try:
                await self.writer.ask(append, within=COMMIT_S, again=True)
            except (MailError, Fault) as error:
                log.warning("%s: not stored yet: %s", self.ctx.path, error)
                await trio.sleep(1.0)  # a full disk answers at once; do not spin on it
            else:
                return


def storage_fault(error: MailError | Fault) -> FaultBody:
    """What a client is told when the store did not answer, or answered with an error."""
    if isinstance(error, Fault):
        return error.body
    return Fault(Code.STORAGE_UNAVAILABLE).body


def refused(code: Code, text: str) -> ToolOutcome:
    """A call that could not be made, as the model is told of it."""
    return ToolOutcome(ok=False, text=f"{code}: {text}")


def shown_arguments(arguments: str) -> Any:
    """The arguments as a JSON value, or the text where it is none."""
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments

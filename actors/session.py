"""One conversation's session: performs what `actors/turn.py` decides.

Its mailbox carries clients' commands; what the model does it reads from the running turn's log, woken by a
nudge. It keeps nothing that must survive: after a crash the next incarnation rebuilds itself from the
store, from the log that front kept, and from the messages that nobody has answered yet, closes or asks
again what ran, and goes on. What can fail here: the store (a turn then ends with its error), tools (the
model is told), the model (typed failures from the streamer).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import trio

from actors import takeover, turn_lines
from actors.commits import Writing
from actors.durable import COMMIT_S, PAUSE_S, has_moved, insist, storage_fault
from actors.effects import (
    Ask,
    Close,
    Commit,
    Drop,
    Effect,
    Journal,
    Refuse,
    Resume,
    RunCalls,
    Start,
    Suspend,
    TellQueued,
    TellRepeated,
)
from actors.front import Conversation, Front
from actors.message_content import lightened, recent
from actors.messages import Messages
from actors.running_turn import RunningTurn, show_end
from actors.tool_calls import ToolCalls
from actors.turn import Phase, Turns
from actors.turnlog import Lost, TurnLog
from protocol.errors import Code, Fault, FaultBody
from protocol.mail import Gone, Mailbox, MailError, Overloaded, Reply
from protocol.session import Drain, Say, SessionMessage, Stop
from protocol.spec import Context
from protocol.streamer import Cancel, Complete, Failed, Finished
from protocol.writer import Append, Began, BeginTurn, Closed, Done, Event, LoadHistory, StartTurn

log = logging.getLogger("actors.session")

MODEL_TURNS = 200  # turns that the model is told; far more than a context window holds
SPARE_TURNS = 50  # more of them, before the oldest are dropped
TRIES = 2  # how often a message that kills the session is taken up


async def run(box: Mailbox[SessionMessage], ctx: Context) -> None:
    """The actor; args: `front` and `conversation`, kept by the gateway's slot in the same process."""
    session = Session(ctx, ctx.args["front"], ctx.args["conversation"], box.nudge)
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


class Session:
    """The shell around `Turns`: performs effects, reports what happened."""

    __slots__ = (
        "_loading",
        "answers",
        "calls",
        "conversation",
        "ctx",
        "events",
        "front",
        "journal",
        "messages",
        "nudge",
        "resumed",
        "running",
        "streamer",
        "tasks",
        "turns",
        "writer",
    )

    def __init__(self, ctx: Context, front: Front, conversation: Conversation, nudge: Callable[[], None]) -> None:
        self.ctx = ctx
        self.front = front
        self.conversation = conversation
        self.tasks = ctx.tasks
        self.nudge = nudge
        """Has `wake` called."""
        self.writer = front.writer
        self.streamer = front.streamer
        self.turns = Turns(0, front.snapshot.service.max_tool_hops)
        self._loading: trio.Lock | None = trio.Lock()
        """Until it is loaded."""
        self.events: list[Event] = []
        """Of the turns that have ended, in order."""
        self.messages = Messages(front, conversation, self.writer)
        self.running: RunningTurn | None = None
        """The turn that runs, visible to sockets or not yet."""
        self.calls = ToolCalls(ctx, front, conversation, ctx.tasks)
        self.resumed = False
        """The running turn's calls were meant by an earlier session: a person was asked of them."""
        self.journal: Append | None = None
        """The running turn's last journal, until it is acknowledged."""
        self.answers: list[tuple[Writing, Reply]] = []
        """What the store has answered, and nothing has followed from yet."""

    @property
    def loaded(self) -> bool:
        """It knows what was said before."""
        return self._loading is None

    # Start, and start after a crash.

    async def load(self, lost: object = None) -> None:
        """Read the conversation and take up what the last incarnation left."""
        if (loading := self._loading) is None:
            return
        async with loading:
            if self.loaded:
                return
            conversation = self.conversation
            load = LoadHistory(conversation.owner, conversation.id, limit=MODEL_TURNS, missing_ok=True)
            try:
                history = await self.writer.ask(load, within=COMMIT_S, again=True)
            except (MailError, Fault) as error:
                log.warning("%s: the conversation could not be read: %s", self.ctx.path, error)
                if lost is not None or conversation.live is not None:
                    # what the last incarnation left must come to its end without a new message
                    self.tasks.start_soon(self._load_later, lost)
                return
            self._loading = None
            notices = self.front.snapshot.service.tool_notifications
            live, tail_turn = conversation.live, conversation.tail.turn
            self._take_over(takeover.find(conversation.id, history, live, tail_turn, notices))
            self._take_unanswered(lost)
        if isinstance(lost, Stop):
            self.stop(lost)
        if isinstance(lost, Drain) or not self.front.taking:
            self.drain(lost if isinstance(lost, Drain) else Drain(now=False))
        self.wake()

    async def _load_later(self, lost: object) -> None:
        await trio.sleep(PAUSE_S)
        await self.load(lost)

    def _take_over(self, found: takeover.Found) -> None:
        front, adopted = self.front, found.running[0] if found.running is not None else None
        for request in front.drop_requests(self.conversation.id, adopted):
            self.streamer.offer(Cancel(to=front.ctx.path, request=request))
        self.turns = Turns(found.last_turn, front.snapshot.service.max_tool_hops)
        self.messages.known, self.messages.users, self.events = found.known, found.users, lightened(found.ended)
        for turn in found.queued:
            self.turns.adopt_queued(turn)
        if found.unshown is not None:
            self._publish(*found.unshown, None)
        if found.running is not None:
            turn_log, events = found.running
            user = self.messages.users[turn_log.turn]
            self.running = RunningTurn(turn_log, user, list(events), front.snapshot, front.merged)
            hop, asks = max(1, turn_log.hop), turn_log.asked
            attached, shown = turn_log.attached, turn_log.shown
            self.resumed = bool(found.waiting)
            if found.waiting:
                self.perform(self.turns.adopt_waiting(turn_log.turn, found.waiting, attached=attached, hop=hop))
            else:
                self.perform(self.turns.adopt(turn_log.turn, attached=attached, shown=shown, hop=hop, asks=asks))
        self.perform(self.turns.resume_queue())

    def _take_unanswered(self, lost: object) -> None:
        for say, tries in self.messages.left_behind(lost):
            if tries >= TRIES and say.request_id not in self.messages.known:
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
        await self.front.model_there()
        self._take_up(say)

    def _take_up(self, say: Say) -> None:
        if say.request_id in self.messages.known:
            self.perform([TellRepeated(self.messages.known[say.request_id], say)])
            return
        if (refused := self.messages.refusal(say)) is not None:
            self.perform([Refuse(say.client, say.echo, refused.body, say)])
            return
        self.messages.taken_up(say)
        self.turns.max_tool_hops = self.front.snapshot.service.max_tool_hops
        self.perform(self.turns.said(say))

    def stop(self, stop: Stop) -> None:
        """A client's stop."""
        self.perform(self.turns.stop(stop.client, stop.echo, stop.turn))

    def drain(self, drain: Drain) -> None:
        """The service stops."""
        effects = self.turns.drain(now=False)
        self.perform([*effects, *self.turns.suspend(self.calls.waiting)])
        if drain.now:
            self.perform(self.turns.drain(now=True))

    def _suspend_if_waiting(self) -> None:
        self.perform(self.turns.suspend(self.calls.waiting))

    def wake(self) -> None:
        """Do what follows from the store's answers, and read decisions from the log."""
        while self.answers:
            self._follow(*self.answers.pop(0))
        while (running := self.running) is not None and self._asking() and running.log.decisions:
            decision = running.log.decisions.pop(0)
            if decision.request != running.log.request:
                continue
            turn_lines.answered(running, self.front.snapshot, decision)
            calls = running.answered(decision) if isinstance(decision, Finished) else []
            self.front.tally.request(running.provider, running.last or decision)
            match decision:
                case Finished():
                    self.perform(self.turns.finished(running.turn, calls))
                case Failed():
                    self.perform(self.turns.failed(running.turn, decision.fault))
                case Lost():
                    self.perform(self.turns.lost(running.turn, decision.reason, shown=running.log.shown))

    def _asking(self) -> bool:
        return self.turns.current is not None and self.turns.current.phase is Phase.ASKING

    # Effects.

    def perform(self, effects: list[Effect]) -> None:
        """Do what was decided, in order."""
        for effect in effects:
            match effect:
                case Commit():
                    self._commit(effect)
                case Resume():
                    self._resume(effect.turn)
                case Ask():
                    self._ask(effect)
                case Drop():
                    self._drop(effect.turn)
                case Start():
                    self._start(effect.turn)
                case TellQueued():
                    self.messages.queued(effect)
                case TellRepeated():
                    self._tell_repeated(effect)
                case Refuse():
                    self.messages.refused(effect)
                case Journal():
                    self._journal(effect.turn)
                case RunCalls() if self.running is not None:
                    resumed, self.resumed = self.resumed, False
                    self.calls.run(self.running, self._call_ended, self._suspend_if_waiting, resumed=resumed)
                case Suspend():
                    self._suspend()
                case Close():
                    self._close(effect)

    def _commit(self, effect: Commit) -> None:
        begin = self.messages.begin(effect)
        stored, unstored = partial(self._stored_user, begin), partial(self._unstored_user, begin)
        self._store(Writing(begin, stored, unstored))

    def _stored_user(self, begin: BeginTurn, began: Began) -> list[Effect]:
        self.messages.stored(begin, began)
        if began.turn == begin.turn:
            return self.turns.committed(begin.turn)
        return self.turns.repeated(begin.turn, began.turn)

    def _unstored_user(self, begin: BeginTurn, fault: FaultBody) -> list[Effect]:
        self.messages.unstored(begin)
        return self.turns.commit_failed(begin.turn, fault)

    def _resume(self, turn: int) -> None:
        start, failed = StartTurn(self.conversation.id, turn, self.front.id), partial(self.turns.commit_failed, turn)
        self._store(Writing(start, lambda _: self.turns.committed(turn), failed))

    def _store(self, writing: Writing) -> None:
        """Ask the store; `wake` does what follows from its answer."""
        self.front.commits.ask(writing.request, partial(self._told, writing))

    def _told(self, writing: Writing, reply: Reply) -> None:
        self.answers.append((writing, reply))
        self.nudge()

    def _follow(self, writing: Writing, reply: Reply) -> None:
        match reply.error:
            case None:
                self.perform(writing.done(reply.value))
            case Gone() | Overloaded():  # nobody has it in hand
                self.tasks.start_soon(self.front.commits.insist, writing.request, partial(self._told, writing))
            case error if has_moved(error):
                self.front.evict(self.conversation)
            case error:
                self.perform(writing.failed(storage_fault(error)))

    def _ask(self, effect: Ask) -> None:
        running = self.running
        if running is None or running.turn != effect.turn:
            running = self._begin(effect.turn)
        request = self.front.next_request()
        running.log.begin_hop(effect.hop, request)
        running.asking()
        self.front.requests[request] = running.log
        provider = running.provider
        complete = Complete(
            request=request,
            to=self.front.ctx.path,
            provider=running.asks,
            model=provider.model if provider is not None else "",
            messages=running.messages(self.events),
            tools=running.tools,
            conversation=self.conversation.id,
            llm=running.snapshot.llm,
        )
        turn_lines.asked(running, self.front.snapshot, complete)
        refused = running.refusal
        if refused is None and not self.streamer.offer(complete):
            refused = Fault(Code.OVERLOADED, "Too many answers are running.")
        if refused is not None:
            del self.front.requests[request]
            running.log.decisions.append(Failed(request, refused.body))
            self.nudge()

    def _begin(self, turn: int) -> RunningTurn:
        user = self.messages.users[turn]
        turn_log = TurnLog(self.conversation.id, turn, streaming=user.streaming)
        front = self.front
        self.running = RunningTurn(turn_log, user, [user], front.snapshot, front.merged)
        turn_lines.taken_up(self.running)
        return self.running

    def _drop(self, turn: int) -> None:
        running = self.running
        if running is None or running.turn != turn:
            return
        request = running.log.request
        if request and self.front.requests.pop(request, None) is not None:
            self.streamer.offer(Cancel(to=self.front.ctx.path, request=request))
        running.log.stop_filling()
        self.calls.drop(running)
        if not running.log.attached:
            self.running = None

    def _start(self, turn: int) -> None:
        running = self.running
        if running is None or running.turn != turn:
            # its request was dropped before it was on disk (stopped, drained): shown all the same, without text
            running = self._begin(turn)
        frame = running.started()
        running.log.begin(frame)
        self.conversation.attach(running.log)
        self.front.grew(running.log)
        turn_lines.shown(running.log, len(self.conversation.sockets))
        self.messages.started(running.user, frame)

    def _tell_repeated(self, effect: TellRepeated) -> None:
        if self.turns.said_again(effect.turn, effect.say):
            return
        if not self.messages.repeated(effect, self.turns.place(effect.turn), self.running):
            self.tasks.start_soon(self._tell_stored, effect)

    async def _tell_stored(self, effect: TellRepeated) -> None:
        user = await self.messages.repeated_long_ago(effect)
        if user is not None and not self.turns.has(effect.turn):
            # on disk, and run by nobody: its turn comes now
            self.messages.users[effect.turn] = user
            self.turns.adopt_queued(effect.turn)
            self.perform(self.turns.resume_queue())

    # Tools.

    def _journal(self, turn: int) -> None:
        running = self.running
        if running is None:
            return
        events = running.begin_calls()
        self.journal = Append(self.conversation.id, turn, f"hop-{running.log.hop}", events, self.front.id)
        done, failed = partial(self._journaled, turn), partial(self.turns.failed, turn)
        self._store(Writing(self.journal, done, failed))
        self.conversation.pump()

    def _journaled(self, turn: int, _: Done) -> list[Effect]:
        self.journal = None
        return self.turns.journaled(turn)

    def _call_ended(self, turn: int, call_id: str) -> None:
        self.perform(self.turns.call_ended(turn, call_id))
        self._suspend_if_waiting()
        self.wake()

    def _suspend(self) -> None:
        if self.running is not None:
            self.calls.suspend(self.running)
        self.running = None
        self.conversation.suspended = True
        self.front.settle()

    # The end of a turn.

    def _close(self, effect: Close) -> None:
        running = self.running
        if running is None:
            return
        events, closed = running.close(effect.outcome, effect.fault)
        append = Append(self.conversation.id, running.turn, "closed", events, self.front.id)
        # a journal that was not acknowledged belongs before the end; twice is once, by its key
        appends = [append] if self.journal is None else [self.journal, append]
        self.journal = None
        self.tasks.start_soon(self._store_end, appends, closed)

    async def _store_end(self, appends: list[Append], closed: Closed) -> None:
        fault: FaultBody | None = None
        append = appends[-1]
        try:
            for part in appends:
                await self.writer.ask(part, within=COMMIT_S, again=True)
        except (MailError, Fault) as error:
            if has_moved(error):
                self.front.evict(self.conversation)
                return
            fault = storage_fault(error)
            log.warning("%s: the end of turn %d is not stored yet: %s", self.ctx.path, append.turn, error)
            self.tasks.start_soon(insist, self.writer, *appends)
        if self.running is not None:
            self.events = recent(lightened([*self.events, *self.running.events]), MODEL_TURNS, SPARE_TURNS)
            self._publish(self.running.log, closed, fault)
        self.perform(self.turns.closed(append.turn))
        self.wake()

    def _publish(self, turn_log: TurnLog, closed: Closed, storage: FaultBody | None) -> None:
        outcome, error = show_end(turn_log, closed, storage)
        turn_lines.ended(turn_log, outcome, error, self.running)
        self.front.tally.turn(outcome)
        self.messages.users.pop(turn_log.turn, None)
        self.running = None
        self.conversation.finish()
        self.front.settle()

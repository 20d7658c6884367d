"""The gateway: brings what comes up from below to the turns' logs, and the logs' growth to the store.

Sockets, conversations and logs are kept by the slot (`keep`), in tasks that do not belong to any
incarnation of this loop. One batch of pieces is one turn of the loop, for all running turns; trouble with
one piece ends that turn only. If the loop itself dies, the turns of the batch in hand have a gap: they are
told as lost, and everything else goes on with the next incarnation.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from actors import neighbours, notices, settling, subscribers
from actors.connection import look_after, serve
from actors.durable import has_moved
from actors.front import Conversation, Front
from actors.handover import Handover
from actors.listening import Listening, bind
from actors.server_asks import ServerAsks
from actors.turnlog import Lost, Thought, TurnLog
from protocol.client import ConfigChanged, Degraded, Recovered, ToolExecution
from protocol.errors import Fault
from protocol.gateway import GatewayMessage, GetFigures, StopTaking
from protocol.mail import Mailbox, MailError, Reply
from protocol.mcp_server import (
    Catalogue,
    RequestEnded,
    ResourceUpdated,
    Resting,
    SamplingRequest,
    TellTools,
    ToolProgress,
    UrlVisited,
    UserQuestion,
)
from protocol.pending import PendingOpened, PendingSettled, WatchPending
from protocol.reporter import GetStatus
from protocol.session import Drain
from protocol.spec import Context, Down, KeepContext, Up
from protocol.streamer import Cancel, Failed, Finished, Piece, Pieces, Text, Thinking
from protocol.watcher import Configured, GetSnapshot, Snapshot, Subscribe, WebSocket
from protocol.writer import AppendDeltas, Delta

log = logging.getLogger("actors.gateway")

START_S = 30.0  # for the watcher's first snapshot
STATUS_S = 3.0  # for the supervisor to say how its parts are; each process of them has a second
CUT_S = 12.0  # for turns that were cut off to be stored and shown; more than a commit may take
RETIRE_S = 120.0  # a conversation without sockets and turns is let go after this; who comes later is told by the store
SWEEP_S = 15.0  # how often that is looked at
PROGRESS_S = 0.1  # of one call, shown at most this often: a flood of progress must not become a flood of frames
TOOLS = "mcp/"  # begins the paths of tool servers' actors
TICK_S = 10.0  # for the store to take a tick before it is sent again
AT_ONCE = 32  # turns whose growth is looked at before others go on; all of hundreds take as long as two looks
REFUSED_S = 1.0  # between ticks that the store refuses, at most: much text that waits would ask at each piece


@asynccontextmanager
async def keep(ctx: KeepContext) -> AsyncIterator[Front]:
    """What the slot keeps; args: `listeners` (trio listeners, closed here), `loopback`, `moved`.

    Where there are several fronts, also `front`, its id, and `handover`, the path of any front's socket (see
    `actors.handover`); neither is there where it is the only one. `source` gives the listeners of an address; where
    it is missing they are bound here.
    """
    snapshot = await ctx.ref("watcher").ask(GetSnapshot(), within=START_S, again=True)
    async with trio.open_nursery() as nursery:
        # the handler is made before what it serves: connections come only once `begin` was called
        source = ctx.args.get("source", bind)
        listening = Listening(nursery, lambda stream: serve(front, stream), ctx.args["moved"], source)
        name = ctx.args.get("front", "")
        handover = Handover(name, ctx.args["handover"]) if name else None
        front = Front(ctx, snapshot, listening=listening, status=lambda: reported(ctx), front=name, handover=handover)
        async with AsyncExitStack() as stack:
            if handover is not None:
                await stack.enter_async_context(handover.listening(lambda stream, passed: serve(front, stream, passed)))
            nursery.start_soon(look_after, front)
            nursery.start_soon(front.timer.run)
            listening.begin(ctx.args["listeners"], loopback=ctx.args["loopback"])
            try:
                yield front
            finally:
                for socket in tuple(front.sockets.values()):
                    socket.close(1001, "the service stops")
                nursery.cancel_scope.cancel()


async def reported(ctx: KeepContext) -> bytes:
    """The supervisor tree as JSON. Raises MailError."""
    return await ctx.ref("reporter").ask(GetStatus(), within=STATUS_S)


async def run(box: Mailbox[GatewayMessage], ctx: Context) -> None:
    """The actor's loop."""
    front: Front = ctx.kept
    lost, box.lost = box.lost, None
    ctx.watch("")
    ctx.ref("watcher").offer(Subscribe(to=ctx.path))
    front.writer.offer(WatchPending(to=ctx.path))
    async with trio.open_nursery() as tasks:
        gateway = Gateway(ctx, front, ServerAsks(front, tasks))
        gateway.recover(lost, tasks)
        tasks.start_soon(gateway.store_growth)
        tasks.start_soon(gateway.sweep)
        tasks.start_soon(notices.tell_changes, front)
        if ctx.incarnation == 1 or front.id:
            tasks.start_soon(neighbours.take_up_unfinished, front)
        if front.id:
            tasks.start_soon(neighbours.tell_shown, front)
        async for message in box:
            match message:
                case Pieces():
                    gateway.add(message.pieces)
                case ToolProgress():
                    gateway.show_progress(message)
                case Catalogue():
                    gateway.offers(message)
                case ResourceUpdated():
                    subscribers.tell(front, message)
                case PendingOpened() | PendingSettled():
                    settling.show(front, message.pending)
                case UserQuestion() | SamplingRequest():
                    gateway.asks.take(message)
                case RequestEnded():
                    gateway.asks.ended(message)
                case UrlVisited():
                    gateway.asks.visited(message)
                case Configured():
                    gateway.configure(message.snapshot, tasks)
                case Resting():
                    gateway.rests(message)
                case Down():
                    gateway.went_down(message)
                case Up():
                    gateway.came_up(message)
                case StopTaking():
                    tasks.start_soon(gateway.stop_taking, message, box, box.reply_slot)
                case GetFigures():
                    box.reply(front.figures())
                case _:
                    pass  # a nudge: nothing to do
        tasks.cancel_scope.cancel()


class Gateway:
    """One incarnation's work on what front keeps."""

    def __init__(self, ctx: Context, front: Front, asks: ServerAsks) -> None:
        self.ctx = ctx
        self.front = front
        self.writer = front.writer
        self.streamer = front.streamer
        self.refused = False  # by the store: the last tick
        self.resting: set[str] = set()
        """Tool servers that are degraded although their actors run."""
        self.asks = asks

    def recover(self, lost: object, tasks: trio.Nursery) -> None:
        """What the last incarnation died with: turns with a gap are lost, everything else is done again."""
        if self.ctx.incarnation > 1:
            what = self.ctx.path
            self.front.announce(Degraded(what=what, reason="the gateway's loop failed and was restarted"))
            self.front.announce(Recovered(what=what))
        match lost:
            case Pieces():
                for request in {piece.request for piece in lost.pieces}:
                    self._lose(request, "The gateway failed while the answer came.")
            case Down():
                self.went_down(lost)
            case Up():
                self.came_up(lost)
            case Catalogue():
                self.offers(lost)
            case UserQuestion() | SamplingRequest():
                self.asks.take(lost)
            case RequestEnded():
                self.asks.ended(lost)
            case UrlVisited():
                self.asks.visited(lost)
            case Resting():
                self.rests(lost)
            case ResourceUpdated():
                subscribers.tell(self.front, lost)
            case PendingOpened() | PendingSettled():
                settling.show(self.front, lost.pending)
            case Configured():
                self.configure(lost.snapshot, tasks)
            case _:
                pass  # progress that is not shown; asks have got their Gone

    # What the model says.

    def add(self, pieces: list[Piece]) -> None:
        """One batch: to the logs, then to the sockets, then to the sessions that must decide."""
        requests = self.front.requests
        touched: dict[TurnLog, None] = {}
        deciding: dict[str, None] = {}
        unknown: set[int] = set()
        for piece in pieces:
            turn_log = requests.get(piece.request)
            if turn_log is None:
                if (aside := self.front.asides.get(piece.request)) is not None:
                    aside.add(piece)
                else:
                    unknown.add(piece.request)
                continue
            try:
                if isinstance(piece, Text):
                    turn_log.add(piece.text)
                    touched[turn_log] = None
                elif isinstance(piece, Thinking):
                    turn_log.add(piece.text, thinking=True)
                    touched[turn_log] = None
                else:
                    self._end(turn_log, piece)
                    deciding[turn_log.conversation] = None
            except Exception:  # boundary: one piece's trouble ends its turn only
                log.exception("a piece of %s could not be handled", turn_log.conversation)
                self._lose(piece.request, "A piece of the answer could not be handled.")
        grew, conversations = self.front.grew, self.front.conversations
        for turn_log in touched:
            grew(turn_log)
            conversation = conversations.get(turn_log.conversation)
            if conversation is not None:
                conversation.pump()
        for conversation_id in deciding:
            self._nudge(conversation_id)
        for request in unknown:
            self.streamer.offer(Cancel(to=self.ctx.path, request=request))

    def _end(self, turn_log: TurnLog, piece: Finished | Failed) -> None:
        del self.front.requests[piece.request]
        turn_log.decisions.append(piece)

    def _lose(self, request: int, reason: str) -> None:
        if (aside := self.front.asides.get(request)) is not None:
            aside.lose(reason)
        turn_log = self.front.requests.pop(request, None)
        if turn_log is not None:
            self.streamer.offer(Cancel(to=self.ctx.path, request=request))
            turn_log.decisions.append(Lost(request, reason))
            self._nudge(turn_log.conversation)

    def _nudge(self, conversation_id: str) -> None:
        self.ctx.ref(f"{self.front.sessions}/{conversation_id}").nudge()

    def show_progress(self, message: ToolProgress) -> None:
        """A running call says how far it is."""
        found = self.front.calls.get(message.call)
        if found is None:
            return
        turn_log, shown_at = found
        started = turn_log.calls.get(message.call)
        now = trio.current_time()
        if started is None or now - shown_at < PROGRESS_S:
            return
        self.front.calls[message.call] = (turn_log, now)
        turn_log.add_frame(
            lambda seq: ToolExecution(
                turn=turn_log.turn,
                seq=seq,
                call_id=started.call_id,
                tool_name=started.tool_name,
                server=started.server,
                status="progress",
                message=message.message,
                progress=message.progress,
                total=message.total,
            )
        )
        conversation = self.front.conversations.get(turn_log.conversation)
        if conversation is not None:
            conversation.pump()

    def configure(self, snapshot: Snapshot, tasks: trio.Nursery) -> None:
        """Another configuration is in force; running turns keep theirs."""
        before = self.front.snapshot
        self.front.configure(snapshot)
        if snapshot.version != before.version:
            self.front.announce(ConfigChanged(snapshot.version))
        if address(snapshot.websocket) != address(before.websocket):
            tasks.start_soon(self.front.listening.move, snapshot.websocket)
        if snapshot.service.deltas != before.service.deltas:
            self.front.flush.set()  # the tick that is waited for is that of the old configuration

    # What the supervisor says.

    def went_down(self, down: Down) -> None:
        """An actor ended."""
        reason = down.reason or "it ended"
        if down.path == "llm/streamer":
            for request in (*self.front.requests, *self.front.asides):
                self._lose(request, "The part that talks to the model failed while the answer came.")
        if down.path.startswith(TOOLS):
            self.resting.discard(down.path)
            server = down.path.removeprefix(TOOLS)
            self.front.withdraw_tools(server)
            self.asks.server_down(server)
            if not down.reason and down.retry_in_ms is None and not down.parked:
                self._recovered(down.path)  # it is configured no more, or anew: nothing to worry about
                return
        notice = Degraded(what=down.path, reason=reason, retry_in_ms=down.retry_in_ms)
        neighbours.has_died(self.front, down)
        if down.path.startswith(f"{self.front.sessions}/"):
            self._tell_conversation(down.path, notice)
            return
        self.front.down[down.path] = reason
        self.front.announce(notice)

    def came_up(self, up: Up) -> None:
        """An actor is ready."""
        if up.path.startswith(TOOLS):
            # It runs, and may still fail to connect: it is back when it says what it offers.
            self.ctx.ref(up.path).offer(TellTools(to=self.ctx.path))
            subscribers.again(self.front, up.path.removeprefix(TOOLS))
            return
        if up.path == "store/writer":
            self.writer.offer(self.front.in_use())
            self.writer.offer(WatchPending(to=self.ctx.path))
        if up.path.startswith(f"{self.front.sessions}/"):
            if up.incarnation > 1:
                self._tell_conversation(up.path, Recovered(what=up.path))
        else:
            self._recovered(up.path)

    def offers(self, catalogue: Catalogue) -> None:
        """A tool server is connected, and says what it has."""
        self.front.offer_tools(catalogue)
        if TOOLS + catalogue.server not in self.resting:
            self._recovered(TOOLS + catalogue.server)

    def _recovered(self, path: str) -> None:
        if self.front.down.pop(path, None) is not None:
            self.front.announce(Recovered(what=path))

    def rests(self, resting: Resting) -> None:
        """A tool server is left alone for a while, or slow to connect; what it offers stays offered."""
        if resting.reason:
            self.resting.add(resting.path)
            self.front.down[resting.path] = resting.reason
            self.front.announce(Degraded(resting.path, resting.reason, resting.retry_in_ms))
        else:
            self.resting.discard(resting.path)
            self._recovered(resting.path)

    def _tell_conversation(self, path: str, notice: Degraded | Recovered) -> None:
        conversation = self.front.conversations.get(path.removeprefix(f"{self.front.sessions}/"))
        for socket in tuple(conversation.sockets) if conversation is not None else ():
            socket.tell(notice)

    # What the store gets.

    async def store_growth(self) -> None:
        """One tick for all running turns: what grew since the last acknowledged one."""
        while True:
            settings = self.front.snapshot.service.deltas
            with trio.move_on_after(settings.interval_ms / 1000):
                await self.front.flush.wait()
            self.front.flush = trio.Event()
            if settings.persist_deltas and not await self._tick():
                await trio.sleep(min(settings.interval_ms / 1000, REFUSED_S))

    async def _tick(self) -> bool:
        """Store what grew; answers whether it was taken."""
        growth = await growth_of(tuple(self.front.running()))
        if not growth:
            return True
        try:
            await self.writer.ask(AppendDeltas([delta for _, delta in growth], self.front.id), within=TICK_S)
        except (MailError, Fault) as error:
            if has_moved(error):
                neighbours.banished(self.front)
                return True
            # not stored, or not known: the same ranges are sent again with the next tick
            if not self.refused:
                log.warning("text of %d running turns is not stored yet: %s", len(growth), error)
            self.refused = True
            return False
        if self.refused:
            log.warning("text of running turns is stored again")
        self.refused = False
        for turn_log, delta in growth:
            if delta.hop == turn_log.hop:
                turn_log.was_stored(delta.seq, len(delta.text) + len(delta.thinking))
                self.front.grew(turn_log)  # what came meanwhile may be enough for another
        return True

    async def sweep(self) -> None:
        """Let go of conversations that nobody needs; say how much there is."""
        while True:
            self.ctx.report(sockets=len(self.front.sockets), conversations=len(self.front.conversations))
            # retention leaves alone what is named here, for longer than until the next time
            self.writer.offer(self.front.in_use())
            await trio.sleep(SWEEP_S)
            self.front.retire(RETIRE_S)

    # The end.

    async def stop_taking(self, stop: StopTaking, box: Mailbox[Any], reply: Reply | None) -> None:
        """Refuse new turns, let the running ones end, cut off the rest."""
        self.front.taking = False
        if stop.replaced:
            self.front.leaving = True
            self.front.listening.end()
        self._drain_sessions(now=False)
        with trio.move_on_after(stop.grace_s):
            await self._quiet()
        cut = self.front.busy
        if cut:
            self._drain_sessions(now=True)
            with trio.move_on_after(CUT_S):
                await self._quiet()
        box.settle(reply, cut)

    def _drain_sessions(self, *, now: bool) -> None:
        conversation: Conversation
        for conversation in self.front.conversations.values():
            self.ctx.ref(f"{self.front.sessions}/{conversation.id}").offer(Drain(now=now))

    async def _quiet(self) -> None:
        while True:
            if self.front.leaving:
                self.front.let_go()
            if not self.front.busy:
                return
            await self.front.quiet.wait()


def address(websocket: WebSocket) -> tuple[str, int, bool]:
    """What makes a listener another one."""
    return websocket.host, websocket.port, websocket.allow_unauthenticated


async def growth_of(running: Iterable[TurnLog]) -> list[tuple[TurnLog, Delta]]:
    """What the store does not have of each; with many of them deltas go out meanwhile."""
    growth: list[tuple[TurnLog, Delta]] = []
    for number, turn_log in enumerate(running, 1):
        if (delta := grown(turn_log)) is not None:
            growth.append((turn_log, delta))
        if not number % AT_ONCE:
            await trio.lowlevel.checkpoint()
    return growth


def grown(turn_log: TurnLog) -> Delta | None:
    """What a running turn's log has that the store does not; the range stays the same until it is acknowledged."""
    end = turn_log.sending if turn_log.sending > turn_log.stored else turn_log.seq
    if not turn_log.attached or end <= turn_log.stored:
        return None
    turn_log.sending = end
    text: list[str] = []
    thinking: list[str] = []
    for entry in turn_log.entries[turn_log.stored : end]:
        if isinstance(entry, Thought):
            thinking.append(entry.text)
        elif isinstance(entry, str):
            text.append(entry)
    return Delta(
        conversation=turn_log.conversation,
        turn=turn_log.turn,
        hop=turn_log.hop,
        seq=end,
        text="".join(text),
        thinking="".join(thinking),
    )

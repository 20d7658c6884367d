"""What front keeps whatever its actors do: sockets, conversations, turn logs, the tool catalogue.

It belongs to the gateway's slot, so a crash of the gateway's or a session's loop drops no socket and loses
no text. Plain data with the few operations that keep it consistent; every operation is synchronous and
guards its readers from each other: an error while writing to one socket ends that socket only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import trio

from actors.call_clock import CallClock
from actors.catalogue import Merged, merge
from actors.client_socket import Socket
from actors.commits import Commits
from actors.handover import Handover
from actors.listening import Listening
from actors.tally import Tally
from actors.timer import Timer
from actors.turnlog import TurnLog, frame_of
from protocol.client import ServerFrame, encode
from protocol.gateway import Figure
from protocol.mail import Ref
from protocol.mcp_server import CancelCall, Catalogue, SamplingRequest, UserQuestion
from protocol.session import Say
from protocol.spec import Child, Intensity, KeepContext, OnLimit, Restart
from protocol.streamer import Cancel
from protocol.watcher import Snapshot
from protocol.writer import InUse, Release

if TYPE_CHECKING:
    from actors.aside import Aside

log = logging.getLogger("actors.front")

LOADING_S = 15.0  # for the model on this machine; 0.7 s on an idle machine
SESSION_RESTARTS = Intensity(restarts=20, period_s=10.0)
MOVED = 1012, "this conversation is served elsewhere now: connect again, and resume"


class Conversation:
    """A conversation that has sockets or a running turn here."""

    __slots__ = ("id", "idle_since", "owner", "sockets", "suspended", "tail", "unanswered")

    def __init__(self, conversation_id: str, owner: str) -> None:
        self.id = conversation_id
        self.owner = owner
        self.sockets: list[Socket] = []
        self.tail = TurnLog(conversation_id, 0)
        """The last attached log; a finished sentinel at first."""
        self.tail.finished = True
        self.unanswered: dict[str, tuple[Say, int]] = {}
        """Messages without turn_started, message_queued or error yet, with how often a session took them up."""
        self.idle_since = trio.current_time()
        self.suspended = False
        """The running turn waits for a person, and others will go on with it: nothing is done for it here any more."""

    @property
    def occupied(self) -> bool:
        """A turn runs, or a message was taken and not acknowledged yet."""
        return bool((self.live is not None and not self.suspended) or self.unanswered)

    @property
    def live(self) -> TurnLog | None:
        """The log of the running turn that sockets can see."""
        return None if self.tail.finished else self.tail

    def attach(self, turn_log: TurnLog) -> None:
        """The turn has begun: all sockets read it next."""
        turn_log.attached = True
        self.tail.next = turn_log
        self.tail = turn_log
        self.pump()

    def finish(self) -> None:
        """The running turn has written its last frame."""
        self.tail.finished = True
        self.idle_since = trio.current_time()
        self.pump()

    def let_go(self) -> None:
        """Free the last turn's log once every socket has read it; who resumes in it is answered by the store."""
        read, readers = self.tail, self.sockets
        if not (read.finished and read.seq) or any(s.paused or s.log is not read or s.behind for s in readers):
            return
        self.tail = TurnLog(self.id, read.turn)
        self.tail.finished = True
        for socket in readers:
            socket.place(self.tail, 0, headed=True)

    def pump(self) -> None:
        """Let every socket read on; one that fails is ended, the others are not touched."""
        for socket in tuple(self.sockets):
            try:
                socket.pump()
            except Exception:  # boundary: one socket's trouble is its own
                log.exception("socket %d: writing failed; it is closed", socket.number)
                socket.close(1011, "internal error")


class Front:
    """Everything that front keeps.

    Args:
        ctx: of the gateway's slot.
        snapshot: the configuration in force at start.
        listening: the listeners in force.
        status: gives the supervisor tree as JSON. Raises MailError when nobody can say.
        front: its id where there are several (`protocol.claim`), else empty.
        handover: how connections come from and go to the others.
    """

    def __init__(
        self,
        ctx: KeepContext,
        snapshot: Snapshot,
        *,
        listening: Listening,
        status: Callable[[], Awaitable[bytes]],
        front: str = "",
        handover: Handover | None = None,
    ) -> None:
        self.ctx = ctx
        self.id = front
        self.handover = handover
        self.sessions = f"{ctx.path.rpartition('/')[0]}/sessions"
        """The group of the session actors."""
        self.snapshot = snapshot
        self._configured = trio.Event()
        """Set, and made anew, whenever `snapshot` is another."""
        self._loaded_by: float | None = None
        """Until when messages wait for the model that is being loaded, in trio's time; once one has waited for it."""
        self.listening = listening
        self.status = status
        # one reference for all: each finds, and keeps, what is behind it
        self.writer: Ref[Any] = ctx.ref("store/writer")
        self.streamer: Ref[Any] = ctx.ref("llm/streamer")
        self.timer = Timer()
        """For what is due at some time; runs beside the listeners."""
        self.commits = Commits(self.writer, self.timer)
        """For what sessions ask the store."""
        self.down: dict[str, str] = {}
        """Actors that are down, with the reason."""
        self.sockets: dict[int, Socket] = {}
        self.conversations: dict[str, Conversation] = {}
        self.requests: dict[int, TurnLog] = {}
        """Running model requests, by number."""
        self.calls: dict[str, tuple[TurnLog, float]] = {}
        """Running tool calls: whose they are, and when progress was last shown."""
        self.by_hand: dict[str, Conversation] = {}
        """Running calls that a client makes itself: in which conversation."""
        self.clocks: dict[str, CallClock] = {}
        """How long we wait for a call, by its id; stands still while somebody is asked in it."""
        self.server_asks: dict[str, UserQuestion | SamplingRequest] = {}
        """What servers ask, and have not been answered, by id."""
        self.asides: dict[int, Aside] = {}
        """Running model requests that are of no turn's text, by number."""
        self.followers: dict[tuple[str, str], set[int]] = {}
        """Numbers of the sockets that follow a resource, by server and address; kept by `actors.subscribers`."""
        self.waits: dict[str, trio.Event] = {}
        """Who waits here for a person, by the id of the approval; set when it is settled."""
        self.taking = True
        """New turns are taken."""
        self.leaving = False
        """Another front takes this one's place: what nobody waits for here any more is let go of."""
        self.shown: list[TurnLog] = []
        """Turns that have begun to show something, of which the store is not told yet."""
        self.shows = trio.Event()
        """Set when there are any."""
        self.gone: list[str] = []
        """Fronts that died."""
        self.bereaved = trio.Event()
        """Set when there are any."""
        self.cut_off = 0
        """Turns that a drain ended as interrupted."""
        self.quiet = trio.Event()
        """Set when nothing is left to wait for, while no turns are taken."""
        self.flush = trio.Event()
        """Set when enough text waits for the store to not wait for the tick."""
        self.tools_changed = trio.Event()
        """Set, and made anew, whenever `merged` changes."""
        self.catalogues: dict[str, Catalogue] = {}
        """What the servers offer now, by name."""
        self.merged: Merged = merge({})
        self.tally = Tally()
        """What was counted since this process began."""
        self._numbers = count(1)
        self._requests = count(1)

    @property
    def loopback(self) -> bool:
        """Only this machine can connect."""
        return self.listening.loopback

    def message_limit(self) -> int:
        """Bytes that a client's message may have now."""
        return self.snapshot.websocket.max_message_size

    def configure(self, snapshot: Snapshot) -> None:
        """Another configuration is in force."""
        self.snapshot = snapshot
        if not snapshot.llm.loading:
            self._loaded_by = None
        self._configured.set()
        self._configured = trio.Event()

    async def model_there(self) -> None:
        """While the model that answers is being loaded: until it is there, LOADING_S at most for all that wait."""
        if not self.snapshot.llm.loading:
            return
        if self._loaded_by is None:
            self._loaded_by = trio.current_time() + LOADING_S
        with trio.CancelScope(deadline=self._loaded_by):
            while self.snapshot.llm.loading:
                await self._configured.wait()

    def next_number(self) -> int:
        """A number for a socket; never used twice in this process."""
        return next(self._numbers)

    def next_request(self) -> int:
        """A number for a model request; never used twice in this process."""
        return next(self._requests)

    def conversation(self, conversation_id: str, owner: str) -> Conversation:
        """The conversation of that id, entered here or anew."""
        found = self.conversations.get(conversation_id)
        if found is None:
            found = self.conversations[conversation_id] = Conversation(conversation_id, owner)
        return found

    def enter(self, socket: Socket, conversation: Conversation) -> None:
        """Move a socket there; it reads a turn that runs from its start, else from the conversation's present end."""
        self.leave(socket)
        socket.seen = None
        socket.conversation = conversation
        conversation.sockets.append(socket)
        tail = conversation.tail
        socket.place(tail, tail.seq if tail.finished else 0, headed=tail.finished)

    def leave(self, socket: Socket) -> None:
        """Take a socket out of its conversation; a running turn goes on."""
        conversation, socket.conversation = socket.conversation, None
        if conversation is not None:
            conversation.sockets.remove(socket)
            conversation.idle_since = trio.current_time()
            # at a stop nobody has left: clients come back to it
            if not conversation.sockets and self.taking:
                self.writer.offer(InUse([], left=[conversation.id]))

    def in_use(self) -> InUse:
        """What retention leaves alone."""
        return InUse([c.id for c in self.conversations.values() if c.sockets or c.live])

    def session(self, conversation: Conversation) -> Ref[Any]:
        """The conversation's session actor, started if it is not there."""
        ref = self.ctx.ref(f"{self.sessions}/{conversation.id}")
        if not ref.there:
            self.ctx.start_child(
                self.sessions,
                Child(
                    name=conversation.id,
                    run="actors.session:run",
                    restart=Restart.TRANSIENT,
                    mailbox=64,
                    shutdown_s=5.0,
                    intensity=SESSION_RESTARTS,
                    on_limit=OnLimit.PARK,
                    park_s=5.0,
                    args={"front": self, "conversation": conversation},
                ),
            )
        return ref

    def retire(self, idle_s: float) -> None:
        """Let go of conversations without sockets, turns or waiting messages for that long.

        Of the others, whatever the time, only the log of a turn that all sockets have read.
        """
        limit = trio.current_time() - idle_s
        retired: list[str] = []
        for conversation in tuple(self.conversations.values()):
            busy = conversation.sockets or conversation.live or conversation.unanswered
            if not busy and conversation.idle_since < limit:
                self._forget(conversation)
                retired.append(conversation.id)
            else:
                conversation.let_go()
        self._release(retired)

    def _forget(self, conversation: Conversation) -> None:
        del self.conversations[conversation.id]
        self.ctx.stop_child(f"{self.sessions}/{conversation.id}")

    def _release(self, conversations: list[str]) -> None:
        if self.id and conversations:
            self.writer.offer(Release(self.id, conversations))

    def evict(self, conversation: Conversation) -> None:
        """It is another front's: end all that goes on in it, write no more of it, and let its clients come again."""
        if self.conversations.get(conversation.id) is not conversation:
            return
        log.warning("conversation %s is served elsewhere: %d sockets go", conversation.id, len(conversation.sockets))
        for socket in tuple(conversation.sockets):
            socket.close(*MOVED)
        for request in self.drop_requests(conversation.id, None):
            self.streamer.offer(Cancel(to=self.ctx.path, request=request))
        for call, (turn_log, _) in tuple(self.calls.items()):
            if turn_log.conversation == conversation.id:
                del self.calls[call]
                if (started := turn_log.calls.get(call)) is not None:
                    self.ctx.ref(f"mcp/{started.server}").offer(CancelCall(call))
        self._forget(conversation)
        self.settle()

    def let_go(self) -> None:
        """Leave: release the conversations in which nothing runs, and close their sockets, so that others take them."""
        released: list[str] = []
        for conversation in tuple(self.conversations.values()):
            if not conversation.occupied:
                for socket in tuple(conversation.sockets):
                    socket.close(*MOVED)
                self._forget(conversation)
                released.append(conversation.id)
        self._release(released)

    def tell(self, number: int, frame: ServerFrame) -> None:
        """Write to one socket, if it is still there."""
        socket = self.sockets.get(number)
        if socket is not None:
            socket.tell(frame)

    def announce(self, frame: ServerFrame) -> None:
        """A notice to every socket that has been welcomed."""
        data = frame_of(encode(frame))
        for socket in tuple(self.sockets.values()):
            if socket.conversation is not None:
                socket.notice(data)

    def running(self) -> Iterator[TurnLog]:
        """Logs of the turns that run."""
        for conversation in self.conversations.values():
            if conversation.live is not None:
                yield conversation.live

    def figures(self) -> list[Figure]:
        """For `/metrics`."""
        running = sum(1 for _ in self.running())
        now = {"sockets": len(self.sockets), "conversations": len(self.conversations), "running_turns": running}
        return [*self.tally.figures(), *(Figure(name, count, {}) for name, count in now.items())]

    def drop_requests(self, conversation_id: str, but: TurnLog | None) -> list[int]:
        """Forget the conversation's requests, but those that fill that log; returns their numbers."""
        found = [n for n, log in self.requests.items() if log.conversation == conversation_id and log is not but]
        for request in found:
            del self.requests[request]
        return found

    def grew(self, log: TurnLog) -> None:
        """Text came: enough of it does not wait for the store's tick; nor, beside other fronts, does the first."""
        if not log.attached:
            return
        if (deltas := self.snapshot.service.deltas).persist_deltas and log.unstored_chars >= deltas.min_chars:
            self.flush.set()
        if not log.marked and self.id and log.entries:
            log.marked = True
            self.shown.append(log)
            self.shows.set()

    @property
    def busy(self) -> int:
        """Conversations with a turn that runs, or a message that was taken and not acknowledged yet."""
        return sum(1 for one in self.conversations.values() if one.occupied)

    def settle(self) -> None:
        """A turn has finished, or a message was answered: wakes who waits for quiet, once nothing is taken any more."""
        if not self.taking and (self.leaving or not self.busy):
            self.quiet.set()
            self.quiet = trio.Event()

    def offer_tools(self, catalogue: Catalogue) -> None:
        """A server said what it offers."""
        self.catalogues[catalogue.server] = catalogue
        self._merge()

    def withdraw_tools(self, server: str) -> None:
        """A server is down: its tools are offered to no new turn."""
        if self.catalogues.pop(server, None) is not None:
            self._merge()

    def _merge(self) -> None:
        self.merged = merge(self.catalogues)
        self.tools_changed.set()
        self.tools_changed = trio.Event()

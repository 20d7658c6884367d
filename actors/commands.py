"""What each frame of a client does. One `Commands` per socket; frames are handled one after the other.

Answers go to this socket, errors as typed `error` frames with the request_id; nothing of it ends the
socket. What the store does not answer within `ANSWER_S` is told as `STORAGE_UNAVAILABLE`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from itertools import groupby
from typing import Any

import trio

from actors import dialect, entering, message_content, saves, server_verbs, settling, transcript, verbs
from actors.client_socket import Socket
from actors.entering import Elsewhere, Place
from actors.front import Conversation, Front
from actors.turnlog import TurnLog
from protocol.client import (
    CAPABILITIES,
    HISTORY_PAGE,
    LOCAL_OWNER,
    MAX_ID_CHARS,
    MAX_IMAGE_BYTES,
    MAX_PARTS,
    MAX_QUEUED,
    MAX_TEXT_CHARS,
    MAX_URL_CHARS,
    Answer,
    Approve,
    AskModels,
    BadFrame,
    ClearHistory,
    ClientFrame,
    GetHistory,
    Hello,
    HistoryPage,
    LoadSession,
    Ping,
    Pong,
    Resume,
    ServerFrame,
    SessionCleared,
    StopTurn,
    ToolFrame,
    UserMessage,
    Welcome,
    decode,
    error_frame,
)
from protocol.contract_asks import AskGrants, RevokeGrant
from protocol.errors import Code, Fault
from protocol.mail import MailError, Ref
from protocol.session import Say, Stop, generated
from protocol.writer import Entered, History, LoadHistory, StoredEvent

log = logging.getLogger("actors.gateway")

ANSWER_S = 10.0  # for a query of the store that a client waits for
MOST_ASIDE = 16  # answers of others that one socket may wait for at a time
SHOWN_BYTES = 4 * 2**20  # of a page's events: more is another page
LAST_TURN = 2**53  # greater than any; clients may send any number
SERVER = {"name": "mcp-actors", "version": version("mcp-actors")}


class Commands:
    """Handles the frames of one socket.

    Args:
        tasks: where what takes long goes on beside the frames that come after it; ends with the socket.
    """

    __slots__ = ("_asides", "_first", "_tasks", "front", "owner", "socket", "writer")

    def __init__(self, front: Front, socket: Socket, tasks: trio.Nursery) -> None:
        self.front = front
        self.socket = socket
        self._tasks = tasks
        self._asides = 0
        self.owner = LOCAL_OWNER
        self._first = True
        self.writer: Ref[Any] = front.writer

    async def greet(self, wanted: str, spoken_in: str = "", place: Place | None = None) -> None:
        """Enter the conversation that the address names, and say welcome. Raises MailError, Fault (storage).

        Args:
            spoken_in: `action` for the older dialect.
            place: which conversation that is, where it is known.
        """
        if place is None:
            await self._enter_or_default(wanted or self.front.snapshot.service.default_session, None)
        else:
            if place.unknown is not None:
                self.socket.tell(error_frame(place.unknown.body))
            self._settle(place.entered)
        self.socket.hold()
        self._welcome(None)
        if spoken_in == "action":
            await self._speak_old()

    def arrive(self, place: Place) -> None:
        """The socket comes from another front, in mid-life; what it has just said is still to be handled."""
        self._first = False
        self._settle(place.entered)
        self.socket.hold()

    def follow_on(self, follows: list[tuple[str, str]]) -> None:
        """Resources that it followed at the front that it comes from."""
        if follows:
            self._tasks.start_soon(server_verbs.follow_on, self.front, self.socket, follows)

    @property
    def settled(self) -> bool:
        """Its client waits for no answer that would come to it here."""
        conversation, number = self.socket.conversation, self.socket.number
        asked = conversation.unanswered.values() if conversation is not None else ()
        return not self._asides and not any(say.client == number for say, _ in asked)

    async def _speak_old(self) -> None:
        """From now on in the older dialect; its clients want the history first."""
        self.socket.speaker = dialect.Speaker()
        await self._resume(None, None)

    def handle_now(self, frame: str) -> bool:
        """Handle a frame that needs no waiting, as a user's message; False: it is for `handle`, as is what is wrong."""
        if self._first or self.socket.speaker is not None or self.socket.outbox.full:
            return False
        try:
            message = decode(frame)
        except (BadFrame, RecursionError):
            return False
        if not isinstance(message, UserMessage | StopTurn):
            return False
        log.debug("socket %d: %s", self.socket.number, type(message).__name__)
        try:
            self._of_turns(message)
        except Fault as fault:
            self.socket.tell(error_frame(fault.body, request_id=message.request_id))
        return True

    async def handle(self, frame: str) -> None:
        """One text frame; never raises for what a client can send."""
        request_id: str | None = None
        first, self._first = self._first, False
        try:
            if first and self.socket.speaker is None and dialect.is_spoken_in(frame):
                await self._speak_old()
            message = decode(frame) if self.socket.speaker is None else dialect.decode(frame)
            request_id = message.request_id
            log.debug("socket %d: %s", self.socket.number, type(message).__name__)
            await self._do(message)
        except BadFrame as bad:
            self.socket.tell(error_frame(bad.fault.body, request_id=bad.request_id))
        except Fault as fault:
            self.socket.tell(error_frame(fault.body, request_id=request_id))
        except MailError as error:
            log.warning("a client's request was not answered in time: %s", error)
            self.socket.tell(error_frame(Fault(Code.STORAGE_UNAVAILABLE).body, request_id=request_id))

    async def _do(self, message: ClientFrame) -> None:
        match message:
            case UserMessage() | StopTurn():
                self._of_turns(message)
            case Resume():
                position = (message.turn, message.seq) if message.turn is not None else None
                await self._resume(position, message.request_id)
            case Hello():
                await self._hello(message)
            case ClearHistory():
                await self._clear(message)
            case GetHistory():
                await self._history(message)
            case Ping():
                self.socket.tell(Pong(request_id=message.request_id))
            case Approve() | Answer():
                self.socket.tell(await settling.decide(message, self.writer, self.owner))
            case AskGrants() | RevokeGrant():
                self.socket.tell(await settling.grants(message, self.writer, self.owner))
            case LoadSession():
                await self._load_session(message)
            case AskModels():
                self._aside(message.request_id, partial(verbs.models, message, self.front.streamer))
            case _ if isinstance(message, ToolFrame):
                answering = partial(server_verbs.answer, message, self.front, self.socket)
                self._aside(message.request_id, answering)
            case _:
                frame = await verbs.answer(
                    message,
                    writer=self.writer,
                    watcher=self.front.ctx.ref("watcher"),
                    snapshot=self.front.snapshot,
                    owner=self.owner,
                    conversation=self._conversation.id,
                )
                self.socket.tell(frame)
                await self.socket.outbox.wait_room()

    def _aside(self, request_id: str | None, answering: Callable[[], Awaitable[ServerFrame]]) -> None:
        """Answer what takes long beside the frames that come after it."""
        if self._asides >= MOST_ASIDE:
            raise Fault(Code.OVERLOADED, f"This socket has asked for {MOST_ASIDE} things that take long.")
        self._asides += 1
        self._tasks.start_soon(self._answer_aside, request_id, answering)

    async def _answer_aside(self, request_id: str | None, answering: Callable[[], Awaitable[ServerFrame]]) -> None:
        try:
            frame = await answering()
            await self.socket.outbox.wait_room()
            self.socket.tell(frame)
        except Fault as fault:
            self.socket.tell(error_frame(fault.body, request_id=request_id))
        except Exception:  # boundary: it must not end the socket
            log.exception("socket %d: a request could not be answered", self.socket.number)
            self.socket.tell(error_frame(Fault(Code.INTERNAL).body, request_id=request_id))
        finally:
            self._asides -= 1

    # Where the socket is.

    @property
    def _conversation(self) -> Conversation:
        conversation = self.socket.conversation
        if conversation is None:
            raise Fault(Code.NOT_FOUND, "This socket is in no conversation.")
        return conversation

    async def _enter_or_default(self, wanted: str, request_id: str | None) -> bool:
        """Enter that conversation; or say that there is none of that id, and enter the default one."""
        try:
            await self._enter(wanted)
        except Fault as fault:
            if fault.code is not Code.NOT_FOUND:
                raise
            self.socket.tell(error_frame(fault.body, request_id=request_id))
            await self._enter(self.front.snapshot.service.default_session)
            return False
        return True

    async def _enter(self, wanted: str) -> Entered:
        """Raises Elsewhere: it is another front's, and so is this socket from then on."""
        entered = await entering.enter(self.writer, self.front.id, self.owner, wanted)
        if entering.is_elsewhere(entered, self.front.id):
            raise Elsewhere(entered)
        self._settle(entered)
        return entered

    def _settle(self, entered: Entered) -> None:
        conversation = self.front.conversation(entered.conversation, self.owner)
        self.front.enter(self.socket, conversation)
        if entered.waiting:
            self.front.session(conversation).nudge()

    def _welcome(self, request_id: str | None) -> None:
        live = self._conversation.live
        self.socket.tell(
            Welcome(
                protocol=1,
                conversation_id=self._conversation.id,
                capabilities=CAPABILITIES,
                limits={
                    "max_message_size": self.front.snapshot.websocket.max_message_size,
                    "max_text_chars": MAX_TEXT_CHARS,
                    "max_parts": MAX_PARTS,
                    "max_image_bytes": MAX_IMAGE_BYTES,
                    "max_url_chars": MAX_URL_CHARS,
                    "max_id_chars": MAX_ID_CHARS,
                    "max_queued": MAX_QUEUED,
                    "history_page": HISTORY_PAGE,
                },
                server=SERVER,
                running_turn=live.turn if live is not None else None,
                request_id=request_id,
            )
        )
        self._tasks.start_soon(settling.tell_open, self.socket, self.writer, self.owner)

    async def _hello(self, message: Hello) -> None:
        resume, wanted = message.resume, message.conversation_id
        if message.frame_ms is not None:
            self.socket.outbox.frame_s = message.frame_ms / 1000
        stays = wanted is None or wanted == self._conversation.id
        if wanted is not None and not stays:
            try:
                if not await self._enter_or_default(wanted, message.request_id):
                    resume = None  # it was of another conversation
            except Elsewhere as elsewhere:
                if elsewhere.entered.conversation != wanted:  # it has been told that there is none of that id
                    elsewhere.frame = entering.hello(elsewhere.entered.conversation, message.request_id)
                raise
            self.socket.hold()
        self._welcome(message.request_id)
        if resume is not None:
            await self._resume((resume.turn, resume.seq), message.request_id)

    async def _clear(self, message: ClearHistory) -> None:
        previous = self._conversation.id
        entered = await self._enter("new!")
        self.socket.tell(
            SessionCleared(
                conversation_id=entered.conversation, previous_conversation_id=previous, request_id=message.request_id
            )
        )

    async def _load_session(self, message: LoadSession) -> None:
        loaded = await saves.load(self.writer, self.front.snapshot, self.owner, message.saved_id, self.front.id)
        await self._enter(loaded.conversation)
        self._welcome(message.request_id)
        await self._resume(None, message.request_id)

    # Turns.

    def _of_turns(self, message: UserMessage | StopTurn) -> None:
        self.socket.release()
        if isinstance(message, UserMessage):
            self._user_message(message)
        else:
            self._stop(message)

    def _user_message(self, message: UserMessage) -> None:
        conversation = self._conversation
        content = message_content.content_of(message.message)
        if message.mode not in (None, "queue"):
            raise Fault(Code.INVALID_MESSAGE, f"The mode {message.mode[:40]!r} is not known here - at `$.mode`.")
        if not self.front.taking:
            raise Fault(Code.SHUTTING_DOWN)
        say = Say(
            client=self.socket.number,
            request_id=message.request_id or generated(secrets.token_hex(16)),
            echo=message.request_id,
            content=content,
            streaming=message.streaming,
        )
        known = say.request_id in conversation.unanswered
        if not known:
            conversation.unanswered[say.request_id] = (say, 0)
        if not self.front.session(conversation).offer(say):
            if not known:
                conversation.unanswered.pop(say.request_id, None)
            raise Fault(Code.OVERLOADED, "This conversation has too many messages waiting.")

    def _stop(self, message: StopTurn) -> None:
        conversation = self._conversation
        if conversation.live is None and not conversation.unanswered:
            raise Fault(Code.TURN_NOT_RUNNING)
        stop = Stop(client=self.socket.number, echo=message.request_id, turn=message.turn)
        if not self.front.session(conversation).offer(stop):
            raise Fault(Code.OVERLOADED)

    # What was.

    async def _load(self, *, before: int = 0, after: int = 0, limit: int = HISTORY_PAGE) -> History:
        load = LoadHistory(
            owner=self.owner,
            conversation=self._conversation.id,
            before=min(before, LAST_TURN),
            after=min(after, LAST_TURN),
            limit=limit,
            missing_ok=True,
            most_bytes=SHOWN_BYTES,
        )
        return await self.writer.ask(load, within=ANSWER_S, again=True)

    async def _history(self, message: GetHistory) -> None:
        limit = HISTORY_PAGE if message.limit is None else message.limit
        if not 1 <= limit <= HISTORY_PAGE:
            raise Fault(Code.INVALID_MESSAGE, f"Expected a number from 1 to {HISTORY_PAGE} - at `$.limit`.")
        if message.before is not None and message.before < 1:
            raise Fault(Code.INVALID_MESSAGE, "Expected a turn, 1 or more - at `$.before`.")
        conversation = self._conversation
        history = await self._load(before=message.before or 0, limit=limit)
        messages = transcript.page(history.events, history.queued)
        self.socket.tell(HistoryPage(conversation.id, messages, history.more, request_id=message.request_id))
        await self.socket.outbox.wait_room()

    async def _resume(self, position: tuple[int, int | None] | None, request_id: str | None) -> None:
        """Go on from a position, (turn, seq): from the last turn's log if it is there, else after a replay.

        Without a seq nothing of that turn was seen. While the store is asked, the socket's reader stands still
        at an anchor in the linked logs, so nothing that happens meanwhile is missed; what the logs will give
        from there is left out of the replay.
        """
        socket, tail = self.socket, self._conversation.tail
        live = not tail.finished
        socket.held = None
        if position is not None and position[0] == tail.turn and (live or tail.seq):
            seq = position[1]
            socket.place(tail, min(max(seq or 0, 0), tail.seq), headed=seq is not None, quiet=not live)
            socket.pump()
            return
        if position is not None and live and position[0] > tail.turn:
            position = (tail.turn, None)  # it cannot have been there: all that runs is shown
        anchor = Anchor(tail, live)
        socket.paused = True
        try:
            if position is None:
                await self._replay_last(anchor, request_id)
            else:
                await self._replay_after(anchor, *position, request_id)
            socket.place(tail, 0 if live else tail.seq, headed=not live)
        finally:
            socket.paused = False
            socket.pump()

    async def _replay_last(self, anchor: Anchor, request_id: str | None) -> None:
        history = await self._load()
        first = anchor.first_turn
        events = [stored for stored in history.events if first is None or stored.turn < first]
        events = [stored for stored in events if stored.turn not in history.running]
        page = transcript.page(events, history.queued)
        self.socket.tell(HistoryPage(self._conversation.id, page, history.more, request_id=request_id))
        await self.socket.outbox.wait_room()

    async def _replay_after(self, anchor: Anchor, turn: int, seq: int | None, request_id: str | None) -> None:
        history = await self._load(after=max(turn - 1, 0))
        if history.more:
            # more than one page behind: a page of the newest says openly what was passed over
            await self._replay_last(anchor, request_id)
            return
        if history.waiting and turn in history.running and seq is not None:
            self.socket.seen = (turn, seq)  # it waits for a person, and is taken up where it stood
        first = anchor.first_turn
        notices = self.front.snapshot.service.tool_notifications
        for number, group in groupby(history.events, key=_turn_of):
            if first is not None and number >= first:
                break
            events = [stored.event for stored in group]
            for frame in transcript.replay(number, events, seq if number == turn else None, notices):
                self.socket.tell(frame)
            await self.socket.outbox.wait_room()


class Anchor:
    """Where a socket's reader stands while the store is asked: before a turn that ran then, or after the last one."""

    def __init__(self, log: TurnLog, live: bool) -> None:
        self._log = log
        self._live = live

    @property
    def first_turn(self) -> int | None:
        """The first turn that the logs from here on will give; None: there is none yet."""
        if self._live:
            return self._log.turn
        return self._log.next.turn if self._log.next is not None else None


def _turn_of(stored: StoredEvent) -> int:
    return stored.turn

"""One conversation as the terminal client knows it: frames in, frames out, what to show. No I/O.

After the handshake every connection is *brought into step*: `hello` names the conversation and, if anything
was seen, the last position; the answer with its request_id marks where the replay begins. What comes of
turns before that mark is passed over, since it lies behind a gap. Messages without an acknowledgement are
sent again with their request_id, a wanted stop too. So nothing is lost and nothing comes twice.

`receive` raises `OutOfStep` when this connection cannot be brought into step; another one may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from supervisors.chat_turn import Frame, Said, Trouble, Turn, read, text_of

RUNS = ("running", "queued")  # status of a history message whose turn is not over
LOST = Trouble("CONNECTION_LOST", "The connection was lost before the answer came.", "Try again.")
GONE = Trouble("NOT_FOUND", "The conversation is no longer there; this is a new one.", None)
TOO_LARGE = Trouble("MESSAGE_TOO_LARGE", "The message is larger than the service takes.", None)


class OutOfStep(Exception):
    """The service could not bring this connection into step; says why."""


class Note(msgspec.Struct, frozen=True):
    """Something to tell the person, outside a turn."""

    text: str
    hint: str = ""
    error: bool = False


class Entered(msgspec.Struct, frozen=True):
    """The conversation is another one now (at the start, after /new and /load)."""

    conversation: str
    last: list[Said]
    """The newest turn's messages."""
    turns: int
    more: bool
    """There are turns before those that were counted."""


class Talk:
    """The state of the client.

    Args:
        new_id: makes request ids.
        changed: called whenever something is new to show or to send.
    """

    def __init__(self, new_id: Callable[[], str], changed: Callable[[], None] = lambda: None) -> None:
        self._new_id = new_id
        self._changed = changed
        self._sync = ""
        self._fresh = True
        self._stop_next = False
        self._stopping = 0
        self._asked: set[str] = set()
        self.conversation = ""
        """Its id; empty before the first welcome."""
        self.in_step = False
        """The connection is open and nothing lies before what comes."""
        self.turns: dict[int, Turn] = {}
        self.position: tuple[int, int] | None = None
        """Turn and seq of the last entry seen."""
        self.unacknowledged: dict[str, str] = {}
        """Messages by request_id, until they are known to be on disk."""
        self.outgoing: list[dict[str, Any]] = []
        """Frames to be sent, in order; whoever sends them takes them out."""
        self.asked: dict[str, Frame] = {}
        """Tool calls and questions of servers that wait for the person, by the id of the approval or the question."""
        self._told: dict[str, Frame] = {}
        """Questions that were answered, by the request_id of the answer."""
        self.answers: dict[str, Frame] = {}
        """Answers to `ask`, by request_id; whoever waits takes them out."""
        self.notes: list[Note | Entered] = []
        """To be shown and taken out, in order."""
        self.refused: list[str] = []
        """Texts of messages that were not taken; the person's again."""
        self.fatal: Trouble | None = None
        """The wanted conversation is not there."""
        self.server = ""
        self.model = ""
        self.limits: dict[str, Any] = {}
        self.capabilities: list[str] = []
        """Types that the service understands."""

    # What the person does.

    def say(self, text: str) -> str:
        """Send a message, now or when there is a connection. Returns its request_id."""
        request_id = self._new_id()
        frame = _message(text, request_id)
        largest = self.limits.get("max_message_size")
        if isinstance(largest, int) and len(msgspec.json.encode(frame)) > largest:
            self.refused.append(text)
            self.notes.append(_note(TOO_LARGE))
        else:
            self.unacknowledged[request_id] = text
            if self.in_step:
                self.outgoing.append(frame)
        self._changed()
        return request_id

    def stop(self, *, mine: bool = False) -> None:
        """End the running turn, or the one that is about to run; with `mine` none that was not begun from here."""
        running = self.running
        if running is None or (mine and not running.mine):
            self._stop_next = True
        else:
            self._stop(running.number)
        self._changed()

    def decide(self, approval_id: str, decision: str) -> None:
        """Decide about a tool call: once, always or deny. What comes of it is seen in the turn."""
        if self.asked.pop(approval_id, None) is not None and self.in_step:
            self.outgoing.append({"type": "approve", "approval_id": approval_id, "decision": decision})
        self._changed()

    def answer(self, question_id: str, action: str, content: dict[str, Any]) -> None:
        """Answer a question: accept, decline or cancel. One that does not fit is asked again."""
        asked = self.asked.pop(question_id, None)
        if asked is not None and self.in_step:
            request_id = self._new_id()
            self._told[request_id] = asked
            frame = {"type": "answer", "request_id": request_id, "question_id": question_id, "action": action}
            self.outgoing.append(frame | ({"content": content} if content else {}))
        self._changed()

    def ask(self, type: str, **fields: Any) -> str:
        """Send a request whose answer comes to `answers` under the returned request_id, also when it fails."""
        request_id = self._new_id()
        if self.in_step:
            self._asked.add(request_id)
            self.outgoing.append({"type": type, "request_id": request_id, **fields})
        else:
            self.answers[request_id] = _error(LOST)
        self._changed()
        return request_id

    @property
    def syncing(self) -> bool:
        """The connection is being brought into step."""
        return bool(self._sync)

    @property
    def running(self) -> Turn | None:
        """The turn that runs."""
        return next((turn for turn in self.turns.values() if turn.started and not turn.over), None)

    def to_show(self, *, mine: bool = False) -> Turn | None:
        """The next turn that has something to show; with `mine` only of messages sent from here."""
        waiting = (turn for turn in self.turns.values() if turn.started and not turn.shown)
        return min((turn for turn in waiting if turn.mine or not mine), key=lambda turn: turn.number, default=None)

    @property
    def queued(self) -> Turn | None:
        """A message from here that waits behind others."""
        return next((turn for turn in self.turns.values() if turn.mine and not turn.started), None)

    @property
    def busy(self) -> bool:
        """An answer is awaited or not yet shown."""
        return bool(self.unacknowledged) or self.to_show() is not None or self.queued is not None

    # What the connection does.

    def closed(self, code: int = 0) -> None:
        """The connection is gone."""
        self.in_step = False
        self._sync = ""
        self.outgoing.clear()
        self._told.clear()
        self.asked.clear()  # what is still open is told after the next welcome
        for request_id in self._asked:
            self.answers[request_id] = _error(LOST)
        self._asked.clear()
        if code == 1009:  # sent again, it would end the same way
            for text in self.unacknowledged.values():
                self._refuse(text, TOO_LARGE)
            self.unacknowledged.clear()
        self._changed()

    def receive(self, text: str | bytes) -> None:
        """One frame of the service. Raises OutOfStep."""
        frame = read(text)
        if frame is None:
            self.notes.append(Note("a frame of the service could not be read", error=True))
        else:
            self._receive(frame)
        self._changed()

    def _receive(self, frame: Frame) -> None:
        if frame.request_id is not None and frame.request_id in self._asked:
            self._answer(frame.request_id, frame)
            return
        match frame.type:
            case "welcome":
                self._welcome(frame)
            case "history":
                self._history(frame)
            case "session_cleared":
                self._cleared(frame)
            case "error":
                told = self._told.pop(frame.request_id or "", None)
                if told is not None:
                    self.notes.append(_note(frame.trouble))
                    if frame.error_code == "INVALID_MESSAGE":
                        self.asked[told.question_id] = told
                self._error(frame)
            case "question" if frame.question_id:
                self.asked[frame.question_id] = frame
            case "question_settled":
                self.asked.pop(frame.question_id, None)
                self._told.pop(frame.request_id or "", None)
            case "approval_request" if frame.approval_id:
                self.asked[frame.approval_id] = frame
            case "approval_settled":
                self.asked.pop(frame.approval_id, None)
            case "degraded":
                self.notes.append(Note(f"{frame.what} is not available: {frame.reason}"))
            case "recovered":
                self.notes.append(Note(f"{frame.what} is back"))
            case _ if self.in_step and frame.turn is not None:
                self._of_turn(frame, frame.turn)

    # Into step.

    def _welcome(self, frame: Frame) -> None:
        if frame.request_id is None:
            server = frame.server if isinstance(frame.server, dict) else {}
            self.server = f"{server.get('name', '')} {server.get('version', '')}".strip()
            self.limits, self.capabilities = frame.limits, frame.capabilities
            self.conversation = self.conversation or frame.conversation_id
            self._sync = self._new_id()
            hello: dict[str, Any] = {
                "type": "hello",
                "request_id": self._sync,
                "conversation_id": self.conversation,
                "client": "actors-main chat",
            }
            if self.position is not None:
                hello["resume"] = {"turn": self.position[0], "seq": self.position[1]}
            self.outgoing.append(hello)
        elif frame.request_id == self._sync:
            if self.position is None:
                self._ask_for_page()
            else:
                self._ready()

    def _ask_for_page(self) -> None:
        self.in_step = False
        self._sync = self._new_id()
        self.outgoing.append({"type": "resume", "request_id": self._sync})

    def _ready(self) -> None:
        self.in_step = True
        self._sync = ""
        self.outgoing.extend(_message(text, request_id) for request_id, text in self.unacknowledged.items())
        if self._stopping:
            self._stop(self._stopping)

    def _enter(self, conversation: str) -> None:
        """Another conversation: what is known of this one does not count there."""
        for turn in self.turns.values():
            turn.shown = True
        self.turns = {}
        self.position = None
        self.asked = {name: frame for name, frame in self.asked.items() if frame.turn is None}
        self.conversation = conversation
        self._fresh = True
        self._stop_next, self._stopping = False, 0
        self._ask_for_page()

    def _cleared(self, frame: Frame) -> None:
        if frame.request_id == self._sync:
            self._enter(frame.conversation_id)

    def _gone(self) -> None:
        """The service does not know the conversation: one without messages has no row, another was taken away."""
        if self.turns:
            self.notes.append(_note(GONE))
            for text in self.unacknowledged.values():
                self._refuse(text, GONE)
            self.unacknowledged.clear()
        self._sync = self._new_id()
        self.outgoing.append({"type": "clear_history", "request_id": self._sync})

    # What is told.

    def _answer(self, request_id: str, frame: Frame) -> None:
        self._asked.discard(request_id)
        self.answers[request_id] = frame
        moved = frame.conversation_id and frame.conversation_id != self.conversation
        if moved and frame.type not in ("error", "history", "session_saved"):
            self._enter(frame.conversation_id)

    def _error(self, frame: Frame) -> None:
        request_id = frame.request_id or ""
        if not self.conversation:
            self.fatal = frame.trouble
        elif self._sync and request_id == self._sync:
            if frame.error_code != "NOT_FOUND":
                raise OutOfStep(frame.error_message)
            self._gone()
        elif request_id in self.unacknowledged:
            if frame.error_code != "SHUTTING_DOWN":  # then it is sent again to the service that comes after it
                self._refuse(self.unacknowledged.pop(request_id), frame.trouble)
        elif frame.turn is None and not request_id and self.in_step:
            self.notes.append(_note(frame.trouble))
        # an error of a turn comes with its end as well; a stop that came too late needs no words

    def _refuse(self, text: str, trouble: Trouble) -> None:
        self.refused.append(text)
        note = _note(trouble)
        if not self.notes or self.notes[-1] != note:
            self.notes.append(note)

    def _history(self, frame: Frame) -> None:
        if frame.conversation_id != self.conversation or (self._sync and frame.request_id != self._sync):
            return
        entering = self._fresh and bool(self._sync)
        for said in frame.messages:
            turn = self.turns.get(said.turn) or Turn(said.turn)
            if turn.over:
                continue
            self.turns[said.turn] = turn
            if said.role == "user":
                turn.question = turn.question or text_of(said.content)
            else:
                turn.recall(said)
        for said in frame.messages:
            turn = self.turns[said.turn]
            if said.status not in RUNS and not turn.over:
                turn.finish("completed" if said.status == "complete" else said.status)
                if entering:
                    turn.forget()
        if entering:
            self._fresh = False
            newest = max((said.turn for said in frame.messages if said.status not in RUNS), default=0)
            last = [said for said in frame.messages if said.turn == newest]
            turns = len({said.turn for said in frame.messages})
            self.notes.append(Entered(self.conversation, last, turns, frame.more))
        if self._sync:
            self._ready()

    def _of_turn(self, frame: Frame, number: int) -> None:
        turn = self.turns.setdefault(number, Turn(number))
        if frame.type in ("turn_started", "message_queued") and frame.request_id in self.unacknowledged:
            turn.question = self.unacknowledged.pop(frame.request_id)
            turn.mine = True
        match frame.type:
            case "turn_started":
                turn.start(frame)
                self.model = frame.model or self.model
                self._seen(number, 0)
                if self._stop_next and turn.mine and not turn.over:
                    self._stop(number)
            case "message_queued":
                turn.waiting = 0 if turn.started else frame.position
            case _ if frame.seq:
                if turn.take(frame):
                    self._seen(number, frame.seq)
                if turn.over and self._stopping == number:
                    self._stopping = 0

    def _seen(self, turn: int, seq: int) -> None:
        self.position = max(self.position or (0, 0), (turn, seq))

    def _stop(self, turn: int) -> None:
        self._stop_next = False
        self._stopping = turn
        if self.in_step:
            self.outgoing.append({"type": "stop", "turn": turn, "request_id": self._new_id()})


def _message(text: str, request_id: str) -> dict[str, Any]:
    return {"type": "user_message", "message": text, "request_id": request_id}


def _note(trouble: Trouble) -> Note:
    return Note(trouble.error_message, trouble.hint or "", error=True)


def _error(trouble: Trouble) -> Frame:
    return Frame("error", error_code=trouble.error_code, error_message=trouble.error_message, hint=trouble.hint)

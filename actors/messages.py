"""The users' messages of one conversation: which are known, which still run or wait, and how each is acknowledged.

A message is acknowledged by `turn_started` or `message_queued` after its commit, or by an error; until then it is one
of the conversation's `unanswered`, which outlive a session that dies: the next one takes them up. What is told
here goes to the one client that asked. Nothing here fails; a store that does not answer is told as its error.
"""

from __future__ import annotations

from typing import Any

from actors.durable import known_turn
from actors.effects import Commit, Refuse, TellQueued, TellRepeated
from actors.front import Conversation, Front
from actors.message_content import image_bytes, refusal
from actors.running_turn import RunningTurn
from protocol.client import MessageQueued, TurnStarted, error_frame
from protocol.errors import Code, Fault
from protocol.mail import Ref
from protocol.session import Say
from protocol.writer import Began, BeginTurn, UserEvent

WAITING_BYTES = 20 * 2**20  # of images in messages that are not over: they are read together after a restart
MOST_KNOWN = 250  # messages; more than may wait or be sent again soon, as a session lives as long as its clients


class Messages:
    """Keeps and answers them.

    Args:
        writer: of the store.
    """

    __slots__ = ("_conversation", "_front", "_writer", "known", "users")

    def __init__(self, front: Front, conversation: Conversation, writer: Ref[Any]) -> None:
        self._front = front
        self._conversation = conversation
        self._writer = writer
        self.known: dict[str, int] = {}
        """Turns by request_id, of the last messages; those before are known to the store."""
        self.users: dict[int, UserEvent] = {}
        """User events of turns that have not ended."""

    # What has come.

    def taken_up(self, say: Say) -> None:
        """A session tries it, once more."""
        _, tries = self._conversation.unanswered.get(say.request_id, (say, 0))
        self._conversation.unanswered[say.request_id] = (say, tries + 1)

    def left_behind(self, lost: object) -> list[tuple[Say, int]]:
        """Those that the last incarnation had taken up and not answered, with how often that was tried.

        Args:
            lost: what it died with.
        """
        unanswered = self._conversation.unanswered
        if isinstance(lost, Say):
            _, tries = unanswered.get(lost.request_id, (lost, 0))
            unanswered[lost.request_id] = (lost, max(1, tries))
        return [(say, tries) for say, tries in unanswered.values() if tries]  # the others are still in the mailbox

    def refusal(self, say: Say) -> Fault | None:
        """Why it is not taken: the provider in force reads no images, or too many wait already; None: it is."""
        llm = self._front.snapshot.llm
        if (refused := refusal(say.content, llm.providers.get(llm.active))) is not None:
            return refused
        here = {user.request_id: user.content for user in self.users.values()}
        here |= {id: other.content for id, (other, tries) in self._conversation.unanswered.items() if tries}
        waiting = sum(image_bytes(content) for id, content in here.items() if id != say.request_id)
        if waiting and waiting + image_bytes(say.content) > WAITING_BYTES:
            return Fault(
                Code.OVERLOADED, "The images of messages that wait in this conversation are too large already."
            )
        return None

    # What is stored.

    def begin(self, effect: Commit) -> BeginTurn:
        """What stores it, with all that counts for its turn from now on."""
        say = effect.say
        streaming = self._front.snapshot.service.streaming if say.streaming is None else say.streaming
        event = UserEvent(content=say.content, request_id=say.request_id, streaming=streaming)
        self.users[effect.turn] = event
        self.known[say.request_id] = effect.turn
        if len(self.known) > MOST_KNOWN:
            del self.known[next(iter(self.known))]
        return BeginTurn(
            owner=self._conversation.owner,
            conversation=self._conversation.id,
            turn=effect.turn,
            event=event,
            queued=effect.queued,
            front=self._front.id,
        )

    def stored(self, begin: BeginTurn, began: Began) -> None:
        """It is on disk, perhaps since earlier and as another turn."""
        if began.turn != begin.turn:
            self.users.pop(begin.turn, None)
            self.known[begin.event.request_id] = began.turn

    def unstored(self, begin: BeginTurn) -> None:
        """It could not be stored: as if it had not come."""
        self.users.pop(begin.turn, None)
        self.known.pop(begin.event.request_id, None)

    # What is told.

    def started(self, user: UserEvent, frame: TurnStarted) -> None:
        """Its turn is shown in the conversation; also to who asked and has moved on: the acknowledgement is its own."""
        waiting = self._conversation.unanswered.pop(user.request_id, None)
        asking = self._front.sockets.get(waiting[0].client) if waiting is not None else None
        if asking is not None and asking.conversation is not self._conversation:
            asking.tell(frame)

    def queued(self, effect: TellQueued) -> None:
        """It is on disk and waits."""
        self._answered(effect.say)
        self._front.tell(effect.say.client, MessageQueued(effect.turn, effect.position, request_id=effect.say.echo))

    def refused(self, effect: Refuse) -> None:
        """It, or another command, is answered with an error."""
        if effect.say is not None:
            self._answered(effect.say)
        self._front.tell(effect.client, error_frame(effect.fault, request_id=effect.echo))

    def repeated(self, effect: TellRepeated, place: int | None, running: RunningTurn | None) -> bool:
        """It came again after it was on disk: where its turn is. False: only the store can say.

        Args:
            place: among those that wait; None: it does not.
            running: the turn that runs.
        """
        self._answered(effect.say)
        if place is not None:
            self.queued(TellQueued(effect.turn, effect.say, place))
        elif running is None or running.turn != effect.turn:
            return False
        elif running.log.attached:
            self._front.tell(effect.say.client, running.started())
        return True  # where it is not on disk yet that it runs, its turn_started will answer

    async def repeated_long_ago(self, effect: TellRepeated) -> UserEvent | None:
        """It came again, and its turn is over: the frames that tell of it. Returns the message if it has none yet."""
        conversation, say = self._conversation, effect.say
        known = await known_turn(self._writer, conversation.owner, conversation.id, effect.turn, say.echo)
        if isinstance(known, UserEvent):
            return known
        for frame in known:
            self._front.tell(say.client, frame)
        return None

    def _answered(self, say: Say) -> None:
        if self._conversation.unanswered.pop(say.request_id, None) is not None:
            self._front.settle()

"""Asks people to open an address, so that a server may be used in their name: the user's part of OAuth.

It is nobody's call in particular whose question this is: what is granted serves every conversation, so it goes to
operators, by all gateways there are, also by those that come while it is open. Whoever answers first decides: no ends
it, yes means that the page is being visited. It is over when the browser came back, when it was declined, or after
a while; everybody is told. One that was dismissed, or could not be shown, was not decided: it may be asked later.
Where nobody can be asked (`possible` is false) it must not be begun.

May assume: one question at a time, since whoever wants one holds a lock. Fails with `Unauthorized` and `Unusable`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import trio

from actors.call_clock import CallClock
from actors.redirect import Landed
from actors.server_faults import Unauthorized, Unusable
from protocol.mcp_server import AnswerQuestion, AnswerSampling, RequestEnded, UrlVisited, UserQuestion
from protocol.spec import Context

ANSWER_S = 3600.0  # a service is started at night, and whoever can answer comes in the morning: by hand then
IN_CALL_S = 300.0  # a turn waits
SKEW_S = 5.0  # between clocks that count the same time
DISMISSED = "nobody chose"

Clock = Callable[[], AbstractContextManager[None]]
"""Makes a block in which the time of whoever waits stands still."""


class Consent:
    """The questions of one incarnation of a server's actor.

    Args:
        server: its name.
        gateways: who is asked; whoever owns it adds to it.
        in_call: the clock of the call in whose course it is asked; None: it is in none.
    """

    def __init__(
        self, server: str, ctx: Context, gateways: Iterable[str], in_call: Callable[[], CallClock | None]
    ) -> None:
        self._server = server
        self._ctx = ctx
        self._in_call = in_call
        self._connecting: list[Clock] = []
        self._probes: list[Clock] = []
        self._open: UserQuestion | None = None
        self._gateways = gateways
        self._answered = trio.Event()
        self._action = ""

    @property
    def possible(self) -> bool:
        """Somebody who can wait wants it: a call, or the connection that is being made."""
        return bool(self._clocks())

    @property
    def is_connecting(self) -> bool:
        """The connection is still being made."""
        return bool(self._connecting)

    def connect(self, clock: Clock) -> None:
        """From now on it may be asked for the sake of the connection; its time stands still meanwhile."""
        self._connecting.append(clock)

    def probe(self, clock: Clock) -> None:
        """A question to the server runs by that clock, which stands still in `aside`."""
        self._probes.append(clock)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """In here others are talked to: how long that takes says nothing about the server."""
        with ExitStack() as stack:
            for clock in self._probes:
                stack.enter_context(clock())
            yield

    def settle(self) -> None:
        """The connection is made, or is not."""
        self._connecting.clear()
        self._probes.clear()

    def _clocks(self) -> list[Clock]:
        if self._connecting:
            return self._connecting
        clock = self._in_call()
        return [] if clock is None else [clock.paused]

    def tell(self, gateway: str) -> None:
        """A gateway is there, perhaps a new one in the place of another."""
        if self._open is not None:
            self._ctx.ref(gateway).offer(self._open)

    def take(self, answer: AnswerQuestion | AnswerSampling) -> bool:
        """An answer came; whether it is to a question of here."""
        if not isinstance(answer, AnswerQuestion) or self._open is None:
            return False
        if answer.question != self._open.question or self._answered.is_set():
            return False
        self._action = answer.action
        self._answered.set()
        return True

    async def visit(self, url: str, landing: Callable[[], Awaitable[Landed]]) -> Landed:
        """Have somebody open `url`, and wait for `landing`.

        Raises: Unauthorized, with why it came to nothing; Unusable, where nobody chose.
        """
        clocks = self._clocks()
        if not clocks:
            raise Unauthorized(f"MCP server {self._server!r} wants to be authorized anew, and nobody can be asked now.")
        found: list[Landed] = []
        within = ANSWER_S if self._connecting else IN_CALL_S
        until = datetime.now(UTC) + timedelta(seconds=within)
        self._answered, self._action = trio.Event(), ""
        over_at = trio.current_time() + within
        asked = self._open = UserQuestion(
            question=secrets.token_hex(8),
            server=self._server,
            call="",
            message=f"The MCP server {self._server!r} wants to know who you are: open the page, and allow its use.",
            url=url,
            expires_at=until.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        self._offer(asked)
        try:
            with ExitStack() as stack:
                for clock in clocks:
                    stack.enter_context(clock())
                stack.enter_context(trio.move_on_after(within))
                async with trio.open_nursery() as nursery:

                    async def land() -> None:
                        found.append(await landing())
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(land)
                    await self._answered.wait()
                    if self._action != "accept":
                        nursery.cancel_scope.cancel()
        finally:
            self._open = None
            ended = self._ended(over_at)
            self._offer(UrlVisited(asked.question) if found else RequestEnded(asked.question, ended))
        if found:
            return found[0]
        kind = Unusable if self._action == "cancel" and ended == DISMISSED else Unauthorized
        raise kind(f"MCP server {self._server!r} needs authorization, and {ended}.")

    def _ended(self, over_at: float) -> str:
        if self._action == "decline":
            return "it was declined"
        # Who shows it counts the same time, and may be a moment ahead.
        early = trio.current_time() < over_at - SKEW_S
        return DISMISSED if self._action == "cancel" and early else "nobody allowed it in time"

    def _offer(self, event: UserQuestion | RequestEnded | UrlVisited) -> None:
        for gateway in sorted(self._gateways):
            self._ctx.ref(gateway).offer(event)

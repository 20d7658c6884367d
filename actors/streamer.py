"""The LLM streamer: one task per request until its answer flows, one batch of pieces per tick and address.

Each request reads its provider's answer and appends what it means to the list of the address that asked;
the whole list leaves as one message whenever something was read, so one message carries the pieces of all running
requests (actors/outlet.py). Once an answer flows, one more task
reads it together with all others (actors/poller.py). How a request finds its answer is actors/asking.py's.

What fails in a request ends that request, with exactly one `Failed`; only a failure of this module's own
loop is the supervisor's. May assume that the watcher answers with a snapshot; waits for it at start.
"""

from __future__ import annotations

import logging

import trio

from actors.asking import Asking, Means
from actors.models import ModelLists
from actors.outlet import Outlet, Outlets
from actors.provider import Clients
from actors.retry import BACKOFF_S
from actors.sending import Sendings, prepare
from actors.upstream import Upstreams
from actors.verdict import Complaint
from protocol.errors import Code, Fault
from protocol.mail import Mailbox, Reply
from protocol.models import ListModels
from protocol.spec import Context, Down
from protocol.streamer import Cancel, Complete, Failed, Finished, StreamerMessage
from protocol.watcher import ClientOptions, Configured, GetSnapshot, Llm, Provider, Snapshot, Subscribe

log = logging.getLogger(__name__)

LAST_S = 3.0  # of an ordered stop, for requests to end by themselves; less than the supervisor gives us
GATEWAYS = "front*/gateway"  # who asks; there may be several, in processes of their own
SNAPSHOT_S = 10.0  # the watcher reads two small files; longer means that it is down, and we start anew


async def run(box: Mailbox[StreamerMessage], ctx: Context) -> None:
    """The actor. `ctx.args` may hold `backoff_s`, the first delay between tries (default `BACKOFF_S`)."""
    watcher = ctx.ref("watcher")
    watcher.offer(Subscribe(to=ctx.path))
    ctx.watch(GATEWAYS)
    snapshot: Snapshot = await watcher.ask(GetSnapshot(), within=SNAPSHOT_S, again=True)
    outlets = Outlets()
    clients = Clients(outlets.push)
    try:
        async with trio.open_nursery() as nursery:
            streamer = Streamer(ctx, nursery, clients, outlets, snapshot)
            reading = trio.CancelScope()
            nursery.start_soon(clients.read, reading)
            nursery.start_soon(streamer.serve, box)
            await streamer.over.wait()
            streamer.cool()
            await streamer.finish(LAST_S)
            reading.cancel()
    finally:
        await clients.close()


class Streamer:
    """The actor's state.

    Args:
        nursery: where requests and outlets run; outlives them.
        clients: of the providers; closed by the caller.
        outlets: filled here, pushed by the clients.
        snapshot: the configuration that requests begin with.
    """

    def __init__(
        self, ctx: Context, nursery: trio.Nursery, clients: Clients, outlets: Outlets, snapshot: Snapshot
    ) -> None:
        self._ctx = ctx
        self._nursery = nursery
        self._clients = clients
        self._snapshot = snapshot
        self._upstreams = Upstreams(self._report)
        self._models = ModelLists(clients)
        self._outlets = outlets
        self._sendings = Sendings()
        self._means = Means(
            clients, self._upstreams, self._sendings, float(ctx.args.get("backoff_s", BACKOFF_S)), self._go_on
        )
        self._running = self._done = self._failed = 0
        self.over = trio.Event()
        """Set when no mail comes any more."""
        self._ended = trio.Event()
        """Set, and made anew, when a request has ended."""
        self._warming = trio.CancelScope()
        self._warm()
        ctx.report_live(self._facts)

    async def serve(self, box: Mailbox[StreamerMessage]) -> None:
        """Take the mail, to its end, or up to a request that comes alone.

        That one is answered here, and another task takes the mail: its own would begin a round of the loop later.
        """
        async for message in box:
            match message:
                case Complete():
                    asking = self._begin(message)
                    if not box.depth:
                        self._nursery.start_soon(self.serve, box)
                        await self._answer(asking)
                        return
                    self._go_on(asking)
                case Cancel(to, request):
                    self.cancel(to, request)
                case ListModels():
                    self._nursery.start_soon(self.list_models, message, box, box.reply_slot)
                case Configured(newer):
                    self.configure(newer)
                case Down(path, retry_in_ms=None, parked=False):
                    self.abandon(path)
                case _:
                    pass  # a nudge: nothing here waits for one
        self.over.set()

    def _begin(self, request: Complete) -> Asking:
        """A request; one that runs under the same number is cancelled first."""
        self.cancel(request.to, request.request)
        outlet = self._outlets.get(request.to)
        if outlet is None:
            outlet = self._outlets[request.to] = Outlet(self._ctx.ref(request.to), self._nursery)
        llm = request.llm
        if llm is None or llm == self._snapshot.llm:
            llm = self._snapshot.llm  # nearly always: not one more of it for each request
        asking = Asking(request, llm, outlet, self._means)
        outlet.requests[request.request] = asking
        self._running += 1
        return asking

    def _go_on(self, asking: Asking) -> None:
        self._nursery.start_soon(self._answer, asking, name=f"request {asking.number}")

    def cancel(self, to: str, request: int) -> None:
        """End a request without a word; ignored if it does not run."""
        outlet = self._outlets.get(to)
        asking = outlet.requests.pop(request, None) if outlet is not None else None
        if outlet is not None and asking is not None:
            asking.cancel()
            outlet.forget(request)

    def abandon(self, to: str) -> None:
        """Whoever asked is gone with its process: nobody reads what it asked for."""
        outlet = self._outlets.get(to)
        for request in tuple(outlet.requests) if outlet is not None else ():
            self.cancel(to, request)
        self._outlets.pop(to, None)

    def configure(self, snapshot: Snapshot) -> None:
        """Requests begin with this from now on; running ones keep theirs."""
        before, self._snapshot = self._snapshot, snapshot
        self._upstreams.change(snapshot.llm.providers)
        self._sendings.keep(snapshot.llm.providers)
        if _address(before.llm) != _address(snapshot.llm):
            self._warm()
        # Aside: closing connections may wait for their peers, and a Cancel behind this message must not.
        self._nursery.start_soon(self._clients.keep, snapshot.llm.providers)
        self._report()

    def cool(self) -> None:
        """Nothing more is to be kept warm; running requests go on."""
        self._warming.cancel()

    async def finish(self, within: float) -> None:
        """Let running requests end; those that do not in that many seconds fail, so that nobody waits for them."""
        with trio.move_on_after(within):
            while self._running:
                await self._ended.wait()
        for outlet in tuple(self._outlets.values()):
            for request in tuple(outlet.requests):
                outlet.requests.pop(request).cancel()
                body = Fault(Code.LLM_STREAM_BROKEN, "The part that talks to the model was stopped.").body
                outlet.pieces.append(Failed(request, body))
                outlet.push()

    def _warm(self) -> None:
        """The next request shall find a connection to the active provider."""
        self._warming.cancel()
        self._warming = trio.CancelScope()
        llm = self._snapshot.llm
        if (active := llm.providers.get(llm.active)) is not None:
            self._nursery.start_soon(self._keep_warm, active, self._warming)

    async def _keep_warm(self, provider: Provider, scope: trio.CancelScope) -> None:
        with scope:
            try:
                prepare(provider)  # who lacks its key is not asked anything
                await self._clients.warm(provider)
            except Complaint as complaint:
                log.debug("%s is not warmed: %s", provider.name, complaint.what)

    async def list_models(self, message: ListModels, box: Mailbox[StreamerMessage], reply: Reply | None) -> None:
        """Answer what a provider offers."""
        box.settle(reply, await self._models.answer(message, self._snapshot.llm))

    async def _answer(self, asking: Asking) -> None:
        """Until its answer flows, and again from where it does not any more, to its end."""
        out: Finished | Failed | None = None
        try:
            with asking.scope:
                try:
                    out = await asking.answer()
                except Fault as fault:
                    out = Failed(asking.number, fault.body)
        finally:
            if asking.flows:
                asking.rest()
            else:
                self._end(asking, out)

    def _end(self, asking: Asking, out: Finished | Failed | None) -> None:
        outlet = asking.outlet
        self._running -= 1
        self._ended.set()
        self._ended = trio.Event()
        # Cancelled from outside (or superseded): it is no longer registered, and nothing more is said.
        if outlet.requests.get(asking.number) is asking:
            del outlet.requests[asking.number]
            if out is not None and not asking.scope.cancel_called:
                outlet.pieces.append(out)
        outlet.push()
        self._count(asking, out)

    def _count(self, asking: Asking, out: Finished | Failed | None) -> None:
        if isinstance(out, Finished):
            self._done += 1
        elif out is not None:
            self._failed += 1
            log.warning(
                "request of conversation %s failed: %s: %s",
                asking.conversation,
                out.fault.code,
                out.fault.text,
                extra={"conversation": asking.conversation},
            )
            self._ctx.report(last_error=f"{out.fault.code}: {out.fault.text}")

    def _facts(self) -> dict[str, int]:
        return {
            "configured": self._snapshot.version,
            "running": self._running,
            "done": self._done,
            "failed": self._failed,
            "providers": len(self._snapshot.llm.providers),
            "clients": len(self._clients),
        }

    def _report(self) -> None:
        self._ctx.report(waiting=self._upstreams.waiting() or None, resting=self._upstreams.resting() or None)


def _address(llm: Llm) -> tuple[str, ClientOptions] | None:
    active = llm.providers.get(llm.active)
    return None if active is None else (active.base_url, active.client)

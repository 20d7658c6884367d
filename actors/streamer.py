"""The LLM streamer: one task per running request, one batch of pieces per tick and address.

Each request reads its provider's answer and appends what it means to the list of the address that asked;
one task per address takes the whole list whenever there is something and sends it as one message, so one
message carries the pieces of all running requests and batching needs no timer. A receiver that does not
take is felt here: past `MOST_WAITING` pieces the requests stop reading.

What fails in a request ends that request, with exactly one `Failed`; only a failure of this module's own
loop is the supervisor's. May assume that the watcher answers with a snapshot; waits for it at start.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Mapping

import trio

from actors.completion import Completion, request_body
from actors.provider import LOCAL, MAX_ERROR_BODY, Answer, Client, Clients, Sending, prepare
from actors.sse import MAX_EVENT, Decoder, EventTooLarge
from actors.verdict import Complaint, of_status
from protocol.errors import Code, Fault
from protocol.mail import Gone, Mailbox, Ref
from protocol.spec import Context
from protocol.streamer import Cancel, Complete, Failed, Finished, Piece, Pieces, StreamerMessage
from protocol.watcher import Configured, GetSnapshot, Provider, Snapshot, Subscribe

log = logging.getLogger(__name__)

SNAPSHOT_S = 10.0  # the watcher reads two small files; longer means that it is down, and we start anew
MOST_WAITING = 4096  # pieces that wait for one address; some seconds of text of hundreds of streams
BACKOFF_S = 0.5  # before the first further try; doubles, up to BACKOFF_CAP_S
BACKOFF_CAP_S = 8.0
RETRY_AFTER_CAP_S = 30.0  # a provider that wants longer will say so again; who waits at a screen does not
AFTER_FINISH_S = 5.0  # for usage and the end mark after the finish; some providers send neither
AFTER_END_S = 0.1  # for the body's own end after the end mark, so that the connection can be used again

_HEAD = 1024  # bytes at the beginning of a body that tell what it is, or are quoted if they do not
_NO_STREAM = (b"{", b"[", b"<")  # no field of an event stream begins so: one JSON object, or a page


async def run(box: Mailbox[StreamerMessage], ctx: Context) -> None:
    """The actor. `ctx.args` may hold `backoff_s`, the first delay between tries (default `BACKOFF_S`)."""
    watcher = ctx.ref("watcher")
    watcher.offer(Subscribe(to=ctx.path))
    snapshot: Snapshot = await watcher.ask(GetSnapshot(), within=SNAPSHOT_S, again=True)
    clients = Clients()
    try:
        async with trio.open_nursery() as nursery:
            streamer = Streamer(ctx, nursery, clients, snapshot)
            async for message in box:
                match message:
                    case Complete():
                        streamer.begin(message)
                    case Cancel(to, request):
                        streamer.cancel(to, request)
                    case Configured(newer):
                        streamer.configure(newer)
                    case _:
                        pass  # a nudge: nothing here waits for one
    finally:
        await clients.close()


class Outlet:
    """The pieces on their way to one address."""

    def __init__(self, ref: Ref[Pieces]) -> None:
        self.ref = ref
        self.pieces: list[Piece] = []
        self.requests: dict[int, trio.CancelScope] = {}
        self._sending: list[Piece] = []
        self._wake = trio.Event()
        self._room = trio.Event()

    def wake(self) -> None:
        """There is something to send, or nothing more to wait for."""
        self._wake.set()

    async def room(self) -> None:
        """Wait until fewer than MOST_WAITING pieces wait."""
        while len(self.pieces) >= MOST_WAITING:
            await self._room.wait()

    def forget(self, request: int) -> None:
        """Nothing more of that request leaves here."""
        # The batch in hand is only waiting for room in the receiver's mailbox: it is still ours.
        for pieces in (self.pieces, self._sending):
            pieces[:] = [piece for piece in pieces if piece.request != request]

    async def flush(self) -> None:
        """Send batches as long as there are requests or pieces."""
        while self.requests or self.pieces:
            await self._wake.wait()
            self._wake = trio.Event()
            self._sending, self.pieces = self.pieces, []
            self._room.set()
            self._room = trio.Event()
            if not self._sending:
                continue
            try:
                await self.ref.send(Pieces(self._sending))
            except Gone:
                if self.requests:
                    log.warning("nobody is at %s: its %d requests are cancelled", self.ref.path, len(self.requests))
                self.pieces.clear()
                for scope in self.requests.values():
                    scope.cancel()
            # A fresh list: the one that was sent is the receiver's now.
            self._sending = []


class Streamer:
    """The actor's state.

    Args:
        nursery: where requests and outlets run; outlives them.
        clients: of the providers; closed by the caller.
        snapshot: the configuration that requests begin with.
    """

    def __init__(self, ctx: Context, nursery: trio.Nursery, clients: Clients, snapshot: Snapshot) -> None:
        self._ctx = ctx
        self._nursery = nursery
        self._clients = clients
        self._snapshot = snapshot
        self._outlets: dict[str, Outlet] = {}
        self._backoff_s = float(ctx.args.get("backoff_s", BACKOFF_S))
        self._running = self._done = self._failed = 0
        self._report()

    def begin(self, request: Complete) -> None:
        """Start a request; one that runs under the same number is cancelled first."""
        self.cancel(request.to, request.request)
        outlet = self._outlets.get(request.to)
        if outlet is None:
            outlet = self._outlets[request.to] = Outlet(self._ctx.ref(request.to))
            # Registered before its task looks whether there is anything to wait for.
            outlet.requests[request.request] = scope = trio.CancelScope()
            self._nursery.start_soon(self._serve, outlet, name=f"outlet {request.to}")
        else:
            outlet.requests[request.request] = scope = trio.CancelScope()
        self._nursery.start_soon(
            self._complete, request, self._snapshot, outlet, scope, name=f"request {request.request}"
        )

    def cancel(self, to: str, request: int) -> None:
        """End a request without a word; ignored if it does not run."""
        outlet = self._outlets.get(to)
        scope = outlet.requests.pop(request, None) if outlet is not None else None
        if outlet is not None and scope is not None:
            scope.cancel()
            outlet.forget(request)
            outlet.wake()

    def configure(self, snapshot: Snapshot) -> None:
        """Requests begin with this from now on; running ones keep theirs."""
        self._snapshot = snapshot
        # Aside: closing connections may wait for their peers, and a Cancel behind this message must not.
        self._nursery.start_soon(self._clients.keep, snapshot.llm.providers)
        self._report()

    async def _serve(self, outlet: Outlet) -> None:
        await outlet.flush()
        if self._outlets.get(outlet.ref.path) is outlet:
            del self._outlets[outlet.ref.path]

    async def _complete(self, request: Complete, snapshot: Snapshot, outlet: Outlet, scope: trio.CancelScope) -> None:
        self._running += 1
        self._report()
        out: Finished | Failed | None = None
        try:
            with scope:
                name = request.provider or snapshot.llm.active
                try:
                    out = await self._attempts(request, _provider(name, snapshot.llm.providers), outlet)
                except Fault as fault:
                    out = Failed(request.request, fault.body)
        finally:
            self._running -= 1
            # Cancelled from outside (or superseded): it is no longer registered, and nothing more is said.
            if outlet.requests.get(request.request) is scope:
                del outlet.requests[request.request]
                if out is not None and not scope.cancel_called:
                    outlet.pieces.append(out)
            outlet.wake()
            self._count(request, out)

    def _count(self, request: Complete, out: Finished | Failed | None) -> None:
        if isinstance(out, Finished):
            self._done += 1
        elif out is not None:
            self._failed += 1
            log.warning(
                "request of conversation %s failed: %s: %s",
                request.conversation,
                out.fault.code,
                out.fault.text,
                extra={"conversation": request.conversation},
            )
            self._ctx.report(last_error=f"{out.fault.code}: {out.fault.text}")
        self._report()

    async def _attempts(self, request: Complete, provider: Provider, outlet: Outlet) -> Finished:
        """The answer's end; its pieces go to the outlet. Raises Fault."""
        sending = Sending({}, [])
        total_s = provider.client.total_timeout
        completion = Completion(request.request, request.model or provider.model, provider.name)
        try:
            sending = prepare(provider)
            # All tries and the waits between them: who asked waits for the whole.
            with trio.move_on_after(float("inf") if total_s is None else total_s):
                async with self._clients.using(provider) as client:
                    self._report()
                    for further in range(max(0, provider.client.retries), -1, -1):
                        completion = Completion(request.request, request.model or provider.model, provider.name)
                        log.debug("%s: request %d is sent, %d further tries", provider.name, request.request, further)
                        try:
                            return await _attempt(client, request, provider, sending, completion, outlet)
                        except Complaint as complaint:
                            if not (complaint.retry and further) or completion.shown:
                                raise
                            delay = self._delay(complaint, provider.client.retries - further)
                            log.info("%s: %s; trying again in %.1f s", provider.name, complaint.what, delay)
                            await trio.sleep(delay)
            if completion.complete:
                return completion.finish()  # only its usage or end mark was still waited for
            raise Complaint(
                Code.LLM_STREAM_BROKEN if completion.shown else Code.LLM_UNAVAILABLE,
                f"the whole answer took longer than {total_s:g} s",
                hint="Ask for less, or raise the provider's client.total_timeout.",
            )
        except Complaint as complaint:
            raise complaint.fault(provider.name, sending.redact) from None
        except EventTooLarge:
            raise Fault(
                Code.LLM_STREAM_BROKEN, f"{provider.name}: one event of the answer is larger than {MAX_EVENT} bytes."
            ) from None
        except Exception as error:  # noqa: BLE001  # a boundary, see below; a cancellation passes through it
            # The boundary between one request and all others: whatever a stranger's answer provokes ends here.
            # The traceback may quote what was sent, so it is redacted like any other text.
            log.error("request crashed:\n%s", sending.redact("".join(traceback.format_exception(error))))  # noqa: TRY400
            raise Fault(Code.INTERNAL) from None

    def _delay(self, complaint: Complaint, tries: int) -> float:
        if complaint.after_s is not None:
            return min(complaint.after_s, RETRY_AFTER_CAP_S)
        # Jitter, so that the requests that failed together do not come back together.
        most = min(self._backoff_s * 2.0**tries, BACKOFF_CAP_S)
        return most * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing

    def _report(self) -> None:
        self._ctx.report(
            running=self._running,
            done=self._done,
            failed=self._failed,
            providers=len(self._snapshot.llm.providers),
            clients=len(self._clients),
        )


def _provider(name: str, providers: Mapping[str, Provider]) -> Provider:
    if not providers:
        raise Fault(Code.LLM_NOT_CONFIGURED)
    if name not in providers:
        raise Fault(
            Code.LLM_NOT_CONFIGURED,
            f"The configuration has no provider {name!r}.",
            hint=f"Set llm.active to one of: {', '.join(sorted(providers))}; {LOCAL}",
        )
    return providers[name]


async def _attempt(
    client: Client, request: Complete, provider: Provider, sending: Sending, completion: Completion, outlet: Outlet
) -> Finished:
    """One try. Raises Complaint, EventTooLarge."""
    options = provider.client
    with trio.CancelScope(deadline=trio.current_time() + options.first_token_timeout) as silence:
        async with client.ask(request_body(request, provider), sending) as answer:
            if not 200 <= answer.status < 300:
                raise of_status(answer.status, await answer.read(MAX_ERROR_BODY), answer.retry_after_s)
            if answer.content_type == "text/html":
                raise _page(await answer.read(MAX_ERROR_BODY))
            await _read(answer, completion, outlet, silence, options.idle_timeout)
    if silence.cancelled_caught and not completion.complete:
        if completion.events:
            raise Complaint(
                Code.LLM_STREAM_BROKEN, f"nothing came for {options.idle_timeout:g} s, the answer broke off"
            )
        raise Complaint(Code.LLM_UNAVAILABLE, f"no answer within {options.first_token_timeout:g} s")
    return completion.finish()


async def _read(
    answer: Answer, completion: Completion, outlet: Outlet, silence: trio.CancelScope, idle_s: float
) -> None:
    """Read the body to its end, or to where the answer is complete. Raises Complaint, EventTooLarge."""
    decoder = Decoder()
    deadline = silence.deadline  # until the first event it stays: comments alone are no answer
    head = b""
    while True:
        try:
            chunk = await answer.read_some()
        except Complaint:
            if completion.complete:
                return  # the answer was whole before the connection broke
            raise
        if not chunk:
            break
        if not completion.events and len(head) < _HEAD:
            head += chunk[:_HEAD]
            if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in _NO_STREAM:
                await _read_whole(answer, chunk, completion, outlet, silence, idle_s)
                return
        for event in decoder.feed(chunk):
            completion.take(event, outlet.pieces)
        if outlet.pieces:
            outlet.wake()
            if len(outlet.pieces) >= MOST_WAITING:
                silence.deadline = float("inf")  # it is we who do not read
                await outlet.room()
        if completion.complete:
            deadline = trio.current_time() + (AFTER_END_S if completion.ended else AFTER_FINISH_S)
        elif completion.events:
            deadline = trio.current_time() + idle_s
        silence.deadline = deadline
    for event in decoder.close():
        completion.take(event, outlet.pieces)
    if not completion.events and head:
        raise Complaint(Code.LLM_STREAM_BROKEN, "the answer is no event stream", head.decode("utf-8", "replace"))


async def _read_whole(
    answer: Answer, body: bytes, completion: Completion, outlet: Outlet, silence: trio.CancelScope, idle_s: float
) -> None:
    """The body is no stream: asked for with `stream: false`, or an error, or a page. Raises as `_read`."""
    parts, size = [body], len(body)
    while body and size <= MAX_EVENT:
        silence.deadline = trio.current_time() + idle_s
        body = await answer.read_some()
        parts.append(body)
        size += len(body)
    if size > MAX_EVENT:
        raise EventTooLarge
    whole = b"".join(parts)
    if whole.lstrip()[:1] == b"<":
        raise _page(whole[:MAX_ERROR_BODY])
    completion.take_whole(whole, outlet.pieces)
    outlet.wake()


def _page(body: bytes) -> Complaint:
    return Complaint(
        Code.LLM_UNAVAILABLE,
        "a web page came instead of an answer",
        body.decode("utf-8", "replace"),
        hint="Check the provider's base_url, and whether a proxy or login page is in the way.",
    )

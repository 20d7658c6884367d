"""The watcher: reads the configuration files, notices their edits, writes them, tells everyone what is in force.

A fragile leaf: while it is down everybody runs on with the last snapshot. What a restart of it must not lose
(subscribers, the snapshot, which state of the files was read, the socket for other processes) is kept by its slot.
The first reading is made before it is ready; later readings and all saves in a thread, one at a time, so that a
large file delays no stream. It is the only writer of the runtime file while the service runs.

A mistake in a file never fails it; wrong command-line overrides park it, since no restart can help there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from actors import config_http
from actors.config_access import Access, opened
from actors.configuration import Configuration, ConfigurationError, part
from actors.files import Changed, Mark
from actors.provider_key import missing_key
from actors.runtime_file import reason
from actors.snapshot import with_local_model, with_model_loading
from protocol.errors import Code, Fault
from protocol.mail import Mailbox, Nudge, Reply
from protocol.spec import Context, KeepContext, Parked
from protocol.watcher import (
    Configured,
    ConfigView,
    GetConfig,
    GetSnapshot,
    ListVersions,
    Rollback,
    SetConfig,
    SetLocalModel,
    Snapshot,
    Subscribe,
    WatcherMessage,
)

POLL_S = 0.25  # with SETTLED_S well inside the second that an edit may take to count
SETTLED_S = 0.1  # a file that an editor still writes changes within that
LONGEST_PAUSE_S = 30.0  # between offers to a subscriber that takes none
WRITE_S = 15.0  # for the file to settle before a save; who asks waits longer

log = logging.getLogger(__name__)


class Kept:
    """What outlives incarnations of the watcher.

    Args:
        state_dir: the state directory.
        overrides: what the command line says; in memory only.
        said: what was said of the files before there was a watcher.
        environment: what is wrong with the `.env` files, which are read at the start only.
        access: the door for other processes; None: it could not be opened.
        renamed: told the path of the WebSocket whenever it is another one.
    """

    def __init__(
        self,
        state_dir: str,
        overrides: Mapping[str, Any],
        said: Iterable[str],
        environment: Iterable[str],
        access: Access | None,
        renamed: Callable[[str], object],
        ctx: KeepContext,
    ) -> None:
        self.configuration = Configuration(state_dir, said)
        self._environment = tuple(environment)
        self.access = access
        self.seen: tuple[Mark | None, ...] = ()
        """Marks of the files when they were last read."""
        self.ours: tuple[Mark | None, ...] = ()
        """Marks of the files after the last save; an edit within the same tick of the clock has the same ones."""
        self.writing = trio.Lock()
        """Held by whoever reads or writes the files in a thread."""
        self.snapshot: Snapshot | None = None
        """What is in force; None before the first reading."""
        self.view = ConfigView(0, {})
        """What is in force, as the files say it."""
        self._renamed = renamed
        self._overrides = overrides
        self._ctx = ctx
        self._started: Snapshot | None = None
        """What the files said first."""
        self._files: Snapshot | None = None
        """What the files say, without the local model."""
        self._local = SetLocalModel(None, expected=True)
        """What is known of the model on this machine: at first that its actor will say something soon."""
        self._unanswered = ""
        """What was logged of the key that is missing."""
        self._subscribers: set[str] = set()
        self._owed: dict[str, tuple[float, float]] = {}
        """Subscribers that did not take the last snapshot: when to offer again, and the pause after that."""

    def read(self) -> Snapshot:
        """Read the files, in any thread, one at a time. Raises ConfigurationError for wrong overrides."""
        return self.configuration.snapshot(self._overrides)

    def say(self, files: Snapshot) -> None:
        """The files say this now: it comes into force, and all are told if anything changed."""
        door = str(self.access.tool_file) if self.access else ""
        self._started = self._started or files
        later = [
            f"{key}: is changed; this counts when the service is started again"
            for key, now, then in (
                ("chat.storage.type", files.storage.type, self._started.storage.type),
                ("chat.storage.persistence.db_path", files.storage.db_path, self._started.storage.db_path),
            )
            if now != then
        ]
        problems = [*files.problems, *later, *self._environment]
        self._files = msgspec.structs.replace(files, config_access=door, problems=problems)
        self.view = self.configuration.view()
        self._refresh()

    async def look(self) -> None:
        """Read the files if they changed, once they stay as they are; `writing` is held."""
        marks = self.configuration.marks()
        if marks == self.seen:
            return
        settled = None
        while marks != settled:
            settled = marks
            await trio.sleep(SETTLED_S)
            marks = self.configuration.marks()
        # Noted before the reading: what is edited during it is one more change.
        self.seen = marks
        try:
            self.say(await trio.to_thread.run_sync(self.read))
        except ConfigurationError as error:
            self.complain(error.problems)

    async def write(self, asked: SetConfig | Rollback) -> ConfigView:
        """Save what somebody asked for; an edit that comes in between is read first. Raises Fault."""
        async with self.writing:
            with trio.move_on_after(WRITE_S):
                while True:
                    if self.configuration.marks() != self.ours:
                        await self.look()
                    try:
                        self.say(await trio.to_thread.run_sync(self._save, asked))
                    except Changed:
                        if self.ours == () and self.configuration.marks() == self.seen:
                            break  # nobody edits it: it cannot come into force as it is
                        self.ours = ()
                        continue
                    self.ours = self.configuration.marks()
                    return self.view
        raise Fault(Code.CONFIG_CONFLICT, "the runtime file is being edited, or not in force; see `actors-main status`")

    def _save(self, asked: SetConfig | Rollback) -> Snapshot:
        try:
            return self.configuration.change(asked, self._overrides)
        except ConfigurationError as error:
            raise Fault(Code.CONFIG_INVALID, "\n".join(error.problems)) from None
        except OSError as error:
            hint = "Nothing was changed; make the state directory writable."
            raise Fault(Code.INTERNAL, f"the runtime file cannot be written ({reason(error)})", hint=hint) from error

    def complain(self, problems: tuple[str, ...]) -> None:
        """The files fit no more to the overrides: nothing changes but the problems."""
        if self._files is not None:
            self.say(msgspec.structs.replace(self._files, problems=list(problems)))

    def set_local(self, message: SetLocalModel) -> None:
        """The model on this machine came up or went down."""
        self._local = message
        self._refresh()

    def subscribe(self, path: str) -> None:
        """Tell that address now, and on every change."""
        self._subscribers.add(path)
        self._offer(path)

    def offer_owed(self) -> None:
        """Offer again to those that could not take it, ever more seldom."""
        now = trio.current_time()
        for path, (due, pause) in list(self._owed.items()):
            if due <= now:
                self._offer(path, pause)

    def _refresh(self) -> None:
        if self._files is None:
            return
        new = self._files
        if self._local.base_url:
            new = with_local_model(new, self._local.base_url, self._local.model, os.environ)
        elif self._local.expected:
            new = with_model_loading(new, os.environ)
        old = self.snapshot
        if old is not None and _content(new) == _content(old):
            return
        for line in new.problems:
            if old is None or line not in old.problems:
                log.warning("%s", line)
        self._say_who_answers(self._files, new)
        if old is not None and new.version > old.version:
            last = self.configuration.runtime.newest
            by, changed = (last.author, ", ".join(last.changed)) if last else ("", "")
            log.info("configuration version %d is in force (%s: %s)", new.version, by, changed)
        if old is not None and new.websocket.endpoint != old.websocket.endpoint:
            self._renamed(new.websocket.endpoint)
        self.snapshot = new
        self._report(new)
        for path in sorted(self._subscribers):
            self._offer(path)

    def _say_who_answers(self, files: Snapshot, new: Snapshot) -> None:
        """Tell once that the provider has no key, as soon as it is known whether a model on this machine steps in."""
        missing = missing_key(files)
        if new.llm.loading or missing == self._unanswered:
            return
        self._unanswered = missing
        if missing:
            stands_in = new.llm.active != files.llm.active
            log.warning("%s%s", missing, "; until then the small model on this machine answers" if stands_in else "")

    def _offer(self, path: str, pause: float = POLL_S) -> None:
        if self.snapshot is None or self._ctx.ref(path).offer(Configured(self.snapshot)):
            self._owed.pop(path, None)
        else:
            self._owed[path] = (trio.current_time() + pause, min(pause * 2, LONGEST_PAUSE_S))

    def _report(self, snapshot: Snapshot) -> None:
        runtime, servers = self.configuration.watched
        self._ctx.report(
            version=snapshot.version,
            provider=snapshot.llm.active,
            problems=len(snapshot.problems),
            problem=snapshot.problems[0] if snapshot.problems else None,
            runtime_file=str(runtime),
            servers_file=str(servers),
        )


def _content(snapshot: Snapshot) -> bytes:
    # As bytes: 1, 1.0 and true are equal as values, and not to a model.
    return msgspec.msgpack.encode(snapshot)


@asynccontextmanager
async def keep(ctx: KeepContext) -> AsyncIterator[Kept]:
    """What the watcher's slot keeps.

    Args (of the child): `state_dir`: str; `overrides`: nested dict merged over the files, in memory only;
    `said`: `Configuration.said` of whoever read the files before the tree was started, so that status shows it;
    `environment`: what that one was told of the `.env` files; `renamed`: see `Kept`.
    """
    state_dir = str(ctx.args["state_dir"])
    async with AsyncExitStack() as stack:
        access, said = None, list(ctx.args.get("said", ()))
        try:
            access = await stack.enter_async_context(opened(_made(state_dir)))
        except OSError as error:
            log.warning("other processes cannot change the configuration: no socket (%s)", reason(error))
        overrides, environment = ctx.args.get("overrides", {}), ctx.args.get("environment", ())
        yield Kept(state_dir, overrides, said, environment, access, ctx.args.get("renamed", _nobody), ctx)


def _nobody(_: str) -> None:
    """Whoever runs it publishes no address."""


def _made(state_dir: str) -> Path:
    Path(state_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(state_dir).resolve()


async def run(box: Mailbox[WatcherMessage], ctx: Context) -> None:
    """The actor; see `keep` for its arguments. Raises Parked when the overrides are wrong."""
    kept: Kept = ctx.kept
    if kept.snapshot is None:
        kept.seen = kept.configuration.marks()
        try:
            kept.say(kept.read())
        except ConfigurationError as error:
            raise Parked("; ".join(error.problems)) from None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow, kept)
        if kept.access is not None:
            nursery.start_soon(config_http.serve, kept.access, ctx.ref(ctx.path), ctx.ref("reporter"))
        async for message in box:
            match message:
                case GetSnapshot():
                    box.reply(kept.snapshot)
                case Subscribe(to=to):
                    kept.subscribe(to)
                case SetLocalModel():
                    kept.set_local(message)
                case GetConfig(path=path):
                    try:
                        box.reply(part(kept.view, path))
                    except Fault as fault:  # no such path
                        box.fault(fault)
                case SetConfig() | Rollback():
                    nursery.start_soon(_write, kept, message, box.reply_slot)
                case ListVersions(limit=limit):
                    nursery.start_soon(_rows, kept, limit, box.reply_slot)
                case Nudge():
                    pass  # nobody has a reason to; the files are looked at anyway
        nursery.cancel_scope.cancel()


async def _write(kept: Kept, asked: SetConfig | Rollback, reply: Reply | None) -> None:
    try:
        view = await kept.write(asked)
    except Fault as fault:
        if reply is not None:
            reply.fault(fault)
    else:
        if reply is not None:
            reply.answer(view)


async def _rows(kept: Kept, limit: int, reply: Reply | None) -> None:
    rows = await trio.to_thread.run_sync(kept.configuration.runtime.history.rows, limit)
    if reply is not None:
        reply.answer(rows)


async def _follow(kept: Kept) -> None:
    """Look at the files for ever."""
    while True:
        await trio.sleep(POLL_S)
        kept.offer_owed()
        async with kept.writing:
            await kept.look()

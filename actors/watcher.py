"""The watcher: reads the configuration files, notices their edits, tells everyone what is in force.

A fragile leaf: while it is down everybody runs on with the last snapshot. What a restart of it must not lose
(subscribers, the snapshot, its version, which state of the files was read) is kept by its slot. The first
reading is made before it is ready; later ones in a thread, so that a large file delays no stream.

A mistake in a file never fails it; wrong command-line overrides park it, since no restart can help there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from actors.configuration import Configuration, ConfigurationError
from actors.files import Mark
from actors.snapshot import with_local_model
from protocol.mail import Mailbox, Nudge
from protocol.spec import Context, KeepContext, Parked
from protocol.watcher import Configured, GetSnapshot, SetLocalModel, Snapshot, Subscribe, WatcherMessage

POLL_S = 0.25  # with SETTLED_S well inside the second that an edit may take to count
SETTLED_S = 0.1  # a file that an editor still writes changes within that
LONGEST_PAUSE_S = 30.0  # between offers to a subscriber that takes none

log = logging.getLogger(__name__)


class Kept:
    """What outlives incarnations of the watcher.

    Args:
        state_dir: the state directory.
        overrides: what the command line says; in memory only.
        said: what was said of the files before there was a watcher.
    """

    def __init__(self, state_dir: str, overrides: Mapping[str, Any], said: Iterable[str], ctx: KeepContext) -> None:
        self.configuration = Configuration(state_dir, said)
        self.seen: tuple[Mark | None, ...] = ()
        """Marks of the files when they were last read."""
        self.snapshot: Snapshot | None = None
        """What is in force; None before the first reading."""
        self._overrides = overrides
        self._ctx = ctx
        self._files: Snapshot | None = None
        """What the files say, without the local model."""
        self._local: SetLocalModel | None = None
        self._subscribers: set[str] = set()
        self._owed: dict[str, tuple[float, float]] = {}
        """Subscribers that did not take the last snapshot: when to offer again, and the pause after that."""

    def read(self) -> Snapshot:
        """Read the files, in any thread, one at a time. Raises ConfigurationError for wrong overrides."""
        return self.configuration.snapshot(self._overrides)

    def say(self, files: Snapshot) -> None:
        """The files say this now: it comes into force, and all are told if anything changed."""
        self._files = files
        self._refresh()

    def complain(self, problems: tuple[str, ...]) -> None:
        """The files fit no more to the overrides: nothing changes but the problems."""
        if self._files is not None:
            self.say(msgspec.structs.replace(self._files, problems=list(problems)))

    def set_local(self, message: SetLocalModel) -> None:
        """The model on this machine came up or went down."""
        self._local = message if message.base_url else None
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
        if self._local is not None and self._local.base_url:
            new = with_local_model(new, self._local.base_url, self._local.model, os.environ)
        old = self.snapshot
        if old is not None:
            changed = _content(new) != _content(old)
            new = msgspec.structs.replace(new, version=old.version + changed)
            if not changed and new.problems == old.problems:
                return
        for line in new.problems:
            if old is None or line not in old.problems:
                log.warning("%s", line)
        if old is not None and new.version > old.version:
            log.info("configuration version %d is in force", new.version)
        self.snapshot = new
        self._report(new)
        for path in sorted(self._subscribers):
            self._offer(path)

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
    return msgspec.msgpack.encode(msgspec.structs.replace(snapshot, version=0, problems=[]))


@asynccontextmanager
async def keep(ctx: KeepContext) -> AsyncIterator[Kept]:
    """What the watcher's slot keeps.

    Args (of the child): `state_dir`: str; `overrides`: nested dict merged over the files, in memory only;
    `said`: `Configuration.said` of whoever read the files before the tree was started, so that status shows it.
    """
    yield Kept(str(ctx.args["state_dir"]), ctx.args.get("overrides", {}), ctx.args.get("said", ()), ctx)


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
        async for message in box:
            match message:
                case GetSnapshot():
                    box.reply(kept.snapshot)
                case Subscribe(to=to):
                    kept.subscribe(to)
                case SetLocalModel():
                    kept.set_local(message)
                case Nudge():
                    pass  # nobody has a reason to; the files are looked at anyway
        nursery.cancel_scope.cancel()


async def _follow(kept: Kept) -> None:
    """Look at the files for ever, and read them when they changed and then stayed as they are."""
    while True:
        await trio.sleep(POLL_S)
        kept.offer_owed()
        marks = kept.configuration.marks()
        if marks == kept.seen:
            continue
        settled = None
        while marks != settled:
            settled = marks
            await trio.sleep(SETTLED_S)
            marks = kept.configuration.marks()
        # Noted before the reading: what is edited during it is one more change.
        kept.seen = marks
        try:
            kept.say(await trio.to_thread.run_sync(kept.read))
        except ConfigurationError as error:
            kept.complain(error.problems)

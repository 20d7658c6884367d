"""The runtime file as its one writer sees it: what is in force, saved changes, versions.

All that is written goes through here: by the watcher while the service runs, else by a script, which holds the
lock in the state directory meanwhile. Every save reads the file again first and puts its text in place only
if nobody edited it in between (`Changed`), so no edit is lost; what an editor wrote is a version as well.

Fails with `ConfigurationError` for what is not valid, with `Fault` (CONFIG_CONFLICT, NOT_FOUND), with `Changed`
where the caller should look again, and with OSError. After any of these nothing is changed.
"""

from __future__ import annotations

import copy
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors import files
from actors.adoption import adopt
from actors.checks import GIVEN, METADATA, Checked, check, refusals
from actors.files import Changed, Unreadable
from actors.layers import ConfigurationError, Layer, dump, parse
from actors.permission import refused
from actors.redaction import redacted
from actors.reference import defaults
from actors.trees import Tree, deep_merge, difference, same
from actors.trees import changes as differences
from actors.versions import KEPT, History, Version, made
from protocol.errors import Code, Fault

RUNTIME = "runtime_config.yaml"
LOCK = ".runtime_config.lock"
LOCK_S = 10.0  # another process saves in milliseconds
TOOL = "tool"  # the author whose changes are limited

HEADER = f"""\
# Runtime configuration: only what you want different from the defaults, merged over them key by key.
# Saved edits come into force while the service runs; a mistake changes nothing and is shown by
# `actors-main status`. For example:
#
#   chat:
#     websocket:
#       port: 8080
#   llm:
#     providers:
#       openrouter:
#         model: "openai/gpt-4o"
#         top_p: null          # below llm.providers, null takes a default away
#
# Keys of providers belong into the environment or .env (OPENROUTER_API_KEY=...), not in here.
# What saving changes is {METADATA}, and comments other than these are lost.
"""
EMPTY = Layer(RUNTIME, {})

log = logging.getLogger(__name__)


class RuntimeFile:
    """The runtime file of one state directory. Not for several threads at a time.

    Args:
        state_dir: absolute.
    """

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir
        self.path = state_dir / RUNTIME
        self.history = History(state_dir)
        self.in_force: Layer | None = None
        """What came into force last; None: nothing was read yet."""
        self.tree: Tree = {}
        """Defaults and `in_force` merged, without secrets and metadata."""
        self.newest: Version | None = None
        """The version in force, as far as this object knows."""
        self.unkept = ""
        """Why the last version could not be kept in the history; empty: it is there."""
        self._parsed: Layer | None = None
        """What was read last: a start reads the same text twice, and to parse it takes longer than all else."""

    @property
    def version(self) -> int:
        """The number of the version in force; 0: nothing was read yet."""
        return self.newest.version if self.newest else 0

    def read(self, name: str = RUNTIME) -> Layer | None:
        """What the file says now; None when there is none. Raises ConfigurationError."""
        try:
            text = files.read(self.folder / name)
        except FileNotFoundError:
            return None
        except (OSError, Unreadable) as error:
            raise ConfigurationError([f"{name}: {reason(error)}"]) from None
        if self._parsed is None or (self._parsed.name, self._parsed.text) != (name, text):
            self._parsed = parse(text, name)
        return self._parsed

    def take(self, layer: Layer, checked: Checked, author: str = "file") -> None:
        """`layer` is in force from now on; if that is a change, it is a version of that author.

        Args:
            checked: of the defaults and `layer`.
        """
        with self._locked_if_possible():
            self._take(layer, checked.tree, author)

    def see(self, layer: Layer, checked: Checked) -> None:
        """As `take`, for who only reads: nothing is written, so it is no version yet."""
        if self.in_force is None or self.in_force.text != layer.text:
            self.newest = None
        self.in_force, self.tree = layer, redacted(checked.tree)

    def number(self) -> int:
        """The version of what was seen; one more than the last where no one has taken it yet."""
        if self.newest is not None or self.in_force is None:
            return self.version
        newest = self.history.newest()
        if newest is None:
            return _first(self.in_force)
        return newest.version + (not same(newest.over, canonical(self.tree)))

    def change(
        self, changes: Mapping[str, Any], *, base_version: int | None, author: str, above: Layer, settled: bool
    ) -> None:
        """Merge `changes` over the file, and take it.

        Keys that are not in `changes` stay as they are; null below `llm.providers` removes a key.
        Args:
            above: what the command line says; the outcome must fit to it.
            settled: the file was read once it had settled; Changed if it is another one now. Else what it says
                now is taken first.
        Raises: see the module.
        """
        said = _written(Layer(GIVEN, copy.deepcopy(dict(changes))))
        with self._locked():
            now = self._now(settled)
            self._must_be(base_version)
            text = now.text if now else None
            base = _written(now or self.in_force or EMPTY)
            if author == TOOL and (keys := refused(said.data, self.tree)):
                raise Fault(Code.FORBIDDEN, f"a model's tool may not change {', '.join(keys)}")
            if lines := refusals(said, self.tree):
                raise ConfigurationError(lines)
            check([defaults(), base, said, above])
            wanted = deep_merge(deep_merge(defaults().data, base.data), said.data)
            self._put(canonical(wanted), text, author)

    def rollback(self, version: int, *, author: str, above: Layer, settled: bool) -> None:
        """Make the content of an old version (0: the defaults) a new one, and take it.

        A file that is broken, or set back to the defaults, is kept under another name. Raises: as `change`.
        """
        with self._locked():
            try:
                now = self._now(settled)
                text, broken = now.text if now else None, False
            except ConfigurationError:
                text, broken = None, True
            old = self.history.get(version) if version else None
            if version and old is None:
                raise Fault(
                    Code.NOT_FOUND,
                    f"version {version} of the configuration is not kept",
                    hint=f"The last {KEPT} are; see the history.",
                )
            over = old.over if old else {}
            check([defaults(), Layer(f"version {version}", over), above])
            why = "broken" if broken else "" if version else "before-reset"
            self._put(over, text, author, aside=why)

    def _now(self, settled: bool) -> Layer | None:
        """The file as it is now, known to be in force. Raises ConfigurationError, Changed."""
        now = self.read()
        known = self.newest is not None and self.in_force is not None
        if known and (now is None or (self.in_force is not None and now.text == self.in_force.text)):
            return now
        checked = check([defaults(), now or EMPTY])
        if settled:
            raise Changed
        self._take(now or EMPTY, checked.tree, "file")
        return now

    def _must_be(self, base_version: int | None) -> None:
        if base_version is not None and base_version != self.version:
            raise Fault(
                Code.CONFIG_CONFLICT,
                f"version {base_version} of the configuration was given, {self.version} is in force",
            )

    def _put(self, over: Tree, expected: str | None, author: str, aside: str = "") -> None:
        """Write a new version, unless the file says that already.

        Args:
            expected: the text of the file; None: there is no file, or it is broken.
            aside: keep the file that is there, under a name with this word.
        """
        checked = check([defaults(), Layer(RUNTIME, over)])
        changes = not same(canonical(redacted(checked.tree)), self._over)
        if expected is not None and not changes:
            return
        before = self.in_force.data.get(METADATA) if self.in_force else None
        text = content(over, metadata(before, self.version + changes))
        if len(text.encode()) > files.MOST_BYTES:
            raise ConfigurationError([f"{GIVEN}: is larger than {files.MOST_BYTES // 1024} KiB"])
        layer = parse(text, RUNTIME)
        files.exchange(self.path, text, expected, aside=self.aside_name(aside) if aside else None)
        self._take(layer, checked.tree, author)

    def aside_name(self, why: str) -> Path:
        """Another name for the file that is there."""
        target = files.real(self.path)
        return target.with_name(f"{RUNTIME}.{why}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")

    @property
    def _over(self) -> Tree:
        return self.newest.over if self.newest else {}

    def _take(self, layer: Layer, tree: Tree, author: str) -> None:
        tree = redacted(tree)
        over = canonical(tree)
        newest = self.newest
        if newest is None or not same(newest.over, over):
            kept = self.history.newest()  # another process may have saved
            if kept is not None and (newest is None or kept.version > newest.version):
                newest = kept
        if newest is None:
            newest = self._keep(made(_first(layer), author, _keys(defaults().data, tree), over))
        elif not same(newest.over, over):
            changed = _keys(deep_merge(defaults().data, newest.over), tree)
            newest = self._keep(made(newest.version + 1, author, changed, over))
        self.in_force, self.tree, self.newest = layer, tree, newest

    def _keep(self, new: Version) -> Version:
        try:
            self.history.add(new)
            self.unkept = ""
        except OSError as error:
            self.unkept = reason(error)
        return new

    @contextmanager
    def _locked_if_possible(self) -> Iterator[None]:
        with ExitStack() as held:
            with suppress(OSError):  # a directory that cannot be written has no other writer
                held.enter_context(self._locked())
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the state directory's lock. Raises TimeoutError, OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise TimeoutError(f"another process holds {self.folder / LOCK}") from None
                    time.sleep(0.01)  # flock with a bound exists only as asking again
            yield
        finally:
            os.close(fd)


def canonical(tree: Tree) -> Tree:
    """What a merged configuration has different from the defaults."""
    return difference(defaults().data, tree)


def content(over: Tree, meta: Tree) -> str:
    """The text of a runtime file. Raises ConfigurationError for values that no file can hold."""
    return f"{HEADER}\n{dump({**over, METADATA: meta})}"


def metadata(before: object, version: int) -> Tree:
    """The metadata of a save that follows one with `before`."""
    known = before if isinstance(before, dict) else {}
    return {
        **known,
        "last_modified": time.time(),
        "version": version,
        "is_runtime_config": True,
        "default_config_path": "defaults.yaml",
        "created_from_defaults": known.get("created_from_defaults", True),
    }


def reason(error: Exception) -> str:
    """Why a file could not be read or written, in words."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _written(layer: Layer) -> Layer:
    """The layer with everything in its place here, without metadata."""
    layer = adopt(layer)
    return replace(layer, data={key: value for key, value in layer.data.items() if key != METADATA})


def _keys(before: Tree, after: Tree) -> list[str]:
    return [key for key, _, _ in differences(before, after)]


def _first(layer: Layer) -> int:
    """The number of the first version that the history has: the file's own, where it says one."""
    meta = layer.data.get(METADATA)
    version = meta.get("version") if isinstance(meta, dict) else None
    return version if isinstance(version, int) and not isinstance(version, bool) and version > 0 else 1

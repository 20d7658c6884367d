"""The configuration and its files: what `from actors.configuration import Configuration` gives.

In the state directory: `runtime_config.yaml` (what differs from defaults.yaml; the persistent primary), the
servers file that it names, and `runtime_config.last_good.yaml`, kept by us for the day when the first is
broken. Reading never fails the service: what cannot be used is said in `Snapshot.problems`, and the last
good version, in the end the defaults, is in force. Only wrong command-line overrides raise.

Not for several threads at a time. The only importer of dotenv.
"""

from __future__ import annotations

import copy
import fcntl
import importlib.resources
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import dotenv

from actors import files
from actors.checks import METADATA, Checked, Row, check
from actors.checks import settings_table as table
from actors.files import Mark, Unreadable
from actors.layers import ConfigurationError, Layer, Tree, deep_merge, difference, dump, parse
from actors.servers_file import NO_SERVERS, Servers, parse_servers
from actors.snapshot import make_snapshot
from protocol.watcher import Snapshot

RUNTIME = "runtime_config.yaml"
LAST_GOOD = "runtime_config.last_good.yaml"
LOCK = ".runtime_config.lock"
LOCK_S = 10.0  # another process saves in milliseconds

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

log = logging.getLogger(__name__)


def load_environment(cwd: str | Path, state_dir: str | Path) -> list[str]:
    """Take `.env` of the working directory, then of the state directory, into the environment.

    What is in the environment already wins, then the working directory's. Returns the names that were set,
    never a value. A file that cannot be read is logged and left out.
    """
    names: list[str] = []
    for path in (Path(cwd) / ".env", Path(state_dir) / ".env"):
        if not path.is_file():
            continue
        try:
            found = dotenv.dotenv_values(path)
        except (OSError, UnicodeDecodeError) as error:
            log.warning("%s was not read: %s", path, type(error).__name__)
            continue
        for name, value in found.items():
            if value is not None and name not in os.environ:
                os.environ[name] = value
                names.append(name)
    return names


def settings_table() -> list[Row]:
    """Every setting: key, default, meaning, what it expects; in the order of the schema."""
    return table(_defaults().data)


@cache
def _defaults() -> Layer:
    text = (importlib.resources.files("actors") / "defaults.yaml").read_text("utf-8")
    return parse(text, "defaults.yaml")


class Configuration:
    """The configuration of one state directory, for the watcher and for scripts.

    Args:
        state_dir: where the files are; made when something is first written there.
        said: what an earlier object of the same start had to say (its `said`).
    """

    def __init__(self, state_dir: str | Path = "state", said: Iterable[str] = ()) -> None:
        self.state_dir = Path(state_dir).resolve()
        self._runtime: Layer | None = None
        """The runtime file in force; None: not read yet."""
        self._servers: Servers | None = None
        self.said = list(said)
        """What happened to the files at the start, for as long as the runtime file stays as it was then."""
        self._unwritable = ""
        """Why nothing can be written into the state directory; empty: it can."""
        self._servers_path = self.state_dir / "servers_config.json"

    @property
    def watched(self) -> tuple[Path, Path]:
        """The files whose changes matter: the runtime file, the servers file."""
        return (self.state_dir / RUNTIME, self._servers_path)

    def marks(self) -> tuple[Mark | None, ...]:
        """Marks of the watched files: equal as long as nothing changed."""
        return tuple(map(files.mark, self.watched))

    def snapshot(self, overrides: Mapping[str, Any] | None = None) -> Snapshot:
        """Read the files and say what is in force, as version 1.

        The first call is the service's start: missing files are made, and a runtime file that cannot be
        parsed is set aside. Later calls leave every file alone: what is wrong then changes nothing.
        Args:
            overrides: what the command line says, merged over everything and never saved.
        Raises: ConfigurationError when the overrides are wrong.
        """
        above = Layer("command line", dict(overrides or {}))
        before = self._runtime
        if before is None:
            self.said += self._start()
        runtime, checked, wrong = self._read_runtime(above)
        if before is not None and before.text != runtime.text:
            self.said = []
        problems = [*self.said, *wrong, *checked.warnings]
        servers = self._read_servers(checked, problems, make=before is None)
        if self._unwritable:
            problems.append(self._unwritable)
        self._runtime, self._servers = runtime, servers
        return make_snapshot(checked, runtime.data, servers, problems, str(self.state_dir))

    def get_config_dict(self) -> dict[str, Any]:
        """The configuration as the files say now: defaults and runtime file merged; a copy, without secrets.

        Raises: ConfigurationError when the runtime file is not valid.
        """
        return copy.deepcopy(self._check_file().tree)

    def get_llm_config(self) -> dict[str, Any]:
        """The mapping of the active provider, as written. Raises ConfigurationError."""
        tree = self.get_config_dict()
        return dict(tree["llm"]["providers"][tree["llm"]["active"]])

    def reload_runtime_config(self) -> bool:
        """Read the runtime file again; True: it differs from what this object last had.

        Raises: ConfigurationError when it is not valid; what was in force stays.
        """
        before = self._runtime
        self._check_file()
        self._runtime = self._file() or Layer(RUNTIME, {})
        return before is None or before.data != self._runtime.data

    def save_runtime_config(self, config: Mapping[str, Any]) -> int:
        """Make `config` the configuration, saved atomically as what differs from the defaults.

        Keys that it lacks stay as they are; null below `llm.providers` removes a key. The file is read again
        first, under a lock, so that an edit made meanwhile is kept where `config` says nothing.
        Returns: the version of the saved file, one more than before.
        Raises: ConfigurationError when the outcome would not be valid (nothing is written), TimeoutError when
            another process holds the lock, OSError when the directory cannot be written.
        """
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            said = copy.deepcopy({key: value for key, value in config.items() if key != METADATA})
            now = self._file() or Layer(RUNTIME, {})
            written = {key: value for key, value in now.data.items() if key != METADATA}
            check([_defaults(), Layer(RUNTIME, written), Layer("given configuration", said)])
            wanted = deep_merge(deep_merge(_defaults().data, written), said)
            meta = _metadata(now.data.get(METADATA))
            text = _text(difference(_defaults().data, wanted), meta)
            parse(text, RUNTIME)
            files.replace(self.state_dir / RUNTIME, text)
        return int(meta["version"])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise TimeoutError(f"another process holds {self.state_dir / LOCK}") from None
                    time.sleep(0.01)  # flock with a bound exists only as asking again
            yield
        finally:
            os.close(fd)

    # Reading.

    def _file(self, name: str = RUNTIME) -> Layer | None:
        """The runtime file now; None when there is none. Raises ConfigurationError."""
        try:
            return parse(files.read(self.state_dir / name), name)
        except FileNotFoundError:
            return None
        except (OSError, Unreadable) as error:
            raise ConfigurationError([f"{name}: {_reason(error)}"]) from None

    def _check_file(self) -> Checked:
        return check([_defaults(), self._file() or Layer(RUNTIME, {})])

    def _read_runtime(self, above: Layer) -> tuple[Layer, Checked, list[str]]:
        """The runtime layer that is in force from now on, and what is wrong with the file if it is not that.

        Raises: ConfigurationError when what is wrong is not the file.
        """
        wrong: list[str] = []
        layer, what = self._runtime, "what was in force before stays"
        try:
            file = self._file()
            if file is None:
                raise ConfigurationError([f"{RUNTIME}: is missing"])
            check([_defaults(), file])
            layer = file
            self._keep_good(file)
        except ConfigurationError as error:
            wrong += error.problems
            if layer is None:
                layer, what = self._last_good(wrong)
            wrong.append(f"{RUNTIME}: is not in force; {what}")
        return layer, check([_defaults(), layer, above]), wrong

    def _last_good(self, wrong: list[str]) -> tuple[Layer, str]:
        try:
            good = self._file(LAST_GOOD)
            if good is not None:
                check([_defaults(), good])
                return good, f"its last good version is ({LAST_GOOD})"
        except ConfigurationError as error:
            wrong += error.problems
        return Layer(RUNTIME, {}), "the defaults are"

    def _keep_good(self, file: Layer) -> None:
        """Keep the text of what came into force, for a start that finds the file broken."""
        path = self.state_dir / LAST_GOOD
        try:
            if files.mark(path) is None or files.read(path) != file.text:
                files.replace(path, file.text)
            self._unwritable = ""
        except (OSError, Unreadable) as error:
            self._cannot_write(error)

    def _read_servers(self, checked: Checked, problems: list[str], *, make: bool) -> Servers:
        """The servers in force from now on; what is wrong is added to `problems`."""
        self._servers_path = self.state_dir / checked.settings.mcp.config_file
        name = self._servers_path.name
        before = self._servers or NO_SERVERS
        if make and files.mark(self._servers_path) is None:
            try:
                packaged = importlib.resources.files("Servers") / "servers_config.json"
                files.replace(self._servers_path, packaged.read_text("utf-8"))
            except OSError as error:
                self._cannot_write(error)
        try:
            servers = parse_servers(files.read(self._servers_path), name, before.servers)
        except (OSError, Unreadable) as error:
            problems += [f"{name}: {_reason(error)}", _not_in_force(name, before)]
        except ConfigurationError as error:
            problems += [*error.problems, _not_in_force(name, before)]
        else:
            problems += servers.problems
            return servers
        return before._replace(problems=[])

    # The start.

    def _start(self) -> list[str]:
        """Make what is missing, set aside what cannot be parsed; returns what the operator should know."""
        path = self.state_dir / RUNTIME
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                if self._file() is None:
                    files.replace(path, _text({}, _metadata(None)))
            except ConfigurationError as error:
                if path.is_file() and os.access(path, os.R_OK):
                    return [*error.problems, self._set_aside(path)]
        except OSError as error:
            self._cannot_write(error)
        return []

    def _set_aside(self, path: Path) -> str:
        """Keep an unparsable runtime file under another name and make it anew. Raises OSError."""
        try:
            good, source = parse(files.read(self.state_dir / LAST_GOOD), LAST_GOOD).text, "its last good version"
        except (OSError, Unreadable, ConfigurationError):
            good, source = _text({}, _metadata(None)), "the defaults"
        kept = path.with_name(f"{RUNTIME}.broken-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        # A second name first: at every moment there is a file of the right name, after a crash too.
        os.link(os.path.realpath(path), kept)
        files.replace(path, good)
        return f"{RUNTIME}: could not be parsed; it is kept as {kept.name} and was made anew from {source}"

    def _cannot_write(self, error: Exception) -> None:
        self._unwritable = (
            f"state directory {self.state_dir}: cannot be written ({_reason(error)}); changes are not kept"
        )


def _not_in_force(name: str, before: Servers) -> str:
    stays = "the servers in force before stay" if before.servers else "no MCP server is run"
    return f"{name}: is not in force; {stays}"


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _metadata(before: object) -> dict[str, Any]:
    """The metadata of a save that follows one with `before`."""
    known = before if isinstance(before, dict) else {}
    version = known.get("version")
    counted = version if isinstance(version, int) and not isinstance(version, bool) and version >= 0 else 0
    return {
        **known,
        "last_modified": time.time(),
        "version": counted + 1,
        "is_runtime_config": True,
        "default_config_path": "defaults.yaml",
        "created_from_defaults": known.get("created_from_defaults", True),
    }


def _text(over: Tree, meta: Tree) -> str:
    return f"{HEADER}\n{dump({**over, METADATA: meta})}"


__all__ = [
    "Configuration",
    "ConfigurationError",
    "Row",
    "load_environment",
    "settings_table",
]

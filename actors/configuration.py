"""The configuration and its files: what `from actors.configuration import Configuration` gives.

In the state directory: `runtime_config.yaml` (what differs from defaults.yaml; the persistent primary), the
servers file that it names, and `runtime_config.last_good.yaml`, kept by us for the day when the first is
broken. Reading never fails the service: what cannot be used is said in `Snapshot.problems`, and the last
good version, in the end the defaults, is in force. Only wrong command-line overrides raise.

Scripts use the same class, beside a running service or without one: then what they save goes through the
service, or straight into the file under a lock. Not for several threads at a time.
"""

from __future__ import annotations

import copy
import importlib.resources
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from actors import config_client, files
from actors.checks import Checked, check
from actors.environment import load_environment, read_environment
from actors.files import Changed, Mark, Unreadable
from actors.layers import ConfigurationError, Layer, parse
from actors.reference import Row, defaults, markdown, settings_table
from actors.runtime_file import EMPTY, RUNTIME, RuntimeFile, content, metadata, reason
from actors.servers_file import NO_SERVERS, Servers, parse_servers
from actors.snapshot import make_snapshot
from actors.trees import Tree, changes, deep_merge, difference, find, only
from actors.versions import FOLDER
from protocol.errors import Code, Fault
from protocol.watcher import ConfigView, GetConfig, ListVersions, Rollback, SetConfig, Snapshot, VersionRow

LAST_GOOD = "runtime_config.last_good.yaml"
TRIES = 20  # of a script to save between the edits of somebody else


class Report(NamedTuple):
    """What `check` found."""

    errors: list[str]
    """A line with file, line and key for each thing that keeps something from coming into force."""
    warnings: list[str]
    snapshot: Snapshot | None
    """What would be in force; None where the runtime file is not valid."""
    variables: frozenset[str] = frozenset()
    """Names that the environment or a `.env` file gives a value."""


class Configuration:
    """The configuration of one state directory, for the watcher and for scripts.

    Args:
        state_dir: where the files are; made when something is first written there.
        said: what an earlier object of the same start had to say (its `said`).
    """

    def __init__(self, state_dir: str | Path = "state", said: Iterable[str] = ()) -> None:
        self.state_dir = Path(state_dir).resolve()
        self.runtime = RuntimeFile(self.state_dir)
        self.said = list(said)
        """What happened to the files at the start, for as long as the runtime file stays as it was then."""
        self._servers: Servers | None = None
        self._unwritable = ""
        """Why nothing can be written into the state directory; empty: it can."""
        self._servers_path = self.state_dir / "servers_config.json"
        self._seen: Tree | None = None
        """What a script was last given, or has saved."""

    @property
    def watched(self) -> tuple[Path, Path]:
        """The files whose changes matter: the runtime file, the servers file."""
        return (self.state_dir / RUNTIME, self._servers_path)

    def marks(self) -> tuple[Mark | None, ...]:
        """Marks of the watched files: equal as long as nothing changed."""
        return tuple(map(files.mark, self.watched))

    # For the service.

    def snapshot(self, overrides: Mapping[str, Any] | None = None) -> Snapshot:
        """Read the files and say what is in force.

        The first call is the service's start: missing files are made, and a runtime file that cannot be
        parsed is set aside. Later calls leave every file alone: what is wrong then changes nothing.
        Args:
            overrides: what the command line says, merged over everything and never saved.
        Raises: ConfigurationError when the overrides are wrong.
        """
        above = _above(overrides)
        before = self.runtime.in_force
        if before is None:
            self.said += self._start()
        layer, checked, wrong = self._read_runtime(before)
        merged = check([defaults(), layer, above]) if above.data else checked
        self.runtime.take(layer, checked)
        if before is not None and before.text != layer.text:
            self.said = []
        return self._compose(merged, wrong, make=before is None)

    def change(self, asked: SetConfig | Rollback, overrides: Mapping[str, Any] | None = None) -> Snapshot:
        """Save a change that somebody asked the service for, and say what is in force then.

        Raises: as `RuntimeFile.change`; Changed: read the files first, once they have settled.
        """
        above = _above(overrides)
        self._write(asked, above, settled=True)
        layer = self.runtime.in_force or EMPTY
        self._keep_good(layer)
        self.said = []
        return self._compose(check([defaults(), layer, above]), [], make=False)

    def view(self) -> ConfigView:
        """What is in force, without what the command line says."""
        return ConfigView(self.runtime.version, copy.deepcopy(self.runtime.tree))

    def _write(self, asked: SetConfig | Rollback, above: Layer, *, settled: bool) -> None:
        match asked:
            case SetConfig(changes=changes, base_version=base, author=author):
                self.runtime.change(changes, base_version=base, author=author, above=above, settled=settled)
            case Rollback(version=version, author=author):
                self.runtime.rollback(version, author=author, above=above, settled=settled)

    # For scripts.

    def get_config_dict(self) -> dict[str, Any]:
        """The configuration as the files say now: defaults and runtime file merged; a copy, without secrets.

        Raises: ConfigurationError when the runtime file is not valid.
        """
        self._take_file()
        self._seen = self.runtime.tree
        return copy.deepcopy(self.runtime.tree)

    def get_llm_config(self) -> dict[str, Any]:
        """The mapping of the active provider, as written. Raises ConfigurationError."""
        self._take_file()
        llm = self.runtime.tree["llm"]
        return dict(copy.deepcopy(llm["providers"][llm["active"]]))

    def reload_runtime_config(self) -> bool:
        """Read the runtime file again; True: it differs from what this object last had.

        Raises: ConfigurationError when it is not valid; what was in force stays.
        """
        before = self.runtime.in_force
        self._take_file()
        self._seen = self.runtime.tree
        return before is None or self.runtime.in_force is None or before.data != self.runtime.in_force.data

    def save_runtime_config(self, config: Mapping[str, Any], *, author: str = "api") -> int:
        """Make `config` the configuration, saved atomically as what differs from the defaults.

        Keys that it lacks stay as they are, and so do those in which it equals what this object last gave or
        saved: what somebody else changed meanwhile is not undone by that. Null below `llm.providers` removes a key.
        Goes through the running service, where there is one.
        Returns: the version that is in force then; it is one more than before, unless nothing is changed.
        Raises: ConfigurationError when the outcome would not be valid (nothing is written), Fault when somebody
            edits the file all the time, TimeoutError when another process holds the lock, OSError when the
            directory cannot be written.
        """
        view = self.ask(SetConfig(_said(config, self._seen), author=author))
        self._seen = view.config
        return view.version

    def ask(self, asked: SetConfig | Rollback) -> ConfigView:
        """Do that: by the running service, or here. Raises: as `save_runtime_config`, and the service's faults."""
        try:
            service = config_client.find(self.state_dir)
            if service is not None:
                return service.ask(asked)
        except Fault as fault:
            if fault.code == Code.CONFIG_INVALID:
                raise ConfigurationError(fault.body.text.split("\n")) from None
            raise
        for _ in range(TRIES):
            try:
                self._write(asked, _above(None), settled=False)
            except Changed:
                continue
            return self.view()
        raise Fault(Code.CONFIG_CONFLICT, f"{RUNTIME} is being edited all the time")

    def versions(self, limit: int = 20) -> list[VersionRow]:
        """The latest versions, newest first."""
        service = config_client.find(self.state_dir)
        if service is not None:
            return service.ask(ListVersions(limit))
        return self.runtime.history.rows(limit)

    def look(self, path: str | None = None) -> ConfigView:
        """What is in force in the running service, else what the files say; see `GetConfig`.

        Raises: ConfigurationError, Fault (NOT_FOUND), OSError.
        """
        service = config_client.find(self.state_dir)
        if service is not None:
            return service.ask(GetConfig(path))
        self._take_file()
        return part(ConfigView(self.runtime.number(), self.runtime.tree), path)

    def differences(self) -> list[tuple[str, object, object]]:
        """Keys that differ from the defaults: key, default, value. Raises: as `look`."""
        return changes(defaults().data, self.look().config)

    def check(self) -> Report:
        """Read both files as a start would, and change nothing."""
        try:
            layer = self.runtime.read() or EMPTY
            checked = check([defaults(), layer])
        except ConfigurationError as error:
            return Report([*error.problems], [], None)
        errors: list[str] = []
        servers = NO_SERVERS
        path = self.state_dir / checked.settings.mcp.config_file
        try:
            text = files.read(path)
        except FileNotFoundError:  # it is made from the packaged one at the first start
            text = _packaged_servers()
        except (OSError, Unreadable) as error:
            errors, text = [f"{path.name}: {reason(error)}"], '{"mcpServers": {}}'
        try:
            servers = parse_servers(text, path.name, {})
        except ConfigurationError as error:
            errors += error.problems
        errors += servers.errors
        warnings = [*checked.warnings, *(line for line in servers.problems if line not in servers.errors)]
        environment = read_environment(Path.cwd(), self.state_dir)
        warnings += environment.problems
        self.runtime.see(layer, checked)
        snapshot = make_snapshot(checked, layer.data, servers, warnings, str(self.state_dir), self.runtime.number())
        variables = frozenset(name for name, value in {**environment.values, **os.environ}.items() if value)
        return Report(errors, warnings, snapshot, variables)

    def _take_file(self) -> None:
        """What the file says is in force for a script. Raises ConfigurationError."""
        layer = self.runtime.read() or EMPTY
        self.runtime.see(layer, check([defaults(), layer]))

    # Reading.

    def _compose(self, merged: Checked, wrong: list[str], *, make: bool) -> Snapshot:
        runtime = self.runtime
        problems = [*self.said, *wrong, *merged.warnings]
        servers = self._read_servers(merged, problems, make=make)
        if self._unwritable:
            problems.append(self._unwritable)
        elif runtime.unkept:
            problems.append(f"{FOLDER}: cannot be written ({runtime.unkept}); this version cannot be rolled back to")
        self._servers = servers
        data = runtime.in_force.data if runtime.in_force else {}
        return make_snapshot(merged, data, servers, problems, str(self.state_dir), runtime.version)

    def _read_runtime(self, before: Layer | None) -> tuple[Layer, Checked, list[str]]:
        """The runtime layer that may come into force, and what is wrong with the file if it is not that."""
        wrong: list[str] = []
        layer, what = before, "what was in force before stays"
        try:
            file = self.runtime.read()
            if file is None:
                raise ConfigurationError([f"{RUNTIME}: is missing"])
            checked = check([defaults(), file])
            self._keep_good(file)
            return file, checked, []
        except ConfigurationError as error:
            wrong += error.problems
        if layer is None:
            layer, what = self._last_good(wrong)
        wrong.append(f"{RUNTIME}: is not in force; {what}")
        return layer, check([defaults(), layer]), wrong

    def _last_good(self, wrong: list[str]) -> tuple[Layer, str]:
        try:
            good = self.runtime.read(LAST_GOOD)
            if good is not None:
                check([defaults(), good])
                return good, f"its last good version is ({LAST_GOOD})"
        except ConfigurationError as error:
            wrong += error.problems
        return EMPTY, "the defaults are"

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
                files.replace(self._servers_path, _packaged_servers())
            except OSError as error:
                self._cannot_write(error)
        try:
            servers = parse_servers(files.read(self._servers_path), name, before.servers)
        except (OSError, Unreadable) as error:
            problems += [f"{name}: {reason(error)}", _not_in_force(name, before)]
        except ConfigurationError as error:
            problems += [*error.problems, _not_in_force(name, before)]
        else:
            problems += servers.problems
            return servers
        return before._replace(problems=[], errors=[])

    # The start.

    def _start(self) -> list[str]:
        """Make what is missing, set aside what cannot be parsed; returns what the operator should know."""
        path = self.state_dir / RUNTIME
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                if self.runtime.read() is None:
                    files.replace(path, self._anew())
            except ConfigurationError as error:
                if path.is_file() and os.access(path, os.R_OK):
                    return [*error.problems, self._set_aside(path)]
        except OSError as error:
            self._cannot_write(error)
        return []

    def _anew(self) -> str:
        """A file that overrides nothing."""
        newest = self.runtime.history.newest()
        return content({}, metadata(None, newest.version + bool(newest.over) if newest else 1))

    def _set_aside(self, path: Path) -> str:
        """Keep an unparsable runtime file under another name and make it anew. Raises OSError."""
        try:
            good, source = parse(files.read(self.state_dir / LAST_GOOD), LAST_GOOD).text, "its last good version"
        except (OSError, Unreadable, ConfigurationError):
            good, source = self._anew(), "the defaults"
        kept = self.runtime.aside_name("broken")
        # A second name first: at every moment there is a file of the right name, after a crash too.
        os.link(os.path.realpath(path), kept)
        files.replace(path, good)
        return f"{RUNTIME}: could not be parsed; it is kept as {kept.name} and was made anew from {source}"

    def _cannot_write(self, error: Exception) -> None:
        self._unwritable = (
            f"state directory {self.state_dir}: cannot be written ({reason(error)}); changes are not kept"
        )


def _not_in_force(name: str, before: Servers) -> str:
    stays = "the servers in force before stay" if before.servers else "no MCP server is run"
    return f"{name}: is not in force; {stays}"


def part(view: ConfigView, path: str | None) -> ConfigView:
    """The view with only what is at `path`. Raises Fault (NOT_FOUND)."""
    if not path:
        return view
    tree = only(view.config, find(view.config, path))
    if tree is None:
        raise Fault(Code.NOT_FOUND, f"there is no {path} in the configuration", hint="See the whole configuration.")
    return ConfigView(view.version, tree)


def _above(overrides: Mapping[str, Any] | None) -> Layer:
    return Layer("command line", dict(overrides or {}))


def _packaged_servers() -> str:
    return (importlib.resources.files("Servers") / "servers_config.json").read_text("utf-8")


def _said(config: Mapping[str, Any], seen: Tree | None) -> Tree:
    """What `config` says differently from what was seen, as plain values. Raises ConfigurationError."""
    try:
        plain: Tree = msgspec.to_builtins(dict(config), str_keys=True)
    except (TypeError, ValueError, RecursionError):
        raise ConfigurationError(["given configuration: holds a value that no file can hold"]) from None
    if seen is None:
        return plain
    # Nothing is taken away here: keys that are not in `config` stay.
    return difference(seen, deep_merge(seen, plain))


__all__ = [
    "RUNTIME",
    "Configuration",
    "ConfigurationError",
    "Report",
    "Row",
    "load_environment",
    "markdown",
    "settings_table",
]

if __name__ == "__main__":  # python -m actors.configuration: the README's table
    sys.stdout.write(markdown())

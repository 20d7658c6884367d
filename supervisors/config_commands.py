"""The command line's part for the configuration: `check`, `config get|set|diff|history|rollback`, and the reset.

Beside a running service everything goes through it; without one, the files are read and written under their
lock. Results go to standard output, as text for people or with `--json` for programs; what went wrong goes to
standard error. Exit codes: 0 done, 1 it did not work (nothing was changed), 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol.errors import Fault
from protocol.watcher import ConfigView, Rollback, SetConfig

FAILED = 1
AUTHOR = "cli"
DEFAULTS = 0  # the version that stands for the reference defaults

Option = Callable[[argparse.ArgumentParser], None]
Command = Callable[[argparse.Namespace, Any], int]


def add_to(commands: Any, state_option: Option) -> None:
    """Add the commands to the command line's grammar.

    Args:
        commands: what `add_subparsers` gave.
        state_option: adds `--state`.
    """
    _leaf(
        commands,
        state_option,
        "check",
        check,
        "check the configuration files, and say what they mean",
        "Reads the runtime file and the servers file as a start would, and changes nothing. Exits 1 with file, line "
        "and key of each mistake.",
    )
    config = commands.add_parser("config", help="read and change the configuration, beside a running service too")
    below = config.add_subparsers(title="commands", metavar="COMMAND", required=True)
    get = _leaf(below, state_option, "get", get_config, "show the configuration, or a part of it")
    get.add_argument("path", metavar="PATH", nargs="?", help="such as llm.active; default: all")
    to_set = _leaf(
        below,
        state_option,
        "set",
        set_config,
        "change one key",
        "Checked, saved, and in force at once where a service runs; `actors-main config history` shows it.",
    )
    to_set.add_argument("path", metavar="PATH", help="such as llm.providers.openrouter.temperature")
    to_set.add_argument("value", metavar="VALUE", help="in YAML: 8080, true, null, text, [a, b], {a: b}")
    to_set.add_argument("--text", action="store_true", help="VALUE is text as it stands, not YAML")
    to_set.add_argument("--base-version", type=int, metavar="N", help="refuse if another version is in force")
    _leaf(below, state_option, "diff", diff, "show what differs from the reference defaults")
    history = _leaf(below, state_option, "history", list_history, "show the latest versions and who made them")
    history.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default: 20)")
    back = _leaf(
        below,
        state_option,
        "rollback",
        roll_back,
        "make the content of an old version a new one",
        "Also out of a broken file, which is kept under another name.",
    )
    back.add_argument("version", type=int, metavar="VERSION", help="of `config history`; 0: the reference defaults")


def _leaf(below: Any, state_option: Option, name: str, command: Command, help: str, more: str = "") -> Any:
    parser = below.add_parser(name, help=help, description=more or f"{help[0].upper()}{help[1:]}.")
    state_option(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.set_defaults(command=lambda arguments: run(command, arguments))
    return parser


def reset() -> None:
    """Entry point of `mcp-reset-config`."""
    parser = argparse.ArgumentParser(
        prog="mcp-reset-config",
        description="Set the runtime configuration back to the reference defaults. The file as it was is kept under "
        "another name beside it, and as a version (`actors-main config history`).",
    )
    parser.add_argument("--state", metavar="DIR", default="state", help="where everything is kept (default: ./state)")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    sys.exit(run(reset_config, parser.parse_args()))


def run(command: Command, arguments: argparse.Namespace) -> int:
    """Run a command on the configuration of its state directory; what goes wrong is told, with its hint."""
    configuration = importlib.import_module("actors.configuration")
    wrong: type[Exception] = configuration.ConfigurationError
    try:
        return command(arguments, configuration.Configuration(Path(getattr(arguments, "state", "state"))))
    except wrong as error:
        _complain(str(error))
    except Fault as fault:
        _complain(f"{fault.body.text}\n{fault.body.hint}")
    except OSError as error:  # the state directory, or a service that ended meanwhile
        _complain(f"it did not work: {error}")
    return FAILED


def check(arguments: argparse.Namespace, configuration: Any) -> int:
    """`check`"""
    found = configuration.check()
    if arguments.json:
        _show_json({"errors": found.errors, "warnings": found.warnings, "in_force": _summary(found)})
    else:
        for line in found.warnings:
            _complain(f"warning: {line}")
        for line in found.errors:
            _complain(line)
        if not found.errors:
            _say(*(f"{key}: {value}" for key, value in _summary(found).items()))
    return FAILED if found.errors else 0


def _summary(found: Any) -> dict[str, Any]:
    snapshot = found.snapshot
    if snapshot is None:
        return {}
    provider = snapshot.llm.providers[snapshot.llm.active]
    websocket, variable = snapshot.websocket, provider.api_key_env
    if variable is None:
        key = "no key is needed"
    elif variable in found.variables:
        key = f"key from {variable}"
    else:
        key = f"no key: set {variable} in the environment or .env"
    return {
        "version": snapshot.version,
        "provider": f"{provider.name} ({key})",
        "model": provider.model,
        "address": f"ws://{websocket.host}:{websocket.port}{websocket.endpoint}",
        "storage": f"{snapshot.storage.type} ({snapshot.storage.db_path})",
        "servers": ", ".join(server.name for server in snapshot.mcp.servers.values() if server.enabled) or "none",
    }


def get_config(arguments: argparse.Namespace, configuration: Any) -> int:
    """`config get`"""
    view: ConfigView = configuration.look(arguments.path)
    trees = importlib.import_module("actors.trees")
    value: Any = view.config
    if arguments.path:
        value = trees.value_at(value, trees.find(value, arguments.path))
    if arguments.json:
        _show_json({"version": view.version, "value": value})
    elif isinstance(value, str):
        _say(value.removesuffix("\n"))
    else:
        _say(str(importlib.import_module("actors.layers").dump(value)).removesuffix("\n").removesuffix("\n..."))
    return 0


def set_config(arguments: argparse.Namespace, configuration: Any) -> int:
    """`config set`"""
    trees = importlib.import_module("actors.trees")
    value = arguments.value
    if not arguments.text:
        value = importlib.import_module("actors.layers").parse_value(value)
    path = trees.find(configuration.look().config, arguments.path)
    changes = trees.with_value({}, path, value)
    return _done(arguments, configuration.ask(SetConfig(changes, arguments.base_version, AUTHOR)), "")


def diff(arguments: argparse.Namespace, configuration: Any) -> int:
    """`config diff`"""
    found = configuration.differences()
    if arguments.json:
        _show_json([{"key": key, "default": default, "value": value} for key, default, value in found])
    else:
        _say(*(f"{key}: {_short(default)} -> {_short(value)}" for key, default, value in found))
    return 0


def list_history(arguments: argparse.Namespace, configuration: Any) -> int:
    """`config history`"""
    rows = configuration.versions(arguments.limit)
    if arguments.json:
        _show_json([{"version": r.version, "at": r.at, "author": r.author, "changed": r.changed} for r in rows])
    else:
        width = max((len(row.author) for row in rows), default=0)
        _say(*(f"{r.version:>5}  {r.at[:19]}Z  {r.author:<{width}}  {', '.join(r.changed)}".rstrip() for r in rows))
    return 0


def roll_back(arguments: argparse.Namespace, configuration: Any) -> int:
    """`config rollback`"""
    view = configuration.ask(Rollback(arguments.version, AUTHOR))
    return _done(arguments, view, f", with the content of version {arguments.version}" if arguments.version else "")


def reset_config(arguments: argparse.Namespace, configuration: Any) -> int:
    """`mcp-reset-config`"""
    return _done(arguments, configuration.ask(Rollback(DEFAULTS, AUTHOR)), ": the reference defaults")


def _done(arguments: argparse.Namespace, view: ConfigView, what: str) -> int:
    if arguments.json:
        _show_json({"version": view.version})
    else:
        _say(f"version {view.version} is in force{what}")
    return 0


def _short(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _show_json(value: object) -> None:
    _say(json.dumps(value, ensure_ascii=False, indent=2))


def _say(*lines: str) -> None:
    for line in lines:
        print(line)  # noqa: T201 - this is the command line


def _complain(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - this is the command line

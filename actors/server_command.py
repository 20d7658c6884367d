"""From the configuration of an MCP server to the command that is run.

Pure. A server is a stranger: of our environment it gets only what programs need to find themselves and
their user, and what its own `env` names; never the keys of providers. `${VAR}` and `${VAR:-default}` in
`env` are filled from our environment. What cannot be filled raises `Unusable` with what to do.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from actors.server_faults import Unusable
from actors.stdio import Command
from protocol.watcher import McpServer, ServerLimits

INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR"),
    *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
CONFIG_SERVER = "Servers.config_server"  # the module of ours that changes the configuration
SECRET_MIN = 6  # characters; blacking out shorter values would only make texts unreadable

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def access_of(server: McpServer, config_access: str) -> str:
    """The file that lets a server change the configuration: empty for every server but the one made for it."""
    return config_access if CONFIG_SERVER in server.args else ""


def command_of(server: McpServer, state_dir: str, environ: Mapping[str, str], config_access: str = "") -> Command:
    """The command, with `python` as our interpreter, and `cwd` within the state directory unless absolute.

    Args:
        config_access: `Snapshot.config_access`.
    Raises: Unusable.
    """
    if not server.command.strip():
        raise Unusable(f"MCP server {server.name!r} has no command; set `command` in the servers file.")
    configured = {key: filled(server.name, f"env.{key}", value, environ) for key, value in server.env.items()}
    access = access_of(server, config_access)
    ours = {"MCP_ACTORS_CONFIG_ACCESS": access} if access else {}
    return Command(
        name=server.name,
        argv=(sys.executable if server.command == "python" else server.command, *server.args),
        cwd=os.path.join(state_dir, os.path.expanduser(server.cwd or "")),
        env={key: environ[key] for key in INHERITED if key in environ} | ours | configured,
        secrets=tuple(sorted({v for v in configured.values() if len(v) >= SECRET_MIN}, key=len, reverse=True)),
        line_cap=server.limits.line_bytes,
        rlimits=_rlimits(server.limits),
    )


def _rlimits(limits: ServerLimits) -> tuple[tuple[int, int], ...]:
    cpu_s, memory_mb = limits.cpu_seconds, limits.memory_mb
    # RLIMIT_DATA, not RLIMIT_AS: runtimes such as Node reserve many gigabytes of addresses that they never write to.
    wanted = ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_DATA, memory_mb and memory_mb * 2**20))
    return tuple((which, most) for which, most in wanted if most is not None)


def roots_of(server: McpServer, state_dir: str) -> list[str]:
    """Its roots as file URIs; a path is within the state directory unless absolute."""
    return [
        root if root.startswith("file://") else Path(state_dir, os.path.expanduser(root)).absolute().as_uri()
        for root in server.roots
    ]


def filled(server: str, key: str, value: str, environ: Mapping[str, str]) -> str:
    """The value with its variables filled in.

    Args:
        server: its name, for errors.
        key: where the value stands in its entry, for errors.
    Raises: Unusable.
    """

    def found(match: re.Match[str]) -> str:
        name, default = match.groups()
        filled = environ.get(name) or default
        if filled is None:
            raise Unusable(
                f"MCP server {server!r} needs the environment variable {name} for its `{key}`, and it is not set; "
                f"set it, or write ${{{name}:-}} if it may be empty."
            )
        return filled

    return _VARIABLE.sub(found, value)

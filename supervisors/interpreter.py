"""How Python itself is set in a process that streams: garbage collection, turns of threads, what is not imported.

By default the collector looks at everything that lives whenever some containers were made; with hundreds of streams
that stopped all of them for 45 to 80 ms at a time. Code, classes and the tree live as long as the process, so they are
set aside once it has started; reference counting frees nearly all the rest. And a thread that has the interpreter, as
that of the database, keeps it for 5 ms by default, in which no delta goes out. Only for processes that are ours alone
(`allow`): in any other, what is set aside may be somebody's cycle that would never be freed. Nothing here fails.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from types import ModuleType

YOUNG = 5_000  # containers made and not freed before the youngest are looked at
MIDDLE = 10  # of those looks before a look at the middle generation, as Python has it
OLD = 10  # of those before a look at all
TURN_S = 0.0005  # that a thread keeps the interpreter while another wants it

UNUSED = ("httpx._main", "httpx2._main", "uvicorn")
"""What libraries import where it is there, command lines and a web server: of no use here, 10 MB in all, and time."""

SERVER_SIDE = {
    "mcp.server": "Server",
    "mcp.server.mcpserver": "MCPServer",
    "mcp.server.runner": "modern_on_request",
    "mcp.server.session": "ServerSession",
    "mcp.server.stdio": "stdio_server",
}
"""What the mcp package's client imports of its server, for a server in the same process; with a web framework and
cryptography below it 12 MB. In its place are modules that have that name only: a class that nothing is one of."""

_allowed: list[bool] = []


def allow() -> None:
    """This process is ours, from its start to its end."""
    _allowed.append(True)
    sys.setswitchinterval(TURN_S)
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's way to say that it is not there
    if "mcp" not in sys.modules:
        for name, wanted in SERVER_SIDE.items():
            sys.modules[name] = module = ModuleType(name)
            setattr(module, wanted, type(wanted, (), {}))


def settle() -> None:
    """The process has started: set aside what is there, and look less often. Does nothing in other processes.

    What the start used for a while goes back to the system: 20 MB in all where modules had to be compiled.
    """
    if _allowed:
        gc.collect()
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc has it
            trim(0)
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, OLD)

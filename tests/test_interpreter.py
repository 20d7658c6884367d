"""What a process of ours does to the interpreter, and that no other process gets it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc, sys
from supervisors import interpreter
before = gc.get_threshold(), gc.get_freeze_count(), sys.getswitchinterval()
interpreter.settle()
assert (gc.get_threshold(), gc.get_freeze_count(), sys.getswitchinterval()) == before
interpreter.allow()
interpreter.settle()
assert gc.get_threshold()[0] == interpreter.YOUNG
assert gc.get_freeze_count() > 1000
assert not [kept for kept in gc.get_objects() if kept is sys.modules]
assert sys.getswitchinterval() < before[2]
import actors.mcp_connect, actors.provider
assert not {"rich", "click", "uvicorn.main", "starlette", "cryptography"} & sys.modules.keys()
"""


def test_it_is_set_in_processes_of_ours_only() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=30)

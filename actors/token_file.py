"""Where the tokens of one MCP server, and what is registered for us there, outlive the process.

One file per server and address in `oauth/` of the state directory: the folder for its owner only (0700), the files
too (0600), replaced whole. What is in them are secrets, and said nowhere else. A file that cannot be read counts as
none, and one that cannot be written is told in the log: then the user is asked again after the next start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import trio

from actors import files

FOLDER = "oauth"

log = logging.getLogger(__name__)


class TokenFile:
    """The file of one server.

    Args:
        state_dir: absolute path of the state directory.
        server: its name.
        url: its address; tokens for another one are not for this.
    """

    def __init__(self, state_dir: str, server: str, url: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9_-]", "_", server)[:40]
        digest = hashlib.sha256(f"{server}\0{url}".encode()).hexdigest()[:16]
        self.path = Path(state_dir) / FOLDER / f"{readable}-{digest}.json"
        self._server = server
        self._saving = trio.Lock()

    async def load(self) -> dict[str, Any]:
        """What was saved last; empty where there is nothing that can be read."""
        return await trio.to_thread.run_sync(self._load)

    async def save(self, record: dict[str, Any]) -> None:
        """Keep that from now on; an empty one: keep nothing."""
        async with self._saving:
            await trio.to_thread.run_sync(self._save, record)

    def _load(self) -> dict[str, Any]:
        try:
            _restrict(self.path.parent, 0o700)
            _restrict(self.path, 0o600)
            record = json.loads(files.read(self.path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError, files.Unreadable) as error:
            # Not the error's text: it may quote what it could not read.
            log.warning("the tokens of MCP server %r cannot be read: %s", self._server, type(error).__name__)
            return {}
        return record if isinstance(record, dict) else {}

    def _save(self, record: dict[str, Any]) -> None:
        try:
            if not record:
                self.path.unlink(missing_ok=True)
                return
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            _restrict(self.path.parent, 0o700)
            if self.path.exists():
                _restrict(self.path, 0o600)  # its mode is taken over
            files.replace(self.path, json.dumps(record, indent=1))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            log.error("the tokens of MCP server %r are not kept: %s", self._server, reason)  # noqa: TRY400 - a full disk is no trace


def _restrict(path: Path, mode: int) -> None:
    """Take from others what they may do with it. Raises OSError."""
    if path.stat().st_mode & 0o777 & ~mode:
        os.chmod(path, mode)

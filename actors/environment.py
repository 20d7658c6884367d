"""What `.env` files add to the environment, where the keys of providers are. The only importer of dotenv."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import dotenv

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
